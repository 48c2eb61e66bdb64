# SPDX-License-Identifier: Apache-2.0
"""House rules that ruff and pyright do not know."""

import ast
import dataclasses
import pathlib
import re
import subprocess

import pytest

from ring_jax import config

REPOSITORY = pathlib.Path(__file__).parent.parent
ROOMS = ("ring_jax", "pallas_kernels", "configs", "benchmarks")
SPDX = "# SPDX-License-Identifier: Apache-2.0"


def python_files(*folders: str) -> list[pathlib.Path]:
    return sorted(f for folder in folders for f in (REPOSITORY / folder).rglob("*.py"))


def label(file: pathlib.Path) -> str:
    return str(file.relative_to(REPOSITORY))


def nodes(file: pathlib.Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


ALL = [*python_files(*ROOMS, "tests"), REPOSITORY / "setup.py"]
OURS = python_files(*ROOMS)


@pytest.mark.parametrize("file", ALL, ids=label)
def test_a_file_names_its_licence_and_says_what_it_is(file):
    text = file.read_text(encoding="utf-8")
    assert text.startswith(SPDX + "\n")
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("file", ALL, ids=label)
def test_no_handler_swallows_whatever_comes(file):
    for node in nodes(file):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            names = re.findall(r"\w+", caught)
            broad = {"everything", "Exception", "BaseException"} & set(names)
            passes_on = any(
                isinstance(inner, ast.Raise) and inner.exc is None
                for inner in ast.walk(node)
            )
            assert not broad or passes_on, f"line {node.lineno} catches {caught}"


@pytest.mark.parametrize("file", OURS, ids=label)
def test_no_function_has_more_than_sixty_lines_below_its_docstring(file):
    long = {}
    for node in nodes(file):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1 if ast.get_docstring(node) else 0 :]
            num_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if num_lines > 60:
                long[node.name] = num_lines
    assert not long


@pytest.mark.parametrize("file", OURS, ids=label)
def test_no_file_is_a_drawer_for_everything(file):
    assert file.stem not in ("utils", "util", "common", "helpers", "misc")


@pytest.mark.parametrize("file", ALL, ids=label)
def test_a_suppressed_warning_has_a_reason_on_its_line(file):
    # `# noqa: E402  (devices are set first)`, `# pyright: ignore[x]  # stub lacks it`.
    pattern = re.compile(
        r"#\s*(?:noqa(?P<n>.*)|pyright:\s*ignore(?P<p>.*)|type:\s*ignore)"
    )
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if (match := pattern.search(line)) and "re.compile" not in line:
            rest = match["n"] or match["p"] or ""
            code, _, reason = rest.strip().partition("  ")
            assert re.search(r"[A-Z]+\d+|\[\w", code), f"line {number} names no rule"
            assert len(reason.strip(" #()")) > 5, f"line {number} gives no reason"


def test_names_end_in_letters_of_the_notation():
    notation = (REPOSITORY / "docs/notation.md").read_text(encoding="utf-8")
    letters = set(re.findall(r"\| ([A-Z]) \|", notation))
    assert {"B", "T", "V", "U"} <= letters
    wrong = {
        (label(file), name)
        for file in OURS
        for name in re.findall(
            r"\b[a-z][a-z0-9_]*_[A-Z0-9]*[A-Z][A-Z0-9]*\b", file.read_text("utf-8")
        )
        if not set(name.rpartition("_")[2]) <= letters | set("0123456789")
    }
    assert not wrong


def test_every_setting_is_read_by_the_program():
    read = {
        node.attr
        for file in python_files("ring_jax", "pallas_kernels")
        if file.parent.name != "config"
        for node in nodes(file)
        if isinstance(node, ast.Attribute)
    }
    # The mesh's axes, and the checks of a step, are read all at once, as a mapping.
    mappings = (config.MeshConfig, config.ScreenConfig, config.PurifyConfig)
    sections = [
        value
        for value in vars(config).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value not in mappings
    ]
    unread = [
        f"{section.__name__}.{field.name}"
        for section in sections
        for field in dataclasses.fields(section)
        if field.name not in read
    ]
    assert not unread, f"settings that nothing reads: {unread}"


def test_nothing_tracked_is_large_or_binary_data():
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [REPOSITORY / name for name in listing.stdout.decode().split("\0") if name]
    large = [
        label(file)
        for file in files
        if file.is_file() and file.stat().st_size > 200_000
    ]
    assert not large
