# SPDX-License-Identifier: Apache-2.0
"""The one form that every source brings its rows into, and what a row must pass."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from ring_jax.config import ConfigError

Role = Literal["system", "user", "assistant", "tool"]
ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """One function call of an assistant."""

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Writes the call as the model says it: one JSON object, arguments in order."""
        call = {"name": self.name, "arguments": dict(self.arguments)}
        return json.dumps(call, ensure_ascii=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    think: str = ""
    """Reasoning before the answer; only an assistant has it."""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample: a conversation that ends with the assistant's turn, or a plain text.

    The last assistant turn is what is trained; turns before it are context.

    Raises:
      ConfigError: names the row when it has no assistant turn at its end, an empty
        answer, both or neither of messages and text, or a value of the wrong type.
    """

    id: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    """Plain text (prose or code) to be modelled whole; such a row has no messages."""
    source: str
    domain: str
    """reasoning, knowledge, instruction, tool, dialogue, text or code."""
    task: str = ""
    level: str = ""
    licence: str
    """SPDX identifier of the package that the row comes from."""
    package: str
    """`name==version` of the package that the row comes from."""
    difficulty: float = 0.0
    """From 0 to 1 inside its task; 0 where nobody graded it."""
    answer: str = ""
    """The gold answer that `verifier` compares with."""
    verifier: str = ""
    """How `ring_jax.verify` grades a reply; empty where only the loss is measured."""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_types(self)
        if bool(self.messages) == bool(self.text):
            raise ConfigError(
                f"row {self.id}: has {len(self.messages)} messages and "
                f"{len(self.text)} characters of text; give it one of the two."
            )
        if self.messages:
            _check_messages(self.id, self.messages)

    @property
    def reply(self) -> Message:
        """The assistant's turn that is trained."""
        return self.messages[-1]


def conversation_text(row: Row) -> str:
    """Returns all that a row says, turn after turn."""
    if row.text:
        return row.text
    parts = [part for turn in row.messages for part in (turn.think, turn.content)]
    calls = [call.to_json() for turn in row.messages for call in turn.tool_calls]
    return "\n".join(filter(None, [*parts, *calls]))


def row_from_json(line: str | bytes, *, where: str, defaults: Mapping[str, Any]) -> Row:
    """Reads a row from one line of JSON, strictly.

    Args:
      line: a JSON object with the fields of `Row`; `messages` is a list of objects.
      where: file and line, named in errors; the row's id when it brings none.
      defaults: values of fields that the line may leave out (source, package, ...).

    Raises:
      ConfigError: names `where` and what is wrong.
    """
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where}: is not JSON ({error}). One object per line."
        ) from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: is {type(fields).__name__}; it must be an object.")
    return row_from_fields(fields, where=where, defaults=defaults)


def row_from_fields(
    fields: Mapping[str, Any], *, where: str, defaults: Mapping[str, Any]
) -> Row:
    """Makes a row of fields by name; `messages` lists objects, or `Message`s.

    Raises:
      ConfigError: names `where` and what is wrong.
    """
    names = {field.name for field in dataclasses.fields(Row)}
    if unknown := sorted(set(fields) - names):
        raise ConfigError(f"{where}: has fields {unknown}; a row has {sorted(names)}.")
    fields = {"id": where, **defaults, **fields}
    messages = fields.get("messages", [])
    if not isinstance(messages, list):
        raise ConfigError(f"{where}: messages={messages!r} must be a list.")
    fields["messages"] = tuple(_message_from_json(item, where) for item in messages)
    return Row(**fields)


def row_to_json(row: Row) -> str:
    """Writes a row as one line that `row_from_json` reads back, the same each time.

    Fields that hold their default are left out.

    Raises:
      TypeError, ValueError: `metadata` or a tool call holds what JSON cannot carry.
    """
    fields: dict[str, Any] = {"id": row.id}
    if row.messages:
        fields["messages"] = [_message_to_fields(turn) for turn in row.messages]
    for field in dataclasses.fields(Row):
        value = getattr(row, field.name)
        if field.name not in ("id", "messages") and value not in (field.default, {}):
            fields[field.name] = dict(value) if field.name == "metadata" else value
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def _message_to_fields(turn: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.think:
        fields["think"] = turn.think
    if turn.tool_calls:
        fields["tool_calls"] = [
            {"name": call.name, "arguments": dict(call.arguments)}
            for call in turn.tool_calls
        ]
    return fields


def _message_from_json(item: Any, where: str) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, dict) or not {"role", "content"} <= set(item):
        raise ConfigError(f"{where}: message {item!r} needs `role` and `content`.")
    names = {field.name for field in dataclasses.fields(Message)}
    if unknown := sorted(set(item) - names):
        raise ConfigError(
            f"{where}: message has {unknown}; it may have {sorted(names)}."
        )
    calls = item.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ConfigError(f"{where}: tool_calls={calls!r} must be a list of objects.")
    for call in calls:
        if set(call) - {"name", "arguments"} or "name" not in call:
            raise ConfigError(
                f"{where}: tool call {call!r} must have `name` and `arguments` only."
            )
    return Message(**{**item, "tool_calls": tuple(ToolCall(**call) for call in calls)})


_TYPES = {"messages": tuple, "metadata": Mapping, "difficulty": int | float}


def _check_types(row: Row) -> None:
    for name in Row.__slots__:
        value = getattr(row, name)
        kind = _TYPES.get(name, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(
                f"row {row.id}: {name}={value!r} has the wrong type "
                f"{type(value).__name__}."
            )


def _check_messages(row_id: str, messages: tuple[Message, ...]) -> None:
    for message in messages:
        _check_message(row_id, message)
    if all(message.role != "assistant" for message in messages):
        raise ConfigError(
            f"row {row_id}: has no assistant turn; add the reply to learn."
        )
    reply = messages[-1]
    if reply.role != "assistant":
        raise ConfigError(
            f"row {row_id}: ends with a turn of role {reply.role!r}; "
            "end it with the assistant turn to learn."
        )
    if not reply.content.strip() and not reply.tool_calls:
        raise ConfigError(
            f"row {row_id}: the assistant's answer is empty; answer or drop the row."
        )


def _check_message(row_id: str, message: Message) -> None:
    if message.role not in ROLES:
        raise ConfigError(
            f"row {row_id}: role={message.role!r} must be one of {ROLES}."
        )
    for name in ("content", "think"):
        value = getattr(message, name)
        if not isinstance(value, str):
            raise ConfigError(
                f"row {row_id}: {name}={value!r} of a {message.role} turn "
                "must be a string."
            )
    if message.role != "assistant" and (message.think or message.tool_calls):
        raise ConfigError(
            f"row {row_id}: a {message.role} turn has think or tool_calls; "
            "only an assistant turn may."
        )
    for call in message.tool_calls:
        if not isinstance(call.name, str) or not isinstance(call.arguments, Mapping):
            raise ConfigError(
                f"row {row_id}: tool call {call!r} needs a name (string) and arguments "
                "(object)."
            )
