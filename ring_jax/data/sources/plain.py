# SPDX-License-Identifier: Apache-2.0
"""Plain text and code: docstrings and short functions of Python's standard library.

The standard library is on every machine, has one licence, and is written with care.
"""

import ast
import dataclasses
import pathlib
import platform
import random
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

from ring_jax.config import SourceConfig
from ring_jax.data.schema import Row
from ring_jax.data.sources.packages import Package
from ring_jax.data.sources.split import SourceRows, is_heldout

MIN_CHARACTERS = 60
MAX_CHARACTERS = 320
# Generated tables, other people's packages, and programs rather than libraries.
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "encodings", "lib2to3"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def read_text(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Reads docstrings, one row per paragraph group that fits."""
    return _read(_docstrings, config, name=name, seed=seed, domain="text")


def read_code(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Reads whole functions that are short."""
    return _read(_functions, config, name=name, seed=seed, domain="code")


def _read(
    pieces: Callable[[str], Iterator[str]],
    config: SourceConfig,
    *,
    name: str,
    seed: int,
    domain: str,
) -> SourceRows:
    package = Package(f"python=={platform.python_version()}", "PSF-2.0")
    origin: dict[str, Any] = {
        "source": name,
        "domain": domain,
        **dataclasses.asdict(package),
    }
    rows: dict[str, list[Row]] = {"train": [], "heldout": []}
    wanted = {"train": config.num_rows, "heldout": config.num_heldout}
    seen = set()
    for path in _library_files(seed):
        if all(len(rows[part]) >= wanted[part] for part in rows):
            break
        for text in pieces(path.read_text(encoding="utf-8", errors="replace")):
            item = " ".join(text.split())
            part = "heldout" if is_heldout(item) else "train"
            is_right_size = MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS
            if not is_right_size or item in seen or len(rows[part]) >= wanted[part]:
                continue
            seen.add(item)
            row_id = f"{name}/{path.name}/{len(seen)}"
            rows[part].append(Row(id=row_id, text=text, **origin))
    return SourceRows(rows["train"], rows["heldout"])


def _library_files(seed: int) -> list[pathlib.Path]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts)
    ]
    random.Random(f"{seed}/library").shuffle(files)
    return files


def _docstrings(source: str) -> Iterator[str]:
    module = _parse(source)
    yield from _paragraphs(ast.get_docstring(module) or "")
    for node in _definitions(module):
        yield from _paragraphs(ast.get_docstring(node) or "")


def _paragraphs(text: str) -> Iterator[str]:
    kept = ""
    for paragraph in text.split("\n\n"):
        joined = f"{kept}\n\n{paragraph.strip()}".strip()
        if len(joined) > MAX_CHARACTERS:
            yield kept
            joined = paragraph.strip()
        kept = joined
    yield kept


def _functions(source: str) -> Iterator[str]:
    lines = source.splitlines()
    for node in _definitions(_parse(source)):
        if not isinstance(node, ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            code = lines[first - 1 : node.end_lineno]
            yield "\n".join(line[node.col_offset :] for line in code)


def _definitions(
    node: ast.Module | ast.ClassDef,
) -> Iterator[ast.ClassDef | Definition]:
    # Not ast.walk, which visits every expression: five times slower over the library.
    for child in node.body:
        if isinstance(child, ast.ClassDef | Definition):
            yield child
        if isinstance(child, ast.ClassDef):
            yield from _definitions(child)


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # bad on purpose, for the library's own tests
        return ast.Module([], [])
