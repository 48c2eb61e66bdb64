# SPDX-License-Identifier: Apache-2.0
"""The command as a person meets it: operands, exit statuses, one-line mistakes."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from ring_jax.checkpoint.store import StorageError
from ring_jax.cli import main, status
from ring_jax.config import ConfigError


@pytest.fixture
def make_verb(monkeypatch):
    """Adds a verb `probe` that does what the test says."""

    def add_arguments(parser):
        parser.add_argument("--size", type=int)

    def make(run):
        module = types.ModuleType("ring_jax.cli.probe")
        vars(module).update(add_arguments=add_arguments, run=run)
        monkeypatch.setitem(sys.modules, "ring_jax.cli.probe", module)
        monkeypatch.setitem(main.VERBS, "probe", "probe")
        monkeypatch.setattr(main, "summary", lambda verb: "does as the test says")

    return make


def raising(error: BaseException):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("verb", main.VERBS)
def test_the_operands_of_a_verb_are_the_reviewed_ones(verb, check_golden):
    module = main.import_verb(verb)
    parser = main.make_parser(verb, module.add_arguments)
    lines = [module.SUMMARY]
    for action in parser._actions[1:]:  # the first is --help
        name = ", ".join(action.option_strings) or action.dest
        takes = f" {action.metavar or action.choices or ''}".rstrip()
        default = "" if action.default in (None, False) else f" = {action.default}"
        lines.append(f"{name}{takes}{default}: {action.help}")
    check_golden(f"cli/{verb}.txt", "\n".join(lines) + "\n")


def test_help_names_every_verb_and_imports_no_jax():
    code = (
        "import sys; from ring_jax.cli.main import main; status = main(['--help']);"
        "assert 'jax' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status.DONE, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line[:2] == "  "]
    assert [verb for verb in listed if verb in main.VERBS] == list(main.VERBS)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["name a verb", "doctor"]),
        (["trian"], ["'trian'", "`train`"]),
        (["report", "--wrokdir=x"], ["--wrokdir", "`--workdir`"]),
        (["report", "--config.seed"], ["--config.seed=VALUE"]),
        (["doctor", "stray"], ["'stray'"]),
        (["report", "stray"], ["stray is no folder"]),
        (["report"], ["--workdir=DIR"]),
        (["report", "--workdir=/no/such/run"], ["/no/such/run"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, parts, capsys):
    assert main.main(words) == status.MISTAKE
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("ring: error: ")
    assert line.count("\n") == 1
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("two\nlines"), status.MISTAKE),
        (KeyboardInterrupt(), status.INTERRUPTED),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), status.ENVIRONMENT),
        (StorageError("the checkpoint could not be written."), status.ENVIRONMENT),
        (PermissionError(errno.EACCES, "denied", "file"), status.ENVIRONMENT),
    ],
)
def test_an_error_ends_with_its_status_and_one_line(make_verb, capsys, error, expected):
    make_verb(raising(error))
    assert main.main(["probe"]) == expected
    out, line = capsys.readouterr()
    assert (out, line.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "error", [ValueError("ours"), FileNotFoundError(errno.ENOENT, "ours"), KeyError(1)]
)
def test_our_own_bugs_keep_their_traceback(make_verb, error):
    make_verb(raising(error))
    with pytest.raises(type(error)):
        main.main(["probe"])


def test_json_makes_the_last_line_one_object_even_in_failure(make_verb, capsys):
    make_verb(raising(ConfigError("size=0 is too small.")))
    assert main.main(["probe", "--json"]) == status.MISTAKE
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"status": 2, "error": "size=0 is too small."}


def test_a_verb_gets_its_operands_and_the_overrides_in_order(make_verb):
    seen = []
    make_verb(lambda args: seen.append(args) or 3)
    words = ["--size=4", "--config.a.b=c=d", "--workdir", "x y", "--config.a.b="]
    assert main.main(["probe", *words]) == status.STOPPED
    (args,) = seen
    assert (args.verb, args.size, args.workdir) == ("probe", 4, pathlib.Path("x y"))
    assert args.overrides == [("config.a.b", "c=d"), ("config.a.b", "")]


@pytest.mark.parametrize("signal_name", ["INT", "TERM"])
def test_a_signal_ends_with_75_and_no_traceback(signal_name):
    code = (
        "import os, signal, sys, types; from ring_jax.cli import main\n"
        "probe = types.ModuleType('ring_jax.cli.probe')\n"
        "probe.add_arguments = lambda parser: None\n"
        f"probe.run = lambda args: os.kill(os.getpid(), signal.SIG{signal_name})\n"
        "sys.modules['ring_jax.cli.probe'] = probe\n"
        "main.VERBS['probe'] = 'probe'; main.summary = lambda verb: ''\n"
        "sys.exit(main.main(['probe']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status.INTERRUPTED
    assert done.stderr.startswith("ring: interrupted")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_sees_no_traceback():
    program = "import sys; from ring_jax.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        f"'{sys.executable}' -c '{program}' --help | true",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
