# SPDX-License-Identifier: Apache-2.0
"""What `ring plan` says of a recipe per chip generation, for docs/parallelism.md.

    python -m benchmarks.plans

compiles each recipe's step for its pod with the TPU's own compiler, on this machine,
and writes its output between the marks of the docs page. The last line is one JSON
object: recipe -> what `ring plan --json` gives. Nothing is measured on a TPU.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks.conditions import conditions

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "parallelism.md"
RECIPES = (
    "ling_lite_v5e_256",
    "ling_lite_v5p_64",
    "ling_lite_v6e_64",
    "ling_lite_tpu7x_64",
)
WIDTH = 100
"""Columns of the tables."""


def main() -> None:
    """Plans the recipes and writes the page."""
    found = {}
    page = PAGE.read_text("utf-8")
    for name in RECIPES:
        output, found[name] = plan(name)
        page = replaced(page, name, output)
        PAGE.write_text(page, "utf-8")
    print(json.dumps({"recipes": found, **conditions()}))


def plan(name: str) -> tuple[str, dict[str, Any]]:
    """Returns what `ring plan` prints for a recipe, and its JSON."""
    topology = importlib.import_module(f"configs.recipes.{name}").TOPOLOGY
    words = [f"--config=configs/recipes/{name}.py", f"--topology={topology}"]
    print(f"ring plan {' '.join(words)}", flush=True)
    process = subprocess.run(
        [sys.executable, "-m", "ring_jax.cli.main", "plan", *words, "--json"],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": str(WIDTH)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *lines, last = process.stdout.splitlines()
    return "\n".join([f"$ ring plan {' '.join(words)}", *lines]), json.loads(last)


def replaced(page: str, name: str, output: str) -> str:
    """Returns the page with the block of a recipe replaced.

    Raises:
      ValueError: the page has no such block.
    """
    begin, end = f"<!-- plan: {name} -->", f"<!-- end: {name} -->"
    before, mark, rest = page.partition(begin)
    _, end_mark, after = rest.partition(end)
    if not mark or not end_mark:
        raise ValueError(f"{PAGE.name} lacks {begin} or {end}")
    lines = "\n".join(line.rstrip() for line in output.splitlines())
    return f"{before}{begin}\n```\n{lines}\n```\n{end}{after}"


if __name__ == "__main__":
    main()
