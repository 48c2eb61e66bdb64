# SPDX-License-Identifier: Apache-2.0
"""Chat rendering: conversations to token ids with a class per token, and replies back.

Ling's template has no separator and no end token between turns; only a finished reply
ends with `<|endoftext|>`. Hence only the last assistant turn of a row is trained: turns
before it appear as the model will meet them when it is served, without an end token.
A template's name is also its rule for their reasoning: `ling` and `ring` drop it,
`ring_keep_thinking` keeps it.

A row without reasoning is answered at once under the `ring` template, with no empty
think block: `<think>` is an ordinary prediction, so that the model itself decides when
a question deserves thought, and being well formed means closing what it opened.

Source: llama.cpp src/llama-chat.cpp (templates `bailing` and `bailing-think`);
arXiv:2504.07158 for reasoning between <think> and </think>.
"""

import bisect
import dataclasses
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ring_jax.config import TOKEN_CLASSES, ConfigError
from ring_jax.data.schema import Message, Row
from ring_jax.data.tokenizer import (
    CHAT_TOKENS,
    END_TOKEN,
    THINK_TOKENS,
    TOOL_TOKENS,
    Tokenizer,
)

TEMPLATES = ("ling", "ring", "ring_keep_thinking")
ROLE_NAMES = {
    "system": "SYSTEM",
    "user": "HUMAN",
    "assistant": "ASSISTANT",
    "tool": "OBSERVATION",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """A row as tokens."""

    ids: np.ndarray
    """i32[T], token ids."""
    classes: np.ndarray
    """i32[T], index into `config.TOKEN_CLASSES`; never 0, which is padding."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A generated turn, taken apart."""

    think: str
    answer: str
    """What a verifier grades; empty when the reasoning never ended."""
    is_well_formed: bool
    """Tags are paired, in order, and the end token was emitted."""


def render(row: Row, tokenizer: Tokenizer, *, template: str) -> Rendered:
    """Renders one row; see `render_rows`."""
    return render_rows([row], tokenizer, template=template)[0]


def render_rows(
    rows: Sequence[Row], tokenizer: Tokenizer, *, template: str
) -> list[Rendered]:
    """Turns rows into token ids, each token with its class.

    Special tokens come from the template only: the text of a message is encoded as
    plain text, whatever it spells.

    Args:
      rows: conversations or plain texts.
      tokenizer: has the chat tokens, and the think tokens for `ring`.
      template: `ring` puts the reply's reasoning between the think tags,
        `ring_keep_thinking` that of every turn; `ling` leaves it out.
    """
    pieces_by_row = [list(_pieces(row, template)) for row in rows]
    return _encode_pieces(pieces_by_row, tokenizer)


def render_prompt(row: Row, tokenizer: Tokenizer, *, template: str) -> list[int]:
    """Renders what free-running generation starts from.

    Returns:
      Ids of all turns before the last, ended by `<role>ASSISTANT</role>`.
    """
    prompt = list(_prompt_pieces(row.messages[:-1], template))
    return _encode_pieces([prompt], tokenizer)[0].ids.tolist()


def prompt_text(row: Row, *, template: str) -> str:
    """Writes `render_prompt` as text, special tokens spelled out."""
    return "".join(piece.text for piece in _prompt_pieces(row.messages[:-1], template))


def parse_reply(text: str) -> Reply:
    """Takes a generated turn apart.

    Args:
      text: as decoded, special tokens spelled out, the end token included if emitted.
    """
    body, end, rest = text.partition(END_TOKEN)
    match = _REPLY.fullmatch(body)
    has_paired_calls = len({body.count(tag) for tag in TOOL_TOKENS}) == 1
    if match and match["answer"].strip() and end and not rest and has_paired_calls:
        return Reply(match["think"] or "", match["answer"].strip(), True)
    _, opened, tail = body.partition("<think>")
    if not opened:
        return Reply("", body.strip(), False)
    # Reasoning that never ends leaves no answer: half a thought is not graded.
    think, _, answer = tail.partition("</think>")
    return Reply(think, answer.strip(), False)


def texts(row: Row, *, template: str) -> list[str]:
    """Lists the texts of a row as they are encoded, role names included."""
    return [piece.text for piece in _pieces(row, template) if not piece.is_special]


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of one class: a special token, or text to encode."""

    text: str
    token_class: str
    is_special: bool = False


def _pieces(row: Row, template: str) -> Iterator[_Piece]:
    if row.text:
        yield _Piece(row.text, "answer")
    else:
        yield from _prompt_pieces(row.messages[:-1], template)
        yield from _reply_pieces(row.reply, template)
    yield _Piece(END_TOKEN, "stop", is_special=True)


def _prompt_pieces(messages: Iterable[Message], template: str) -> Iterator[_Piece]:
    if template not in TEMPLATES:
        raise ConfigError(f"data.template={template!r} must be one of {TEMPLATES}.")
    for message in messages:
        yield from _role_pieces(message.role)
        if template == "ring_keep_thinking":
            yield from _think_pieces(message, "prompt")
            yield _Piece(message.content, "prompt")
        else:
            yield _Piece(_without_thinking(message), "prompt")
        yield from _tool_pieces(message, "prompt")
    yield from _role_pieces("assistant")


def _without_thinking(message: Message) -> str:
    """Returns the text of an earlier turn, as a server sends it back.

    A client may hand back a reply as it was generated, its reasoning spelled out; this
    and the Jinja template leave that out alike.
    """
    if message.role != "assistant":
        return message.content
    return message.content.rpartition(THINK_TOKENS[1])[2]


def _role_pieces(role: str) -> Iterator[_Piece]:
    yield _Piece("<role>", "prompt", is_special=True)
    yield _Piece(ROLE_NAMES[role], "prompt")
    yield _Piece("</role>", "prompt", is_special=True)


def _reply_pieces(reply: Message, template: str) -> Iterator[_Piece]:
    if template != "ling":
        yield from _think_pieces(reply, "think")
    yield _Piece(reply.content, "answer")
    yield from _tool_pieces(reply, "tool")


def _think_pieces(message: Message, token_class: str) -> Iterator[_Piece]:
    if message.think:
        opening, closing = THINK_TOKENS
        yield _Piece(opening, token_class, is_special=True)
        yield _Piece(message.think, token_class)
        yield _Piece(closing, token_class, is_special=True)


def _tool_pieces(message: Message, token_class: str) -> Iterator[_Piece]:
    opening, closing = TOOL_TOKENS
    for call in message.tool_calls:
        yield _Piece(opening, token_class, is_special=True)
        yield _Piece(call.to_json(), token_class)
        yield _Piece(closing, token_class, is_special=True)


def _encode_pieces(
    pieces_by_row: Sequence[Sequence[_Piece]], tokenizer: Tokenizer
) -> list[Rendered]:
    runs_by_row = [_runs(pieces, tokenizer) for pieces in pieces_by_row]
    # Most texts are role names; each distinct one is encoded once.
    distinct = dict.fromkeys(
        (run[0].text, run[0].is_special)
        for runs in runs_by_row
        for run in runs
        if len(run) == 1
    )
    ids_of, texts = {}, []
    for key in distinct:
        text, is_special = key
        if is_special:
            ids_of[key] = np.asarray([tokenizer.special_id(text)], np.int32)
        else:
            texts.append(key)
    encoded = tokenizer.encode_batch([text for text, _ in texts])
    ids_of |= zip(texts, encoded, strict=True)
    return [_join(runs, ids_of, tokenizer) for runs in runs_by_row]


def _runs(pieces: Sequence[_Piece], tokenizer: Tokenizer) -> list[list[_Piece]]:
    """Groups texts that no token stands between: a server encodes them as one."""
    runs: list[list[_Piece]] = []
    for piece in filter(operator.attrgetter("text"), pieces):
        # Ling's first tokenizer has no tool tags: there they are text.
        if piece.text in TOOL_TOKENS and not tokenizer.has_special(piece.text):
            piece = dataclasses.replace(piece, is_special=False)
        if piece.is_special or not runs or runs[-1][-1].is_special:
            runs.append([piece])
        else:
            runs[-1].append(piece)
    return runs


def _join(
    runs: Sequence[Sequence[_Piece]],
    ids_of: Mapping[tuple[str, bool], np.ndarray],
    tokenizer: Tokenizer,
) -> Rendered:
    parts, classes = [], []
    for run in runs:
        if len(run) > 1:
            ids, run_classes = _encode_run(run, tokenizer)
        else:
            ids = ids_of[run[0].text, run[0].is_special]
            run_classes = np.full(len(ids), _CLASS_IDS[run[0].token_class], np.int32)
        parts.append(ids)
        classes.append(run_classes)
    return Rendered(np.concatenate(parts), np.concatenate(classes))


def _encode_run(
    run: Sequence[_Piece], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts as one; a token has the class of its first character."""
    ids, starts = tokenizer.encode_with_starts("".join(piece.text for piece in run))
    ends = list(itertools.accumulate(len(piece.text) for piece in run))
    places = [bisect.bisect_right(ends, start) for start in starts]
    classes = [_CLASS_IDS[run[place].token_class] for place in places]
    return np.asarray(ids, np.int32), np.asarray(classes, np.int32)


_CLASS_IDS = {name: number for number, name in enumerate(TOKEN_CLASSES)}
_NO_TAG = "(?:(?!" + "|".join(map(re.escape, (*CHAT_TOKENS, *THINK_TOKENS))) + ").)*"
_REPLY = re.compile(
    f"(?:<think>(?P<think>{_NO_TAG})</think>)?(?P<answer>{_NO_TAG})", re.S
)

_JINJA_ROLES = (
    "{'system': 'SYSTEM', 'user': 'HUMAN', "
    "'assistant': 'ASSISTANT', 'tool': 'OBSERVATION'}"
)
_JINJA_TURNS = (
    f"{{%- set roles = {_JINJA_ROLES} -%}}"
    """
{%- for message in messages -%}
  {%- set is_assistant = message.role == 'assistant' -%}
  {%- set is_reply = loop.last and is_assistant and not add_generation_prompt -%}
  {{- '<role>' + roles[message.role] + '</role>' -}}
  {%- set content = message.content or '' -%}
  %CONTENT%
  {{- content -}}
  {%- for tool_call in message.tool_calls or [] -%}
    {%- set call = tool_call.function or tool_call -%}
    {%- set arguments = call.arguments -%}
    {%- if arguments is not string -%}
      {%- set arguments = arguments | tojson -%}
    {%- endif -%}
    {{- '<tool_call>{"name": ' + (call.name | tojson) + ', "arguments": ' -}}
    {{- arguments + '}</tool_call>' -}}
  {%- endfor -%}
  {%- if is_reply -%}
    {{- '<|endoftext|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<role>ASSISTANT</role>' -}}
{%- endif -%}
"""
)
_JINJA_DROP = """{%- if is_assistant and not is_reply -%}
    {%- set content = content.split('</think>')[-1] -%}
  {%- endif -%}"""
_JINJA_THINK = """{%- if %CONDITION% and message.reasoning_content -%}
    {{- '<think>' + message.reasoning_content + '</think>' -}}
  {%- endif -%}"""
_JINJA_THINK_LAST = _JINJA_THINK.replace("%CONDITION%", "is_reply")

CHAT_TEMPLATES = {
    "ling": _JINJA_TURNS.replace("%CONTENT%", _JINJA_DROP),
    "ring": _JINJA_TURNS.replace("%CONTENT%", f"{_JINJA_DROP}\n  {_JINJA_THINK_LAST}"),
    "ring_keep_thinking": _JINJA_TURNS.replace(
        "%CONTENT%", _JINJA_THINK.replace("%CONDITION%", "is_assistant")
    ),
}
"""`chat_template.jinja` of an exported model; it reads `message.reasoning_content`."""
