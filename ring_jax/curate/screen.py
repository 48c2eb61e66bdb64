# SPDX-License-Identifier: Apache-2.0
"""Rows that try to steer: instructions to a model, hidden text, template tokens."""

import re
from collections.abc import Callable, Sequence

from ring_jax.config import ScreenConfig
from ring_jax.curate.rows import Rejection, reject
from ring_jax.data.schema import Row, conversation_text

STEP = "screen"

_CONTROL_TOKEN = re.compile(
    r"</?role>|<\|[\w ]{2,40}\|>|<｜[^｜]{2,40}｜>|\[gMASK\]|\[/?INST\]|</?think>"
    r"|</?tool_call>|<(?:start|end)_of_turn>"
)
# Tag characters spell ASCII that no font shows; overrides reverse what is read. One
# zero-width character joins emoji and scripts of India; three in a row join nothing.
_INVISIBLE = re.compile(
    "[\U000e0001-\U000e007f]|[\u202a-\u202e\u2066-\u2069]|[\u200b-\u200d\u2060\ufeff]{3}"
)
_INJECTION = re.compile(
    r"""
      \b(?:ignore|disregard|forget|override)\b [^.\n]{0,24}
        \b(?:previous|prior|above|earlier|preceding|system|original)\b [^.\n]{0,24}
        \b(?:instruction|instructions|prompt|prompts|rules|directives|guidelines)\b
    | \b(?:reveal|print|repeat|output|show|leak)\b [^.\n]{0,16}
        \b(?:your|the)\b [^.\n]{0,12} \b(?:system|hidden|initial)\b \s
        (?:prompt|instructions|message)\b
    | \byou \s are \s now \s (?:in \s )?
        (?:DAN|developer \s mode|jailbroken|unrestricted)\b
    | \bdo \s anything \s now\b
    | (?:忽略|无视|忘记)[^。\n]{0,10}(?:之前|以上|先前|所有|上述)[^。\n]{0,8}
        (?:指令|指示|提示|规则)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def screen(rows: Sequence[Row], *, config: ScreenConfig) -> list[Row | Rejection]:
    """Turns away rows by the first of the checks that `config` asks for."""
    checks = [
        check for name, check in CHECKS.items() if getattr(config, name) != "keep"
    ]
    return [_screen(row, checks) for row in rows]


def _screen(
    row: Row, checks: Sequence[Callable[[Row], Rejection | None]]
) -> Row | Rejection:
    return next((found for check in checks if (found := check(row))), row)


def _control_tokens(row: Row) -> Rejection | None:
    texts = [turn.content for turn in row.messages if turn.role != "assistant"]
    for text in texts:
        if found := _CONTROL_TOKEN.search(text):
            return reject(
                row,
                step=STEP,
                reason="control_tokens",
                detail=f"{found[0]!r} is a chat template's token, not a person's text",
            )
    return None


def _invisible_text(row: Row) -> Rejection | None:
    if found := _INVISIBLE.search(conversation_text(row)):
        return reject(
            row,
            step=STEP,
            reason="invisible_text",
            detail=f"U+{ord(found[0][0]):04X} at {found.start()} hides or turns text",
        )
    return None


def _prompt_injection(row: Row) -> Rejection | None:
    if found := _INJECTION.search(conversation_text(row)):
        return reject(
            row,
            step=STEP,
            reason="prompt_injection",
            detail=f"{found[0]!r} speaks to the model behind the conversation",
        )
    return None


CHECKS: dict[str, Callable[[Row], Rejection | None]] = {
    "invisible_text": _invisible_text,
    "control_tokens": _control_tokens,
    "prompt_injection": _prompt_injection,
}
"""Field of `ScreenConfig` -> check, in the order in which they are asked."""
