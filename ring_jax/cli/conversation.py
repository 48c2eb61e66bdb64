# SPDX-License-Identifier: Apache-2.0
"""`ring generate --chat`: a conversation by the line, answers as they are said."""

import sys
from collections.abc import Iterable, Iterator

from ring_jax.cli.questions import Question, ask, to_requests
from ring_jax.config import ConfigError, RunConfig
from ring_jax.data.chat_format import ChatFormat
from ring_jax.data.schema import Message
from ring_jax.generate import Completion, Engine, Told

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
OPENING = """\
Say something; an empty line starts a new conversation, the end of input (Ctrl-D) ends.
"""


def converse(
    engine: Engine, config: RunConfig, chat: ChatFormat
) -> list[tuple[Question, Completion]]:
    """Answers lines of standard input until it ends; returns what was said.

    Earlier turns are remembered without their reasoning, as they were trained.
    """
    is_terminal = sys.stdout.isatty() and sys.stdin.isatty()
    if is_terminal:
        print(OPENING)
    turns: list[Message] = []
    said: list[tuple[Question, Completion]] = []
    for number, line in enumerate(_lines(is_terminal)):
        if not line.strip():
            turns = []
            continue
        asked = (*turns, Message("user", line))
        # The number tells the draws of two turns apart.
        seed = None if number == 0 else config.seed + number
        question = ask(config.generate, messages=asked, seed=seed)
        requests = to_requests([question], config, chat)
        try:
            completion = _say(engine.stream(requests), chat, is_terminal)
        except ConfigError as error:
            print(f"{error} An empty line starts a new conversation.", file=sys.stderr)
            continue
        said.append((question, completion))
        answer = chat.reply(completion.text).content
        turns = [*asked, Message("assistant", answer)] if answer else turns
    return said


def _lines(is_terminal: bool) -> Iterator[str]:
    while True:
        try:
            yield input("> " if is_terminal else "")
        except EOFError:
            return


def _say(stream: Iterable[Told], chat: ChatFormat, is_terminal: bool) -> Completion:
    """Writes an answer while it comes; reasoning is dim on a terminal."""
    completion = None
    written = 0
    for told in stream:
        _write(chat.spoken(told.text), is_terminal)
        written += len(told.text)
        completion = told.completion
    assert completion is not None
    # What was held back because it might have been the beginning of a stop text.
    _write(chat.spoken(completion.text[written:]), is_terminal)
    print(PLAIN if is_terminal else "", flush=True)
    return completion


def _write(text: str, is_terminal: bool) -> None:
    if is_terminal:
        text = text.replace("<think>", f"{DIM}<think>")
        text = text.replace("</think>", f"</think>{PLAIN}")
    print(text, end="", flush=True)
