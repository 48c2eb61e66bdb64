# SPDX-License-Identifier: Apache-2.0
"""Text out of tokens as they come, and where a text ends that must not go on."""

from collections.abc import Sequence

from ring_jax.data.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""What a tokenizer makes of the first bytes of a character."""


class Transcript:
    """The text of one completion while it grows.

    A token may hold part of a character, and a stop text may begin in one token and end
    in another: such an end is held back until it is known what it is.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        """Starts an empty text that ends before the first of the texts in `stop`."""
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self._first, self._read = 0, 0
        self._text, self._num_told = "", 0
        self.is_stopped = False

    def add(self, token_id: int) -> None:
        """Adds a token; nothing comes after a stop text."""
        self._ids.append(token_id)
        known = self._decode(self._first, self._read)
        longer = self._decode(self._first, len(self._ids))
        if len(longer) > len(known) and not longer.endswith(UNFINISHED):
            self._extend(longer[len(known) :])
            self._first, self._read = self._read, len(self._ids)

    def finish(self) -> str:
        """Returns the whole text; no token follows."""
        if not self.is_stopped:
            known = self._decode(self._first, self._read)
            self._extend(self._decode(self._first, len(self._ids))[len(known) :])
        return self._text

    def tell(self) -> str:
        """Returns what is certain and was not told before."""
        end = len(self._text)
        if not self.is_stopped:
            end -= max((_overlap(self._text, stop) for stop in self._stop), default=0)
        told, self._num_told = self._text[self._num_told : end], end
        return told

    def _extend(self, more: str) -> None:
        longest = max(map(len, self._stop), default=0)
        start = max(len(self._text) - longest, 0)
        self._text += more
        found = [self._text.find(stop, start) for stop in self._stop]
        if places := [place for place in found if place >= 0]:
            self._text = self._text[: min(places)]
            self.is_stopped = True

    def _decode(self, first: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[first:end])


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of `text` may begin `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
