# SPDX-License-Identifier: Apache-2.0
"""Which samples of an item say the same, for the most frequent answer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ring_jax.data.schema import Row
from ring_jax.verify import COMPARING, Question, Sandbox, normalize

Key = tuple[str, int]
"""Id of an item, number of a sample."""


def spellings(
    rows: Iterable[Row], records: Iterable[Mapping[str, Any]]
) -> dict[Key, str]:
    """Writes what each sample answers, so that equal texts are equal answers."""
    verifiers = {row.id: row.verifier for row in rows}
    return {
        (record["id"], record["sample"]): _spelling(
            verifiers[record["id"]], record["extracted"]
        )
        for record in records
    }


def _spelling(verifier: str, text: str) -> str:
    # `normalize` drops what tells 3/4 from 3.4; a verifier that compares needs it.
    return " ".join(text.split()) if verifier in COMPARING else normalize(text)


def unite(
    said: Mapping[Key, str],
    rows: Iterable[Row],
    *,
    are_right: Mapping[Key, bool],
    sandbox: Sandbox,
) -> dict[Key, str]:
    """Gives wrong answers that the item's verifier finds equal one spelling.

    A round of questions for each different answer: is it the same as the first? What
    cannot be compared is another answer. Right answers are equal anyway.
    """
    comparing = {row.id: row for row in rows if row.verifier in COMPARING}
    open_: dict[str, list[str]] = {}
    for key, text in said.items():
        if key[0] in comparing and not are_right[key] and text:
            answers = open_.setdefault(key[0], [])
            answers += [] if text in answers else [text]
    same: dict[tuple[str, str], str] = {}
    while open_ := {row_id: texts for row_id, texts in open_.items() if len(texts) > 1}:
        asked = [
            _question(comparing[row_id], text, texts[0])
            for row_id, texts in open_.items()
            for text in texts[1:]
        ]
        outcomes = iter(sandbox.grade(asked))
        for row_id, (first, *others) in open_.items():
            are_same = [next(outcomes).outcome == "right" for _ in others]
            same |= {
                (row_id, text): first
                for text, is_same in zip(others, are_same, strict=True)
                if is_same
            }
            open_[row_id] = _left(others, are_same)
    return {key: same.get((key[0], text), text) for key, text in said.items()}


def _question(row: Row, reply: str, answer: str) -> Question:
    return Question(
        verifier=row.verifier, reply=reply, answer=answer, metadata=row.metadata
    )


def _left(texts: Sequence[str], are_same: Sequence[bool]) -> list[str]:
    pairs = zip(texts, are_same, strict=True)
    return [text for text, is_same in pairs if not is_same]
