# SPDX-License-Identifier: Apache-2.0
"""What runs on the devices: reading a chunk of a prompt, and some steps of decoding.

Shapes do not depend on what is asked. Decoding always runs all slots; reading a prompt
runs one row a device, at one of a few lengths. So nothing is compiled twice, and a row
meets the same operations whoever its neighbours are.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ring_jax import sharding
from ring_jax.generate.sampler import Choices, choose, log_probability
from ring_jax.model import Decoder, KeyValues, Places, write, written

NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the programs must know of the tokenizer."""

    size: int
    """Ids from it on have no token, and are never chosen."""
    think_id: int
    """`NO_TOKEN` where the tokenizer has none."""
    end_of_think_id: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Orders:
    """What was asked of each slot, fixed until its request ends."""

    choices: Choices
    max_new_B: jax.Array
    stop_ids_BC: jax.Array
    """i32, `NO_TOKEN` where there are fewer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """How far each slot has come."""

    lengths_B: jax.Array
    """i32, tokens in the cache."""
    last_B: jax.Array
    """i32, the token to read next."""
    num_new_B: jax.Array
    """i32, tokens said."""
    is_done_B: jax.Array
    """bool, also of a slot without a request."""
    is_thinking_B: jax.Array
    think_left_B: jax.Array
    """i32, tokens that may be said before the think block is closed."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Said:
    """The tokens of some steps."""

    ids_BC: jax.Array
    """i32, `NO_TOKEN` after a slot's end."""
    log_probabilities_BC: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of one prompt a device; a device may have none."""

    ids_JT: jax.Array
    num_tokens_J: jax.Array
    """i32, 0 where there is none."""
    start_J: jax.Array
    """i32, tokens of the prompt before it."""
    slot_J: jax.Array
    """i32, among the slots of the device."""


@functools.partial(jax.jit, donate_argnames="cache")
def read(decoder: Decoder, cache: KeyValues, chunk: Chunk) -> KeyValues:
    """Reads prompts' chunks into their slots."""
    _, cache = decoder(chunk.ids_JT, cache, _places(chunk))
    return cache


@functools.partial(jax.jit, donate_argnames="cache")
def restore(cache: KeyValues, new: KeyValues, chunk: Chunk) -> KeyValues:
    """Puts a chunk that was read before into a slot.

    Args:
      cache: as in `read`.
      new: [L, 1, K, T, H], of one prompt, on all devices.
      chunk: of one device; its ids are of no interest.
    """
    J = chunk.slot_J.shape[0]

    def spread(x_L1KTH: jax.Array) -> jax.Array:
        shape = (x_L1KTH.shape[0], J, *x_L1KTH.shape[2:])
        layout = sharding.activation("LBKSH")
        return jnp.broadcast_to(x_L1KTH, shape, out_sharding=layout)

    return write(cache, jax.tree.map(spread, new), _places(chunk))


@functools.partial(jax.jit, static_argnames="row")
def take_row(cache: KeyValues, chunk: Chunk, *, row: int) -> KeyValues:
    """Returns what one device read, on all devices: [L, 1, K, T, H].

    A program of its own: as a part of `read`, XLA would copy the cache for it.

    Args:
      cache: as `read` left it.
      chunk: that was read.
      row: the device's.
    """
    new = written(cache, _places(chunk), num_tokens=chunk.ids_JT.shape[1])

    def take(x_LJKTH: jax.Array) -> jax.Array:
        layout = sharding.activation("L1KSH")
        whole_LJKTH = jax.reshard(x_LJKTH, layout)
        return whole_LJKTH[:, row : row + 1]

    return jax.tree.map(take, new)


def _places(chunk: Chunk) -> Places:
    return Places(chunk.slot_J, chunk.start_J, chunk.num_tokens_J)


@functools.partial(
    jax.jit, static_argnames=("vocabulary", "num_steps"), donate_argnames="cache"
)
def decode(
    decoder: Decoder,
    cache: KeyValues,
    progress: Progress,
    orders: Orders,
    seen_BV: jax.Array,
    *,
    vocabulary: Vocabulary,
    num_steps: int,
) -> tuple[KeyValues, Progress, Said]:
    """Says up to `num_steps` tokens in every slot; fewer once all slots are done.

    Args:
      decoder: the model.
      cache: is written in place.
      progress: of the slots.
      orders: of the slots.
      seen_BV: bool[B, V], tokens read or said, for the repetition penalty.
      vocabulary: of the tokenizer.
      num_steps: C.

    Returns:
      The cache; on every device, all slots' progress and what they said.
    """
    B = progress.last_B.shape[0]
    layout = sharding.whole_rows()
    said = Said(
        jnp.full((B, num_steps), NO_TOKEN, jnp.int32, out_sharding=layout),
        jnp.zeros((B, num_steps), jnp.float32, out_sharding=layout),
    )

    def is_running(carry: tuple) -> jax.Array:
        step, _, progress, _, _ = carry
        return (step < num_steps) & ~jnp.all(progress.is_done_B)

    def advance(carry: tuple) -> tuple:
        step, cache, progress, seen_BV, said = carry
        num_tokens_B = (~progress.is_done_B).astype(jnp.int32)
        places = Places(_first_slots(), progress.lengths_B, num_tokens_B)
        hidden_B1D, cache = decoder(progress.last_B[:, None], cache, places)
        logits_BV = jax.reshard(decoder.logits(hidden_B1D)[:, 0], layout)
        progress, seen_BV, ids_B, logs_B = _say(
            logits_BV, seen_BV, progress, orders, vocabulary
        )
        said = Said(
            jax.lax.dynamic_update_slice(said.ids_BC, ids_B[:, None], (0, step)),
            jax.lax.dynamic_update_slice(
                said.log_probabilities_BC, logs_B[:, None], (0, step)
            ),
        )
        return step + 1, cache, progress, seen_BV, said

    carry = (jnp.zeros((), jnp.int32), cache, progress, seen_BV, said)
    _, cache, progress, _, said = jax.lax.while_loop(is_running, advance, carry)
    everywhere = jax.tree.map(sharding.replicated, (progress, said))
    return cache, *everywhere


def _first_slots() -> jax.Array:
    """Returns i32[J]: the rows of a step are all of a device's slots."""
    num_devices = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())
    layout = sharding.activation("J")
    return jnp.zeros((num_devices,), jnp.int32, out_sharding=layout)


def _say(
    logits_BV: jax.Array,
    seen_BV: jax.Array,
    progress: Progress,
    orders: Orders,
    vocabulary: Vocabulary,
) -> tuple[Progress, jax.Array, jax.Array, jax.Array]:
    """Chooses a token of each slot that is not done.

    Returns:
      The progress, what was seen by then, and the tokens with log-probabilities.
    """
    rows, whole = sharding.activation("B"), sharding.whole_rows()
    of_slots = jax.tree.map(
        lambda x: rows if x.ndim == 1 else whole, (progress, orders)
    )
    run = sharding.per_device(
        functools.partial(_say_on_device, vocabulary=vocabulary),
        in_specs=(whole, whole, *of_slots),
        out_specs=(of_slots[0], whole, rows, rows),
    )
    return run(logits_BV, seen_BV, progress, orders)


def _say_on_device(
    logits_BV: jax.Array,
    seen_BV: jax.Array,
    progress: Progress,
    orders: Orders,
    *,
    vocabulary: Vocabulary,
) -> tuple[Progress, jax.Array, jax.Array, jax.Array]:
    is_token_V = jnp.arange(logits_BV.shape[1]) < vocabulary.size
    logits_BV = jnp.where(is_token_V[None], logits_BV, -jnp.inf)
    chosen_B = choose(logits_BV, seen_BV, orders.choices, progress.num_new_B)
    is_spent_B = progress.is_thinking_B & (progress.think_left_B <= 0)
    ids_B = jnp.where(is_spent_B, vocabulary.end_of_think_id, chosen_B)
    logs_B = log_probability(logits_BV, ids_B)

    was_done_B = progress.is_done_B
    num_new_B = progress.num_new_B + 1
    is_stop_B = jnp.any(ids_B[:, None] == orders.stop_ids_BC, axis=1)
    opens_B, closes_B = (
        ids_B == token for token in (vocabulary.think_id, vocabulary.end_of_think_id)
    )
    after = Progress(
        lengths_B=progress.lengths_B + 1,
        last_B=ids_B,
        num_new_B=num_new_B,
        is_done_B=is_stop_B | (num_new_B >= orders.max_new_B),
        is_thinking_B=(progress.is_thinking_B | opens_B) & ~closes_B,
        think_left_B=progress.think_left_B
        - (progress.is_thinking_B & ~closes_B).astype(jnp.int32),
    )
    after = jax.tree.map(
        lambda old_B, new_B: jnp.where(was_done_B, old_B, new_B), progress, after
    )
    seen_BV = jax.lax.cond(
        jnp.any(orders.choices.repetition_penalty != 1.0),
        lambda: seen_BV | (jnp.arange(seen_BV.shape[1])[None] == ids_B[:, None]),
        lambda: seen_BV,
    )
    said_B = jnp.where(was_done_B, NO_TOKEN, ids_B)
    return after, seen_BV, said_B, jnp.where(was_done_B, 0.0, logs_B)
