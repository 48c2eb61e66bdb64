# SPDX-License-Identifier: Apache-2.0
"""Who answers the items of a suite: an engine of ours, or whatever else can."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from ring_jax.config import EvaluateConfig, RunConfig
from ring_jax.data.chat_format import ChatFormat
from ring_jax.data.chat_template import Failure
from ring_jax.data.schema import Row
from ring_jax.data.tokenizer import THINK_TOKENS, Tokenizer
from ring_jax.generate import Engine, Request, Sampling
from ring_jax.model import Transformer

PROMPT_STEP = 64
"""Prompts have room in steps of so many tokens: suites then share their programs."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One sample that is wanted of one item."""

    row: Row
    """Its last message is a gold reply, and is not shown."""
    sample: int
    temperature: float
    top_p: float
    seed: int
    """Of the draws, an unsigned 32-bit number."""
    max_new_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What was said, without the token that ended it."""

    ask: Ask
    text: str
    stop_reason: Literal["stop", "length", "prompt_too_long"]
    num_tokens: int | None
    """None where nobody counted; so is the next."""
    num_think_tokens: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Unsaid:
    """A sample that could not be had."""

    ask: Ask
    reason: str


class Completer(Protocol):
    """Answers what is asked."""

    def max_new_tokens(self, rows: Sequence[Row], wanted: int) -> int:
        """Returns how many tokens of a reply there is room for, `wanted` at most."""
        ...

    def complete(self, asked: Sequence[Ask]) -> Iterator[Said | Unsaid]:
        """Answers in any order, each as soon as it is there.

        Raises:
          ConfigError, OSError: nothing more can be had.
        """
        ...


class EngineCompleter:
    """Answers by a model on the mesh in force."""

    def __init__(self, model: Transformer, chat: ChatFormat, *, config: RunConfig):
        """Keeps the model; an engine is made for each suite, in its size.

        Args:
          model: parameters on the mesh in force.
          chat: how it is spoken to.
          config: of the run; `evaluate.batch_size` is how many answer at a time.
        """
        self._model, self._chat, self._config = model, chat, config
        self._tokenizer = chat.tokenizer
        self._rendered: dict[str, tuple[Row, list[int] | Failure]] = {}

    def max_new_tokens(self, rows: Sequence[Row], wanted: int) -> int:
        """Returns how many tokens of a reply there is room for, `wanted` at most.

        A prompt that would leave less than half of them is left out of this; it is not
        asked.
        """
        self._rendered.clear()  # a new suite
        prompts = self._prompts(rows)
        lengths = [len(ids) for ids in prompts if not isinstance(ids, Failure)]
        return room_for(lengths, wanted, self._model.config.max_positions)

    def complete(self, asked: Sequence[Ask]) -> Iterator[Said | Unsaid]:
        """Answers all; what does not fit is `prompt_too_long` and has no text."""
        positions = self._model.config.max_positions
        fitting = []
        for ask, ids in zip(
            asked, self._prompts([ask.row for ask in asked]), strict=True
        ):
            if isinstance(ids, Failure):
                yield Unsaid(ask, f"the chat template fails ({ids.reason})")
            elif len(ids) + ask.max_new_tokens <= positions:
                fitting.append((ask, tuple(ids)))
            else:
                yield unfitting(ask)
        if fitting:
            yield from self._generate(fitting)

    def _prompts(self, rows: Sequence[Row]) -> list[list[int] | Failure]:
        """Renders each row of a suite once, however often it is asked."""
        unseen = {row.id: row for row in rows if not self._is_rendered(row)}
        turns = [row.messages[:-1] for row in unseen.values()]
        for row, ids in zip(unseen.values(), self._chat.prompts(turns), strict=True):
            self._rendered[row.id] = row, ids
        return [self._rendered[row.id][1] for row in rows]

    def _is_rendered(self, row: Row) -> bool:
        return row.id in self._rendered and self._rendered[row.id][0] is row

    def _generate(
        self, rendered: Sequence[tuple[Ask, tuple[int, ...]]]
    ) -> Iterator[Said]:
        requests = [
            Request(
                prompt_ids=ids,
                sampling=Sampling(
                    temperature=ask.temperature, top_p=ask.top_p, seed=ask.seed
                ),
                max_new_tokens=ask.max_new_tokens,
                max_think_tokens=self._config.generate.max_think_tokens,
                stop_ids=self._chat.stop_ids,
            )
            for ask, ids in rendered
        ]
        engine = engine_for(
            requests, self._model, tokenizer=self._tokenizer, config=self._config
        )
        for told in engine.stream(requests):
            if (completion := told.completion) is not None:
                yield Said(
                    ask=rendered[told.number][0],
                    text=self._chat.spoken(completion.text),
                    stop_reason=completion.stop_reason,
                    num_tokens=len(completion.ids),
                    num_think_tokens=num_think_tokens(completion.ids, self._tokenizer),
                )


def num_think_tokens(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Counts the tokens inside the first think block, which may have no end."""
    if not all(map(tokenizer.has_special, THINK_TOKENS)):
        return 0
    opening, closing = map(tokenizer.special_id, THINK_TOKENS)
    before = ids[: ids.index(closing)] if closing in ids else ids
    is_thinking = opening in ids or closing in ids
    return len(before) - before.count(opening) if is_thinking else 0


def room_for(lengths: Sequence[int], wanted: int, positions: int) -> int:
    """Returns how many tokens of a reply there is room for behind prompts.

    Args:
      lengths: tokens of each prompt; one that would leave less than half of the
        positions, and less than is wanted, is left out.
      wanted: at most so many.
      positions: of the model.
    """
    room = min(wanted, positions // 2)
    fitting = [length for length in lengths if length <= positions - room]
    return min(wanted, positions - max(fitting, default=0))


def engine_for(
    requests: Sequence[Request],
    model: Transformer,
    *,
    tokenizer: Tokenizer,
    config: RunConfig,
) -> Engine:
    """Makes an engine in the size of requests; each names its `max_new_tokens`."""
    max_new_tokens = max(request.max_new_tokens or 1 for request in requests)
    longest = max(len(request.prompt_ids) for request in requests)
    longest = -(-longest // PROMPT_STEP) * PROMPT_STEP
    return Engine(
        model,
        tokenizer,
        config=EvaluateConfig(
            max_prompt_tokens=min(longest, model.config.max_positions - max_new_tokens),
            max_new_tokens=max_new_tokens,
            batch_size=min(config.evaluate.batch_size, len(requests)),
        ),
        dtype=config.train.compute_dtype,
        pace=config.generate,
    )


def unfitting(ask: Ask) -> Said:
    """Says nothing, to a prompt for which there is no room."""
    return Said(
        ask=ask,
        text="",
        stop_reason="prompt_too_long",
        num_tokens=0,
        num_think_tokens=0,
    )
