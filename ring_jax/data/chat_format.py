# SPDX-License-Identifier: Apache-2.0
"""How a model folder speaks: our chat templates, or the one that the folder brings.

A tokenizer with our chat tokens is rendered token by token (`chat.py`). Any other is
rendered by the folder's own Jinja, in the sandbox of `chat_template.py`.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ring_jax.config import ConfigError
from ring_jax.data import chat
from ring_jax.data.chat_template import (
    OUTPUT_CHARACTERS,
    ChatTemplate,
    Failure,
    read_chat_template,
    render_texts,
    to_hugging_face,
)
from ring_jax.data.schema import Message, Row
from ring_jax.data.tokenizer import (
    CHAT_TOKENS,
    THINK_TOKENS,
    Tokenizer,
    read_backend,
)

CONVERSATIONS_PER_PROCESS = 64
"""Rendered together by a foreign template, within its limits of time and output."""
MAX_CHARACTERS = OUTPUT_CHARACTERS // 4
"""Of a conversation for a foreign template."""


class ChatFormat(Protocol):
    """Turns to prompts, and what a model said to a turn."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply, beside the tokenizer's end token."""
        ...

    def prompts(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[list[int] | Failure]:
        """Renders conversations up to where the assistant begins to speak."""
        ...

    def spoken(self, text: str) -> str:
        """Returns what was said without the tokens that ended it."""
        ...

    def reply(self, text: str) -> Message:
        """Returns a turn as it is sent back later, its reasoning apart."""
        ...


def open_chat(
    folder: str | os.PathLike[str], *, template: str, eos_id: int
) -> ChatFormat:
    """Finds how the model of a folder is spoken to.

    Args:
      folder: holds `tokenizer.json`, and what an import brought along.
      template: of ours, for a tokenizer that has our chat tokens.
      eos_id: the model's end token, for any other.

    Raises:
      ConfigError: the tokenizer cannot be read, or brings neither our chat tokens nor a
        chat template of its own.
    """
    folder = pathlib.Path(folder)
    backend = read_backend(folder)
    if all(backend.token_to_id(name) is not None for name in CHAT_TOKENS):
        return OurChat(Tokenizer(backend), template)
    theirs = read_chat_template(folder)
    # An import gives a model without a template one of ours, which needs our tokens.
    if theirs is None or theirs.text in chat.CHAT_TEMPLATES.values():
        raise ConfigError(
            f"{folder}: the tokenizer lacks our chat tokens {list(CHAT_TOKENS)}, and "
            "there is no chat template of its own; add the model's chat_template.jinja."
        )
    end_token = backend.id_to_token(eos_id)
    if end_token is None:
        raise ConfigError(
            f"{folder}: the tokenizer has no token of id {eos_id}, the model's end "
            "token; give the tokenizer of the model."
        )
    tokenizer = Tokenizer(backend, end_token=end_token, needed=())
    stop_ids = _more_stop_ids(folder, theirs, tokenizer)
    return ForeignChat(tokenizer, theirs, tuple(sorted(stop_ids - {eos_id})))


@dataclasses.dataclass(frozen=True)
class OurChat:
    """Conversations under one of the templates of `chat.py`."""

    tokenizer: Tokenizer
    template: str
    stop_ids: tuple[int, ...] = ()

    def prompts(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[list[int] | Failure]:
        """Renders conversations up to `<role>ASSISTANT</role>`."""
        origin = dict.fromkeys(("id", "source", "domain", "licence", "package"), "x")
        unsaid = Message("assistant", "...")
        rows = [Row(messages=(*turns, unsaid), **origin) for turns in conversations]
        return [
            chat.render_prompt(row, self.tokenizer, template=self.template)
            for row in rows
        ]

    def spoken(self, text: str) -> str:
        """Returns what was said without the end token."""
        return text.replace(self.tokenizer.end_token, "")

    def reply(self, text: str) -> Message:
        """Takes a reply apart; half a thought has no content."""
        found = chat.parse_reply(text)
        return Message("assistant", found.answer, found.think)


@dataclasses.dataclass(frozen=True)
class ForeignChat:
    """Conversations under the template that a model folder brings."""

    tokenizer: Tokenizer
    template: ChatTemplate
    stop_ids: tuple[int, ...] = ()

    def prompts(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[list[int] | Failure]:
        """Renders conversations with what the template opens a reply with.

        A special token that a turn spells out stays text, so that no turn is forged.
        """
        prompts: list[list[int] | Failure] = []
        for batch in itertools.batched(conversations, CONVERSATIONS_PER_PROCESS):
            prompts += self._render(batch)
        return prompts

    def spoken(self, text: str) -> str:
        """Returns what was said without the tokens that ended it."""
        ends = [self.tokenizer.decode([i]) for i in self.stop_ids]
        for end in (self.tokenizer.end_token, *ends):
            text = text.removesuffix(end)
        return text

    def reply(self, text: str) -> Message:
        """Takes a reply apart; the template itself may have opened the reasoning."""
        opening, closing = THINK_TOKENS
        said = self.spoken(text)
        think, closed, answer = said.partition(closing)
        if closed:
            think = think.strip().removeprefix(opening).strip()
            return Message("assistant", answer.strip(), think)
        if said.lstrip().startswith(opening):
            return Message("assistant", "", said.lstrip().removeprefix(opening).strip())
        return Message("assistant", said.strip())

    def _render(
        self, conversations: Sequence[Sequence[Message]]
    ) -> Iterator[list[int] | Failure]:
        marked = [_Marked(turns, self.tokenizer) for turns in conversations]
        asked = [one.fields() for one in marked if one.num_characters <= MAX_CHARACTERS]
        texts = iter(render_texts(self.template, asked) if asked else [])
        for one in marked:
            if one.num_characters > MAX_CHARACTERS:
                yield Failure(
                    f"it has {one.num_characters:,} characters, more than "
                    f"{MAX_CHARACTERS:,}"
                )
                continue
            text = next(texts)
            yield text if isinstance(text, Failure) else one.encode(text)


class _Marked:
    """A conversation whose texts spell no special token while it is rendered.

    Each spelling gives way to a mark, a number between two characters that occur
    nowhere in the conversation.
    """

    def __init__(self, turns: Sequence[Message], tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._turns = [to_hugging_face(turn) for turn in turns]
        whole = json.dumps(self._turns, ensure_ascii=False)
        self.num_characters = len(whole)
        private = map(chr, range(0xF0000, 0xFFFFE))
        self._mark = next(sign for sign in private if sign not in whole)
        longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._spelled = [name for name in longest_first if name in whole]

    def fields(self) -> dict[str, Any]:
        turns = []
        for turn in self._turns:
            # Templates look for the think tags of replies, and leave them out.
            kept = THINK_TOKENS if turn["role"] == "assistant" else ()
            hide = functools.partial(self._hide, kept=kept)
            turns.append(_mapped(turn, hide) | {"role": turn["role"]})
        return {"messages": turns, "add_generation_prompt": True}

    def encode(self, text: str) -> list[int]:
        pieces = re.split(f"{self._mark}(\\d+){self._mark}", text)
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                ids += self._tokenizer.encode(self._spelled[int(piece)])
            else:
                ids += self._tokenizer.encode_rendered(piece)
        return ids

    def _hide(self, text: str, *, kept: Sequence[str]) -> str:
        for number, name in enumerate(self._spelled):
            if name not in kept:
                text = text.replace(name, f"{self._mark}{number}{self._mark}")
        return text


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Changes every text of a JSON value; names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value


def _more_stop_ids(
    folder: pathlib.Path, template: ChatTemplate, tokenizer: Tokenizer
) -> set[int]:
    """Finds end tokens in `generation_config.json` and `tokenizer_config.json`."""
    found: set[int] = set()
    if (end := template.tokens.get("eos_token")) and tokenizer.has_special(end):
        found.add(tokenizer.special_id(end))
    path = folder / "generation_config.json"
    if not path.is_file():
        return found
    try:
        ids = json.loads(path.read_text("utf-8"))["eos_token_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: names no eos_token_id ({error!r}).") from None
    ids = ids if isinstance(ids, list) else [ids]
    return found | {i for i in ids if isinstance(i, int)}
