# SPDX-License-Identifier: Apache-2.0
"""Completes requests, as many at a time as there are slots.

    waiting   r5 r6 ...
                |  a prompt is read in chunks, as soon as a slot is free
    slot 0    r0 . . . . <end> r4 . . . .        all slots go on together,
    slot 1    r1 . . . . . . . . . . . .         some steps a dispatch
    slot 2    r2 . <end> r3 . . . . . . .

The host looks at what was said once a dispatch; what a slot says after its request was
seen to end is dropped.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from ring_jax import sharding
from ring_jax.config import ConfigError, EvaluateConfig, GenerateConfig
from ring_jax.data.tokenizer import THINK_TOKENS, Tokenizer
from ring_jax.generate import programs
from ring_jax.generate.prefix import PrefixCache
from ring_jax.generate.programs import NO_TOKEN, Chunk, Vocabulary
from ring_jax.generate.request import GREEDY, Completion, Request, Sampling
from ring_jax.generate.slots import MAX_STOP_IDS, Slots, place
from ring_jax.generate.stop import Transcript
from ring_jax.model import Transformer, empty_cache, make_decoder

SMALLEST_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Told:
    """What a request has said since it was last told of."""

    number: int
    """Of the request, in the order in which they were given."""
    text: str
    completion: Completion | None
    """When it has ended."""


class Engine:
    """Completes prompts with one model; a mesh must be in force.

    Engines of models of one architecture and of equal sizes share their programs.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        config: EvaluateConfig,
        dtype: str = "float32",
        pace: GenerateConfig | None = None,
    ):
        """Lays out the model for decoding, and makes room for keys and values.

        Args:
          model: parameters on the mesh in force.
          tokenizer: its end token ends a request; ids beyond its vocabulary never
            appear.
          config: tokens of a prompt, new tokens, and slots (`batch_size`).
          dtype: compute type of the layers and type of the cache.
          pace: tokens of a chunk and of the prefix cache, steps of a dispatch.

        Raises:
          ConfigError: prompt and new tokens exceed the model's positions.
        """
        num_places = config.max_prompt_tokens + config.max_new_tokens
        if num_places > model.config.max_positions:
            raise ConfigError(
                f"evaluate: max_prompt_tokens={config.max_prompt_tokens} + "
                f"max_new_tokens={config.max_new_tokens} is more than "
                f"model.max_positions={model.config.max_positions}; lower one of them."
            )
        self._config, self._pace = config, pace or GenerateConfig()
        self._tokenizer = tokenizer
        self._mesh = jax.sharding.get_mesh()
        # Every device gets equally many slots.
        self._num_shards = sharding.num_batch_shards(self._mesh)
        num_slots = -(-config.batch_size // self._num_shards) * self._num_shards
        self._chunk = _power_of_two(min(self._pace.prefill_chunk_tokens, num_places))
        num_places = -(-num_places // self._chunk) * self._chunk
        self._decoder = make_decoder(model, dtype=dtype)
        self._cache = jax.jit(
            empty_cache, static_argnums=(0, 1, 2), static_argnames="dtype"
        )(model.config, num_slots, num_places, dtype=dtype)
        self._slots = Slots(num_slots, model.config.vocab_size, self._mesh)
        self._free = list(range(num_slots))
        self._prefixes = PrefixCache(self._pace.prefix_cache_tokens)
        think, end_of_think = (
            tokenizer.special_id(name) if tokenizer.has_special(name) else NO_TOKEN
            for name in THINK_TOKENS
        )
        self._vocabulary = Vocabulary(tokenizer.vocab_size, think, end_of_think)

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling = GREEDY
    ) -> list[Completion]:
        """Completes each prompt, all with the same sampling; see `complete`."""
        prompts = map(tuple, prompt_ids)
        return self.complete(
            [Request(prompt_ids=ids, sampling=sampling) for ids in prompts]
        )

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completes requests.

        Returns:
          Completions in the order of the requests.

        Raises:
          ConfigError: as `stream`.
        """
        found = {
            told.number: told.completion
            for told in self.stream(requests)
            if told.completion is not None
        }
        return [found[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[Told]:
        """Completes requests, and tells of each what it says while it goes on.

        Left before its end, it gives the slots free.

        Raises:
          ConfigError: a prompt is empty or too long, or a request asks for what the
            engine or the tokenizer has not; before anything is computed.
        """
        check_prompts(
            [request.prompt_ids for request in requests],
            max_prompt_tokens=self._config.max_prompt_tokens,
        )
        for request in requests:
            self._check(request)
        return self._run(requests)

    def _check(self, request: Request) -> None:
        limit = self._config.max_new_tokens
        if not 0 < (request.max_new_tokens or limit) <= limit:
            raise ConfigError(
                f"max_new_tokens={request.max_new_tokens} of a request must be from 1 "
                f"to evaluate.max_new_tokens={limit}."
            )
        if request.max_think_tokens is not None:
            if request.max_think_tokens < 0:
                raise ConfigError(
                    f"max_think_tokens={request.max_think_tokens} must be 0 or more."
                )
            if not self._tokenizer.has_special(THINK_TOKENS[1]):
                raise ConfigError(
                    f"max_think_tokens={request.max_think_tokens}: the tokenizer has "
                    f"no {THINK_TOKENS[1]}, so this model does not think; leave it out."
                )
        if len(request.stop_ids) >= MAX_STOP_IDS:
            raise ConfigError(
                f"a request has {len(request.stop_ids)} stop_ids; give at most "
                f"{MAX_STOP_IDS - 1}."
            )

    def _run(self, requests: Sequence[Request]) -> Iterator[Told]:
        waiting = collections.deque(range(len(requests)))
        running: dict[int, _Running] = {}
        try:
            while waiting or running:
                admitted = self._admit(waiting, requests)
                running |= admitted
                yield from self._step(running)
        finally:
            for slot in running:
                self._release(slot)

    def _admit(
        self, waiting: collections.deque[int], requests: Sequence[Request]
    ) -> dict[int, "_Running"]:
        """Gives free slots to those who wait, and reads their prompts."""
        admitted: dict[int, _Running] = {}
        while waiting and self._free:
            slot, number = self._free.pop(0), waiting.popleft()
            request = requests[number]
            admitted[slot] = _Running(number, request, self._tokenizer)
        self._read({slot: run.request for slot, run in admitted.items()})
        for slot, run in admitted.items():
            request = run.request
            self._slots.begin(
                slot,
                request,
                max_new_tokens=request.max_new_tokens or self._config.max_new_tokens,
                stop_ids=(self._tokenizer.eos_id, *request.stop_ids),
                is_thinking=self._is_thinking(request.prompt_ids),
            )
        return admitted

    def _read(self, requests: dict[int, Request]) -> None:
        """Reads prompts but for their last tokens, which the first step reads."""
        parts = {
            slot: _parts(request.prompt_ids[:-1], self._chunk)
            for slot, request in requests.items()
        }
        while any(parts.values()):
            self._read_some(parts)

    def _read_some(self, parts: dict[int, list["_Part"]]) -> None:
        """Reads one part each of prompts on different devices, all of one size."""
        size = next(parts[slot][0].size for slot in parts if parts[slot])
        chosen: dict[int, tuple[int, _Part]] = {}
        for slot in parts:
            device = self._device_of(slot)
            if device in chosen or not parts[slot] or parts[slot][0].size != size:
                continue
            part = parts[slot].pop(0)
            if (found := self._prefixes.get(part.prefix_ids)) is not None:
                chunk = self._chunk_of({device: (slot, part)}, size)
                self._cache = programs.restore(self._cache, found, chunk)
            else:
                chosen[device] = slot, part
        if not chosen:
            return
        chunk = self._chunk_of(chosen, size)
        self._cache = programs.read(self._decoder, self._cache, chunk)
        if size <= self._pace.prefix_cache_tokens:
            for device, (_, part) in chosen.items():
                row = programs.take_row(self._cache, chunk, row=device)
                self._prefixes.put(part.prefix_ids, row, num_tokens=size)

    def _chunk_of(self, chosen: dict[int, tuple[int, "_Part"]], size: int) -> Chunk:
        J = self._num_shards
        ids_JT = np.zeros((J, size), np.int32)
        num_tokens_J, start_J, slot_J = (np.zeros((J,), np.int32) for _ in range(3))
        for device, (slot, part) in chosen.items():
            num_tokens = len(part.prefix_ids) - part.start
            ids_JT[device, :num_tokens] = part.prefix_ids[part.start :]
            num_tokens_J[device], start_J[device] = num_tokens, part.start
            slot_J[device] = slot % self._slots_a_device
        arrays = ids_JT, num_tokens_J, start_J, slot_J
        return Chunk(*(place(array, self._mesh) for array in arrays))

    @property
    def _slots_a_device(self) -> int:
        return self._slots.num_slots // self._num_shards

    def _device_of(self, slot: int) -> int:
        return slot // self._slots_a_device

    def _is_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Tells whether a prompt leaves a think block open."""
        think, end_of_think = (
            self._vocabulary.think_id,
            self._vocabulary.end_of_think_id,
        )
        tags = [i for i in prompt_ids if i in (think, end_of_think)]
        return bool(tags) and tags[-1] == think

    def _step(self, running: dict[int, "_Running"]) -> Iterator[Told]:
        """Dispatches some steps, and tells what was said."""
        progress, orders, seen_BV = self._slots.arguments()
        self._cache, progress, said = programs.decode(
            self._decoder,
            self._cache,
            progress,
            orders,
            seen_BV,
            vocabulary=self._vocabulary,
            num_steps=self._pace.steps_per_dispatch,
        )
        progress, said = jax.device_get((progress, said))
        self._slots.update(progress, said.ids_BC)
        for slot, run in list(running.items()):
            run.hear(said.ids_BC[slot], said.log_probabilities_BC[slot])
            completion = None
            if run.is_stopped or self._slots.is_done(slot):
                completion = run.completion()
                del running[slot]
                self._release(slot)
            yield Told(run.number, run.tell(), completion)

    def _release(self, slot: int) -> None:
        self._slots.end(slot)
        self._free.append(slot)
        self._free.sort()


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


class _Running:
    """A request in a slot, and what it has said."""

    def __init__(self, number: int, request: Request, tokenizer: Tokenizer):
        self.number, self.request = number, request
        self._tokenizer = tokenizer
        self._transcript = Transcript(tokenizer, request.stop)
        self._ids: list[int] = []
        self._log_probabilities: list[float] = []

    @property
    def is_stopped(self) -> bool:
        return self._transcript.is_stopped

    def hear(self, ids_C: np.ndarray, log_probabilities_C: np.ndarray) -> None:
        """Takes down the tokens of some steps, up to a stop text."""
        for token, log_probability in zip(ids_C, log_probabilities_C, strict=True):
            if token == NO_TOKEN or self.is_stopped:
                return
            self._ids.append(int(token))
            self._log_probabilities.append(float(log_probability))
            self._transcript.add(int(token))

    def tell(self) -> str:
        return self._transcript.tell()

    def completion(self) -> Completion:
        text = self._transcript.finish()
        stops = (self._tokenizer.eos_id, *self.request.stop_ids)
        is_ended = self.is_stopped or self._ids[-1] in stops
        reason = "stop" if is_ended else "length"
        return Completion(self._ids, text, reason, self._log_probabilities)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A chunk of a prompt, and all that is before it."""

    prefix_ids: tuple[int, ...]
    start: int
    size: int
    """Tokens that the program takes, padding included."""


def _parts(ids: tuple[int, ...], chunk: int) -> list[_Part]:
    """Cuts a prompt into chunks, the last one of the smallest size that holds it."""
    parts = []
    for start in range(0, len(ids), chunk):
        prefix_ids = ids[: start + chunk]
        num_tokens = len(prefix_ids) - start
        size = min(chunk, max(SMALLEST_CHUNK, 1 << (num_tokens - 1).bit_length()))
        parts.append(_Part(prefix_ids, start, size))
    return parts


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is not below."""
    return 1 << max(number - 1, 0).bit_length()
