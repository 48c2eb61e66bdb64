# SPDX-License-Identifier: Apache-2.0
"""`ring inspect`: a config or a run folder, looked at without computing anything."""

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
import rich.text

from ring_jax.cli import status
from ring_jax.cli.settings import load_run_config
from ring_jax.config import ModelConfig
from ring_jax.model.flops import abstract_transformer, count_parameters

SUMMARY = "prints settings, parameters, a run folder's state, or rendered rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring inspect`."""
    parser.add_argument(
        "--data",
        type=int,
        metavar="ROWS",
        help="print this many rows of each source, coloured by token class",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what the flags point at."""
    config = load_run_config(args)
    console = rich.console.Console()
    console.print(_settings(dataclasses.asdict(config)))
    console.print(_parameters(config.model))
    if args.json:
        count = dataclasses.asdict(count_parameters(config.model))
        print(json.dumps({"status": status.DONE, "parameters": count}))
    return status.DONE


def _settings(tree: Mapping[str, Any]) -> rich.table.Table:
    table = _table("setting", "value")
    for path, value in _leaves(tree, "config"):
        table.add_row(path, rich.text.Text(json.dumps(value)))
    return table


def _leaves(tree: Any, path: str):
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def _parameters(config: ModelConfig) -> rich.table.Table:
    table = _table("parameter", "shape", "count")
    leaves = jax.tree_util.tree_leaves_with_path(abstract_transformer(config))
    for path, leaf in leaves:
        # The last key is nnx.Param's own field.
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        shape = "x".join(str(size) for size in leaf.shape)
        table.add_row(name, shape, f"{math.prod(leaf.shape):,}")
    count = count_parameters(config)
    table.add_section()
    table.add_row("total", "", f"{count.total:,}")
    table.add_row("activated per token", "", f"{count.activated:,}")
    return table


def _table(*headers: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        justify = "right" if header == "count" else "left"
        table.add_column(header, justify=justify, overflow="fold")
    return table
