# SPDX-License-Identifier: Apache-2.0
"""A comparison's figures are those of the tables, and say where they are none."""

import json

import pytest

from ring_jax.config import ConfigError
from ring_jax.report import compare
from ring_jax.report.evaluation_folder import find_evaluations, tag_error
from ring_jax.report.item_changes import MAX_CHARS, item_changes
from tests.planted_evaluations import (
    record,
    suite,
    write_evaluations,
    write_records,
    write_scores,
)

# General suites of arXiv:2504.07158: IFEval, T-eval, BFCL_v2, MMLU in per cent, of the
# base, after the first stage, and at last. It prints averages of 76.0, 42.9 and 70.6.
PUBLISHED = {
    "base": (79.4, 85.6, 67.9, 71.2),
    "stage1": (34.9, 28.0, 44.2, 64.4),
    "final": (76.3, 79.6, 63.6, 62.9),
}


def write_published(folder):
    return [
        write_scores(
            folder / label,
            {f"suite{i}": suite(score / 100) for i, score in enumerate(scores)},
            label=label,
        )
        for label, scores in PUBLISHED.items()
    ]


def write_graded(folder, label, right, *, key="general", name="quiz", **values):
    """Writes one suite whose items are right as the string of 0 and 1 says."""
    score = right.count("1") / len(right)
    values = {"num_items": len(right), **values}
    write_scores(folder / label, {name: suite(score, group=key, **values)}, label=label)
    records = [record(f"i{i}", mark == "1") for i, mark in enumerate(right)]
    write_records(folder / label, name, records)
    return folder / label


def test_averages_and_the_retained_fraction_are_the_published_ones(tmp_path):
    comparison = compare(write_published(tmp_path))
    found = comparison.groups["general"].averages
    scores = [round(100 * a.score, 1) for a in found if a]
    assert scores == [76.0, 42.9, 70.6]
    # (70.6 - 42.875) / (76.025 - 42.875), from the unrounded averages.
    assert comparison.retained.value == pytest.approx(27.725 / 33.15)
    assert comparison.retained.low is None, "no outputs, no interval"
    assert comparison.groups["reasoning"].averages == [None, None, None]


def test_a_suite_that_a_stage_did_not_finish_is_in_no_average(tmp_path):
    folders = [
        write_scores(
            tmp_path / label,
            {"a": suite(score), "b": suite(0.9, status=status, reason="time")},
            label=label,
        )
        for label, score, status in [("base", 0.5, "done"), ("late", 0.4, "partial")]
    ]
    comparison = compare(folders)
    general = comparison.groups["general"]
    assert (general.suites, general.left_out) == (["a"], ["b"])
    assert [a.score for a in general.averages if a] == [0.5, 0.4]
    assert "late: partial, time" in comparison.rows[1].notes


def test_a_reference_decides_nothing_and_has_no_average_of_other_suites(tmp_path):
    base = write_scores(tmp_path / "b", {"a": suite(0.5), "c": suite(0.7)}, label="b")
    reference = write_scores(tmp_path / "r", {"a": suite(0.9)}, label="r")
    comparison = compare([base], [reference])
    found = comparison.groups["general"].averages
    assert found[0] and found[0].score == pytest.approx(0.6)
    assert found[1] is None
    assert [column.name for column in comparison.stages] == ["b"]


def test_a_difference_is_over_the_items_that_both_have(tmp_path):
    base = write_graded(tmp_path, "base", "1100000000")
    late = write_graded(tmp_path, "late", "01111111")
    (difference,) = [d for d in compare([base, late]).rows[0].differences if d]
    # Items 0 to 7: base has 2 right, late 7; one lost, six gained.
    assert difference.num_items == 8
    assert difference.value == pytest.approx(5 / 8)
    assert difference.p_value == pytest.approx(2 * (1 + 7) / 2**7)
    assert difference.mark == ""
    assert difference.low < difference.value < difference.high


@pytest.mark.parametrize(("right", "mark"), [("1" * 10, "▲"), ("0" * 10, "")])
def test_a_mark_stands_where_chance_seldom_does_that_much(tmp_path, right, mark):
    base = write_graded(tmp_path, "base", "0" * 10)
    row = compare([base, write_graded(tmp_path, "late", right)]).rows[0]
    assert row.differences[1] and row.differences[1].mark == mark


def test_the_retained_fraction_has_an_interval_where_outputs_are(tmp_path):
    folders = [
        write_graded(tmp_path, "base", "1" * 80 + "0" * 20),
        write_graded(tmp_path, "one", "1" * 30 + "0" * 70),
        write_graded(tmp_path, "two", "1" * 70 + "0" * 30),
    ]
    retained = compare(folders).retained
    assert retained.value == pytest.approx(0.8)
    assert retained.low and retained.high
    assert 0.6 < retained.low < 0.8 < retained.high < 1.0


def test_a_loss_that_may_be_chance_has_no_retained_fraction(tmp_path):
    folders = [
        write_graded(tmp_path, "base", "1100110010"),
        write_graded(tmp_path, "one", "1001100101"[::-1].replace("1", "0", 1)),
        write_graded(tmp_path, "two", "1100110010"),
    ]
    retained = compare(folders).retained
    assert retained.value is None and "chance" in retained.reason
    assert "two stages" in compare(folders[:2]).retained.reason
    nothing = compare([folders[1], folders[0], folders[2]]).retained
    assert nothing.value is None and "cost nothing" in nothing.reason


def test_levels_are_pooled_over_items_of_reasoning(tmp_path):
    def levels(easy, hard):
        return {
            "hard": {"score": hard, "num_items": 10},
            "easy": {"score": easy, "num_items": 30},
        }

    def suites(*pairs):
        return {
            f"s{i}": suite(0.5, group="reasoning", by_difficulty=levels(*pair))
            for i, pair in enumerate(pairs)
        } | {"quiz": suite(0.1, by_difficulty=levels(0.0, 0.0))}

    base = write_scores(tmp_path / "b", suites((0.5, 0.1), (0.7, 0.3)), label="b")
    late = write_scores(tmp_path / "l", suites((0.9, 0.4), (0.9, 0.6)), label="l")
    found = compare([base, late]).levels
    assert list(found) == ["easy", "hard"]
    assert [(c.name, a.num_items) for c, a in found["easy"]] == [("b", 60), ("l", 60)]
    scores = {level: [a.accuracy for _, a in found[level]] for level in found}
    assert scores["easy"] == pytest.approx([0.6, 0.9])
    assert scores["hard"] == pytest.approx([0.2, 0.5])


def test_a_score_that_its_outputs_do_not_have_is_noted(tmp_path):
    base = write_graded(tmp_path, "base", "1100000000")
    scores = json.loads((base / "scores.json").read_text())
    scores["suites"]["quiz"]["score"] = 0.9
    (base / "scores.json").write_text(json.dumps(scores))
    (row,) = compare([base, write_graded(tmp_path, "late", "1111000000")]).rows
    (note,) = row.notes
    assert "90.0 %" in note and "20.0 %" in note
    assert row.differences == [None, None], "what is tested is what is shown"


def test_the_last_record_of_a_sample_counts_and_one_without_verdict_does_not(tmp_path):
    folder = write_scores(tmp_path / "x", {"q": suite(0.5, num_items=2)}, label="x")
    waiting = record("c", False, outcome="waiting")
    later = [record("a", True), record("b", False), record("b", True, sample=1)]
    write_records(folder, "q", [record("a", False), waiting, *later])
    found = compare([folder]).columns[0].evaluation.records["q"]
    grades = {key: (g.num_right, g.num_samples) for key, g in found.grades.items()}
    assert grades == {"a": (1, 1), "b": (1, 2)}
    assert (found.num_outputs, found.num_unreadable) == (3, 0)


def test_an_item_of_pass_at_k_is_right_once_any_sample_is(tmp_path):
    folders = []
    for label, marks in (("base", (False, False)), ("late", (False, True))):
        values = {"metric": "pass@2", "num_samples": 2, "num_items": 1}
        suites = {"q": suite(float(any(marks)), **values)}
        folder = write_scores(tmp_path / label, suites, label=label)
        records = [record("a", mark, sample=i) for i, mark in enumerate(marks)]
        write_records(folder, "q", records)
        folders.append(folder)
    (row,) = compare(folders).rows
    assert row.differences[1] and row.differences[1].value == 1.0


def test_a_suite_that_was_interrupted_before_its_first_reply_has_no_score(tmp_path):
    values = {"num_items": 0, "status": "partial", "reason": "interrupted"}
    folder = write_scores(tmp_path / "x", {"q": suite(None) | values}, label="x")
    (row,) = compare([folder]).rows
    assert row.suites[0] and row.suites[0].score is None
    assert row.notes == ["x: partial, interrupted"]


def test_items_are_lost_gained_missed_and_kept(tmp_path):
    base = write_graded(tmp_path, "base", "1100")
    late = write_graded(tmp_path, "late", "0101")
    changes = item_changes(compare([base, late]))
    assert changes is not None
    found = {item.key: item.change for item in changes.items}
    assert found == {"i0": "lost", "i1": "kept", "i2": "missed", "i3": "gained"}
    assert changes.items[0].key == "i0", "losses come first"
    assert [output.is_right for output in changes.items[0].outputs] == [True, False]


def test_an_item_of_several_samples_is_right_by_their_majority(tmp_path):
    def graded(label, *marks):
        folder = write_scores(tmp_path / label, {"q": suite(0.5)}, label=label)
        samples = [
            record("a", mark, sample=i, output=f"{label} {i}", think="")
            for i, mark in enumerate(marks)
        ]
        write_records(folder, "q", samples)
        return folder

    half = graded("half", True, True, False, False)
    most = graded("most", False, True, True, True)
    changes = item_changes(compare([half, most]))
    assert changes and changes.items[0].change == "gained"
    # What is shown of an item agrees with the verdict above it.
    shown = [output.segments for output in changes.items[0].outputs]
    assert shown == [[("said", "half 2")], [("said", "most 1")]]


def test_a_long_text_loses_its_middle_and_keeps_its_answer(tmp_path):
    base = write_graded(tmp_path, "base", "1")
    late = write_graded(tmp_path, "late", "0")
    output = "<think>" + "x" * 3 * MAX_CHARS + "</think>" + "y" * 99
    write_records(late, "quiz", [record("i0", False, output=output, think="")])
    changes = item_changes(compare([base, late]))
    assert changes
    (_, thought), (_, said) = changes.items[0].outputs[1].segments
    assert len(thought) < MAX_CHARS + 100 and "characters left out" in thought
    assert said == "y" * 99


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("5", "no tags"),
        ("<think>5", "opened, never closed"),
        ("5</think>5", "closed, never opened"),
        ("5</think>5</think>", "closed more than once"),
        ("<think>1</think><think>2</think>", "more than one pair"),
        ("</think>1<think>", "out of place"),
    ],
)
def test_a_tag_error_has_a_kind(output, kind):
    assert tag_error(output) == kind


def test_a_run_stands_for_its_evaluations_in_the_order_of_its_stages(tmp_path):
    write_evaluations(tmp_path / "run")
    # Dates alone would put the stages in the same order: turn them round.
    config = {"stages": {"generalisation": {}, "reasoning": {}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = find_evaluations([tmp_path / "run"])
    assert [path.name for path in found] == ["base", "generalisation", "reasoning"]


def test_stages_of_two_runs_with_the_same_name_are_told_apart(tmp_path):
    for run in ("one", "two"):
        folder = tmp_path / run / "evaluation" / "base"
        write_scores(folder, {"a": suite(0.5)}, label="base")
    columns = compare([tmp_path / "one", tmp_path / "two"]).columns
    assert [column.name for column in columns] == ["one/base", "two/base"]
    with pytest.raises(ConfigError, match="one/base"):
        compare([tmp_path / "one", tmp_path / "one"])


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"score": 1.5}, ["quiz", "score=1.5"]),
        ({"score": float("nan")}, ["quiz", "score=nan"]),
        ({"score": True}, ["quiz", "score=True"]),
        ({"num_items": 0}, ["quiz", "num_items=0"]),
        ({"score": None}, ["quiz", "status=done", "score=None"]),
        ({"group": "other"}, ["quiz", "group='other'", "reasoning, general"]),
        ({"status": "soon"}, ["quiz", "status='soon'"]),
        ({"mean_tokens": "many"}, ["quiz", "mean_tokens='many'"]),
        ({"num_items": "ten"}, ["quiz", "num_items='ten'"]),
        ({"by_difficulty": [1]}, ["quiz", "by_difficulty=[1]"]),
        ({"by_difficulty": {"easy": 1}}, ["quiz", "easy"]),
    ],
)
def test_a_score_that_cannot_be_is_a_mistake_of_one_line(tmp_path, values, parts):
    folder = write_scores(tmp_path, {"quiz": suite(0.5) | values}, label="x")
    with pytest.raises(ConfigError) as caught:
        compare([folder])
    line = str(caught.value)
    assert "\n" not in line and all(part in line for part in parts), line


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"suites": {"../x": {}}}'])
def test_scores_that_are_none_are_a_mistake_of_one_line(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        compare([tmp_path])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
