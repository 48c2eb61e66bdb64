# SPDX-License-Identifier: Apache-2.0
"""The page and the card of a comparison: honest, escaped, whole, from nowhere else."""

import re
from typing import Any

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.report import compare, write_evaluation_page, write_model_card
from ring_jax.report.evaluation_page import points
from ring_jax.report.radar import Scores, radar
from tests.planted_evaluations import (
    record,
    suite,
    write_evaluations,
    write_records,
    write_scores,
)
from tests.report.test_report import read

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&|`*"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run with three evaluations, and a reference beside it."""
    run = tmp_path_factory.mktemp("planted") / "run"
    write_evaluations(run)
    return run


@pytest.fixture(scope="module")
def comparison(planted):
    return compare([planted], [planted.parent / "reference"])


@pytest.fixture(scope="module")
def page_file(comparison, planted):
    return write_evaluation_page(comparison, planted.parent / "page.html")


def test_the_page_loads_nothing_from_elsewhere(page_file):
    page = read(page_file)
    loads = ("src", "href", "action", "data", "poster", "srcset")
    links = [value for _, name, value in page.attributes if name in loads]
    assert links and all(link.startswith("#") for link in links)
    text = page_file.read_text("utf-8")
    assert "url(" not in text and "@import" not in text and "http" + "://" not in text


def test_a_link_of_the_page_leads_somewhere(page_file):
    page = read(page_file)
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = {value for _, name, value in page.attributes if name == "href"}
    assert {link.removeprefix("#") for link in links} <= ids


def test_every_section_shows_what_the_folders_hold(page_file, comparison):
    words = read(page_file).words
    base, last = (comparison.groups["general"].averages[i].score for i in (0, 2))
    for expected in (
        f"{100 * base:.1f} % → {100 * last:.1f} %",
        f"{comparison.retained.value:.3f}",
        "chance",
        "refused: its checker needs a package that is not installed",
        "partial, stopped after 3 hours",
        "Not in the reasoning average",
        "opened, never closed",
        "wrong now, right before",
        "McNemar",
        "right in 4 of 4",
        "cut off",
    ):
        assert expected in words, expected


def test_no_score_stands_without_its_items(page_file):
    text = page_file.read_text("utf-8")
    cells = re.findall(r'data-measure="score">(.*?)</span>', text, re.DOTALL)
    assert len(cells) == 31 + 7, "8 suites in 4 columns, one refused; and averages"
    assert all(" items" in cell for cell in cells)


def test_foreign_text_is_escaped(tmp_path):
    folders = []
    for label, is_right in (("base", True), (f"late {ATTACK}", False)):
        folder = tmp_path / label[:4]
        foreign: dict[str, Any] = dict.fromkeys(
            ("capability", "metric", "reason"), ATTACK
        )
        foreign["by_difficulty"] = {ATTACK: {"score": 0.5, "num_items": 4}}
        suites = {
            "quiz": suite(0.5, **foreign) | {"group": "reasoning"},
            "lost": suite(None, status="refused", **foreign),
        }
        write_scores(folder, suites, label=label)
        names = ("prompt", "output", "think", "extracted", "answer", "detail")
        values = dict.fromkeys((*names, "difficulty", "stop_reason"), ATTACK)
        write_records(folder, "quiz", [record(ATTACK, is_right, **values)])
        folders.append(folder)
    comparison = compare(folders)
    path = write_evaluation_page(comparison, tmp_path / "page.html")
    page = read(path)
    assert "img" not in page.tags and page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "alert(1)" in page.words
    card = write_model_card(comparison, tmp_path / "page.md").read_text("utf-8")
    assert "<img" not in card and "<script" not in card
    widths = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in card.splitlines()
        if line.startswith("|") and "quiz" in line
    }
    assert widths == {6}, "a pipe in a name makes no new cell"


def test_thinking_is_set_apart_and_items_can_be_searched(page_file):
    page = read(page_file)
    assert "search" in [v for _, name, v in page.attributes if name == "type"]
    changes = [v for _, name, v in page.attributes if name == "data-change"]
    assert "lost" in changes and page.tags.count("details") == len(changes)
    text = page_file.read_text("utf-8")
    said = re.findall(r'<span class="said">(.*?)</span>', text, re.DOTALL)
    assert said and not any("Wait" in part for part in said)


def test_the_card_has_the_same_numbers(comparison, tmp_path):
    card = write_model_card(comparison, tmp_path / "card.md").read_text("utf-8")
    (row,) = [line for line in card.splitlines() if line.startswith("| aime24 ")]
    for found, cell in zip(comparison.rows[0].suites, row.split("|")[4:], strict=False):
        assert f"{100 * found.score:.1f} %" in cell and "(30 × 4)" in cell
    assert f"**{comparison.retained.value:.3f}** (95 % interval" in card
    assert "refused" in card and "Not in the average" in card


def test_one_evaluation_alone_is_a_page_too(planted, tmp_path):
    comparison = compare([planted / "evaluation" / "base"])
    words = read(write_evaluation_page(comparison, tmp_path / "one.html")).words
    assert "needs a base and at least two stages" in words
    assert "Outputs, item by item" in words and "wrong now" not in words
    write_model_card(comparison, tmp_path / "one.md")


def test_scores_without_outputs_are_a_page_too(tmp_path):
    folder = write_scores(tmp_path, {"quiz": suite(0.5)}, label="alone")
    words = read(write_evaluation_page(compare([folder]), tmp_path / "x.html")).words
    assert "its outputs are not in the folder" in words and "50.0 %" in words


def test_a_radar_breaks_where_a_model_has_no_score():
    names = ["up", "right", "down", "left"]
    models = [
        Scores("whole", 0, False, [1.0, 0.5, 0.0, 0.5]),
        Scores("broken", 1, False, [1.0, None, 0.5, 0.5]),
    ]
    drawn = radar(names, models, [0.25] * 4)
    assert drawn
    whole, broken = drawn.outlines
    x, y = drawn.centre
    assert [dot[:2] for dot in whole.dots] == [
        (x, y - 125),
        (x + 62.5, y),
        (x, y),
        (x - 62.5, y),
    ]
    assert whole.is_closed and not broken.is_closed
    assert len(broken.dots) == 3 and broken.path.count("M") == 2
    assert drawn.chance
    assert radar(names, models, [0.25, None, 0.25, 0.25]).chance == ""  # pyright: ignore[reportOptionalMemberAccess]  # four axes make a chart
    assert radar(names[:2], models, [None, None]) is None


@pytest.mark.parametrize(
    ("difference", "text"),
    [(0.123, "+12.3"), (-0.05, "−5.0"), (1e-9, "±0.0"), (-1e-9, "±0.0"), (None, "–")],
)
def test_a_difference_is_written_in_points(difference, text):
    assert points(difference) == text


def test_ring_report_compares_folders(planted, tmp_path, capsys):
    out = tmp_path / "compared.html"
    reference = f"--reference={planted.parent / 'reference'}"
    assert main(["report", str(planted), reference, f"--out={out}"]) == status.DONE
    assert capsys.readouterr().out.split() == [str(out), str(tmp_path / "compared.md")]
    stage = planted / "evaluation" / "reasoning"
    words = ["report", str(planted / "evaluation" / "base"), str(stage)]
    assert main([*words, "--json"]) == status.DONE
    assert (stage / "evaluation.html").is_file() and (stage / "evaluation.md").is_file()
    assert '"retained": null' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["/no/such/run"], "/no/such/run is no folder"),
        (["{tmp}"], "no scores.json"),
        (["{run}", "--out=/no/such/place/x.html"], "out=/no/such/place/x.html"),
        (["{run}", "--out={tmp}/x.md"], "its .md is written beside"),
        (["{run}", "--workdir={run}"], "either a run"),
        (["{run}", "--reference=/no/such/run"], "/no/such/run is no folder"),
        (["--reference={run}", "--workdir={run}"], "name some FOLDER"),
    ],
)
def test_a_folder_that_is_no_evaluation_is_told_in_one_line(
    planted, tmp_path, capsys, words, part
):
    filled = [word.format(run=planted, tmp=tmp_path) for word in words]
    assert main(["report", *filled]) == status.MISTAKE
    line = capsys.readouterr().err
    assert part in line and line.count("\n") == 1
