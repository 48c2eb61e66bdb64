# SPDX-License-Identifier: Apache-2.0
"""`ring inspect`: a config or a run folder, looked at without computing anything."""

import argparse
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
import rich.text

from ring_jax.cli import status
from ring_jax.cli.console import Console
from ring_jax.cli.data_view import view_data
from ring_jax.cli.mixture import print_mixture
from ring_jax.cli.rows import print_data
from ring_jax.cli.settings import (
    load_any_config,
    load_run_config,
    load_run_folder_model_config,
    require_workdir,
)
from ring_jax.config import ModelConfig
from ring_jax.evaluate import score_table
from ring_jax.model.flops import abstract_transformer, count_parameters
from ring_jax.report import compare_stages, write_data_page
from ring_jax.report.run_folder import read_run_folder

SUMMARY = "prints settings, a run folder's state, rows as tokens, or the mixture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring inspect`."""
    parser.add_argument(
        "--data",
        type=int,
        default=0,
        metavar="ROWS",
        help="print this many rows of each source, each token class in its colour, "
        "and what the run trains on",
    )
    parser.add_argument(
        "--html",
        type=pathlib.Path,
        metavar="FILE",
        help="for --data: write the same as a page",
    )
    parser.add_argument(
        "--mixture",
        action="store_true",
        help="print the mixture's table and what --step reads, without reading a row",
    )
    parser.add_argument(
        "--step",
        type=int,
        default=0,
        metavar="N",
        help="for --mixture: a step of the run, counted from 0 over all stages",
    )


def run(args: argparse.Namespace) -> int:
    """Prints settings and parameters, or with `--workdir` alone what a run has done."""
    console = Console()
    if args.data:
        summary = _print_data(args, console)
    elif args.mixture:
        config = load_run_config(args)
        summary = print_mixture(config, args.workdir, step=args.step, console=console)
    elif args.config is not None:
        config = load_any_config(args)
        console.print(_settings(dataclasses.asdict(config)))
        model = config if isinstance(config, ModelConfig) else config.model
        summary = _print_parameters(model, console)
    else:
        model = load_run_folder_model_config(require_workdir(args))
        summary = _print_run(args.workdir, console) | _print_parameters(model, console)
    if args.json:
        print(json.dumps({"status": status.DONE, **summary}))
    return status.DONE


def _print_data(
    args: argparse.Namespace, console: rich.console.Console
) -> dict[str, Any]:
    view = view_data(load_run_config(args), args.workdir, num_rows=args.data)
    print_data(view, console)
    if args.html is not None:
        page = write_data_page(dataclasses.asdict(view), args.html)
        console.print(f"page: {page}", soft_wrap=True, highlight=False)
    return {
        "gate": view.gate,
        "sources": dict(view.sources),
        "stages": dict(view.stages),
    }


def _settings(tree: Mapping[str, Any]) -> rich.table.Table:
    table = _table("setting", "value")
    for path, value in _leaves(tree, "config"):
        table.add_row(path, rich.text.Text(json.dumps(value)))
    return table


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def _print_parameters(
    config: ModelConfig, console: rich.console.Console
) -> dict[str, Any]:
    """Prints each parameter's shape; returns the counts for scripts."""
    table = _table("parameter", "shape", "count")
    for path, leaf in jax.tree.leaves_with_path(abstract_transformer(config)):
        # The last key is nnx.Param's own field.
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        shape = "x".join(str(size) for size in leaf.shape)
        table.add_row(name, shape, f"{math.prod(leaf.shape):,}")
    count = count_parameters(config)
    table.add_section()
    table.add_row("total", "", f"{count.total:,}")
    table.add_row("activated per token", "", f"{count.activated:,}")
    console.print(table)
    return {"parameters": dataclasses.asdict(count)}


def _print_run(workdir: pathlib.Path, console: rich.console.Console) -> dict[str, Any]:
    """Prints a run's last record, checkpoints and scores; returns them for scripts."""
    folder = read_run_folder(workdir)
    last = dict(folder.steps[-1]) if folder.steps else {}
    checkpoints = _checkpoints(workdir)
    console.print(_last_step(last))
    console.print(_table_of_checkpoints(checkpoints))
    if (comparison := compare_stages(workdir)) is not None:
        console.print(score_table(comparison))
    return {"last": last, "checkpoints": [step for step, _ in checkpoints]}


def _last_step(last: Mapping[str, Any]) -> rich.table.Table:
    table = _table("newest record", "value")
    for key, value in last.items():
        if key in ("kind", "time"):
            continue
        table.add_row(key, f"{value:,.6g}" if isinstance(value, float) else str(value))
    if not last:
        table.add_row("", "no step is logged yet")
    return table


def _checkpoints(workdir: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    folder = workdir / "checkpoints"
    paths = [path for path in folder.glob("*") if path.name.isdigit()]
    return sorted((int(path.name), path) for path in paths)


def _table_of_checkpoints(
    checkpoints: list[tuple[int, pathlib.Path]],
) -> rich.table.Table:
    table = _table("checkpoint at step", "megabytes", "written")
    for step, path in checkpoints:
        files = [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        written = time.localtime(path.stat().st_mtime)
        table.add_row(
            str(step), f"{size:,.1f}", time.strftime("%Y-%m-%d %H:%M:%S", written)
        )
    if not checkpoints:
        table.add_row("none", "", "")
    return table


def _table(*headers: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        justify = "right" if header in ("count", "megabytes") else "left"
        table.add_column(header, justify=justify, overflow="fold")
    return table
