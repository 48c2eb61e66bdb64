# SPDX-License-Identifier: Apache-2.0
"""Keys and values of prompts' chunks, kept for prompts that begin in the same way.

A prompt is read in chunks whose borders do not depend on what is kept. So a chunk's
keys and values are the same bits, read again or found here.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np


class PrefixCache:
    """The chunks last used, up to a number of tokens."""

    def __init__(self, max_tokens: int):
        """Keeps chunks of at most `max_tokens` tokens in all; 0 keeps nothing."""
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._chunks: collections.OrderedDict[bytes, tuple[Any, int]] = (
            collections.OrderedDict()
        )

    def get(self, prefix_ids: Sequence[int]) -> Any | None:
        """Returns the last chunk of a prefix, if it was put here and is kept."""
        key = _key(prefix_ids)
        if (found := self._chunks.get(key)) is None:
            return None
        self._chunks.move_to_end(key)
        return found[0]

    def put(self, prefix_ids: Sequence[int], chunk: Any, *, num_tokens: int) -> None:
        """Keeps the last chunk of a prefix, and drops what was used longest ago.

        Args:
          prefix_ids: all tokens up to the chunk's end.
          chunk: whatever `get` is to return.
          num_tokens: places that it takes.
        """
        key = _key(prefix_ids)
        if num_tokens > self._max_tokens or key in self._chunks:
            return
        self._chunks[key] = chunk, num_tokens
        self._num_tokens += num_tokens
        while self._num_tokens > self._max_tokens:
            _, (_, dropped) = self._chunks.popitem(last=False)
            self._num_tokens -= dropped


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()
