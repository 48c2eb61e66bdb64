# SPDX-License-Identifier: Apache-2.0
"""What lm-eval found, in the form of our evaluations: records and a summary of a task.

A task's score is the first metric that it names, under its first filter.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ring_jax.config import LmEvalConfig
from ring_jax.evaluate.aggregate import interval
from ring_jax.evaluate.run import read_reply

type Sample = Mapping[str, Any]
"""What lm-eval logs of a document under one filter."""

PREFIX = "lm_eval_"
"""Of a task's name among the suites, of which some are called alike."""
CONVERSATION = "\0conversation:"
"""How the context of a chat begins, which no text does; its turns follow as JSON."""
MAX_SHOWN = 5
"""Digits of a log-likelihood in a record."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spoken:
    """A generated reply."""

    text: str
    """With its reasoning, without the token that ended it."""
    stop_reason: Literal["stop", "length", "prompt_too_long"]
    num_tokens: int
    num_think_tokens: int


UNASKED = Spoken("", "prompt_too_long", 0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a task."""

    name: str
    filter: str
    value: float

    @property
    def title(self) -> str:
        """The metric as it is shown."""
        return self.name if self.filter == "none" else f"{self.name} ({self.filter})"


def first_metric(results: Mapping[str, Any]) -> Metric:
    """Finds a task's first figure in what lm-eval reports, `{"acc,none": 0.5, ...}`."""
    for key, value in results.items():
        name, comma, of = key.partition(",")
        if comma and not name.endswith("_stderr"):
            return Metric(name, of, float(value))
    raise AssertionError(f"lm-eval reports no metric in {list(results)}")


def shares_of(metric: Metric, samples: Sequence[Sample]) -> list[float] | None:
    """Returns each document's part of a metric; None where it is no share."""
    values = [sample[metric.name] for sample in samples]
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        return None
    return [float(value) for value in values] if 0 <= metric.value <= 1 else None


def record_of(
    name: str, sample: Sample, *, metric: Metric, said: Spoken | None
) -> dict[str, Any]:
    """Writes the record of a document; it is right where its share is a whole one.

    Args:
      name: of the suite.
      sample: as lm-eval logs it.
      metric: what the task is scored by.
      said: what was generated, or None where options were scored.
    """
    outcome = sample[metric.name] == 1
    record = {
        "id": f"{name}/{sample['doc_id']}",
        "sample": 0,
        "prompt": prompt_of(str(sample["arguments"][0][0])),
        "answer": str(sample["target"]),
        "is_correct": bool(outcome),
        "outcome": "right" if outcome else "wrong",
        "difficulty": "",
    }
    return record | (_scored(sample) if said is None else _generated(sample, said))


def prompt_of(context: str) -> str:
    """Returns what was asked; of a chat, the turns below each other."""
    if not context.startswith(CONVERSATION):
        return context
    turns, begun = json.loads(context.removeprefix(CONVERSATION))
    return "\n\n".join([*(text for _, text in turns), *([begun] if begun else [])])


def _generated(sample: Sample, said: Spoken) -> dict[str, Any]:
    reply = read_reply(said.text, said.stop_reason)
    return {
        "output": said.text,
        "think": reply.think,
        "extracted": str(sample["filtered_resps"][0]),
        "detail": "",
        "num_tokens": said.num_tokens,
        "num_think_tokens": said.num_think_tokens,
        "stop_reason": said.stop_reason,
        "is_well_formed": reply.is_well_formed,
    }


def _scored(sample: Sample) -> dict[str, Any]:
    options = [str(arguments[-1]) for arguments in sample["arguments"]]
    likelihoods = [float(resp[0]) for resp in sample["filtered_resps"]]
    best = max(range(len(options)), key=likelihoods.__getitem__)
    shown = ", ".join(f"{value:.{MAX_SHOWN}g}" for value in likelihoods)
    return {
        "output": options[best],
        "think": "",
        "extracted": options[best].strip(),
        "detail": f"log-likelihoods {shown}",
        "num_tokens": None,
        "num_think_tokens": None,
        "stop_reason": "scored",
        "is_well_formed": True,
    }


def summarise_task(
    metric: Metric,
    shares: Sequence[float],
    records: Sequence[Mapping[str, Any]],
    *,
    chance: float | None,
    config: LmEvalConfig,
) -> dict[str, Any]:
    """Summarises a task as `scores.json` keeps suites.

    The interval is that of a mean over documents, and missing where lm-eval's figure is
    no mean of them.
    """
    mean = sum(shares) / len(shares)
    is_mean = abs(mean - metric.value) < 1e-9
    low, high = interval(shares, seed=0) if is_mean else (None, None)
    told = [record for record in records if record["num_tokens"] is not None]
    return {
        "group": config.group,
        "capability": config.capability,
        "metric": metric.title,
        "score": metric.value,
        "low": low,
        "high": high,
        "num_items": len(shares),
        "num_samples": 1,
        "by_difficulty": {},
        "chance": chance,
        "truncated_share": _mean([r["stop_reason"] == "length" for r in told]),
        "malformed_share": _mean([not r["is_well_formed"] for r in told]),
        "mean_think_tokens": _mean([r["num_think_tokens"] for r in told]),
        "mean_tokens": _mean([r["num_tokens"] for r in told]),
        "status": "done",
        "reason": "",
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
