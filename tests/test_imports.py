# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the imports themselves."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent


def read_table() -> dict[str, set[str]]:
    """Reads room -> rooms that it may import, from docs/architecture.md."""
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(?:ring_jax\.)?(\w+)` \| (.*) \|$", text, re.MULTILINE)
    rooms = {room for room, _ in rows}
    return {
        room: rooms if rest == "everything" else rooms & set(re.findall(r"\w+", rest))
        for room, rest in rows
    }


MAY_IMPORT = read_table()

# Packages of an extra may be imported where they are used, with an error that names the
# extra; everything else is imported at the top of its file.
OPTIONAL = {
    "bfcl_eval",
    "chatterbot_corpus",
    "countryinfo",
    "math_verify",
    "gguf",
    "langdetect",
    "mlx",
    "mlx_lm",
    "periodictable",
    "punkt",
    "pyarrow",
    "ray",
    "reasoning_gym",
    "rensa",
    "tensorboardX",
    "yaml",
}

NNX_BUDGET = {"Module", "Param", "Rngs", "initializers"}


def source_files() -> list[pathlib.Path]:
    rooms = ("ring_jax", "pallas_kernels", "configs", "benchmarks")
    return sorted(file for room in rooms for file in (REPOSITORY / room).rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room of ("ring_jax", "model", "moe"); None: not ours, or just a version."""
    if parts[0] in ("pallas_kernels", "configs", "benchmarks"):
        return parts[0]
    if parts[0] == "ring_jax" and len(parts) > 1 and not parts[1].startswith("__"):
        return parts[1]
    return None


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        # `from ring_jax import sharding` names the room behind the `import`.
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for name in imported_names(node):
            yield getattr(node, "lineno", 0), name


def parse(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def label(file: pathlib.Path) -> str:
    return str(file.relative_to(REPOSITORY))


@pytest.mark.parametrize("file", source_files(), ids=label)
def test_a_room_imports_only_what_the_table_allows(file):
    room = room_of(file.relative_to(REPOSITORY).with_suffix("").parts)
    allowed = MAY_IMPORT.get(room or "", set()) | {room, None}
    found = [(line, name) for line, name in imports(parse(file))]
    wrong = [
        item for item in found if room_of(tuple(item[1].split("."))) not in allowed
    ]
    assert not wrong, f"{label(file)} may not import {wrong}"


def test_the_table_was_read():
    assert MAY_IMPORT["config"] == MAY_IMPORT["pallas_kernels"] == set()
    assert MAY_IMPORT["sharding"] == {"config", "collectives", "torus"}
    assert MAY_IMPORT["cli"] == set(MAY_IMPORT)


def test_every_room_has_a_row_in_the_table():
    parts = [
        file.relative_to(REPOSITORY).with_suffix("").parts for file in source_files()
    ]
    assert {room_of(part) for part in parts} - {None} <= set(MAY_IMPORT)


@pytest.mark.parametrize("file", source_files(), ids=label)
def test_only_optional_packages_are_imported_inside_functions(file):
    tree = parse(file)
    top = {id(node) for node in tree.body}
    wrong = [
        (getattr(node, "lineno", 0), name)
        for node in ast.walk(tree)
        if id(node) not in top
        for name in imported_names(node)
        if name.split(".")[0] not in OPTIONAL
    ]
    assert not wrong, f"{label(file)}: move to the top, or to OPTIONAL: {wrong}"


@pytest.mark.parametrize("file", source_files(), ids=label)
def test_flax_gives_modules_and_parameters_and_nothing_else(file):
    tree = parse(file)
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "nnx"
    }
    assert names <= NNX_BUDGET
    flax = {name for _, name in imports(tree) if name.split(".")[0] == "flax"}
    assert flax <= {"flax.nnx"}
