# SPDX-License-Identifier: Apache-2.0
"""IFEval's instructions: every id right and wrong, as lm-eval 0.4.13 decides them.

The cases are our own; each verdict was compared with that scorer's, as were 30,000
verdicts on texts put together at random (none differed).
"""

import pytest

from ring_jax.config import ConfigError
from ring_jax.verify import grade, ifeval

POEM = "THE RAIN CAME DOWN ON THE ROOF AND THE CHILDREN WERE STANDING AT THE WINDOW"
CASES = {
    "keywords:existence": (
        {"keywords": ["Rain", "roof"]},
        ["rain on the ROOF", "Rainy days, roofs leak"],
        ["rain only", "roof only"],
    ),
    "keywords:frequency": (
        {"keyword": "rain ", "frequency": 2, "relation": "at least"},
        ["rain, Rain", "a train in the rain"],
        ["rain once", "none"],
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["rain"]},
        ["a train", "sun"],
        ["Rain!", "the rain"],
    ),
    "keywords:letter_frequency": (
        {"letter": "Z", "let_frequency": 2, "let_relation": "less than"},
        ["buz", "none"],
        ["buzz", "Zoo zebra"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Das ist ein sehr schöner Tag, und wir gehen heute im Wald spazieren."],
        ["This is a very beautiful day, and we are going to walk in the forest."],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        ["Dr. Smith went to Washington, D.C. by car. He was tired.", "One only"],
        ["One. Two went home! Who is there?", "It fell. It broke. It was old."],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***\nOne\n\n***\n\nTwo\n***"],
        ["One", "One\n***\n***\nTwo", "One *** Two *** Three", "One\n\nTwo"],
    ),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "at least"},
        ["It's just three", "one two three four"],
        ["one two three", "well-known fact"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weather"},
        ["One\n\n'Weather, it is", 'One.\n\n  "Weather" was'],
        ["Weather\n\nOne", "One\n\nTwo\n\nweather", "One\n\nweathered", "One\nweather"],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ["[name] lives in [place]", "[a][b][c]"],
        ["[name] lives here", "[a\nb] [c]", "[[[ ]"],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. more", "bye p. s. more"],
        ["Bye. PS more", "none"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* one\n* two", "- one\n  - two\ntext", "*one\n-two"],
        ["* one", "* one\n- two\n- three", "** bold **\n* one", "a * b\nc - d"],
    ),
    "detectable_format:constrained_response": (
        {},
        ["My answer is yes.", "Well: My answer is maybe. Indeed."],
        ["My answer is yes", "my answer is no."],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* and *two*", "*one* and **two**", "*one*\n\n*two*"],
        ["*one* only", "* *\n****", "*one\ntwo*"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION ", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION1 a SECTION 2"],
        ["Section 1\nSection 2", "SECTION 1 only", "SECTION one SECTION two"],
    ),
    "detectable_format:json_format": (
        {},
        ['{"a": [1]}', '```json\n{"a": 1}\n```', "```\n[]\n```", "3"],
        ["{'a': 1}", "Here: {}", '{"a": 1', "[" * 100_000],
    ),
    "detectable_format:title": (
        {},
        ["<<a poem>>\ntext", "so: << x >>", "<<<x>>>"],
        ["<a poem>", "<<>>", "<< >>", "<<a\nb>>", ">>a<<"],
    ),
    "combination:two_responses": (
        {},
        ["one\n******\ntwo", "******one******two******"],
        ["one", "one******one", "a******b******c", "a************b"],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Write a Poem. "},
        ["Write a poem. Roses are red", "  WRITE A POEM."],
        ["Sure! Write a poem.", "Roses"],
    ),
    "startend:end_checker": (
        {"end_phrase": " Is that all?"},
        ["Yes. is that ALL?", '"So. Is that all?"', "Is that all? \n"],
        ["Is that all? Yes.", "Is that all"],
    ),
    "startend:quotation": (
        {},
        ['"all of it"', ' "a" and "b"\n'],
        ['"', 'all "of" it', "'all'", '"all'],
    ),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 3, "capital_relation": "at least"},
        ["I AM here, NASA", "A-B, C/D and I", "DON'T GO"],
        ["I AM here", "Nothing Here Counts"],
    ),
    "change_case:english_capital": ({}, [POEM], [POEM.title(), POEM + " and"]),
    "change_case:english_lowercase": (
        {},
        [POEM.lower()],
        [POEM.capitalize(), "das ist ein sehr schöner tag und wir gehen spazieren"],
    ),
    "punctuation:no_comma": ({}, ["none; here."], ["one, here", "1,000"]),
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
    assert len(CASES) == 25
    assert set(CASES) == set(ifeval.CHECKERS)


@pytest.mark.parametrize(("name", "kwargs", "text", "is_right"), EVERY)
def test_an_instruction_is_decided_as_the_published_scorer_does(
    name, kwargs, text, is_right
):
    # Published files list the arguments of all instructions, most of them null.
    metadata = row((name, {"num_words": None, "language": None} | kwargs))
    assert ifeval.INSTRUCTIONS.followed(text, metadata) == [is_right]


def test_all_instructions_must_be_followed_and_the_failing_ones_are_named():
    metadata = row(
        ("punctuation:no_comma", {}),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
        ("detectable_format:title", {}),
    )
    good = "<<a title>> of a text"
    assert not ifeval.INSTRUCTIONS.first_failure(good, "", metadata)
    assert ifeval.INSTRUCTIONS.first_failure("two, words", "", metadata) == (
        "3 of 3 not followed: punctuation:no_comma, "
        "length_constraints:number_words, detectable_format:title"
    )


@pytest.mark.parametrize(
    "reply",
    [
        "Sure, here it is:\nMy text <<x>>",
        "My text <<x>>\nHope that helps, friend",
        "Sure, here:\nMy text <<x>>\nBye, friend",
        "Sure, here:\n**My text** <<x>>",
    ],
)
def test_a_loose_reading_may_leave_out_first_and_last_line_and_asterisks(reply):
    metadata = row(("punctuation:no_comma", {}), ("detectable_format:title", {}))
    strict = grade(verifier="ifeval", reply=reply, answer="", metadata=metadata)
    loose = grade(verifier="ifeval_loose", reply=reply, answer="", metadata=metadata)
    assert not strict.is_correct
    assert "punctuation:no_comma" in strict.detail
    assert loose.is_correct


def test_reasoning_in_front_of_a_reply_is_not_looked_at():
    metadata = row(("punctuation:no_comma", {}))
    reply = "<think>well, let me see, so</think>\nno comma here"
    assert not ifeval.INSTRUCTIONS.first_failure(reply, "", metadata)


def test_an_empty_reply_follows_nothing():
    metadata = row(("punctuation:no_comma", {}))
    assert ifeval.INSTRUCTIONS.followed("  ", metadata) == [False]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (row(("punctuation:none", {})), "'punctuation:none' must be one of"),
        (row(("detectable_format:number_bullet_lists", {})), "lacks 'num_bullets'"),
        (row(), "at least one"),
        (
            row(
                (
                    "length_constraints:number_words",
                    {"num_words": 2, "relation": "exactly"},
                )
            ),
            "'less than' or 'at least'",
        ),
    ],
)
def test_a_row_that_cannot_be_graded_is_an_error_and_no_verdict(metadata, message):
    with pytest.raises(ConfigError, match=message):
        ifeval.INSTRUCTIONS.first_failure("any text", "", metadata)


def test_the_language_is_the_same_each_time():
    text = "ok la casa"
    assert len({ifeval.english.language_of(text) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "<<" * 50_000, "\n" * 50_000, "*" * 50_000, " -" * 30_000]
)
def test_a_reply_made_to_take_long_does_not(text):
    names = [name for name in CASES if name.startswith("detectable")]
    metadata = row(*((name, CASES[name][0]) for name in names))
    assert len(ifeval.INSTRUCTIONS.followed_loosely(text, metadata)) == len(names)
