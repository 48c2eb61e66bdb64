# SPDX-License-Identifier: Apache-2.0
"""What lm-eval reports becomes records and summaries that a comparison reads."""

import json
import sys

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import LmEvalConfig
from ring_jax.evaluate.lm_eval_records import (
    CONVERSATION,
    Metric,
    Spoken,
    first_metric,
    record_of,
    shares_of,
    summarise_task,
)
from ring_jax.report.evaluation_folder import read_evaluation
from tests.generate.test_command import model, workdir

__all__ = ["model", "workdir"]
"""Fixtures: a run's folder, and the model in it."""

CHAT = CONVERSATION + json.dumps([[["user", "2+2?"]], "It is"])
GENERATED = {
    "doc_id": 3,
    "target": "4",
    "arguments": [(CHAT, {"until": ["\n"]})],
    "filtered_resps": ["4"],
    "filter": "strict-match",
    "exact_match": 1.0,
}
CHOSEN = {
    "doc_id": 0,
    "target": 1,
    "arguments": [("The sky is", " green"), ("The sky is", " blue")],
    "filtered_resps": [(-3.5, False), (-1.25, True)],
    "filter": "none",
    "acc": 1.0,
}


def test_the_first_metric_counts_and_not_its_error():
    results = {"alias": "x", "sample_len": 2, "acc_stderr,none": 0.1, "acc,none": 0.5}
    assert first_metric(results | {"acc_norm,none": 1.0}) == Metric("acc", "none", 0.5)


def test_a_generated_reply_is_kept_with_its_reasoning():
    said = Spoken("<think>two twos</think>4", "stop", 9, 3)
    metric = Metric("exact_match", "strict-match", 1.0)
    record = record_of("lm_eval_sums", GENERATED, metric=metric, said=said)
    wanted = {
        "id": "lm_eval_sums/3",
        "prompt": "2+2?\n\nIt is",
        "output": "<think>two twos</think>4",
        "think": "two twos",
        "extracted": "4",
        "answer": "4",
        "is_correct": True,
        "num_think_tokens": 3,
        "is_well_formed": True,
    }
    assert {name: record[name] for name in wanted} == wanted
    assert metric.title == "exact_match (strict-match)"


def test_a_chosen_option_is_kept_with_the_likelihoods_of_all():
    record = record_of(
        "lm_eval_sky", CHOSEN, metric=Metric("acc", "none", 1.0), said=None
    )
    assert (record["output"], record["extracted"]) == (" blue", "blue")
    assert record["detail"] == "log-likelihoods -3.5, -1.25"
    assert record["num_tokens"] is None and record["is_correct"]


def test_a_perplexity_is_no_share():
    metric = Metric("word_perplexity", "none", 12.5)
    assert shares_of(metric, [{"word_perplexity": (-9.0, 4)}]) is None
    assert shares_of(Metric("acc", "none", 0.5), [{"acc": True}, {"acc": 0}]) == [1, 0]


def test_a_comparison_reads_what_is_written(tmp_path):
    metric = Metric("acc", "none", 0.5)
    samples = [{**CHOSEN, "doc_id": n, "acc": float(n % 2)} for n in range(10)]
    records = [record_of("lm_eval_sky", s, metric=metric, said=None) for s in samples]
    summary = summarise_task(
        metric, [s["acc"] for s in samples], records, chance=0.5, config=LmEvalConfig()
    )
    assert summary["low"] < 0.5 < summary["high"] and summary["mean_tokens"] is None
    scores = {"label": "base", "suites": {"lm_eval_sky": summary}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    lines = [json.dumps(record) + "\n" for record in records]
    (tmp_path / "lm_eval_sky.jsonl").write_text("".join(lines))
    read = read_evaluation(tmp_path)
    assert read.suites["lm_eval_sky"].score == 0.5
    grades = read.records["lm_eval_sky"].grades
    assert sum(grade.is_right for grade in grades.values()) == 5


def test_a_figure_that_is_no_mean_of_its_documents_has_no_interval():
    summary = summarise_task(
        Metric("f1", "none", 0.7), [1.0, 0.0], [], chance=None, config=LmEvalConfig()
    )
    assert (summary["score"], summary["low"], summary["high"]) == (0.7, None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lm-eval=any"], "pip install 'ring-jax[lm-eval]'"),
        (["--lm-eval=any", "--suites=aime24"], "--suites is nothing"),
        (["--lm-eval=any", "--server=http://x", "--model=m"], "--server is nothing"),
        (["--lm-eval="], "names no task"),
        (["--lm-eval=any", "--config.suites.lm_eval.num_fewshot=-1"], "num_fewshot=-1"),
    ],
)
def test_a_mistake_is_one_line(workdir, words, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", f"--workdir={workdir}", *words]) == status.MISTAKE
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not (workdir / "evaluation").exists()
