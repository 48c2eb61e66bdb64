# SPDX-License-Identifier: Apache-2.0
"""Proof that a model folder's chat template and ours give the same tokens.

One conversation of each kind goes both ways: through `chat.py`, which training uses,
and through the folder's own template as a server uses it (Jinja, then the whole text is
tokenized at once). Two texts of each are compared: the prompt of the last turn, and the
conversation whole.

Two things are no differences. A template need not write the end token behind the last
reply: training adds it, and a server stops there. And where a template has no field for
reasoning, what our rule writes of it is handed over in the text of the turn.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from ring_jax.config import (
    CONVERSATION_KINDS,
    ConfigError,
    DataConfig,
    conversation_kinds,
)
from ring_jax.data import chat
from ring_jax.data.chat_template import (
    ChatTemplate,
    Failure,
    read_chat_template,
    render_texts,
    to_hugging_face,
)
from ring_jax.data.schema import Message, Row, ToolCall
from ring_jax.data.tokenizer import THINK_TOKENS, Tokenizer

NUM_TOKENS_BEFORE = 8
"""Shown in front of a difference."""

_USER = Message("user", "What is 3 + 4? <b>'Now'</b> & \"here\", 你好.")
_REPLY = Message("assistant", "It is 7: é, <i>&amp;</i>.")
_THINKING = Message("assistant", "It is 7.", think="3 + 4\n\nmakes 7, <ok>.")
_AREA = ToolCall("area", {"base": 10, "unit": "m²", "of": ["<a>", None, True, 0.5]})
_CALL = Message("assistant", "", tool_calls=(_AREA,))
_CALLS = Message("assistant", "I ask.", tool_calls=(_AREA, ToolCall("now")))
_RESULT = Message("tool", '{"area": "25 m²", "ok": true}')
_MORE = Message("user", "And twice that?")
_ANSWER = Message("assistant", "14.")

CONVERSATIONS: dict[str, tuple[tuple[Message, ...], ...]] = {
    "single_turn": ((_USER, _REPLY),),
    "multi_turn": ((_USER, _REPLY, _MORE, _ANSWER),),
    "system": (
        (Message("system", "You are Ling."), _USER, _REPLY),
        (Message("system", "You are Ling."), _USER, _REPLY, _MORE, _ANSWER),
    ),
    "tool_call": ((_USER, _CALL), (_USER, _CALLS)),
    "tool_result": (
        (_USER, _CALL, _RESULT, _REPLY),
        (_USER, _CALLS, _RESULT, _RESULT, _REPLY, _MORE, _ANSWER),
    ),
    "thinking": (
        (_USER, _THINKING),
        (_USER, Message("assistant", "\n\n7\n", think="\n\n so \n")),
    ),
    "empty_thinking": ((_USER, dataclasses.replace(_REPLY, think="")),),
    "earlier_thinking": (
        (_USER, _THINKING, _MORE, _ANSWER),
        (_USER, _THINKING, _MORE, _THINKING),
    ),
    "tool_thinking": (
        (_USER, dataclasses.replace(_CALL, think="I ask."), _RESULT, _THINKING),
    ),
    "white_space": (
        (
            Message("system", " You\n"),
            Message("user", "\n\n  3 + 4?\t\n"),
            Message("assistant", "  So:\n\n- 7 \n"),
            Message("user", " And? "),
            Message("assistant", "\n  14\n\n"),
        ),
    ),
}
"""Kind -> conversations that show it. Its texts are such as templates change: what HTML
escapes, other scripts, white space at both ends."""
assert tuple(CONVERSATIONS) == CONVERSATION_KINDS


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The first token in which a conversation differs."""

    kind: str
    part: str
    """`prompt` or `conversation`."""
    place: int
    """Of the token, counted from 0."""
    before: str
    """Text of the last tokens that are the same."""
    ours: str
    """The next token; empty where the text ends."""
    theirs: str

    def __str__(self) -> str:
        theirs = repr(self.theirs) if self.theirs else "nothing"
        ours = repr(self.ours) if self.ours else "nothing"
        return (
            f"token {self.place} of the {self.part} of {self.kind}, behind "
            f"{self.before!r}: it has {theirs}, ours {ours}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class TemplateReport:
    """How the chat template that comes with a tokenizer compares with ours."""

    path: str = ""
    """The file that holds it; empty where there is none."""
    differences: tuple[Difference, ...] = ()
    """At most one of each kind, in the order of `CONVERSATION_KINDS`."""

    def summary(self) -> str:
        """Says it in a few words."""
        if not self.path:
            return "none comes with the tokenizer"
        name = pathlib.Path(self.path).name
        kinds = ", ".join(d.kind for d in self.differences)
        return f"{name} differs in {kinds}" if kinds else f"{name} gives the same"


def check_template(config: DataConfig, tokenizer: Tokenizer) -> TemplateReport:
    """Holds the template beside `data.tokenizer.path`, if there is one, against ours.

    Raises:
      ConfigError: they differ in a kind that `data.template_differences` does not name;
        or the template cannot be rendered; one line.
    """
    report = template_report(config, tokenizer)
    allowed = conversation_kinds(config.template_differences)
    refused = [d for d in report.differences if d.kind not in allowed]
    if not refused:
        return report
    kinds = [difference.kind for difference in report.differences]
    better = _better_template(config, tokenizer, len(kinds))
    raise ConfigError(
        f"{report.path}: renders {', '.join(d.kind for d in refused)} otherwise than "
        f"data.template={config.template!r} ({refused[0]}); {better}go on with ours by "
        f'data.template_differences="{",".join(kinds)}".'
    )


def template_report(config: DataConfig, tokenizer: Tokenizer) -> TemplateReport:
    """Compares the template beside `data.tokenizer.path`, if there is one, with ours.

    Raises:
      ConfigError: the template cannot be read or rendered.
    """
    if (template := _of_tokenizer(config)) is None:
        return TemplateReport()
    found = compare(template, tokenizer, name=config.template)
    return TemplateReport(template.path, found)


def compare(
    template: ChatTemplate, tokenizer: Tokenizer, *, name: str
) -> tuple[Difference, ...]:
    """Renders every kind of conversation both ways.

    Args:
      template: theirs.
      tokenizer: of both.
      name: of ours, one of `chat.TEMPLATES`.

    Returns:
      The first difference of each kind that has one.

    Raises:
      ConfigError: their template is no Jinja, or wants too much time, memory or room.
    """
    kinds = [(kind, m) for kind, several in CONVERSATIONS.items() for m in several]
    asked = []
    for _, messages in kinds:
        theirs = _handed_over(messages, template, name=name)
        turns = [to_hugging_face(message) for message in theirs]
        asked.append({"messages": turns[:-1], "add_generation_prompt": True})
        asked.append({"messages": turns, "add_generation_prompt": False})
    texts = render_texts(template, asked)
    found: dict[str, Difference] = {}
    for (kind, messages), pair in zip(kinds, itertools.batched(texts, 2), strict=True):
        ours = _our_tokens(messages, tokenizer, name=name)
        for part, our_ids, text in zip(
            ("prompt", "conversation"), ours, pair, strict=True
        ):
            place = {"kind": kind, "part": part}
            different = _difference(our_ids, text, tokenizer, **place)
            if different is not None:
                found.setdefault(kind, different)
    return tuple(found.values())


def _of_tokenizer(config: DataConfig) -> ChatTemplate | None:
    if config.tokenizer.path is None:
        return None
    path = pathlib.Path(config.tokenizer.path)
    return read_chat_template(path if path.is_dir() else path.parent)


def _better_template(
    config: DataConfig, tokenizer: Tokenizer, num_differences: int
) -> str:
    template = _of_tokenizer(config)
    assert template is not None
    for name in chat.TEMPLATES:
        found = len(compare(template, tokenizer, name=name))
        if found < num_differences:
            rest = "none" if not found else f"{found} of these {num_differences}"
            return f"data.template={name!r} differs in {rest}; or "
    return ""


def _handed_over(
    messages: Sequence[Message], template: ChatTemplate, *, name: str
) -> list[Message]:
    """Spells out in the text what our rule writes and theirs has no field for."""
    if template.reads_reasoning or name == "ling":
        return list(messages)
    opening, closing = THINK_TOKENS
    first = 0 if name == "ring_keep_thinking" else len(messages) - 1
    return [
        dataclasses.replace(
            message, content=f"{opening}{message.think}{closing}{message.content}"
        )
        if message.think and place >= first
        else message
        for place, message in enumerate(messages)
    ]


def _our_tokens(
    messages: tuple[Message, ...], tokenizer: Tokenizer, *, name: str
) -> tuple[list[int], list[int]]:
    row = Row(
        id="check",
        messages=messages,
        source="check",
        domain="dialogue",
        licence="Apache-2.0",
        package="ring_jax",
    )
    prompt = chat.render_prompt(row, tokenizer, template=name)
    whole = chat.render(row, tokenizer, template=name)
    return prompt, whole.ids.tolist()


def _difference(
    ours: list[int], text: str | Failure, tokenizer: Tokenizer, *, kind: str, part: str
) -> Difference | None:
    if isinstance(text, Failure):
        said = f"an error, {text.reason}"
        return Difference(
            kind=kind,
            part=part,
            place=0,
            before="",
            ours=tokenizer.decode(ours[:1]),
            theirs=said,
        )
    theirs = tokenizer.encode_rendered(text)
    if part == "conversation" and theirs[-1:] != [tokenizer.eos_id]:
        ours = ours[:-1]
    if theirs == ours:
        return None
    pairs = enumerate(itertools.zip_longest(ours, theirs))
    place = next(place for place, (one, other) in pairs if one != other)
    return Difference(
        kind=kind,
        part=part,
        place=place,
        before=tokenizer.decode(ours[max(0, place - NUM_TOKENS_BEFORE) : place]),
        ours=tokenizer.decode(ours[place : place + 1]),
        theirs=tokenizer.decode(theirs[place : place + 1]),
    )
