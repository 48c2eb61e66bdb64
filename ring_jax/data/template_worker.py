# SPDX-License-Identifier: Apache-2.0
"""A process that renders one chat template, under limits; `chat_template` starts it.

It is run as a file, and imports nothing of ours: a start takes a moment, and its memory
is that of Jinja alone. One JSON object comes in: `template`, `conversations` (variables
of each), and limits; one goes out: `texts`, where a conversation that the template
refuses is `{"error": ...}`, or `limit`, which ended the work.
"""

import contextlib
import datetime
import json
import os
import resource
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

# What a foreign template can raise of its own.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
)


class LimitError(RuntimeError):
    """The template wants more than it may have."""


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    _limit(request)
    try:
        reply = {"texts": _render(request)}
    except LimitError as error:
        reply = {"limit": str(error)}
    except MemoryError:
        reply = {"limit": f"takes more than {request['memory_bytes']:,} bytes"}
    except OverflowError as error:
        # What the sandbox says of long ranges.
        reply = {"limit": f"loops for too long ({error})"}
    json.dump(reply, sys.stdout)


def _limit(request: dict) -> None:
    # JSON may spell a character with up to twelve bytes.
    output_bytes = 12 * request["output_characters"] + 4096
    for kind, soft, hard in (
        (resource.RLIMIT_AS, request["memory_bytes"], request["memory_bytes"]),
        # The soft limit ends it with a signal that tells why.
        (resource.RLIMIT_CPU, request["cpu_seconds"], request["cpu_seconds"] + 1),
        (resource.RLIMIT_FSIZE, output_bytes, output_bytes),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    # An empty network, where the kernel lets a process have one.
    with contextlib.suppress(OSError):
        os.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _render(request: dict) -> list[str | dict]:
    try:
        template = environment().from_string(request["template"])
    except OverflowError:
        raise
    except _FAILURES as error:
        raise LimitError(f"is no Jinja template ({_told(error)})") from None
    texts: list[str | dict] = []
    room = request["output_characters"]
    for variables in request["conversations"]:
        try:
            texts.append(_text(template, variables, room))
        except OverflowError:
            raise
        except _FAILURES as error:
            texts.append({"error": _told(error)})
    return texts


def _text(template: jinja2.Template, variables: dict, room: int) -> str:
    pieces: list[str] = []
    for piece in template.generate(**variables):
        room -= len(piece)
        if room < 0:
            raise LimitError("writes without end")
        pieces.append(piece)
    return "".join(pieces)


def _told(error: BaseException) -> str:
    lines = str(error).split()
    return f"{type(error).__name__}: {' '.join(lines)[:200]}"


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Makes the environment that chat templates are written for.

    Source: "Advanced usage and customizing your chat templates", documentation of
    transformers; held against transformers by tests/data/test_chat_template.py.
    """
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    # Jinja's own escapes what HTML would misread.
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = _now
    return made


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what is trained; it writes it."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Makes a block with a scope of its own, as transformers does."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_written")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _written(self, caller) -> str:
        return caller()


def _to_json(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


if __name__ == "__main__":
    main()
