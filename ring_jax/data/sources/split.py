# SPDX-License-Identifier: Apache-2.0
"""What a reader returns, and how items are kept out of training."""

import dataclasses
import hashlib
from collections.abc import Sequence

from ring_jax.data.schema import Row

HELDOUT_SHARE = 8
"""One item of this many is never trained."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows of one source; no item is in both lists.

    Rows that lie in files bring the files' hash. They may repeat held-out prompts, and
    are read when they are needed.
    """

    train: Sequence[Row]
    heldout: list[Row]
    digest: str = ""
    """Hash of the files that `train` is read from; empty where its rows are here."""


def is_heldout(item: str) -> bool:
    """Tells whether an item belongs to the held-out pool.

    The item's own text decides, not a seed or a count: two sources, two levels or two
    runs that share a task can never train on each other's held-out items.
    """
    return digest(item) % HELDOUT_SHARE == 0


def prompt_of(row: Row) -> str:
    """Returns what makes two rows the same question: all turns before the reply."""
    turns = [f"{turn.role}:{turn.content}" for turn in row.messages[:-1]]
    return row.text or "\n".join(turns)


def digest(item: str) -> int:
    """Hashes text to 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest())
