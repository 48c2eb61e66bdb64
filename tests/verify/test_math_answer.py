# SPDX-License-Identifier: Apache-2.0
"""Mathematical answers are compared by meaning, in whatever spelling they come."""

import re

import hypothesis
import pytest
from hypothesis import strategies as st

from ring_jax.verify import grade

RIGHT = [
    # Fractions and decimals.
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}"),
    (r"The answer is $\frac{2}{4}$.", "1/2"),
    (r"\boxed{7/3}", r"\frac{14}{6}"),
    (r"$3\frac{1}{2}$", r"\frac{7}{2}"),
    ("3.5", r"3\frac12"),
    ("$1/3$", "0.333333"),
    (r"Total: \[ x = \frac{7}{3} \]", "7/3"),
    # Nested and repeated boxes, and what stands behind reasoning.
    (r"\boxed{\boxed{7}}", "7"),
    (r"First \boxed{3}, but rather \boxed{\frac{1}{2}}.", r"\frac12"),
    ("<think>\\boxed{5}</think>It is \\boxed{6}", "6"),
    ("I think 7 and 8. It is 42.", "42"),
    ("The final answer is **42**", "42"),
    ("#### 72", "72"),
    # Units, degrees, currency, percent, separators.
    (r"\boxed{90^\circ}", "90"),
    ("90°", r"90^\circ"),
    ("90 degrees", r"90^\circ"),
    (r"\boxed{\$1,234.50}", "1234.5"),
    ("$1,234.50", r"\$1234.50"),
    (r"\boxed{1{,}234}", "1234"),
    (r"\boxed{1\,000\,000}", "1000000"),
    (r"\boxed{1.5\times10^3}", "1500"),
    ("1.5e3", "1500"),
    (r"\boxed{50\%}", "50%"),
    ("50%", "0.5"),
    (r"\boxed{5\text{ cm}}", "5"),
    ("5 cm", r"5\text{ cm}"),
    (r"\boxed{12\text{ apples}}", "12"),
    (r"\boxed{11{:}30}", "11:30"),
    ("-5", "−5"),
    # Roots, constants, expressions, equations.
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("2*sqrt(3)", r"2\sqrt{3}"),
    ("π/2", r"\frac{\pi}{2}"),
    ("x^2+1", r"1+x^2"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{x=3}", "3"),
    (r"\boxed{3}", "x=3"),
    (r"\boxed{2x+3}", "y=2x+3"),
    # Tuples, sets, intervals, matrices, several solutions in any order.
    ("(1,2)", "(1, 2)"),
    ("(0.5, 2)", r"\left(\frac12,2\right)"),
    (r"\boxed{\{3,1,2\}}", r"\{1,2,3\}"),
    (r"\boxed{3,-2}", "-2, 3"),
    (r"\boxed{x=3\text{ or }x=-2}", "x=-2, x=3"),
    (r"\boxed{[0,\infty)}", r"[0, \infty)"),
    (r"So the answer is $x \in (1,2)$", "(1,2)"),
    (
        r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
    ),
    # Words and letters.
    (r"\boxed{\text{Evelyn}}", "Evelyn"),
    ("evelyn", r"\text{Evelyn}"),
    (r"\boxed{\text{no}}", "no"),
    (r"\boxed{B}", "B"),
    ("The answer is (B).", "B"),
    (r"\boxed{\text{(C) } 15}", "C"),
    # The example of math-verify's README.
    ("${1,2,3,4}$", r"${1,3} \cup {2,4}$"),
]

WRONG = [
    (r"\boxed{\frac{1}{3}}", "0.5"),
    (r"\boxed{0.34}", "1/3"),
    ("(2,1)", "(1,2)"),
    (r"\boxed{(1,2]}", "(1,2)"),
    (r"\boxed{\{1,2\}}", r"\{1,2,3\}"),
    (r"\boxed{x>3}", "x<3"),
    (r"\boxed{x=3}", "x=-3"),
    (r"\boxed{-5}", "5"),
    (r"\boxed{12}", r"\frac12"),
    (r"\boxed{1.5e4}", "1500"),
    # An expression without dollars is not its first number.
    (r"2\sqrt{3}", "2"),
    (r"The answer is 2\sqrt{3}", "2"),
    # The last answer counts, and no other.
    (r"\boxed{5} is too small: \boxed{6}", "5"),
    ("42, or maybe 43", "42"),
    # As a product of letters, on is no.
    (r"\boxed{on}", "no"),
    ("east", "west"),
    (r"\boxed{A}", "B"),
    ("pi", "3"),
    ("no idea", "5"),
    (r"\boxed{}", "5"),
    (r"\boxed{\frac{}{}}", "1"),
    (r"\boxed{" * 500, "1"),
]


def is_correct(reply: str, answer: str, **metadata) -> bool:
    return grade(
        verifier="math", reply=reply, answer=answer, metadata=metadata
    ).is_correct


@pytest.mark.parametrize(("reply", "answer"), RIGHT)
def test_the_same_value_is_right(reply, answer):
    assert is_correct(reply, answer)


@pytest.mark.parametrize(("reply", "answer"), WRONG)
def test_another_value_is_wrong(reply, answer):
    assert not is_correct(reply, answer)


def test_an_option_may_be_named_by_its_text():
    choices = ["2", "3", "5"]
    assert is_correct(r"\boxed{3}", "B", choices=choices)
    assert not is_correct(r"\boxed{5}", "B", choices=choices)


@hypothesis.given(st.fractions(max_denominator=50), st.fractions(max_denominator=50))
@hypothesis.settings(max_examples=60, deadline=None, database=None)
def test_fractions_are_equal_as_python_finds(one, other):
    answer = rf"\frac{{{one.numerator}}}{{{one.denominator}}}"
    reply = rf"So \boxed{{{other.numerator}/{other.denominator}}}."
    assert is_correct(reply, answer) == (one == other)


# math-verify's own words for a time limit that it must not set.
@pytest.mark.filterwarnings("error")
def test_no_signal_is_used(monkeypatch):
    monkeypatch.setattr("signal.alarm", None)
    assert is_correct(r"\boxed{\frac{3}{7}}", r"\frac{6}{14}")


def test_a_missing_package_is_named(monkeypatch):
    from ring_jax.config import ConfigError
    from ring_jax.verify import math_answer

    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    math_answer._library.cache_clear()
    with pytest.raises(ConfigError, match=re.escape("ring-jax[curate]")):
        is_correct("3", "4")
    math_answer._library.cache_clear()
