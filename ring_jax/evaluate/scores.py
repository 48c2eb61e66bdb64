# SPDX-License-Identifier: Apache-2.0
"""The summary of a suite, as `scores.json` keeps it."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ring_jax.config import SuiteConfig
from ring_jax.data.schema import Row
from ring_jax.evaluate.aggregate import avg_at_k, interval, maj_at_k, pass_at_k
from ring_jax.evaluate.heldout import HELDOUT
from ring_jax.evaluate.items import chance_of, level_of
from ring_jax.evaluate.votes import Key
from ring_jax.verify import most_frequent_answer_score

Record = Mapping[str, Any]


def summarise(
    suite: SuiteConfig,
    rows: Sequence[Row],
    records: Sequence[Record],
    *,
    votes: Mapping[Key, str],
    reason: str,
) -> dict[str, Any]:
    """Summarises what is known of a suite.

    Args:
      suite: its settings.
      rows: all its items.
      records: of these items; some may be missing.
      votes: what each sample answers; equal texts are equal answers.
      reason: why some are; empty where the suite is done.

    Returns:
      Scores from 0 to 1 over the items that have a sample, and None where none has.
    """
    by_item: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        by_item[record["id"]].append(record)
    scores = {name: item_score(suite.metric, of, votes) for name, of in by_item.items()}
    low, high = (
        interval([*scores.values()], seed=suite.seed) if scores else (None, None)
    )
    return {
        "group": suite.group,
        "capability": suite.capability,
        "metric": f"{suite.metric}@{suite.num_samples}",
        "score": _mean([*scores.values()]),
        "low": low,
        "high": high,
        "num_items": len(by_item),
        "num_samples": suite.num_samples,
        "by_difficulty": _by_difficulty(suite, rows, scores),
        "chance": _chance(suite, rows),
        "pass_at": _pass_at(by_item.values(), suite.num_samples),
        "maj": _mean([item_score("maj", of, votes) for of in by_item.values()]),
        "truncated_share": _mean([r["stop_reason"] == "length" for r in records]),
        "malformed_share": _mean([not r["is_well_formed"] for r in records]),
        "mean_think_tokens": _mean_known(records, "num_think_tokens"),
        "mean_tokens": _mean_known(records, "num_tokens"),
        "status": "partial" if reason else "done",
        "reason": reason,
    }


def refuse(suite: SuiteConfig, rows: Sequence[Row], *, reason: str) -> dict[str, Any]:
    """Summarises a suite that nobody was asked."""
    return {**summarise(suite, rows, [], votes={}, reason=reason), "status": "refused"}


def item_score(
    metric: str, records: Sequence[Record], votes: Mapping[Key, str]
) -> float:
    """Scores one item by its samples."""
    are_right = [record["is_correct"] for record in records]
    if metric == "avg":
        return avg_at_k(are_right)
    if metric == "pass":
        return pass_at_k(len(are_right), sum(are_right), len(are_right))
    answers = [votes[record["id"], record["sample"]] for record in records]
    return maj_at_k(answers, are_right)


def _chance(suite: SuiteConfig, rows: Sequence[Row]) -> float | None:
    """Computes what ignoring the questions scores, where that can be known.

    Among held-out rows one answer may be frequent, and training has shown which.
    """
    if suite.kind == HELDOUT:
        return most_frequent_answer_score([row.answer for row in rows])
    chances = [chance_of(row) for row in rows]
    known = [chance for chance in chances if chance is not None]
    return _mean(known) if len(known) == len(chances) else None


def _by_difficulty(
    suite: SuiteConfig, rows: Sequence[Row], scores: Mapping[str, float]
) -> dict[str, Any]:
    levels: dict[str, list[float]] = {}
    for row in rows:
        if (level := level_of(row)) and row.id in scores:
            levels.setdefault(level, []).append(scores[row.id])
    summaries = {}
    for level, of_level in levels.items():
        low, high = interval(of_level, seed=suite.seed)
        summaries[level] = {
            "score": _mean(of_level),
            "low": low,
            "high": high,
            "num_items": len(of_level),
        }
    return summaries


def _pass_at(
    by_item: Collection[Sequence[Record]], num_samples: int
) -> dict[str, float]:
    """Computes pass@k for k = 1, 2, 4, ... over the items that have all samples."""
    whole = [of for of in by_item if len(of) == num_samples]
    if not whole:
        return {}
    powers = [2**power for power in range(num_samples.bit_length())]
    return {
        str(k): sum(
            pass_at_k(num_samples, sum(r["is_correct"] for r in of), k) for of in whole
        )
        / len(whole)
        for k in powers
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_known(records: Sequence[Record], name: str) -> float | None:
    return _mean([r[name] for r in records if r[name] is not None])
