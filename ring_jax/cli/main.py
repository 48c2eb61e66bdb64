# SPDX-License-Identifier: Apache-2.0
"""The entry of the command `ring`: verb, flags, and which error ends with which status.

A verb is a module of this room with three names: `SUMMARY`, a line for `ring --help`;
`add_arguments(parser)`, its own operands; `run(args)`, which returns an exit status.
Modules are imported only when their verb runs, so that help and mistakes answer fast.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import json
import os
import pathlib
import signal
import sys
import types
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ring_jax import __version__
from ring_jax.cli import status
from ring_jax.cli.platforms import skip_absent_tpu
from ring_jax.config import ConfigError

VERBS = {
    "doctor": "doctor",
    "synthesise": "synthesise",
    "curate": "curate",
    "pack": "pack",
    "inspect": "inspect",
    "plan": "plan",
    "train": "train",
    "generate": "generate",
    "evaluate": "evaluate",
    "import": "import_",
    "export": "export",
    "report": "report",
}
"""Verb -> module in `ring_jax.cli`, in the order of `ring --help`."""

USAGE = """\
usage: ring VERB [--config=FILE.py[:ARG]] [--config.SECTION.FIELD=VALUE ...]
                 [--workdir=DIR] [--json] [operands of the verb]

`ring VERB --help` names a verb's operands. Verbs:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit status, as `ring_jax.cli.status` lists them.

    Args:
      argv: the words after `ring`; None takes the command line's.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminate_as_interrupt():
            return _run(words)
    except (ConfigError, KeyboardInterrupt, OSError) as error:
        code = status.status_of(error)
        if code is None:
            raise
        _tell(error, code, wants_json="--json" in words)
        return code


def _run(words: list[str]) -> int:
    if not words:
        raise ConfigError(f"name a verb: {', '.join(VERBS)}; `ring --help` explains.")
    verb, *rest = words
    if verb in ("-h", "--help", "help"):
        print(USAGE + "\n".join(f"  {verb:<12}{summary(verb)}" for verb in VERBS))
        sys.stdout.flush()
        return status.DONE
    if verb == "--version":
        print(f"ring_jax {__version__}")
        return status.DONE
    if verb not in VERBS:
        advice = _nearest(verb, VERBS) or f"Verbs are {', '.join(VERBS)}."
        raise ConfigError(f"{verb!r} is no verb of ring. {advice}")
    skip_absent_tpu(os.environ)
    module = import_verb(verb)
    code = module.run(_parse(verb, rest, module.add_arguments))
    # Inside main's `try`, so that a full disk or a closed pipe is noticed there.
    sys.stdout.flush()
    return code


def import_verb(verb: str) -> types.ModuleType:
    """Imports the module of a verb, and with it what the verb needs."""
    return importlib.import_module(f"ring_jax.cli.{VERBS[verb]}")


def summary(verb: str) -> str:
    """Reads a verb's SUMMARY from its file; importing the module would import jax."""
    source = pathlib.Path(__file__).with_name(f"{VERBS[verb]}.py").read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SUMMARY":
            return ast.literal_eval(node.value)
    raise AssertionError(f"ring_jax.cli.{VERBS[verb]} has no SUMMARY")


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` names the operands.")


def make_parser(verb: str, add_arguments) -> argparse.ArgumentParser:
    """Builds the parser of one verb: what every verb takes, then the verb's own."""
    parser = _Parser(
        prog=f"ring {verb}",
        usage=f"ring {verb} [operands] [--config.SECTION.FIELD=VALUE ...]",
        description=summary(verb),
        allow_abbrev=False,  # an abbreviation would change its meaning with a new flag
    )
    parser.add_argument(
        "--config", metavar="FILE.py[:ARG]", help="the run's settings; ARG for its file"
    )
    parser.add_argument(
        "--workdir", type=pathlib.Path, metavar="DIR", help="the run folder"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="the last line of output is one JSON object",
    )
    add_arguments(parser)
    return parser


def _parse(verb: str, words: list[str], add_arguments) -> argparse.Namespace:
    parser = make_parser(verb, add_arguments)
    overrides = [word for word in words if word.startswith("--config.")]
    args, unknown = parser.parse_known_args(
        [word for word in words if not word.startswith("--config.")]
    )
    if unknown:
        name = unknown[0].split("=")[0]
        flags = [flag for action in parser._actions for flag in action.option_strings]
        advice = _nearest(name, flags) or f"`ring {verb} --help` names the operands."
        raise ConfigError(f"{verb}: unknown operand {unknown[0]!r}. {advice}")
    args.verb = verb
    args.overrides = [_split_override(word) for word in overrides]
    return args


def _split_override(word: str) -> tuple[str, str]:
    name, equals, value = word.removeprefix("--").partition("=")
    if not equals:
        raise ConfigError(f"{word} has no value; write {word}=VALUE.")
    return name, value


def _nearest(word: str, names) -> str:
    near = difflib.get_close_matches(word, list(names), n=1)
    return f"Did you mean `{near[0]}`?" if near else ""


def _tell(error: BaseException, code: int, *, wants_json: bool) -> None:
    """Writes the one line that the user sees, and its JSON twin for scripts."""
    if isinstance(error, BrokenPipeError):
        # Python would flush the dead pipe once more on its way out, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    line = " ".join(str(error).split())
    if code == status.INTERRUPTED:
        line = "interrupted; run the same command again to go on."
        print(f"ring: {line}", file=sys.stderr)
    else:
        print(f"ring: error: {line}", file=sys.stderr)
    if wants_json:
        print(json.dumps({"status": code, "error": line}))


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM (a preemption) unwind as Ctrl-C does; a verb may install its own."""

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
