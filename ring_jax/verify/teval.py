# SPDX-License-Identifier: Apache-2.0
"""T-Eval's formats that need no sentence encoder: instruct, retrieve and review.

Source: arXiv:2312.14033, and the evaluators of OpenCompass (`datasets/teval`).
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.verify.final_answer import without_reasoning

MAX_CHARACTERS = 100_000
"""Of a reply that is parsed; more is none."""


def is_right(reply: str, answer: str, metadata: Mapping[str, Any]) -> bool:
    """Tells whether a reply has full marks; arguments as `score`."""
    del answer
    return score(reply, metadata) == 1


def score(reply: str, metadata: Mapping[str, Any]) -> float:
    """Scores a reply from 0 to 1, as the published evaluator does.

    Args:
      reply: any text; reasoning at its beginning is left out.
      metadata: `kind` (instruct, retrieve or review), `form` (json, string or str),
        `truth` and, of instruct, `template`, as published.

    Returns:
      Of instruct: the share of action and arguments that are exact. Of retrieve: 1 for
      the tool's name and no other. Of review: 1 for the letter.

    Raises:
      ConfigError: the kind has no scorer.
    """
    text, truth = without_reasoning(reply)[:MAX_CHARACTERS], metadata["truth"]
    match metadata["kind"]:
        case "instruct":
            return _instruct(text, truth, metadata["template"], metadata["form"])
        case "retrieve":
            return float(_names_only(text, truth["name"]))
        case "review":
            chosen = text.partition(":")[2] if ":" in text else text
            return float(chosen.strip()[:1] == truth["answer"])
    raise ConfigError(
        f"verifier 'teval': kind={metadata['kind']!r} must be instruct, retrieve or "
        "review."
    )


def _instruct(
    text: str, truth: Mapping[str, Any], template: Mapping[str, str], form: str
) -> float:
    read = _from_json if form == "json" else _from_string
    action, arguments = read(text, template)
    matches = [
        arguments.get(name, "") == value for name, value in truth["args"].items()
    ]
    if action is None:
        return 0.0
    return ((action == truth["action"]) + sum(matches)) / (1 + len(matches))


def _from_json(
    text: str, template: Mapping[str, str]
) -> tuple[str | None, Mapping[str, Any]]:
    found = _parse(text)
    if not isinstance(found, dict) or set(template.values()) - set(found):
        return None, {}
    return found[template["action"]], _mapping(found[template["args"]])


def _from_string(
    text: str, template: Mapping[str, str]
) -> tuple[str | None, Mapping[str, Any]]:
    place, said = 0, {}
    for name in ("thought", "action", "args"):
        start = text.find(template[f"{name}_start"], place)
        inner = start + len(template[f"{name}_start"])
        end = text.find(template[f"{name}_end"], inner) if start >= 0 else -1
        if end < 0:
            return None, {}
        # An empty end mark is that of the whole reply.
        end = end if template[f"{name}_end"] else _next(text, inner, name, template)
        said[name] = text[inner:end].strip()
        place = end + len(template[f"{name}_end"])
    return said["action"], _mapping(_literal(said["args"]))


def _next(text: str, inner: int, name: str, template: Mapping[str, str]) -> int:
    following = {"thought": "action_start", "action": "args_start"}.get(name)
    found = text.find(template[following], inner) if following else -1
    return found if found >= 0 else len(text)


def _names_only(text: str, name: str) -> bool:
    # Without \b, a long word would take quadratic time.
    others = [*re.findall(r"\b\w+\.\w+", text), *re.findall("FinishAction", text)]
    return name in text and all(other == name for other in others)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _parse(text: str) -> Any:
    if "```json" in text:
        text = text.partition("```json")[2].strip("`")
    for reading in (_literal, _json):
        if (found := reading(text.strip())) is not None:
            return found
    return _json(text.replace("'", '"').strip())


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
