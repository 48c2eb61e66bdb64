# SPDX-License-Identifier: Apache-2.0
"""Numbers are exact, or as near as their row allows; letters come in many spellings."""

import fractions

import hypothesis
import pytest
from hypothesis import strategies as st

from ring_jax.config import ConfigError
from ring_jax.verify import grade

CITIES = ["London", "Paris", "Rome", "Bern"]


def is_correct(verifier: str, reply: str, answer: str, **metadata) -> bool:
    return grade(
        verifier=verifier, reply=reply, answer=answer, metadata=metadata
    ).is_correct


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("72", "72"),
        ("She sold 48 + 24 = 72 clips.", "72"),
        (r"48 + 24 = \boxed{72}", "72"),
        ("The answer is 72 clips, not 48.", "72"),
        (r"\boxed{x = 70 + 2 = 72}", "72.0"),
        ("#### 1,234,567", "1234567"),
        (r"\boxed{1{,}234.50}", "1234.5"),
        ("$5", "5"),
        ("-$5.00", "-5"),
        (r"\boxed{-\frac{3}{4}}", "-0.75"),
        (r"\boxed{\dfrac{3}{4}}", "3/4"),
        ("1.5e3", "1500"),
        (r"\boxed{1.5 \times 10^{-3}}", "0.0015"),
        ("50%", "0.5"),
        ("50%", "50"),
        ("0.5", "50%"),
        ("50%", "50 percent"),
        ("−7", "-7"),
        (".5", "0.5"),
        ("It took from 1999-2004", "2004"),
        ("<think>it may be 8</think>9", "9"),
    ],
)
def test_a_number_in_another_spelling_is_right(reply, answer):
    assert is_correct("number", reply, answer)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("71", "72"),
        ("-72", "72"),
        ("72 of 100", "72"),
        (r"\boxed{71} is nearly 72", "72"),
        ("72.001", "72"),
        ("5%", "0.5"),
        ("50%", "5%"),
        ("many", "72"),
        ("1/0", "1"),
        ("9" * 5000, "9"),
        ("1e999999999", "1"),
        ("1,23", "123"),
    ],
)
def test_another_number_is_wrong(reply, answer):
    assert not is_correct("number", reply, answer)


@hypothesis.given(st.fractions(), st.fractions(), st.sampled_from([0, 1e-6, 0.01, 0.5]))
@hypothesis.settings(max_examples=200, deadline=None, database=None)
def test_a_number_may_be_off_by_its_share_of_the_gold_one(gold, given, tolerance):
    allowed = fractions.Fraction(tolerance) * abs(gold)
    found = is_correct("number", str(given), str(gold), relative_tolerance=tolerance)
    assert found == (abs(given - gold) <= allowed)


@pytest.mark.parametrize(
    ("answer", "tolerance"), [("many", 0), ("1", -1), ("1", 1), ("1", "0.1")]
)
def test_a_row_that_cannot_be_asked_is_refused(answer, tolerance):
    with pytest.raises(ConfigError):
        is_correct("number", "1", answer, relative_tolerance=tolerance)


@pytest.mark.parametrize(
    "reply",
    [
        "B",
        "b",
        "(B)",
        "(b)",
        "B.",
        "**B**",
        "B) Paris",
        "(B) Paris, of course.",
        "B: Paris",
        "Option B",
        "The answer is B",
        "The answer is (B).",
        "The correct answer is **B**.",
        "Answer: B, because it is the capital.",
        "The answer is B because it is the capital.",
        r"So it must be \boxed{B}.",
        r"\boxed{\text{B}}",
        r"\boxed{\textbf{(B)}\ Paris}",
        "Paris",
        "paris.",
        "The answer is Paris.",
        r"\boxed{\text{Paris}}",
        "Of these I would choose option B here.",
        "<think>(A) or (C)?</think>It can only be (B).",
        "答案是B",
    ],
)
def test_a_letter_or_the_option_itself_is_right(reply):
    assert is_correct("choice", reply, "B", choices=CITIES)
    assert is_correct("choice", reply, "Paris", choices=CITIES)
    by_letter = dict(zip("ABCD", CITIES, strict=True))
    assert is_correct("choice", reply, "(b)", choices=by_letter)


@pytest.mark.parametrize(
    "reply",
    [
        "A",
        "(C)",
        "London",
        "The answer is A.",
        "(B) or (C)",
        "Be that as it may",
        "I cannot tell.",
        "E",
        "",
        r"Not (B) but \boxed{C}",
        "Paris or Rome",
    ],
)
def test_another_letter_or_none_is_wrong(reply):
    assert not is_correct("choice", reply, "B", choices=CITIES)


def test_an_article_is_no_letter():
    assert not is_correct("choice", "A city that I forgot", "A", choices=CITIES)


def test_a_letter_needs_no_list_of_options():
    assert is_correct("choice", "The answer is (J)", "J")
    with pytest.raises(ConfigError, match="is none of"):
        is_correct("choice", "A", "Paris")
    with pytest.raises(ConfigError, match="is none of"):
        is_correct("choice", "A", "E", choices=CITIES)
