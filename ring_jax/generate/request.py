# SPDX-License-Identifier: Apache-2.0
"""What an engine is asked, and what it answers."""

import dataclasses
from typing import Literal

import numpy as np

from ring_jax.config import ConfigError, GenerateConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the tokens of one request are chosen.

    In this order: the repetition penalty, the temperature, top-k, of what that leaves
    top-p, and min-p; a token is drawn from what is left. Tokens as probable as the last
    that a filter keeps are kept as well.
    """

    temperature: float = 0.0
    """Divides the logits before drawing; 0 takes the most probable token."""
    top_k: int = 0
    """How many of the most probable tokens are kept; 0 keeps all."""
    top_p: float = 1.0
    """Keeps the most probable tokens that together reach this probability."""
    min_p: float = 0.0
    """Keeps tokens at least this share as probable as the most probable one."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that were read or said, multiplies negative
    ones (arXiv:1909.05858, section 4.1)."""
    seed: int = 0
    """Of the draws, an unsigned 32-bit number. A token is a function of the request,
    this seed, and how many tokens were said before it."""

    def __post_init__(self):
        for name, is_good, advice in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more, finite"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            (
                "repetition_penalty",
                0 < self.repetition_penalty < float("inf"),
                "above 0, finite",
            ),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 2**32 - 1"),
        ):
            if not is_good:
                raise ConfigError(f"{name}={getattr(self, name)} must be {advice}.")


GREEDY = Sampling()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt, and how it is to be completed."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling = GREEDY
    max_new_tokens: int | None = None
    """None: as many as the engine allows."""
    max_think_tokens: int | None = None
    """Tokens between `<think>` and `</think>`; the block is closed when they are spent.
    None: no limit."""
    stop: tuple[str, ...] = ()
    """Texts that end the completion; what comes from there on is not in its text."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the completion, beside the tokenizer's end token."""


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """What the model said to one prompt."""

    ids: list[int]
    """The new tokens, with the one that ended them where there is one."""
    text: str
    """`ids` as text, special tokens spelled out; up to a stop text, if one was met."""
    stop_reason: Literal["stop", "length"]
    """Whether the model came to an end, or was cut off."""
    log_probabilities: list[float] = dataclasses.field(default_factory=list)
    """Of each of `ids` under the model itself, whatever the sampling; natural logs."""


def sampling_of(config: GenerateConfig, *, seed: int, number: int) -> Sampling:
    """Returns the settings' sampling for one of many prompts.

    Args:
      config: the settings.
      seed: of the run.
      number: of the prompt; each has draws of its own.
    """
    seeds = np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)
    return Sampling(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=int(seeds[0]),
    )
