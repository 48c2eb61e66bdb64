# SPDX-License-Identifier: Apache-2.0
"""The chat template of a model folder: found, and rendered where it can do no harm.

A template is a program that came with a download. It runs in Jinja's sandbox, in a
process of its own, with limits of time, memory and output (`template_worker.py`). That
holds templates that go wrong, and is no jail for code that means harm.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.data.schema import Message

MAX_TEMPLATE_CHARACTERS = 500_000
"""The longest that we know of have some 20,000."""
CPU_SECONDS = 3
"""Of the process; a template of a real model takes a hundredth of one."""
WALL_SECONDS = 30.0
"""On a machine that others keep busy."""
MEMORY_BYTES = 512 * 2**20
OUTPUT_CHARACTERS = 2_000_000
"""Of all conversations of one call."""

_WORKER = pathlib.Path(__file__).with_name("template_worker.py")
# Not the `thinking` of a sentence, nor that of `enable_thinking`.
_REASONING_FIELD = r"reasoning_content|[.'\"]thinking\b"
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclasses.dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What a model folder says of its conversations."""

    text: str
    """Jinja."""
    path: str
    """The file that holds it."""
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """`bos_token`, `eos_token` and others, which templates may write."""

    @property
    def reads_reasoning(self) -> bool:
        """Tells whether it takes reasoning apart from the text of a turn."""
        return re.search(_REASONING_FIELD, self.text) is not None


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A conversation that a template refuses."""

    reason: str


def read_chat_template(folder: str | os.PathLike[str]) -> ChatTemplate | None:
    """Finds the chat template of a folder, in the order of transformers.

    `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`: a text, or a
    list of named texts, of which `default` is taken.

    Returns:
      The template, or None where the folder brings none.

    Raises:
      ConfigError: a file is unreadable, or the template too long.
    """
    folder = pathlib.Path(folder)
    path = folder / "chat_template.jinja"
    older = _read_json(folder / "special_tokens_map.json")
    settings = _read_json(folder / "tokenizer_config.json")
    if path.is_file():
        text = _read_text(path)
    else:
        path = folder / "tokenizer_config.json"
        text = _default(settings.get("chat_template"))
    if text is None:
        return None
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise ConfigError(
            f"{path}: the chat template has {len(text):,} characters, more than "
            f"{MAX_TEMPLATE_CHARACTERS:,}; give the folder one that is meant."
        )
    tokens = _special_tokens(older) | _special_tokens(settings)
    return ChatTemplate(text, str(path), tokens)


def to_hugging_face(message: Message) -> dict[str, Any]:
    """Writes a turn in the form that templates and servers take."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "assistant":
        # transformers fills in the older name beside the newer one.
        fields |= {"reasoning_content": message.think, "thinking": message.think}
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return fields


def render_texts(
    template: ChatTemplate, conversations: Sequence[Mapping[str, Any]]
) -> list[str | Failure]:
    """Renders conversations in one process that is thrown away.

    Args:
      template: of a model folder; nothing of it is trusted.
      conversations: of each, `messages` in the form of `to_hugging_face`, and
        `add_generation_prompt`.

    Returns:
      A text for each, or why the template refuses it.

    Raises:
      ConfigError: it is no Jinja, or it wants more time, memory or room than
        `CPU_SECONDS`, `MEMORY_BYTES` and `OUTPUT_CHARACTERS`; one line.
    """
    unset = {"tools": None, "documents": None}
    request = {
        "template": template.text,
        "conversations": [{**template.tokens, **unset, **c} for c in conversations],
        "cpu_seconds": CPU_SECONDS,
        "memory_bytes": MEMORY_BYTES,
        "output_characters": OUTPUT_CHARACTERS,
    }
    reply = _ask(request)
    if "limit" in reply:
        raise ConfigError(
            f"{template.path}: the chat template {reply['limit']}; give the folder "
            "one that is meant, or remove it."
        )
    return [
        text if isinstance(text, str) else Failure(text["error"])
        for text in reply["texts"]
    ]


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the worker; files instead of pipes, whose size the kernel holds it to."""
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        process = subprocess.Popen(
            # Without its own folder on the path, nor what PYTHON* variables say of it.
            [sys.executable, "-P", "-B", str(_WORKER)],
            stdin=asked,
            stdout=answered,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its group is killed with it
            env=_environment(),
        )
        try:
            code = process.wait(WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return {"limit": f"is not done after {WALL_SECONDS:g} seconds"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code == -signal.SIGXCPU:
            return {"limit": f"is not done after {CPU_SECONDS} seconds"}
        if code:
            return {"limit": f"ends the process that renders it (status {code})"}
        answered.seek(0)
        return json.load(answered)


def _environment() -> dict[str, str]:
    """What Python needs to find Jinja, and no secret of the shell that started us."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in (f"{kind}_token" for kind in _SPECIAL):
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _default(value: Any) -> str | None:
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict)]
        texts = {item.get("name"): item.get("template") for item in named}
        value = texts.get("default")
    return value if isinstance(value, str) else None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads an object; a file that is not there says nothing."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}).") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: is not a JSON object.")
    return tree


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 ({error}).") from None
