# SPDX-License-Identifier: Apache-2.0
"""Records in the forms that chat data comes in, brought into the one form of `Row`.

Forms and the fields that they are known by:

  row                the fields of `Row` itself, as the shards hold them
  messages           messages: [{role, content, reasoning_content?, tool_calls?}]
  sharegpt           conversations: [{from, value}]
  alpaca             instruction, input?, output
  prompt_completion  prompt, completion (or response), both texts or message lists;
                     reasoning?
  preference         prompt?, chosen, rejected: texts, or message lists
  program            a coding task with its tests (`programs.py`)
  transcript         system, chat: a dialogue with tools in one text
  tool_query         query, tools, answers (`tool_dialogues.py`, as is transcript)
  text               text

Reasoning inside `<think>`, or between the tags of OpenThoughts, at the start of an
assistant's turn becomes its `think`. A set with columns of its own names them in
`RawSourceConfig.fields` (`columns.py`).
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError, RawSourceConfig
from ring_jax.curate import programs, tool_dialogues
from ring_jax.curate.columns import take_columns
from ring_jax.curate.rows import RawRecord, Rejection, excerpt
from ring_jax.curate.tidy import tidy
from ring_jax.data.schema import Message, Row, ToolCall, row_from_fields, row_to_json

STEP = "normalise"

Fields = Mapping[str, Any]
# The form, by fields that must all be there; the first that fits.
_SIGNS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("preference", ("chosen", "rejected")),
    ("sharegpt", ("conversations",)),
    ("alpaca", ("instruction", "output")),
    ("prompt_completion", ("prompt", "completion")),
    ("prompt_completion", ("prompt", "response")),
    ("messages", ("messages",)),
    ("text", ("text",)),
)
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
_THINK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
# Tags of Bespoke-Stratos and OpenThoughts.
_THOUGHT = re.compile(
    r"\s*<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>"
    r"\s*<\|begin_of_solution\|>(.*?)<\|end_of_solution\|>\s*\Z",
    re.DOTALL,
)
_ROW_FIELDS = {field.name for field in dataclasses.fields(Row)}
# Of a record in another form, these fields mean what they mean in a row.
_LIFTED = ("task", "level", "answer", "verifier", "domain", "difficulty")
_STRUCTURE = {
    "messages", "conversations", "instruction", "input", "output", "prompt",
    "completion", "response", "chosen", "rejected", "text", "system", "id", "metadata",
}  # fmt: skip


def normalise(
    record: RawRecord, config: RawSourceConfig, *, source: str
) -> Row | Rejection:
    """Brings one record into the form of `Row`, or says why it has none."""
    defaults = {
        # Published files of many sets have the same names: place alone is no id.
        "id": f"{source}/{record.where}",
        "source": source,
        "domain": config.domain or source,
        "licence": config.licence,
        "package": f"{record.where.rpartition(':')[0]}=={config.version or 'local'}",
    }
    try:
        taken = take_columns(record, config, source=source)
        if isinstance(taken, Rejection):
            return taken
        form = config.form if config.form != "auto" else detect(taken)
        if not form:
            raise ConfigError(
                f"{record.where}: fields {sorted(record.fields)[:12]} are of no known "
                "form."
            )
        _check_fields(taken, form, record.where)
        fields = FORMS[form](taken, record.where)
        if config.fields and "id" in fields:
            # A set counts its records for itself: another set has the same numbers.
            fields["id"] = f"{source}/{fields['id']}"
        row = row_from_fields(fields, where=record.where, defaults=defaults)
        row = _with_verifier(tidy(row), config)
        _check_json(row)
        return row
    except ConfigError as error:
        return Rejection(
            step=STEP,
            reason=_reason(str(error)),
            id=_name(record),
            source=source,
            detail=" ".join(str(error).split())[:400],
            excerpt=excerpt(repr(dict(record.fields))[:4000]),
        )


def detect(fields: Fields) -> str:
    """Names the form of a record by its fields; empty where none fits."""
    if set(fields) <= _ROW_FIELDS and {"messages", "text"} & set(fields):
        return "row"
    for form, names in _SIGNS:
        if all(name in fields for name in names):
            return form
    return ""


def _check_fields(fields: Fields, form: str, where: str) -> None:
    """Refuses a record that lacks what the form of its source is known by."""
    signs = [names for known, names in _SIGNS if known == form]
    if signs and not any(set(names) <= set(fields) for names in signs):
        needed = " or ".join(", ".join(names) for names in signs)
        raise ConfigError(
            f"{where}: form {form} needs {needed}; the record has "
            f"{sorted(fields)[:12]}."
        )


def _with_verifier(row: Row, config: RawSourceConfig) -> Row:
    if config.verifier and row.answer and not row.verifier:
        return dataclasses.replace(row, verifier=config.verifier)
    return row


def _name(record: RawRecord) -> str:
    identity = record.fields.get("id")
    if isinstance(identity, str) and identity.isprintable() and identity:
        return identity[:200]
    return record.where


def _check_json(row: Row) -> None:
    try:
        row_to_json(row).encode()
    except (TypeError, ValueError) as error:
        # Dates and bytes of a Parquet file, NaN, half a surrogate pair.
        raise ConfigError(f"row {row.id!a}: is not JSON ({error}).") from None


def _reason(message: str) -> str:
    if "control character" in message:
        return "control_characters"
    return "form" if "of no known form" in message else "schema"


# From each form to the fields of a row


def _from_row(fields: Fields, where: str) -> dict[str, Any]:
    turns = fields.get("messages", [])
    if not isinstance(turns, list):
        raise ConfigError(f"{where}: messages={turns!r:.80} must be a list.")
    messages = [_message(turn, where, role="role", content="content") for turn in turns]
    return {**fields, "messages": messages} if turns else dict(fields)


def _from_messages(fields: Fields, where: str) -> dict[str, Any]:
    messages = _messages(fields["messages"], where)
    return {**_lifted(fields, where), "messages": messages}


def _from_sharegpt(fields: Fields, where: str) -> dict[str, Any]:
    turns = _list(fields["conversations"], where, "conversations")
    messages = [_message(turn, where, role="from", content="value") for turn in turns]
    messages = _with_system(fields, messages, where)
    return {**_lifted(fields, where), "messages": messages}


def _from_alpaca(fields: Fields, where: str) -> dict[str, Any]:
    asked = _string(fields, "instruction", where)
    if fields.get("input"):
        asked += "\n\n" + _string(fields, "input", where)
    messages = [
        Message("user", asked),
        read_reply(_string(fields, "output", where)),
    ]
    messages = _with_system(fields, messages, where)
    return {**_lifted(fields, where), "messages": messages}


def _from_prompt_completion(fields: Fields, where: str) -> dict[str, Any]:
    name = "completion" if "completion" in fields else "response"
    turns = _turns(fields, "prompt", "user", where)
    turns += _turns(fields, name, "assistant", where)
    if fields.get("reasoning"):
        think = _string(fields, "reasoning", where)
        turns[-1] = dataclasses.replace(turns[-1], think=think.strip())
    fields = {name: value for name, value in fields.items() if name != "reasoning"}
    messages = _with_system(fields, turns, where)
    return {**_lifted(fields, where), "messages": messages}


def _from_program(fields: Fields, where: str) -> dict[str, Any]:
    return _from_prompt_completion(programs.as_completion(fields, where), where)


def _from_transcript(fields: Fields, where: str) -> dict[str, Any]:
    return _from_messages(tool_dialogues.split_transcript(fields, where), where)


def _from_tool_query(fields: Fields, where: str) -> dict[str, Any]:
    return _from_messages(tool_dialogues.answer_query(fields, where), where)


def _from_preference(fields: Fields, where: str) -> dict[str, Any]:
    prompt = _turns(fields, "prompt", "user", where) if "prompt" in fields else []
    chosen = _turns(fields, "chosen", "assistant", where)
    rejected = _turns(fields, "rejected", "assistant", where)
    # Some sets repeat the prompt in both lists.
    shared = prompt or chosen[:-1]
    if not chosen or not rejected or not shared:
        raise ConfigError(f"{where}: needs a prompt, a chosen and a rejected reply.")
    if rejected[-1].role != "assistant":
        raise ConfigError(f"{where}: rejected ends with role {rejected[-1].role!r}.")
    if (rejected[-1].think, rejected[-1].content) == (
        chosen[-1].think,
        chosen[-1].content,
    ):
        raise ConfigError(f"{where}: chosen and rejected are the same reply.")
    lifted = _lifted(fields, where)
    rival = {"think": rejected[-1].think, "content": rejected[-1].content}
    lifted["metadata"] = {**lifted["metadata"], "rejected": rival}
    messages = _with_system(fields, [*shared, chosen[-1]], where)
    return {**lifted, "messages": messages}


def _from_text(fields: Fields, where: str) -> dict[str, Any]:
    return {**_lifted(fields, where), "text": _string(fields, "text", where)}


FORMS: Mapping[str, Callable[[Fields, str], dict[str, Any]]] = {
    "row": _from_row,
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
    "program": _from_program,
    "transcript": _from_transcript,
    "tool_query": _from_tool_query,
    "text": _from_text,
}
"""Form -> function of a record's fields and its place."""


def _lifted(fields: Fields, where: str) -> dict[str, Any]:
    """Takes over what a record says beside its conversation."""
    metadata = fields.get("metadata", {})
    if not isinstance(metadata, Mapping):
        raise ConfigError(f"{where}: metadata={metadata!r:.80} must be an object.")
    rest = {k: v for k, v in fields.items() if k not in (*_STRUCTURE, *_LIFTED)}
    lifted: dict[str, Any] = {name: fields[name] for name in _LIFTED if name in fields}
    if isinstance(lifted.get("answer"), int | float):
        lifted["answer"] = str(lifted["answer"])
    if isinstance(identity := fields.get("id"), str | int) and str(identity):
        lifted["id"] = str(identity)
    lifted["metadata"] = {**rest, **metadata}
    return lifted


def _turns(fields: Fields, name: str, role: str, where: str) -> list[Message]:
    value = fields[name]
    if isinstance(value, list):
        return _messages(value, where)
    text = _string(fields, name, where)
    return [Message("user", text) if role == "user" else read_reply(text)]


def _messages(turns: Any, where: str) -> list[Message]:
    turns = _list(turns, where, "messages")
    return [_message(turn, where, role="role", content="content") for turn in turns]


def _with_system(
    fields: Fields, messages: Sequence[Message], where: str
) -> list[Message]:
    if not fields.get("system"):
        return list(messages)
    return [Message("system", _string(fields, "system", where)), *messages]


def _message(turn: Any, where: str, *, role: str, content: str) -> Message:
    if not isinstance(turn, Mapping) or role not in turn:
        raise ConfigError(f"{where}: turn {turn!r:.80} needs `{role}`, `{content}`.")
    name = _ROLES.get(turn[role]) if isinstance(turn[role], str) else None
    if name is None:
        raise ConfigError(
            f"{where}: {role}={turn[role]!r} must be one of {sorted(_ROLES)}."
        )
    text = turn.get(content)
    calls = turn.get("tool_calls") or ()
    if text is None and calls:
        text = ""
    if not isinstance(text, str):
        raise ConfigError(
            f"{where}: {content}={text!r:.80} of a {name} turn must be a string."
        )
    if name != "assistant":
        return Message(name, text)  # pyright: ignore[reportArgumentType]  # from _ROLES
    if turn[role] == "function_call":
        return Message("assistant", "", tool_calls=(_tool_call(text, where),))
    reasoning = turn.get("think") or turn.get("reasoning_content") or ""
    if not isinstance(reasoning, str):
        raise ConfigError(f"{where}: reasoning {reasoning!r:.80} must be a string.")
    reply = read_reply(text)
    return dataclasses.replace(
        reply,
        think=reasoning or reply.think,
        tool_calls=tuple(_tool_call(call, where) for call in _list(calls, where, "")),
    )


def read_reply(text: str) -> Message:
    """Makes the assistant's turn of a reply, the reasoning at its start apart."""
    if (found := _THINK.match(text)) and found[1].strip():
        return Message("assistant", text[found.end() :].strip(), think=found[1].strip())
    if (found := _THOUGHT.match(text)) and found[1].strip():
        return Message("assistant", found[2].strip(), think=found[1].strip())
    # An empty block stays where it is, for the purification to find.
    return Message("assistant", text)


def _tool_call(call: Any, where: str) -> ToolCall:
    try:
        call = json.loads(call) if isinstance(call, str) else call
        call = call.get("function", call)
        name, arguments = call["name"], call.get("arguments") or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{where}: tool call {call!r:.80} ({error!r}).") from None
    return ToolCall(name, arguments)


def _list(value: Any, where: str, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {name}={value!r:.80} must be a list.")
    return value


def _string(fields: Fields, name: str, where: str) -> str:
    if not isinstance(fields.get(name), str):
        raise ConfigError(f"{where}: {name}={fields.get(name)!r:.80} must be a string.")
    return fields[name]
