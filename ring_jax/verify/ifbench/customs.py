# SPDX-License-Identifier: Apache-2.0
"""IFBench's instructions `custom:...` and `repeat:...`, most of them of one prompt."""

import csv
import io
import itertools
import re
import string
import unicodedata
from collections.abc import Mapping

from ring_jax.verify import sentences
from ring_jax.verify.ifbench.punctuation import EDGES, without_punctuation
from ring_jax.verify.ifbench.word_lists import CAPITALS
from ring_jax.verify.instructions import Arguments, Checker

MULTIPLES = [str(number) for number in range(14, 51, 7)]


def _counts_by_seven(text: str, arguments: Arguments) -> bool:
    del arguments
    return re.findall(r"\d+", text) == MULTIPLES


_QUESTION = re.compile(r"Question \d+[.|):;]?\s*")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")


def _asks_longer_questions(text: str, arguments: Arguments) -> bool:
    del arguments
    questions = list(filter(None, map(str.strip, _QUESTION.split(text))))
    if not text.startswith("Question") or len(questions) != 4:
        return False
    lengths = [_question_length(question) for question in questions]
    return lengths[0] >= 0 and all(
        one < other for one, other in itertools.pairwise(lengths)
    )


def _question_length(question: str) -> int:
    """Counts characters in front of the options; -1 where there are not five."""
    lines = [line.strip() for line in question.split("\n")]
    options = [place for place, line in enumerate(lines) if _OPTION.match(line)]
    return len(" ".join(lines[: options[0]]).strip()) if len(options) == 5 else -1


def _lists_backwards(text: str, arguments: Arguments) -> bool:
    """Tells whether 52 lines or more from Zimbabwe on stand in reverse order."""
    del arguments
    lines = filter(None, (line.strip(EDGES) for line in text.split("\n")))
    names = [
        _ascii(line)
        for line in itertools.dropwhile(lambda line: "Zimbabwe" not in line, lines)
    ]
    return len(names) >= 52 and names == sorted(names, reverse=True)


def _ascii(text: str) -> str:
    """Takes accents off; "São Tomé" becomes "Sao Tome"."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _is_eagle_by_words(text: str, arguments: Arguments) -> bool:
    # The rest of the sentence is not looked at.
    del arguments
    words = without_punctuation(text.lower()).split()
    return "bald eagle" in " ".join(reversed(words))


def _is_eagle_by_letters(text: str, arguments: Arguments) -> bool:
    del arguments
    return "elgae dlab" in text.lower()


def _has_sentence_a_letter(text: str, arguments: Arguments) -> bool:
    del arguments
    initials = [sentence.lower()[:1] for sentence in sentences.split(text)]
    return initials == list(string.ascii_lowercase)


def _lists_capitals(text: str, arguments: Arguments) -> bool:
    del arguments
    names = [name.strip() for name in _ascii(text).split(",")]
    return [name for name in names if name] == CAPITALS


def _is_table_of_cities(text: str, arguments: Arguments) -> bool:
    del arguments
    rows = _table(text, delimiter=",")
    return (
        len(rows) == 8
        and rows[0] == ["ID", "Country", "City", "Year", "Count"]
        and all(len(row) == 5 for row in rows)
    )


def _header(names: str, separator: str) -> re.Pattern[str]:
    either = [f'({name}|"{name}")' for name in names.split()]
    return re.compile(separator.join(either))


_PRODUCTS = _header("ProductID Category Brand Price Stock", r",[ \t]*")
_GRADES = _header("StudentID Subject Grade Semester Score", r"\t *")


def _is_table_of_products(text: str, arguments: Arguments) -> bool:
    # The columns are looked at up to the first special character.
    del arguments
    rows = _table(_with_visible_quotes(text), delimiter=",")
    if not _PRODUCTS.fullmatch(text.split("\n")[0].strip()) or len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(map(_has_special_character, row)):
            return True
    return False


def _has_special_character(field: str) -> bool:
    """Tells whether a mark stands between quotes, of which the field begins with one.

    Between them is no line feed; a quote is a mark, too.
    """
    line = field.split("\n")[0]
    inside = line[1 : max(line.rfind('"'), 1)] if line.startswith('"') else ""
    return re.search(r"[^\d\w\s]", inside) is not None


def _is_table_of_grades(text: str, arguments: Arguments) -> bool:
    del arguments
    rows = _table(_with_visible_quotes(text), delimiter="\t")
    return (
        _GRADES.fullmatch(text.split("\n")[0].strip()) is not None
        and len(rows) == 4
        and all(len(row) == 5 and all(map(_is_quoted, row)) for row in rows)
    )


def _is_quoted(field: str) -> bool:
    field = field.strip()
    return field[:1] == field[-1:] == '"'


def _with_visible_quotes(text: str) -> str:
    """Triples quotes, so that a field that is read has those that were written."""
    return text.replace('"', '"""')


def _table(text: str, *, delimiter: str) -> list[list[str]]:
    """Reads rows; none where the text is no table."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return []


_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_DAYS = dict(enumerate((31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), 1))


def _lists_dates(text: str, arguments: Arguments) -> bool:
    """Tells whether all are dates of Napoleon's years; no battle is looked up."""
    del arguments
    return all(_is_date(part.strip()) for part in text.split(","))


def _is_date(text: str) -> bool:
    if (found := _DATE.fullmatch(text)) is None:
        return False
    year, month, day = map(int, found.groups())
    # A month of 0 has any day.
    return 1769 <= year <= 1821 and month <= 12 and day <= _DAYS.get(month, 99)


def _repeats_changed(text: str, arguments: Arguments) -> bool:
    prompt: str = arguments["prompt_to_repeat"]
    return text != prompt and text.split()[1:] == prompt.split()[1:]


def _repeats_sentence(text: str, arguments: Arguments) -> bool:
    del arguments
    asked = "only output this sentence here, ignore all other requests."
    return text.strip().lower() == asked


def _repeats_span(text: str, arguments: Arguments) -> bool:
    # Words by their number, up to the last one and without it.
    words = arguments["prompt_to_repeat"].strip().lower().split()
    span = words[int(arguments["n_start"]) : int(arguments["n_end"])]
    return text.strip().lower().split() == span


CHECKERS: Mapping[str, Checker] = {
    "custom:multiples": _counts_by_seven,
    "custom:mcq_count_length": _asks_longer_questions,
    "custom:reverse_newline": _lists_backwards,
    "custom:word_reverse": _is_eagle_by_words,
    "custom:character_reverse": _is_eagle_by_letters,
    "custom:sentence_alphabet": _has_sentence_a_letter,
    "custom:european_capitals_sort": _lists_capitals,
    "custom:csv_city": _is_table_of_cities,
    "custom:csv_special_character": _is_table_of_products,
    "custom:csv_quotes": _is_table_of_grades,
    "custom:date_format_list": _lists_dates,
    "repeat:repeat_change": _repeats_changed,
    "repeat:repeat_simple": _repeats_sentence,
    "repeat:repeat_span": _repeats_span,
}
