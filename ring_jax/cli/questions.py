# SPDX-License-Identifier: Apache-2.0
"""What `ring generate` is asked: one prompt, lines of text, or lines of JSON."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError, GenerateConfig, RunConfig, from_config_dict
from ring_jax.data.chat_format import ChatFormat
from ring_jax.data.chat_template import Failure
from ring_jax.data.schema import Message, row_from_fields
from ring_jax.generate import Request, sampling_of

ORIGIN: dict[str, Any] = dict.fromkeys(
    ("source", "domain", "licence", "package"), "prompt"
)
# A row ends with a reply, and rendering a prompt leaves it out.
UNSAID = Message("assistant", "...")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A conversation to be continued, and how."""

    id: str = ""
    prompt: str = ""
    """What a user says; empty where there are `messages`."""
    messages: tuple[Message, ...] = ()
    seed: int | None = None
    """None: drawn from `config.seed` and the question's number."""
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)

    def turns(self) -> tuple[Message, ...]:
        """Returns all turns before the one that is asked for."""
        return self.messages or (Message("user", self.prompt),)


def read_questions(args: argparse.Namespace, config: GenerateConfig) -> list[Question]:
    """Reads `--prompt` or `--file`.

    A `.jsonl` file has an object a line: `prompt` or `messages`, and what differs from
    the settings: fields of `config.generate`, `seed`, `max_new_tokens`, and `stop`,
    which may be a list here; `id` is echoed.

    Raises:
      ConfigError: neither or both are given, there is no prompt, or a line is wrong.
    """
    if args.file is None:
        questions = [ask(config, prompt=args.prompt)]
    elif not args.file.is_file():
        raise ConfigError(f"--file={args.file} is no file; write prompts, one a line.")
    elif args.file.suffix == ".jsonl":
        questions = list(_lines_of_json(args.file, config))
    else:
        lines = _lines(args.file)
        questions = [ask(config, prompt=line) for line in lines]
    questions = [q for q in questions if q.messages or q.prompt.strip()]
    if not questions:
        raise ConfigError("generate: there is no prompt; write at least one word.")
    return questions


def ask(config: GenerateConfig, **fields: Any) -> Question:
    """Returns a question by the settings alone."""
    stop = () if config.stop is None else (config.stop,)
    return Question(stop=stop, generate=config, **fields)


def to_requests(
    questions: Sequence[Question], config: RunConfig, chat: ChatFormat
) -> list[Request]:
    """Renders questions as an engine takes them.

    Raises:
      ConfigError: the model's chat template refuses one, or cannot be rendered.
    """
    requests = []
    prompts = chat.prompts([question.turns() for question in questions])
    for number, (question, ids) in enumerate(zip(questions, prompts, strict=True)):
        if isinstance(ids, Failure):
            raise ConfigError(
                f"the chat template refuses prompt {number + 1}: {ids.reason}"
            )
        settings = question.generate
        sampling = sampling_of(settings, seed=config.seed, number=number)
        if question.seed is not None:
            sampling = dataclasses.replace(sampling, seed=question.seed)
        requests.append(
            Request(
                prompt_ids=tuple(ids),
                sampling=sampling,
                max_new_tokens=question.max_new_tokens,
                max_think_tokens=settings.max_think_tokens,
                stop=question.stop,
                stop_ids=chat.stop_ids,
            )
        )
    return requests


def _lines_of_json(path: pathlib.Path, config: GenerateConfig) -> list[Question]:
    return [
        _question(line, f"{path}:{number}", config)
        for number, line in enumerate(_lines(path), 1)
        if line.strip()
    ]


def _lines(path: pathlib.Path) -> list[str]:
    try:
        # Not `splitlines`, which also cuts at signs that JSON allows within a string.
        return path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--file={path}: byte {error.start} is not UTF-8; write the file as UTF-8."
        ) from None


def _question(line: str, where: str, config: GenerateConfig) -> Question:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: is not JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: is no object; write one a line.")
    if ("prompt" in fields) == ("messages" in fields):
        raise ConfigError(f"{where}: give it either prompt or messages.")
    messages = _messages(fields.pop("messages", None), where)
    stops = fields.pop("stop", config.stop or [])
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(t, str) for t in stops):
        raise ConfigError(f"{where}: stop={stops!r} must be a text or a list of them.")
    plain = {
        name: fields.pop(name)
        for name in ("id", "prompt", "seed", "max_new_tokens")
        if name in fields
    }
    question = from_config_dict(Question, plain, where)
    settings = {**dataclasses.asdict(config), **fields}
    return dataclasses.replace(
        question,
        messages=messages,
        stop=tuple(stops),
        generate=from_config_dict(GenerateConfig, settings, where),
    )


def _messages(turns: Any, where: str) -> tuple[Message, ...]:
    if turns is None:
        return ()
    if not isinstance(turns, list):
        raise ConfigError(f"{where}: messages must be a list of turns.")
    fields: Mapping[str, Any] = {"messages": [*turns, UNSAID]}
    return row_from_fields(fields, where=where, defaults=ORIGIN).messages[:-1]
