# SPDX-License-Identifier: Apache-2.0
"""Sampled answers: what each says in the end, and whether most of them agree."""

import collections
import dataclasses
from collections.abc import Collection, Sequence

from ring_jax.config import ConsistencyConfig
from ring_jax.curate.rows import Rejection, reject
from ring_jax.data.schema import Message, Row
from ring_jax.verify import (
    COMPARING,
    Question,
    Sandbox,
    final_answer,
    normalize,
    split_reasoning,
)

STEP = "consistency"


def samples_of(row: Row) -> list[str]:
    """Returns the sampled replies that a row brings; those that are texts."""
    samples = row.metadata.get("samples")
    if not isinstance(samples, list | tuple):
        return []
    return [sample for sample in samples if isinstance(sample, str)]


def keep_consistent(
    rows: Sequence[Row], *, sandbox: Sandbox, config: ConsistencyConfig
) -> list[Row | Rejection]:
    """Keeps rows whose samples agree, with the majority's answer as their label.

    Answers are the same where the row's verifier says so, if it compares answers
    (1/2 and 0.5 under `math`); otherwise where they are the same text. A reply that
    says otherwise gives way to the first sample that says it. A row with an answer of
    its own keeps that answer; a majority against it turns the row away.

    Source: keep when more than half agree (arXiv:2203.11171's vote, as the data of
    Ring-Lite-Distill use it: more than 5 of 10).
    """
    votes = {
        number: _Vote(row, samples_of(row))
        for number, row in enumerate(rows)
        if len(_voters(row)) >= config.min_samples
    }
    _unite(votes.values(), sandbox)
    return [
        _check(votes[number], config) if number in votes else row
        for number, row in enumerate(rows)
    ]


def _voters(row: Row) -> list[str]:
    # Two right programs are seldom the same text; tests judge them, and no vote.
    return samples_of(row) if row.messages and row.verifier != "program" else []


class _Vote:
    """The answers to a question, each under the first of those that say the same."""

    def __init__(self, row: Row, samples: Sequence[str]):
        self.row = row
        self.samples = samples
        self.said = final_answer(row.reply.content)
        self.answers = [final_answer(sample) for sample in samples]
        # The gold answer comes first, so that others are compared with it.
        texts = [*filter(None, [row.answer]), *self.answers, self.said]
        spellings = [_spelling(row, text) for text in texts]
        self._same_as = dict(zip(spellings, spellings, strict=True))
        self._unsettled = list(self._same_as) if row.verifier in COMPARING else []

    def key(self, text: str) -> str:
        """Returns what all texts that say the same have in common."""
        return self._same_as[_spelling(self.row, text)]

    def questions(self) -> list[Question]:
        """Asks of each text but the first of those not settled: is it the same?"""
        return [
            Question(
                verifier=self.row.verifier,
                reply=text,
                answer=self._unsettled[0],
                metadata=self.row.metadata,
            )
            for text in self._unsettled[1:]
        ]

    def settle(self, are_same: Sequence[bool]) -> None:
        """Takes the answers to `questions`."""
        if not self._unsettled:
            return
        first, *others = self._unsettled
        pairs = list(zip(others, are_same, strict=True))
        self._same_as |= {text: first for text, is_same in pairs if is_same}
        self._unsettled = [text for text, is_same in pairs if not is_same]


def _spelling(row: Row, text: str) -> str:
    # `normalize` drops what tells 3/4 from 3.4; a verifier that compares needs it.
    return " ".join(text.split()) if row.verifier in COMPARING else normalize(text)


def _unite(votes: Collection[_Vote], sandbox: Sandbox) -> None:
    """Finds which answers are the same, a round for each different answer."""
    while any(asked := [vote.questions() for vote in votes]):
        answers = iter(sandbox.grade([one for of_vote in asked for one in of_vote]))
        for vote, questions in zip(votes, asked, strict=True):
            vote.settle([next(answers).outcome == "right" for _ in questions])


def _check(vote: _Vote, config: ConsistencyConfig) -> Row | Rejection:
    row, num_samples = vote.row, len(vote.samples)
    votes = collections.Counter(map(vote.key, vote.answers))
    # Of equally frequent answers the first; then none has more than half anyway.
    (winner, count), *_ = votes.most_common(1)
    if not winner or count <= config.min_agreement * num_samples:
        detail = f"{count} of {num_samples} samples agree on {winner!r}"
        return reject(row, step=STEP, reason="no_majority", detail=detail)
    if row.answer and vote.key(row.answer) != winner:
        detail = f"{count} of {num_samples} samples say {winner!r}, not {row.answer!r}"
        return reject(row, step=STEP, reason="majority_against_answer", detail=detail)
    return _with_label(vote, winner, count / num_samples)


def _with_label(vote: _Vote, winner: str, share: float) -> Row:
    keys = [vote.key(answer) for answer in vote.answers]
    row = vote.row
    metadata = row.metadata
    if row.verifier in COMPARING:
        metadata = {"pass_rate": share, **metadata}
    row = dataclasses.replace(
        row,
        answer=row.answer or vote.answers[keys.index(winner)],
        verifier=row.verifier or "match",
        metadata=metadata,
    )
    if vote.key(vote.said) == winner:
        return row
    think, content = split_reasoning(vote.samples[keys.index(winner)])
    reply = Message("assistant", content.strip(), think)
    return dataclasses.replace(row, messages=(*row.messages[:-1], reply))


def pass_rate(row: Row) -> float | None:
    """Returns the share of right samples, from 0 to 1; None where nobody knows."""
    rate = row.metadata.get("pass_rate")
    if isinstance(rate, int | float) and 0.0 <= rate <= 1.0:
        return float(rate)
    samples = _voters(row)
    if not samples or not row.answer:
        return None
    gold = _spelling(row, row.answer)
    said = [_spelling(row, final_answer(sample)) for sample in samples]
    return said.count(gold) / len(said)
