# SPDX-License-Identifier: Apache-2.0
"""Rows longer than a packed row: left out, kept for a longer one, or split.

An answer is never cut. Under `split` a long trace becomes several rows,

    prompt <think> r1
    prompt <think> [end of r1] r2
    prompt <think> [end of r2] r3 </think> answer <stop>

where r1 r2 r3 are its reasoning, cut behind a paragraph, else behind a line, else
behind a sentence. What is in brackets is carried over for context; it has the class of
a prompt, as the repeated prompt has. So every token of the reply is trained in exactly
one row, and an answer always stands behind its prompt and the end of its reasoning. A
plain text, which has neither prompt nor answer, is cut in the same way.
"""

import dataclasses

import numpy as np

from ring_jax.config import TOKEN_CLASSES, LongRowsConfig
from ring_jax.data.chat import Rendered
from ring_jax.data.tokenizer import Tokenizer

PROMPT, THINK, ANSWER = map(TOKEN_CLASSES.index, ("prompt", "think", "answer"))
NOWHERE, SENTENCE, LINE, PARAGRAPH = range(4)
"""What ends behind a token."""


@dataclasses.dataclass(frozen=True, slots=True)
class LengthReport:
    """What became of the rows of a source."""

    rows: int = 0
    tokens: int = 0
    """Of all rows, as they were rendered."""
    rows_left_out: int = 0
    tokens_left_out: int = 0
    rows_moved: int = 0
    tokens_moved: int = 0
    rows_split: int = 0
    parts: int = 0
    """Rows that those that were split became."""

    @property
    def loss(self) -> float:
        """Share of the tokens in rows that were left out."""
        return self.tokens_left_out / max(1, self.tokens)


class LengthPolicy:
    """Fits rows into `seq_len` tokens, and counts what that costs."""

    def __init__(self, config: LongRowsConfig, tokenizer: Tokenizer, *, seq_len: int):
        """Takes the rule; nothing is counted yet."""
        self._config, self._tokenizer, self._seq_len = config, tokenizer, seq_len
        self._texts: dict[int, str] = {}

    def fit(self, row: Rendered) -> list[Rendered]:
        """Returns the row, its parts, or nothing where it cannot be had whole.

        Args:
          row: as rendered, of any length.

        Returns:
          Rows of at most `seq_len` tokens; several only under `split`.
        """
        if len(row.ids) <= self._seq_len:
            return [row]
        (think,) = np.nonzero(row.classes == THINK)
        if self._config.policy != "split":
            return []
        if row.classes[0] == ANSWER:
            # A plain text, up to its stop token.
            return self._split(row, 0, len(row.ids) - 1)
        if len(think) < 3:
            return []
        # Behind <think>, and at </think>.
        return self._split(row, int(think[0]) + 1, int(think[-1]))

    def fit_counted(
        self, row: Rendered, report: LengthReport
    ) -> tuple[list[Rendered], LengthReport]:
        """Fits a row, and adds it to a report."""
        parts, length = self.fit(row), len(row.ids)
        is_split = len(parts) > 1
        is_moved = not parts and self._config.policy == "move"
        is_out = not parts and not is_moved
        return parts, LengthReport(
            rows=report.rows + 1,
            tokens=report.tokens + length,
            rows_left_out=report.rows_left_out + is_out,
            tokens_left_out=report.tokens_left_out + length * is_out,
            rows_moved=report.rows_moved + is_moved,
            tokens_moved=report.tokens_moved + length * is_moved,
            rows_split=report.rows_split + is_split,
            parts=report.parts + (len(parts) if is_split else 0),
        )

    def _split(self, row: Rendered, start: int, end: int) -> list[Rendered]:
        room = self._seq_len - start
        # At least half of what a part has room for is new.
        carried = min(
            # At least 1, as the first token of a part is never predicted.
            self._config.carried_tokens,
            room // 2,
            room - (len(row.ids) - end),
        )
        if carried < 1:
            return []
        levels_T = self._levels(row.ids[start:end])
        parts, at = [], start
        while True:
            first = at if at == start else _carried_from(levels_T, at, carried, start)
            if len(row.ids) - first <= room:
                return [*parts, _part(row, start, first, at, len(row.ids))]
            cut = start + _last_cut(levels_T, at - start, first + room - start)
            if cut <= at:
                return []
            parts.append(_part(row, start, first, at, cut))
            at = cut

    def _levels(self, ids_T: np.ndarray) -> np.ndarray:
        """Tells what ends behind each token: i64[T]."""
        texts = [self._text(int(token)) for token in ids_T]
        levels_T, line_ends = np.zeros(len(texts), np.int64), 0
        for place, text in enumerate(texts):
            body = text.rstrip("\r\n")
            # Line ends may be tokens of their own, one behind the other.
            line_ends = text[len(body) :].count("\n") + (0 if body else line_ends)
            after = texts[place + 1] if place + 1 < len(texts) else ""
            levels_T[place] = _level(body, after, line_ends)
        return levels_T

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]


def _level(body: str, after: str, line_ends: int) -> int:
    if line_ends:
        if after.startswith(("\r", "\n")):
            return NOWHERE
        return PARAGRAPH if line_ends > 1 else LINE
    is_sentence = body.endswith(("。", "！", "？")) or (
        body.endswith((".", "!", "?")) and after[:1].isspace()
    )
    return SENTENCE if is_sentence else NOWHERE


def _last_cut(levels_T: np.ndarray, start: int, end: int) -> int:
    """Finds where to cut in (start, end]: the best kind in the later half, else any."""
    middle = (start + min(end, len(levels_T))) // 2
    for first, lowest in ((middle, PARAGRAPH), (middle, LINE), (start, SENTENCE)):
        (found,) = np.nonzero(levels_T[first:end] >= lowest)
        if len(found):
            return first + int(found[-1]) + 1
    return start


def _carried_from(levels_T: np.ndarray, at: int, carried: int, start: int) -> int:
    """Finds where what is carried begins: at a boundary, if there is one."""
    first = at - carried
    if first <= start:
        return start
    (found,) = np.nonzero(levels_T[first - start - 1 : at - start - 1] > NOWHERE)
    return first + int(found[0]) if len(found) else first


def _part(row: Rendered, start: int, first: int, at: int, end: int) -> Rendered:
    """Joins the prompt, carried tokens from `first` to `at`, and new ones to `end`."""
    stretches = (slice(0, start), slice(first, at), slice(at, end))
    ids = np.concatenate([row.ids[here] for here in stretches])
    classes = np.concatenate([row.classes[here] for here in stretches])
    if at > start:
        classes[: start + at - first] = PROMPT
    return Rendered(ids, classes)
