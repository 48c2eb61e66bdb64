# SPDX-License-Identifier: Apache-2.0
"""Dialogues with tools that published sets hold in forms of their own.

  transcript   system, chat: one text with USER:, ASSISTANT: and FUNCTION RESPONSE:
               (https://huggingface.co/datasets/glaiveai/glaive-function-calling-v2)
  tool_query   query, tools, answers: JSON as text
               (https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k)

Both become `messages`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ring_jax.config import ConfigError

_SPEAKER = re.compile(r"^(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*", re.MULTILINE)
_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_END = "<|endoftext|>"
_CALL = re.compile(r"\s*<functioncall>\s*(.*)\Z", re.DOTALL)
# The arguments stand in single quotes, as no JSON has them.
_QUOTED_ARGUMENTS = re.compile(r"(\"arguments\":\s*)'(.*)'(\s*\}\s*)\Z", re.DOTALL)


def split_transcript(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Splits `chat` into turns, and reads calls of functions out of them.

    Raises:
      ConfigError: the text does not begin with a speaker, or a call is no JSON.
    """
    chat = _string(fields, "chat", where)
    first, *parts = _SPEAKER.split(chat)
    if first.strip() or not parts:
        raise ConfigError(f"{where}: chat={chat[:80]!r} does not begin with USER:.")
    messages: list[dict[str, Any]] = []
    if isinstance(fields.get("system"), str):
        system = fields["system"].strip().removeprefix("SYSTEM:").strip()
        messages.append({"role": "system", "content": system})
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        text = said.replace(_END, "").strip()
        if speaker == "ASSISTANT" and (found := _CALL.match(text)):
            call = _call(found[1], where)
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        else:
            messages.append({"role": _ROLES[speaker], "content": text})
    rest = {k: v for k, v in fields.items() if k not in ("system", "chat")}
    return {**rest, "messages": messages}


def _call(text: str, where: str) -> dict[str, Any]:
    quoted = _QUOTED_ARGUMENTS.search(text)
    arguments = quoted[2] if quoted else "{}"
    plain = _QUOTED_ARGUMENTS.sub(r"\g<1>{}\g<3>", text)
    call = _json(plain, where, "call")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ConfigError(f"{where}: call {text[:80]!r} names no function.")
    if quoted:
        call["arguments"] = _json(arguments, where, "arguments")
    return {"name": call["name"], "arguments": call.get("arguments") or {}}


def answer_query(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Makes a dialogue of a query: tools in the system's turn, calls as the reply.

    The calls are the gold answer of the verifier `tool_call`, each argument with the
    one value that it has.

    Raises:
      ConfigError: tools or answers are no lists of objects, or the query is no text.
    """
    tools = _objects(fields, "tools", where)
    calls = _objects(fields, "answers", where)
    if not calls or not all(isinstance(call.get("name"), str) for call in calls):
        raise ConfigError(f"{where}: answers={calls!r:.80} must name functions.")
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    messages = [
        {"role": "system", "content": f"Call these functions:\n{signatures}"},
        {"role": "user", "content": _string(fields, "query", where)},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    accepted = [
        {call["name"]: {n: [v] for n, v in (call.get("arguments") or {}).items()}}
        for call in calls
    ]
    rest = {k: v for k, v in fields.items() if k not in ("query", "tools", "answers")}
    return {
        **rest,
        "messages": messages,
        "answer": json.dumps(calls, ensure_ascii=False),
        "metadata": {**rest.get("metadata", {}), "accepted": accepted},
    }


def _objects(fields: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    value = fields.get(name)
    value = _json(value, where, name) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ConfigError(f"{where}: {name}={value!r:.80} must be a list of objects.")
    return value


def _json(text: str, where: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = f"{name} {text[:80]!r}"
        raise ConfigError(f"{where}: {said} is not JSON ({error}).") from None


def _string(fields: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(value := fields.get(name), str) or not value.strip():
        raise ConfigError(f"{where}: {name}={value!r:.80} must be a text.")
    return value
