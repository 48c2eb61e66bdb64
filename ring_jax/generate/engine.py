# SPDX-License-Identifier: Apache-2.0
"""Decodes many prompts in batches of one compiled shape.

A batch is prompts padded on the left to one length, so that all rows write the same
slot of the cache:

    slot      0 . . . . . P-1 | P . . . . . P+N-1
    row 0     . . . p p p p p | t t t <end>           stops early: then only padding
    row 1     p p p p p p p p | t t t t t t t t       stops by length
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ring_jax import sharding
from ring_jax.config import ConfigError, EvaluateConfig
from ring_jax.data.tokenizer import Tokenizer
from ring_jax.generate.sampler import Sampler, choose
from ring_jax.model.transformer import Cache, Transformer

GREEDY = Sampler()


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model said to one prompt."""

    ids: list[int]
    """The new tokens, the end token included where there is one."""
    text: str
    """`ids` as text, special tokens spelled out."""
    stop_reason: Literal["stop", "length"]
    """Whether the model ended its turn, or was cut off."""


class Engine:
    """Completes prompts with one model; a mesh must be in force.

    Engines of models of one architecture share one compiled program.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        config: EvaluateConfig,
        dtype: str = "float32",
        sampler: Sampler = GREEDY,
    ):
        """Keeps the model and fixes the shape of a batch.

        Args:
          model: parameters on the mesh in force.
          tokenizer: its end token stops a row; ids beyond its vocabulary never appear.
          config: tokens of a prompt, new tokens, and prompts of a batch.
          dtype: compute type of the layers and type of the cache.
          sampler: how tokens are chosen.

        Raises:
          ConfigError: prompt and new tokens exceed the model's positions.
        """
        num_slots = config.max_prompt_tokens + config.max_new_tokens
        if num_slots > model.config.max_positions:
            raise ConfigError(
                f"evaluate: max_prompt_tokens={config.max_prompt_tokens} + "
                f"max_new_tokens={config.max_new_tokens} is more than "
                f"model.max_positions={model.config.max_positions}; lower one of them."
            )
        self._model = model
        self._tokenizer = tokenizer
        self._mesh = jax.sharding.get_mesh()
        # Every device gets equally many rows; rows without a prompt fill a batch up.
        num_shards = sharding.num_batch_shards(self._mesh)
        self._batch_size = -(-config.batch_size // num_shards) * num_shards
        self._settings = _Settings(
            num_prompt_slots=config.max_prompt_tokens,
            num_new_tokens=config.max_new_tokens,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            dtype=dtype,
            temperature=sampler.temperature,
        )
        self._seed = sampler.seed

    def generate(self, prompt_ids: Sequence[Sequence[int]]) -> list[Completion]:
        """Completes each prompt.

        Args:
          prompt_ids: token ids; none is empty or longer than `max_prompt_tokens`.

        Returns:
          Completions in the order of the prompts.

        Raises:
          ConfigError: a prompt is empty or too long.
        """
        check_prompts(prompt_ids, max_prompt_tokens=self._settings.num_prompt_slots)
        # Prompts of one length tend to have answers of one length, and a batch runs as
        # long as its longest answer.
        order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), self._batch_size):
            numbers = order[start : start + self._batch_size]
            ids_BT = self._complete([prompt_ids[i] for i in numbers], numbers)
            completions |= zip(numbers, map(self._completion, ids_BT), strict=False)
        return [completions[number] for number in range(len(prompt_ids))]

    def _complete(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]
    ) -> np.ndarray:
        """Returns i32[B, N], the new tokens; -1 after a row's end."""
        B, P = self._batch_size, self._settings.num_prompt_slots
        ids_BT = np.zeros((B, P), np.int32)
        lengths_B, numbers_B = np.zeros((B,), np.int32), np.zeros((B,), np.int32)
        numbers_B[: len(numbers)] = numbers
        for row, prompt in enumerate(prompts):
            ids_BT[row, P - len(prompt) :] = prompt
            lengths_B[row] = len(prompt)
        prompts_on_mesh = _Prompts(
            self._place(ids_BT, "BT"),
            self._place(lengths_B, "B"),
            self._place(numbers_B, "B"),
            self._place(np.asarray(self._seed, np.uint32), ""),
        )
        return jax.device_get(_decode(self._model, prompts_on_mesh, self._settings))

    def _place(self, x: np.ndarray, dims: str) -> jax.Array:
        layout = sharding.on_mesh(sharding.activation(dims), self._mesh)
        # Every process has all prompts, and gives its devices their rows of them.
        return jax.make_array_from_callback(x.shape, layout, x.__getitem__)

    def _completion(self, ids_T: np.ndarray) -> Completion:
        ids = ids_T[ids_T >= 0].tolist()
        is_ended = bool(ids) and ids[-1] == self._settings.eos_id
        text = self._tokenizer.decode(ids)
        return Completion(ids, text, "stop" if is_ended else "length")


def check_prompts(
    prompt_ids: Sequence[Sequence[int]], *, max_prompt_tokens: int
) -> None:
    """Refuses prompts that an engine cannot take, before any time is spent on them.

    Raises:
      ConfigError: a prompt is empty or too long.
    """
    longest = max(map(len, prompt_ids), default=0)
    if longest > max_prompt_tokens:
        raise ConfigError(
            f"a prompt has {longest} tokens, but evaluate.max_prompt_tokens="
            f"{max_prompt_tokens}; raise it or shorten the prompt."
        )
    if not all(map(len, prompt_ids)):
        raise ConfigError("a prompt has no tokens; write at least one word.")


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What the compiled program depends on, beside the shapes of its arguments."""

    num_prompt_slots: int
    num_new_tokens: int
    vocab_size: int
    eos_id: int
    dtype: str
    temperature: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Prompts:
    """A batch of prompts, padded on the left."""

    ids_BT: jax.Array
    lengths_B: jax.Array
    """i32, 0 for a row that only fills the batch up."""
    numbers_B: jax.Array
    """i32, number of the prompt among all prompts."""
    seed: jax.Array
    """u32[], of the draws."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What the loop carries from token to token."""

    num_tokens: jax.Array
    """i32[], new tokens so far; the same for all rows."""
    last_B: jax.Array
    is_done_B: jax.Array
    ids_BT: jax.Array
    cache: Cache


@functools.partial(jax.jit, static_argnames="settings")
def _decode(model: Transformer, prompts: _Prompts, settings: _Settings) -> jax.Array:
    """Returns i32[B, N], the new tokens on every device; -1 after a row's end."""

    def is_running(state: _State) -> jax.Array:
        has_room = state.num_tokens < settings.num_new_tokens
        return has_room & ~jnp.all(state.is_done_B)

    def advance(state: _State) -> _State:
        return _advance(model, prompts, state, settings)

    state = jax.lax.while_loop(is_running, advance, _start(model, prompts, settings))
    return sharding.replicated(state.ids_BT)


def _start(model: Transformer, prompts: _Prompts, settings: _Settings) -> _State:
    """Reads the prompts and chooses the first token of each row."""
    B, P = prompts.ids_BT.shape
    N, dtype = settings.num_new_tokens, jnp.dtype(settings.dtype)
    offsets_BT = jnp.arange(P)[None] - (P - prompts.lengths_B)[:, None]
    hidden_BTD, cache = model.decode(
        prompts.ids_BT,
        model.empty_cache(B, P + N, dtype=dtype),
        segments_BT=(offsets_BT >= 0).astype(jnp.int32),
        positions_BT=jnp.maximum(offsets_BT, 0),
        dtype=dtype,
    )
    layout = sharding.activation("BT")
    state = _State(
        num_tokens=jnp.zeros((), jnp.int32),
        last_B=jnp.zeros_like(prompts.lengths_B),
        is_done_B=prompts.lengths_B == 0,
        ids_BT=jnp.full((B, N), -1, jnp.int32, out_sharding=layout),
        cache=cache,
    )
    return _say(model, hidden_BTD[:, -1:], prompts, state, settings)


def _advance(
    model: Transformer, prompts: _Prompts, state: _State, settings: _Settings
) -> _State:
    """Reads the newest token of each row and chooses the next."""
    positions_B = prompts.lengths_B + state.num_tokens - 1
    hidden_B1D, cache = model.decode(
        state.last_B[:, None],
        state.cache,
        # A row that has ended is padding: its tokens visit no expert.
        segments_BT=(~state.is_done_B).astype(jnp.int32)[:, None],
        positions_BT=positions_B[:, None],
        dtype=jnp.dtype(settings.dtype),
    )
    state = dataclasses.replace(state, cache=cache)
    return _say(model, hidden_B1D, prompts, state, settings)


def _say(
    model: Transformer,
    hidden_B1D: jax.Array,
    prompts: _Prompts,
    state: _State,
    settings: _Settings,
) -> _State:
    """Chooses a token of each row that has not ended, and notes it."""
    logits_BV = model.logits(hidden_B1D)[:, 0]
    is_token_V = jnp.arange(logits_BV.shape[-1]) < settings.vocab_size
    logits_BV = jnp.where(is_token_V[None], logits_BV, -jnp.inf)
    chosen_B = choose(
        logits_BV,
        temperature=settings.temperature,
        step_key=jax.random.fold_in(jax.random.key(prompts.seed), state.num_tokens),
        numbers_B=prompts.numbers_B,
    )
    said_B = jnp.where(state.is_done_B, -1, chosen_B)
    return _State(
        num_tokens=state.num_tokens + 1,
        last_B=jnp.where(state.is_done_B, 0, chosen_B),
        is_done_B=state.is_done_B | (chosen_B == settings.eos_id),
        ids_BT=jax.lax.dynamic_update_slice(
            state.ids_BT, said_B[:, None], (0, state.num_tokens)
        ),
        cache=state.cache,
    )
