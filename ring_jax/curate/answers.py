# SPDX-License-Identifier: Apache-2.0
"""Sampled answers: what each says in the end, and whether most of them agree."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from ring_jax.config import ConsistencyConfig
from ring_jax.curate.rows import Rejection, reject
from ring_jax.data.schema import Message, Row
from ring_jax.verify import normalize

STEP = "consistency"

_BOXED = re.compile(r"\\boxed\s*\{")
_STATED = re.compile(
    r"(?:final answer|the answer|answer|答案)\s*(?:is|:|=|为|是)+\s*(.+)", re.IGNORECASE
)
_THINK = re.compile(r"\A\s*<think>(.*?)</think>", re.DOTALL)


def final_answer(text: str) -> str:
    r"""Returns what a reply answers in the end.

    That is the last `\boxed{...}`, or what follows the last "answer is", or all of it.
    """
    text = _THINK.sub("", text)
    if starts := list(_BOXED.finditer(text)):
        return _in_braces(text, starts[-1].end())
    if stated := _STATED.findall(text):
        return stated[-1].strip().rstrip(".").strip("*$ ")
    return text.strip()


def _in_braces(text: str, start: int) -> str:
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip()
    return text[start:].strip()


def samples_of(row: Row) -> list[str]:
    """Returns the sampled replies that a row brings; those that are texts."""
    samples = row.metadata.get("samples")
    if not isinstance(samples, list | tuple):
        return []
    return [sample for sample in samples if isinstance(sample, str)]


def keep_consistent(
    rows: Sequence[Row], *, config: ConsistencyConfig
) -> list[Row | Rejection]:
    """Keeps rows whose samples agree, with the majority's answer as their label.

    A reply that says otherwise gives way to the first sample that says it. A row with
    an answer of its own keeps that answer; a majority against it turns the row away.

    Source: keep when more than half agree (arXiv:2203.11171's vote, as the data of
    Ring-Lite-Distill use it: more than 5 of 10).
    """
    return [_check(row, config) for row in rows]


def _check(row: Row, config: ConsistencyConfig) -> Row | Rejection:
    samples = samples_of(row)
    if not row.messages or len(samples) < config.min_samples:
        return row
    answers = [final_answer(sample) for sample in samples]
    votes = collections.Counter(map(normalize, answers))
    # Of equally frequent answers the first; then none has more than half anyway.
    (winner, count), *_ = votes.most_common(1)
    if not winner or count <= config.min_agreement * len(samples):
        detail = f"{count} of {len(samples)} samples agree on {winner!r}"
        return reject(row, step=STEP, reason="no_majority", detail=detail)
    if row.answer and normalize(row.answer) != winner:
        detail = f"{count} of {len(samples)} samples say {winner!r}, not {row.answer!r}"
        return reject(row, step=STEP, reason="majority_against_answer", detail=detail)
    label = answers[[normalize(answer) for answer in answers].index(winner)]
    return _with_reply(row, winner, label, samples)


def _with_reply(row: Row, winner: str, label: str, samples: Sequence[str]) -> Row:
    row = dataclasses.replace(
        row, answer=row.answer or label, verifier=row.verifier or "match"
    )
    if normalize(final_answer(row.reply.content)) == winner:
        return row
    sample = next(s for s in samples if normalize(final_answer(s)) == winner)
    found = _THINK.match(sample)
    content = sample[found.end() :] if found else sample
    reply = Message("assistant", content.strip(), found[1].strip() if found else "")
    return dataclasses.replace(row, messages=(*row.messages[:-1], reply))


def pass_rate(row: Row) -> float | None:
    """Returns the share of right samples, from 0 to 1; None where nobody knows."""
    rate = row.metadata.get("pass_rate")
    if isinstance(rate, int | float) and 0.0 <= rate <= 1.0:
        return float(rate)
    samples = samples_of(row)
    if not samples or not row.answer:
        return None
    gold = normalize(row.answer)
    return sum(normalize(final_answer(s)) == gold for s in samples) / len(samples)
