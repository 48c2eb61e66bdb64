# SPDX-License-Identifier: Apache-2.0
"""Is the reply of each row right? Asked of the row's own verifier, in a sandbox."""

from collections.abc import Sequence

from ring_jax.config import VerificationConfig
from ring_jax.curate.rows import Rejection, reject
from ring_jax.data.schema import Row
from ring_jax.verify import WHOLE_REPLY, Answer, Question, Sandbox, final_answer

STEP = "verification"
REASONS = {
    "wrong": "wrong_answer",
    "timeout": "verifier_timeout",
    "crashed": "verifier_crashed",
    "error": "verifier_error",
}


def verify(
    rows: Sequence[Row], *, sandbox: Sandbox, config: VerificationConfig
) -> list[Row | Rejection]:
    """Turns away rows whose reply their verifier does not accept.

    A reply that ends in a boxed or stated answer is judged by that answer where the
    whole reply is not accepted.
    """
    asked = [number for number, row in enumerate(rows) if row.verifier and row.messages]
    judged: list[Row | Rejection] = list(rows)
    answers = sandbox.grade([_question(rows[n], _said(rows[n])) for n in asked])
    again = [
        number
        for number, answer in zip(asked, answers, strict=True)
        if answer.outcome == "wrong" and _has_other_end(rows[number])
    ]
    second = dict(
        zip(
            again,
            sandbox.grade([_question(rows[n], _ended(rows[n])) for n in again]),
            strict=True,
        )
    )
    for number, answer in zip(asked, answers, strict=True):
        judged[number] = _judge(rows[number], second.get(number, answer))
    if config.without_verifier == "drop":
        for number in set(range(len(rows))) - set(asked):
            judged[number] = reject(
                rows[number],
                step=STEP,
                reason="no_verifier",
                detail="the row names no verifier",
            )
    return judged


def _question(row: Row, said: str) -> Question:
    return Question(
        verifier=row.verifier, reply=said, answer=row.answer, metadata=row.metadata
    )


def _said(row: Row) -> str:
    calls = [
        f"<tool_call>{call.to_json()}</tool_call>" for call in row.reply.tool_calls
    ]
    return "".join([row.reply.content, *calls])


def _has_other_end(row: Row) -> bool:
    return row.verifier not in WHOLE_REPLY and _said(row) != _ended(row)


def _ended(row: Row) -> str:
    return final_answer(row.reply.content) or _said(row)


def _judge(row: Row, answer: Answer) -> Row | Rejection:
    if answer.outcome == "right":
        return row
    said = " ".join(_ended(row).split())[:120]
    detail = (
        answer.detail or f"{row.verifier} expects {row.answer[:120]!r}, not {said!r}"
    )
    return reject(row, step=STEP, reason=REASONS[answer.outcome], detail=detail)
