# SPDX-License-Identifier: Apache-2.0
"""Small talk and questions from the English part of chatterbot-corpus.

Small talk has no answer that could be derived, so there are two kinds of held-out row:
`reworded` (the default) asks a trained prompt in a wording that is never trained, and
any known reply to it is right; `unseen` holds out whole exchanges, which have no
verifier: only their loss is measured.
"""

import collections
import dataclasses
import itertools
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import Message, Row
from ring_jax.data.sources import packages
from ring_jax.data.sources.split import SourceRows, is_heldout

TASKS = ("reworded", "unseen")
# Files of gossip, politics, psychology and emotion hold insults; coding holds programs.
CATEGORIES = (
    "greetings",
    "conversations",
    "ai",
    "computers",
    "science",
    "trivia",
    "tech_support",
    "food",
    "literature",
)
UNFIT_WORDS = {"bend", "die", "mate", "stupid", "suicide"}
MAX_PROMPT_CHARACTERS = 48
MAX_REPLY_CHARACTERS = 56
TRAINED_WORDINGS = ("{}", "Hey, {}", "Hi! {}", "{} Thanks.")
HELDOUT_WORDINGS = ("Hello! {}", "{} Thank you.")


def read_dialogue(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Reads exchanges; `config.task` says what is held out, `reworded` when empty.

    Raises:
      ConfigError: the task is unknown, or the package is missing.
    """
    if config.task and config.task not in TASKS:
        raise ConfigError(
            f"data.sources.{name}.task={config.task!r} must be empty or one of {TASKS}."
        )
    package = packages.installed("chatterbot-corpus", licence="BSD-3-Clause")
    packages.installed("pyyaml", licence="MIT")
    origin = {"source": name, **dataclasses.asdict(package)}
    replies = _replies()
    prompts = sorted(replies)
    order = random.Random(f"{seed}/{name}")
    order.shuffle(prompts)
    task = config.task or "reworded"
    trained = [
        prompt for prompt in prompts if task == "reworded" or not is_heldout(prompt)
    ]
    asked = set(prompts) - set(trained) if task == "unseen" else set(trained)
    num_wordings = len(TRAINED_WORDINGS)
    trained = trained[: max(1, config.num_rows // num_wordings)]
    asked = [p for p in prompts if p in asked and (task == "unseen" or p in trained)]
    wordings = HELDOUT_WORDINGS if task == "reworded" else ("{}",)
    heldout = _rows(asked, wordings, replies, task=task, origin=origin)
    order.shuffle(heldout)
    return SourceRows(
        _rows(trained, TRAINED_WORDINGS, replies, task=task, origin=origin),
        heldout[: config.num_heldout],
    )


def _rows(
    prompts: Sequence[str],
    wordings: Sequence[str],
    replies: Mapping[str, Sequence[str]],
    *,
    task: str,
    origin: Mapping[str, Any],
) -> list[Row]:
    pairs = itertools.product(wordings, prompts)
    return [
        Row(
            id=f"{origin['source']}/{wording.format(prompt)}",
            messages=(
                Message("user", wording.format(prompt)),
                # One reply per prompt: greedy decoding can only ever give one.
                Message("assistant", replies[prompt][0]),
            ),
            domain="dialogue",
            task=task,
            answer=replies[prompt][0],
            verifier="match" if task == "reworded" else "",
            metadata={"exchange": prompt, "accepted": list(replies[prompt])},
            **origin,
        )
        for wording, prompt in pairs
    ]


def _replies() -> dict[str, list[str]]:
    written: dict[str, str] = {}
    replies = collections.defaultdict(list)
    for prompt, reply in _exchanges():
        # Prompts that differ in case or in their last sign are one exchange.
        key = prompt.strip(string.punctuation + " ").lower()
        is_short = len(prompt) <= MAX_PROMPT_CHARACTERS
        if key and is_short and 0 < len(reply) <= MAX_REPLY_CHARACTERS:
            replies[written.setdefault(key, prompt)].append(reply)
    return replies


def _exchanges() -> Iterator[tuple[str, str]]:
    import yaml  # an optional dependency; the caller has checked it

    folder = packages.data_folder("chatterbot_corpus", "data", "english")
    for category in CATEGORIES:
        text = (folder / f"{category}.yml").read_text(encoding="utf-8")
        for turns in yaml.safe_load(text)["conversations"]:
            if not isinstance(turns, list) or len(turns) < 2:  # slips in the files
                continue
            prompt, reply = (" ".join(str(turn).split()) for turn in turns[:2])
            if not UNFIT_WORDS & set(re.findall("[a-z]+", prompt.lower())):
                yield prompt, reply
