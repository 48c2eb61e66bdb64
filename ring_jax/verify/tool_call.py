# SPDX-License-Identifier: Apache-2.0
"""Function calls, compared by name and arguments.

Source: the rules of the Berkeley Function-Calling Leaderboard (AST accuracy of simple
functions): every argument is one of its accepted values, strings up to case, blanks and
punctuation; an argument that accepts the empty string may be left out. Several calls
may come in any order.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def is_accepted(reply: str, answer: str, metadata: Mapping[str, Any]) -> bool:
    """Checks that the reply is the calls of `metadata["accepted"]` and nothing else."""
    del answer  # one example of the accepted calls
    accepted = metadata["accepted"]
    texts = _CALL.findall(reply)
    if _CALL.sub("", reply).strip() or len(texts) != len(accepted):
        return False
    for options in accepted:
        place = next((n for n, text in enumerate(texts) if _is_call(text, options)), -1)
        if place < 0:
            return False
        del texts[place]
    return True


def _is_call(text: str, accepted: Mapping[str, Mapping[str, Sequence[Any]]]) -> bool:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return False
    ((name, parameters),) = accepted.items()
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        return False
    return call["name"] == name and _are_arguments(call["arguments"], parameters)


def _are_arguments(arguments: Any, parameters: Mapping[str, Sequence[Any]]) -> bool:
    if not isinstance(arguments, dict) or set(arguments) - set(parameters):
        return False
    return all(
        any(_is_same(arguments[name], option) for option in options)
        if name in arguments
        else "" in options
        for name, options in parameters.items()
    )


def _is_same(value: Any, option: Any) -> bool:
    if isinstance(option, Mapping):  # an object's own fields list accepted values
        return _are_arguments(value, option)
    if isinstance(value, list) and isinstance(option, list):
        return len(value) == len(option) and all(map(_is_same, value, option))
    if isinstance(value, str) and isinstance(option, str):
        return _plain(value) == _plain(option)
    # bool is an int in Python: without its type, true would be 1.
    return isinstance(value, bool) == isinstance(option, bool) and value == option


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
