# SPDX-License-Identifier: Apache-2.0
"""Reasoning tasks: levels, short prompts, and derivations written from the metadata.

The problems, their answers and their verifiers are reasoning-gym's. The prompts are
ours, because its own would cost a small model most of its tokens; so are the
derivations, since only `gsm_symbolic` brings one. A derivation computes its own answer,
which the task's verifier must accept before the row is used.
"""

import ast
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Entry = Mapping[str, Any]
"""What a reasoning-gym dataset gives for an index: question, answer, metadata."""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One problem in our words."""

    prompt: str
    think: str
    answer: str
    """Derived, not copied from the entry."""
    native_answer: str = ""
    """The answer in the form that the verifier reads; empty when that is `answer`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A reasoning-gym dataset, graded."""

    write: Callable[[Entry], Problem | None]
    """Puts an entry into our words; None where our derivation does not apply."""
    levels: Mapping[str, Mapping[str, Any]]
    """Level -> settings of the dataset."""


def chain_sum(entry: Entry) -> Problem:
    """3+4-2=? is solved by running sums: 3+4=7;7-2=5."""
    expression = entry["metadata"]["expression"].split()
    total, steps = int(expression[0]), []
    for sign, term in zip(expression[1::2], expression[2::2], strict=True):
        new_total = _OPERATORS[sign](total, int(term))
        steps.append(f"{total}{sign}{term}={new_total}")
        total = new_total
    return Problem(f"{''.join(expression)}=?", ";".join(steps), str(total))


def decimal_chain_sum(entry: Entry) -> Problem:
    """4.8+1.7-2.05=? is solved by running sums, in exact decimals."""
    expression = entry["metadata"]["expression"].split()
    places = max(len(term.partition(".")[2]) for term in expression[::2])
    total, steps = _scaled(expression[0], places), []
    for sign, term in zip(expression[1::2], expression[2::2], strict=True):
        new_total = _OPERATORS[sign](total, _scaled(term, places))
        before, after = _unscaled(total, places), _unscaled(new_total, places)
        steps.append(f"{before}{sign}{term}={after}")
        total = new_total
    answer = _unscaled(total, places)
    return Problem(f"{''.join(expression)}=?", ";".join(steps), answer)


def basic_arithmetic(entry: Entry) -> Problem | None:
    """2+3*4=? is solved innermost first: 3*4=12;2+12=14."""
    expression = entry["metadata"]["expression"].replace(" ", "")
    steps: list[str] = []
    value = _evaluate(ast.parse(expression, mode="eval").body, steps)
    if value is None or not steps:
        return None
    return Problem(f"{expression}=?", ";".join(steps), str(value))


def products(entry: Entry) -> Problem:
    """34*27=? is solved by the places of the second factor, then their sum."""
    left, right = (int(term) for term in entry["metadata"]["expression"].split(" * "))
    places = [
        int(digit) * 10**place
        for place, digit in enumerate(reversed(str(right)))
        if digit != "0"
    ]
    parts = [left * place for place in reversed(places)] or [0]
    steps = [f"{left}*{p}={left * p}" for p in reversed(places)]
    if len(parts) > 1:
        steps.append(f"{'+'.join(map(str, parts))}={sum(parts)}")
    think = ";".join(steps) or f"{left}*{right}=0"
    return Problem(f"{left}*{right}=?", think, str(sum(parts)))


def number_sorting(entry: Entry) -> Problem:
    """Sorting is by insertion; the list after each insertion is written down."""
    metadata = entry["metadata"]
    numbers = [_plain(number) for number in metadata["original_numbers"]]
    is_descending = metadata["direction"] == "descending"
    inserted: list[str] = []
    lists = []
    for number in numbers:
        inserted = sorted([*inserted, number], key=float, reverse=is_descending)
        lists.append(" ".join(inserted))
    direction = "down" if is_descending else "up"
    return Problem(
        prompt=f"Sort {direction}: {' '.join(numbers)}",
        think=";".join(lists),
        answer=lists[-1],
        native_answer=str(inserted),
    )


def number_filtering(entry: Entry) -> Problem:
    """Each number is compared with the threshold, then kept or not."""
    metadata = entry["metadata"]
    verb, side = metadata["operation"].split("_")
    threshold = metadata["filter_value"]
    kept, steps = [], []
    for number in metadata["original_numbers"]:
        sign = _compare(float(number), float(threshold))
        is_on_side = sign == (">" if side == "larger" else "<")
        is_kept = is_on_side == (verb == "keep")
        steps.append(f"{number}{sign}{threshold} {'yes' if is_kept else 'no'}")
        kept += [number] if is_kept else []
    numbers = " ".join(metadata["original_numbers"])
    return Problem(
        prompt=f"{verb.capitalize()} numbers {side} than {threshold}: {numbers}",
        think=";".join(steps),
        answer=" ".join(kept) or "none",
        native_answer=str(kept),
    )


def number_format(entry: Entry) -> Problem:
    """The largest or smallest number is found by comparing with the best so far."""
    metadata = entry["metadata"]
    # Made with three decimals, but by adding floats: 197.80499999999998.
    candidates = [round(candidate, 3) for candidate in metadata["candidates"]]
    size = metadata["size"]
    best, steps = candidates[0], []
    for candidate in candidates[1:]:
        sign = _compare(best, candidate)
        steps.append(f"{best}{sign}{candidate}")
        best = candidate if sign == ("<" if size == "largest" else ">") else best
    numbers = ", ".join(map(str, candidates))
    return Problem(f"Which is {size}: {numbers}?", ";".join(steps), str(best))


def word_sorting(entry: Entry) -> Problem:
    """Words are sorted by insertion in ASCII order."""
    metadata = entry["metadata"]
    is_descending = metadata["direction"] == "descending"
    inserted: list[str] = []
    lists = []
    for word in metadata["transformed_words"]:
        inserted = sorted([*inserted, word], reverse=is_descending)
        lists.append(", ".join(inserted))
    words = ", ".join(metadata["transformed_words"])
    prompt = f"Sort {'down' if is_descending else 'up'} (ASCII): {words}"
    return Problem(prompt, ";".join(lists), lists[-1])


def word_sequence_reversal(entry: Entry) -> Problem:
    """Words are numbered from the last to the first."""
    words = entry["metadata"]["words"]
    numbered = [f"{i} {word}" for i, word in reversed(list(enumerate(words, 1)))]
    answer = ", ".join(reversed(words))
    return Problem(f"Reverse: {', '.join(words)}", ";".join(numbered), answer)


def spell_backward(entry: Entry) -> Problem:
    """The word is spelled, then spelled from its end."""
    word = entry["metadata"]["word"]
    think = f"{' '.join(word)};{' '.join(reversed(word))}"
    return Problem(f"Spell backward: {word}", think, word[::-1])


def letter_counting(entry: Entry) -> Problem:
    """A running count of the letter, word by word."""
    metadata = entry["metadata"]
    letter, count, steps = metadata["target_letter"], 0, []
    for word in metadata["span"]:
        count += word.lower().count(letter)
        steps.append(f"{word} {count}")
    prompt = f"How many {letter} in: {' '.join(metadata['span'])}?"
    return Problem(prompt, ";".join(steps), str(count))


def leg_counting(entry: Entry) -> Problem:
    """Legs per kind of animal, then the running sum."""
    from reasoning_gym.arithmetic import leg_counting as module

    animals = entry["metadata"]["animals"]
    legs = [count * module.ANIMALS[animal] for animal, count in animals.items()]
    steps = [
        f"{count} {animal} {count}*{module.ANIMALS[animal]}={product}"
        for (animal, count), product in zip(animals.items(), legs, strict=True)
    ]
    steps.append(f"{'+'.join(map(str, legs))}={sum(legs)}")
    asked = ", ".join(f"{count} {animal}" for animal, count in animals.items())
    return Problem(f"How many legs: {asked}?", ";".join(steps), str(sum(legs)))


def simple_equations(entry: Entry) -> Problem | None:
    """a*x+c=r is solved as a*x=r-c, then x=(r-c)/a."""
    equation, variable = entry["metadata"]["equation"], entry["metadata"]["variable"]
    left, right = equation.split(" = ")
    at = [_evaluate_at(left, variable, value) for value in (0, 1, 2)]
    constant, slope, goal = at[0], at[1] - at[0], int(right)
    is_linear = at[2] - at[1] == slope != 0
    if not is_linear or (goal - constant) % slope:
        return None
    moved = goal - constant
    steps = [f"{slope}{variable}={goal}{-constant:+}={moved}"] if constant else []
    steps.append(f"{variable}={moved}/{slope}={moved // slope}")
    prompt = f"Solve for {variable}: {equation.replace(' ', '')}"
    return Problem(prompt, ";".join(steps), str(moved // slope))


def gcd(entry: Entry) -> Problem:
    """Euclid's remainders."""
    left, right = entry["metadata"]["numbers"]
    prompt = f"gcd of {left} and {right}?"
    steps = list(_euclid(left, right))
    return Problem(prompt, ";".join(steps), str(math.gcd(left, right)))


def fraction_simplification(entry: Entry) -> Problem:
    """Both sides are divided by their greatest common divisor."""
    top, bottom = entry["metadata"]["numerator"], entry["metadata"]["denominator"]
    divisor = math.gcd(top, bottom)
    steps = [
        *_euclid(top, bottom),
        f"{top}/{divisor}={top // divisor}",
        f"{bottom}/{divisor}={bottom // divisor}",
    ]
    answer = f"{top // divisor}/{bottom // divisor}"
    return Problem(f"Simplify {top}/{bottom}", ";".join(steps), answer)


def prime_factorization(entry: Entry) -> Problem:
    """The smallest prime factor is divided out until 1 is left."""
    number, factors, steps = entry["metadata"]["number"], [], []
    rest = number
    while rest > 1:
        factor = next(p for p in range(2, rest + 1) if rest % p == 0)
        factors.append(str(factor))
        steps.append(f"{rest}/{factor}={rest // factor}")
        rest //= factor
    return Problem(f"Prime factors of {number}?", ";".join(steps), " × ".join(factors))


def base_conversion(entry: Entry) -> Problem | None:
    """Places to a decimal value, then remainders by the new base."""
    metadata = entry["metadata"]
    if not metadata["source_repr"]:  # reasoning-gym writes zero as nothing
        return None
    digits, base = metadata["source_repr"], metadata["source_base"]
    new_base = metadata["target_base"]
    value = int(digits, base)
    places = [int(digit, 36) * base**i for i, digit in enumerate(reversed(digits))]
    steps = [f"{'+'.join(map(str, reversed(places)))}={value}"]
    remainders, rest = [], value
    while rest or not remainders:
        rest, remainder = divmod(rest, new_base)
        remainders.append(_DIGITS[remainder])
        steps.append(f"{rest} r {remainders[-1]}")
    prompt = f"Base {base} to base {new_base}: {digits}"
    return Problem(prompt, ";".join(steps), "".join(reversed(remainders)))


def gsm_symbolic(entry: Entry) -> Problem | None:
    """The worked solution that the task carries; its last line is `#### answer`."""
    solution, mark, answer = entry["metadata"]["answer_cot"].rpartition("####")
    question = entry["question"].removesuffix(_GSM_SUFFIX).strip()
    if not mark:
        return None
    return Problem(question, solution.strip(), answer.strip())


_GSM_SUFFIX = "Give the result as your final answer. Do not include units."
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_AST_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _scaled(term: str, places: int) -> int:
    whole, _, fraction = term.partition(".")
    return int(whole + fraction.ljust(places, "0"))


def _unscaled(value: int, places: int) -> str:
    sign, digits = "-" * (value < 0), str(abs(value)).rjust(places + 1, "0")
    return f"{sign}{digits[:-places]}.{digits[-places:]}"


def _evaluate(node: ast.AST, steps: list[str]) -> int | None:
    """Evaluates in integers, noting each step; None where a step does not divide."""
    if isinstance(node, ast.Constant):
        return int(node.value)  # pyright: ignore[reportArgumentType]  # ours: a number
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, steps)
        return None if value is None else -value
    assert isinstance(node, ast.BinOp), ast.dump(node)
    left, right = _evaluate(node.left, steps), _evaluate(node.right, steps)
    if left is None or right is None:
        return None
    sign = _AST_SIGNS[type(node.op)]
    if sign == "/":
        if right == 0 or left % right:
            return None
        value = left // right
    else:
        value = _OPERATORS[sign](left, right)
    steps.append(f"{left}{sign}{right}={value}")
    return value


def _evaluate_at(expression: str, variable: str, value: int) -> int:
    text = expression.replace(" ", "").replace(variable, str(value))
    result = _evaluate(ast.parse(text, mode="eval").body, [])
    assert result is not None, text
    return result


def _plain(number: str) -> str:
    return number.removesuffix(".0")


def _compare(left: float, right: float) -> str:
    return "=" if left == right else "<" if left < right else ">"


def _euclid(left: int, right: int) -> Iterator[str]:
    left, right = max(left, right), min(left, right)
    while right:
        yield f"{left}%{right}={left % right}"
        left, right = right, left % right


def _terms(terms: tuple[int, int], digits: tuple[int, int], **more) -> dict[str, Any]:
    return {
        "min_terms": terms[0],
        "max_terms": terms[1],
        "min_digits": digits[0],
        "max_digits": digits[1],
        **more,
    }


def _range(name: str, low: float, high: float, **more) -> dict[str, Any]:
    return {f"min_{name}": low, f"max_{name}": high, **more}


_INTEGERS = {"min_decimals": 0, "max_decimals": 0, "min_value": 0.0, "max_value": 99.0}
_PLAIN_SUMS = {"allow_parentheses": False, "allow_negation": False}
_PLAIN_STYLE = {"styles": ("plain",)}

TASKS: Mapping[str, Task] = {
    "chain_sum": Task(
        chain_sum,
        {
            "easy": _terms((2, 4), (1, 1)),
            "medium": _terms((2, 4), (2, 2)),
            "hard": _terms((4, 6), (2, 3)),
        },
    ),
    "decimal_chain_sum": Task(
        decimal_chain_sum,
        {
            "easy": _terms((2, 2), (1, 1), **_range("decimal_places", 1, 1)),
            "medium": _terms((2, 3), (1, 2), **_range("decimal_places", 1, 2)),
            "hard": _terms((3, 5), (2, 3), **_range("decimal_places", 1, 3)),
        },
    ),
    "basic_arithmetic": Task(
        basic_arithmetic,
        {
            "easy": _terms((2, 3), (1, 1), operators=("+", "-", "*"), **_PLAIN_SUMS),
            "medium": _terms((3, 4), (1, 2), allow_negation=False),
            "hard": _terms((4, 6), (1, 2)),
        },
    ),
    "products": Task(
        products,
        {
            "easy": _terms((2, 2), (1, 2)),
            "medium": _terms((2, 2), (2, 2)),
            "hard": _terms((2, 2), (3, 3)),
        },
    ),
    "number_sorting": Task(
        number_sorting,
        {
            "easy": {**_INTEGERS, **_range("numbers", 3, 3)},
            "medium": {**_INTEGERS, **_range("numbers", 4, 5)},
            "hard": {**_INTEGERS, **_range("numbers", 6, 8), "min_value": -99.0},
        },
    ),
    "number_filtering": Task(
        number_filtering,
        {
            "easy": {**_INTEGERS, **_range("numbers", 3, 3)},
            "medium": {**_INTEGERS, **_range("numbers", 4, 6)},
            "hard": {**_INTEGERS, **_range("numbers", 6, 8), "min_value": -99.0},
        },
    ),
    "number_format": Task(
        number_format,
        {
            "easy": _range("num_candidates", 2, 2, min_n=10, max_n=999, max_delta=100),
            "medium": _range("num_candidates", 3, 3, min_n=10, max_n=9999),
            "hard": _range("num_candidates", 4, 5),
        },
    ),
    "word_sorting": Task(
        word_sorting,
        {
            "easy": _range("words", 3, 3, **_range("word_length", 3, 6)),
            "medium": _range("words", 4, 5, **_range("word_length", 3, 8)),
            "hard": _range("words", 6, 8, **_range("word_length", 3, 12)),
        },
    ),
    "word_sequence_reversal": Task(
        word_sequence_reversal,
        {
            "easy": _range("words", 3, 3),
            "medium": _range("words", 4, 5),
            "hard": _range("words", 6, 8),
        },
    ),
    "spell_backward": Task(
        spell_backward,
        {
            "easy": _range("word_len", 3, 4),
            "medium": _range("word_len", 5, 6),
            "hard": _range("word_len", 7, 10),
        },
    ),
    "letter_counting": Task(
        letter_counting,
        {
            "easy": _range("words", 3, 4),
            "medium": _range("words", 5, 7),
            "hard": _range("words", 8, 12),
        },
    ),
    "leg_counting": Task(
        leg_counting,
        {
            "easy": _range("animals", 2, 2, **_range("instances", 1, 5)),
            "medium": _range("animals", 2, 3, **_range("instances", 1, 9)),
            "hard": _range("animals", 4, 6, **_range("instances", 1, 15)),
        },
    ),
    "simple_equations": Task(
        simple_equations,
        {
            "easy": _range("terms", 2, 2, **_range("value", 1, 9)),
            "medium": _range("terms", 2, 3, **_range("value", 1, 20)),
            "hard": _range("terms", 3, 4, **_range("value", 1, 100)),
        },
    ),
    "gcd": Task(
        gcd,
        {
            "easy": _range("value", 2, 60),
            "medium": _range("value", 10, 200),
            "hard": _range("value", 100, 1000),
        },
    ),
    "fraction_simplification": Task(
        fraction_simplification,
        {
            "easy": _range("value", 1, 20, **_range("factor", 2, 9), **_PLAIN_STYLE),
            "medium": _range("value", 1, 50, **_range("factor", 2, 20), **_PLAIN_STYLE),
            "hard": _range("value", 1, 200, **_range("factor", 2, 50), **_PLAIN_STYLE),
        },
    ),
    "prime_factorization": Task(
        prime_factorization,
        {
            "easy": _range("value", 2, 200),
            "medium": _range("value", 2, 1000),
            "hard": _range("value", 1000, 9999),
        },
    ),
    "base_conversion": Task(
        base_conversion,
        {
            "easy": _range("base", 2, 6, **_range("value", 2, 60)),
            "medium": _range("base", 2, 10, **_range("value", 0, 300)),
            "hard": _range("base", 2, 16, **_range("value", 0, 5000)),
        },
    ),
    # Its one difficulty is far above the others: stories of several sentences.
    "gsm_symbolic": Task(gsm_symbolic, {"hard": {}}),
}
"""Task name (reasoning-gym's) -> levels and wording. `easy` is what a model of some
million parameters learns in minutes; the others are to be reported."""
