# SPDX-License-Identifier: Apache-2.0
"""Items answered by a model behind a server with OpenAI's protocol."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ring_jax.chat_client import Answered, ChatClient, TooLongError, ask_all
from ring_jax.config import ConfigError, TeacherConfig
from ring_jax.data.schema import Message, Row
from ring_jax.evaluate.complete import Ask, Said, Unsaid, unfitting

MAX_FAILURES = 8
"""In a row; then the server is not asked any more."""


class ServerCompleter:
    """Answers by a server; one that fails on an item may answer the others."""

    def __init__(self, config: TeacherConfig):
        self._client = ChatClient(config)

    def max_new_tokens(self, rows: Sequence[Row], wanted: int) -> int:
        """Returns what is wanted: the server knows its own limit."""
        del rows
        return wanted

    def complete(self, asked: Sequence[Ask]) -> Iterator[Said | Unsaid]:
        """Answers in threads; raises OSError when too many answers fail in a row."""
        num_failures = 0
        num_threads = self._client.config.num_parallel
        for result in ask_all(asked, self._ask, num_threads=num_threads):
            yield result
            num_failures = num_failures + 1 if isinstance(result, Unsaid) else 0
            if isinstance(result, Unsaid) and num_failures == MAX_FAILURES:
                raise OSError(f"{MAX_FAILURES} failures in a row: {result.reason}")

    def _ask(self, ask: Ask, stop: threading.Event) -> Said | Unsaid:
        body = {
            "messages": [_turn(message) for message in ask.row.messages[:-1]],
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "max_tokens": ask.max_new_tokens,
            "seed": ask.seed % 2**31,  # some servers take a signed number
        }
        try:
            answered = self._client.ask(body, stop)
        except TooLongError:
            return unfitting(ask)
        except (ConfigError, OSError) as error:
            return Unsaid(ask, str(error))
        return Unsaid(ask, "interrupted") if answered is None else _said(ask, answered)


def _turn(message: Message) -> dict[str, str]:
    calls = "".join(
        f"<tool_call>{call.to_json()}</tool_call>" for call in message.tool_calls
    )
    return {"role": message.role, "content": message.content + calls}


def _said(ask: Ask, answered: Answered) -> Said:
    usage = answered.about["usage"]
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("completion_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    is_cut = answered.about["finish_reason"] == "length"
    text = answered.text
    if is_cut and text.endswith("</think>\n"):
        # Nothing but reasoning came, so that it was the reasoning that was cut.
        text = text.removesuffix("</think>\n")
    return Said(
        ask=ask,
        text=text,
        stop_reason="length" if is_cut else "stop",
        num_tokens=_count(usage.get("completion_tokens")),
        num_think_tokens=_count(details.get("reasoning_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None
