# SPDX-License-Identifier: Apache-2.0
"""How likely a model finds tokens behind others, and whether it would say them itself.

Teacher-forced: a row is read once, whatever its length, and nothing is generated.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from itertools import batched

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ring_jax import sharding
from ring_jax.config import ConfigError
from ring_jax.model import Transformer
from ring_jax.objectives.training_loss import split_rows

SHORTEST_ROW = 32
"""Tokens; rows are padded to powers of two from here on, so that few programs do."""
HEAD_TOKENS = 256
"""Places of a row whose logits exist at the same time."""
MAX_BATCH_TOKENS = 32_768
"""Of the rows that are read at once, padding included."""


@dataclasses.dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens to be scored, behind those that are given."""

    ids: Sequence[int]
    """Context and continuation; the last token is scored and never read."""
    num_context: int
    """How many of `ids` are given, at least one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model thinks of a continuation."""

    log_likelihood: float
    """Sum of the log-probabilities of its tokens, nats."""
    is_greedy: bool
    """Each of its tokens is the most probable one where it stands."""


def score(
    model: Transformer,
    continuations: Sequence[Continuation],
    *,
    dtype: DTypeLike,
    max_rows: int,
) -> list[Likelihood]:
    """Scores continuations; a mesh is in force.

    log p(continuation | context) = sum over its tokens t of log p(t | all before).

    Args:
      model: the parameters, float32.
      continuations: in any order; those of about one length are read together.
      dtype: compute type of the layers.
      max_rows: most of them that are read at once, rounded up to the mesh.

    Raises:
      ConfigError: one has no context, no continuation, or more tokens than the model
        has positions.
    """
    positions = model.config.max_positions
    for one in continuations:
        if not (0 < one.num_context < len(one.ids) <= positions + 1):
            raise ConfigError(
                f"a continuation has {one.num_context} of {len(one.ids)} tokens as "
                "context; both parts need a token, and all but the last fit into "
                f"model.max_positions={positions}."
            )
    found: dict[int, Likelihood] = {}
    by_length: dict[int, list[int]] = {}
    for number, one in enumerate(continuations):
        length = _padded(len(one.ids) - 1, positions)
        by_length.setdefault(length, []).append(number)
    for length, numbers in sorted(by_length.items(), reverse=True):
        num_rows = _rows_of(length, max_rows)
        for part in batched(numbers, num_rows):
            rows = [continuations[number] for number in part]
            scored = _read(model, rows, (num_rows, length), dtype)
            found |= zip(part, scored, strict=True)
    return [found[number] for number in range(len(continuations))]


def _padded(length: int, positions: int) -> int:
    return min(max(SHORTEST_ROW, 1 << (length - 1).bit_length()), positions)


def _rows_of(length: int, max_rows: int) -> int:
    num_shards = sharding.num_batch_shards(jax.sharding.get_mesh())
    rows = max(1, min(max_rows, MAX_BATCH_TOKENS // length))
    return -(-rows // num_shards) * num_shards


def _read(
    model: Transformer,
    rows: Sequence[Continuation],
    shape: tuple[int, int],
    dtype: DTypeLike,
) -> Iterator[Likelihood]:
    ids_BT, targets_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments_BT, is_scored_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for place, row in enumerate(rows):
        length = len(row.ids) - 1
        ids_BT[place, :length], targets_BT[place, :length] = row.ids[:-1], row.ids[1:]
        segments_BT[place, :length] = 1
        is_scored_BT[place, row.num_context - 1 : length] = 1
    layout = sharding.on_mesh(sharding.whole_rows(), jax.sharding.get_mesh())
    arrays = [
        jax.make_array_from_callback(shape, layout, x_BT.__getitem__)
        for x_BT in (ids_BT, targets_BT, segments_BT, is_scored_BT)
    ]
    sums_B, misses_B = jax.device_get(_score(model, *arrays, dtype=jnp.dtype(dtype)))
    for total, misses, _ in zip(sums_B, misses_B, rows, strict=False):
        yield Likelihood(float(total), int(misses) == 0)


@functools.partial(jax.jit, static_argnames="dtype")
def _score(
    model: Transformer,
    ids_BT: jax.Array,
    targets_BT: jax.Array,
    segments_BT: jax.Array,
    is_scored_BT: jax.Array,
    *,
    dtype: np.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Returns f32[B], log-likelihoods, and i32[B], tokens that another one beats."""
    places_BT = jax.lax.broadcasted_iota(jnp.int32, ids_BT.shape, 1)
    positions_BT = jnp.where(segments_BT > 0, places_BT, 0)
    # The context axis takes parts of rows; sums over a row do not mind their order.
    read, scored = split_rows(
        ((ids_BT, segments_BT, positions_BT), (targets_BT, is_scored_BT))
    )
    hidden_BTD, _ = model(
        read[0], segments_BT=read[1], positions_BT=read[2], dtype=dtype
    )
    whole = sharding.whole_rows()
    hidden_BTD = jax.reshard(hidden_BTD, P(*whole, None))
    targets_BT, is_scored_BT = (jax.reshard(x_BT, whole) for x_BT in scored)
    logs, misses = [], []
    for start in range(0, ids_BT.shape[1], HEAD_TOKENS):
        part = slice(start, start + HEAD_TOKENS)
        log_BT, is_best_BT = _of_targets(
            model.logits(hidden_BTD[:, part]), targets_BT[:, part]
        )
        is_scored = is_scored_BT[:, part] > 0
        logs.append(jnp.sum(jnp.where(is_scored, log_BT, 0.0), axis=1))
        misses.append(jnp.sum(is_scored & ~is_best_BT, axis=1, dtype=jnp.int32))
    return jnp.sum(jnp.stack(logs), axis=0), jnp.sum(jnp.stack(misses), axis=0)


def _of_targets(
    logits_BTV: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of each target, and whether none is likelier."""
    token_BTV = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2)
    # A sum instead of an index: devices may hold parts of the vocabulary.
    is_target_BTV = token_BTV == targets_BT[..., None]
    target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=2)
    log_BT = target_BT - jax.nn.logsumexp(logits_BTV, axis=2)
    return log_BT, target_BT >= jnp.max(logits_BTV, axis=2)
