# SPDX-License-Identifier: Apache-2.0
"""The report shows what a run folder holds, escapes it, and misses nothing it needs."""

import html.parser
import json
import re
import shutil

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import ConfigError
from ring_jax.report import write_report
from tests.planted_evaluations import record, suite, write_records


class Collector(html.parser.HTMLParser):
    """Collects what a page would load or run, and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "link", "br", "img", "input"):
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def read(path) -> Collector:
    page = Collector(path.read_text("utf-8"))
    assert not page.open, "every tag is closed"
    return page


def append(workdir, *records):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_the_page_loads_nothing_from_elsewhere(synthetic_run):
    page = read(write_report(synthetic_run))
    loads = ("src", "href", "action", "data", "poster", "srcset")
    outside = [
        value
        for _, name, value in page.attributes
        if name in loads and not value.startswith("#")
    ]
    assert outside == []
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    text = (synthetic_run / "report.html").read_text("utf-8")
    assert "url(" not in text and "@import" not in text and "http" + "://" not in text


def test_the_headline_compares_the_first_stage_with_the_last(synthetic_run):
    page = read(write_report(synthetic_run))
    # Of 32 items per level: base 1, 0, 0; generalisation 29, 13, 3 of 96, twice.
    assert f"{100 * 1 / 96:.1f} % → {100 * 45 / 96:.1f} %" in page.words
    assert "reasoning average of 2 suites, 192 items" in page.words
    assert "of general skills (95 % interval" in page.words


def test_the_report_and_the_comparison_link_to_each_other(synthetic_run, capsys):
    def links(path) -> list[str]:
        found = [v for _, name, v in read(path).attributes if name == "href"]
        return [link for link in found if not link.startswith("#")]

    report = write_report(synthetic_run)
    assert links(report) == []
    assert main(["report", str(synthetic_run)]) == status.DONE
    capsys.readouterr()
    assert links(report) == ["evaluation.html"]
    assert links(synthetic_run / "evaluation.html") == ["report.html"]
    stage = synthetic_run / "evaluation" / "base"
    assert main(["report", str(stage)]) == status.DONE
    assert links(stage / "evaluation.html") == ["../../report.html"]
    (synthetic_run / "report.html").unlink()
    assert main(["report", str(synthetic_run)]) == status.DONE
    assert links(synthetic_run / "evaluation.html") == []


def test_a_run_with_one_stage_shows_what_it_said(synthetic_run):
    for stage in ("reasoning", "generalisation"):
        shutil.rmtree(synthetic_run / "evaluation" / stage)
    page = read(write_report(synthetic_run))
    changes = [v for _, name, v in page.attributes if name == "data-change"]
    assert set(changes) == {"right", "wrong"}
    assert "it needs a base and at least two stages" in page.words


def test_an_evaluation_that_is_no_stage_is_in_the_comparison_alone(synthetic_run):
    other = synthetic_run / "evaluation" / "server_model"
    shutil.copytree(synthetic_run / "evaluation" / "base", other)
    scores = json.loads((other / "scores.json").read_text())
    (other / "scores.json").write_text(json.dumps(scores | {"label": "another"}))
    assert "another" not in read(write_report(synthetic_run)).words


def test_every_section_shows_what_the_run_wrote(synthetic_run):
    words = read(write_report(synthetic_run)).words
    for expected in (
        "1,812,480",
        "1 x synthetic device",
        "finished",
        "heldout_chain_sum",
        "chain_sum_medium",
        "Busiest expert of any layer",
        "MFU = tokens per second",
        "right now, wrong before",
        "Synthetic item 0 of chain_sum",
        "Held-out rows, at the end of each stage",
        "optimizer.clip_norm",
        "checkpoint=300",
    ):
        assert expected in words, expected


def test_text_from_data_is_escaped(synthetic_run):
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    base = synthetic_run / "evaluation" / "base"
    scores = json.loads((base / "scores.json").read_text())
    scores["suites"]["quiz"] = suite(0.0, capability=attack, reason=attack)
    (base / "scores.json").write_text(json.dumps(scores))
    texts = dict.fromkeys(("prompt", "output", "think", "extracted", "answer"), attack)
    write_records(base, "quiz", [record(attack, False, **texts)])
    append(
        synthetic_run,
        {"kind": "start", "devices": attack, "versions": {attack: attack}},
        {"kind": "evaluation", "stage": attack, "heldout_loss": {attack: 1.0}},
        {"kind": "event", "event": attack, "step": 2, "detail": attack},
        {"kind": "train", "stage": attack, "step": 651, f"loss/source/{attack}": 1.0},
    )
    page = read(write_report(synthetic_run))
    text = (synthetic_run / "report.html").read_text("utf-8")
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "alert(1)" in page.words
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert not [script for script in scripts if script.lstrip().startswith("alert")]
    for script in scripts[:-1]:
        json.loads(script)


def test_thinking_is_set_apart_from_what_is_said(synthetic_run):
    text = write_report(synthetic_run).read_text("utf-8")
    said = re.findall(r'<span class="said">(.*?)</span>', text, re.DOTALL)
    assert said and not any("plus" in part for part in said)


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl", "evaluation"])
def test_a_missing_piece_becomes_a_sentence(synthetic_run, missing):
    path = synthetic_run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    expected = {
        "config.json": "The run folder has no config.json.",
        "metrics.jsonl": "No training step has been logged yet.",
        "evaluation": "Nothing has been asked yet",
    }
    assert expected[missing] in read(write_report(synthetic_run)).words


def test_a_run_that_was_killed_at_any_line_still_has_a_report(synthetic_run):
    metrics = synthetic_run / "metrics.jsonl"
    whole = metrics.read_bytes()
    for size in (0, 1, 100, 1500, len(whole) // 2, len(whole) - 3):
        metrics.write_bytes(whole[:size])
        words = read(write_report(synthetic_run)).words
        is_torn = size > 0 and whole[size - 1 : size] != b"\n"
        assert ("unreadable line" in words) == is_torn


def test_numbers_that_are_not_finite_leave_gaps(synthetic_run):
    nan = float("nan")
    append(
        synthetic_run,
        {"kind": "train", "stage": "late", "step": 651, "train/loss": nan},
        {"kind": "train", "stage": "late", "step": 652, "train/loss": float("inf")},
        {"kind": "train", "stage": "late", "step": 653, "train/grad_norm": 0.0},
    )
    text = write_report(synthetic_run).read_text("utf-8")
    paths = re.findall(r' d="(.*?)"', text)
    assert paths and not any("nan" in path or "inf" in path for path in paths)


def test_a_repeated_step_counts_once(synthetic_run):
    append(
        synthetic_run,
        {"kind": "train", "stage": "late", "step": 650, "train/trained_tokens": 77},
    )
    assert "trained tokens 77 " in read(write_report(synthetic_run)).words


def test_a_folder_that_is_no_run_is_a_mistake_of_one_line(tmp_path, synthetic_run):
    file = tmp_path / "file"
    file.write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text('{"seed": ')
    for workdir in (tmp_path / "absent", file, empty, torn):
        with pytest.raises(ConfigError) as caught:
            write_report(workdir)
        assert str(workdir) in str(caught.value) and "\n" not in str(caught.value)
    for out in (empty, tmp_path / "absent" / "x.html"):
        with pytest.raises(ConfigError, match="out="):
            write_report(synthetic_run, out)


def test_the_report_goes_where_it_is_told(synthetic_run, tmp_path):
    out = tmp_path / "elsewhere.html"
    assert write_report(synthetic_run, out) == out
    assert out.exists() and not (synthetic_run / "report.html").exists()
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]
