# SPDX-License-Identifier: Apache-2.0
"""`ring pack`: the packed rows of a run's stages, written once, read by its steps."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.table

from ring_jax.cli import status
from ring_jax.cli.console import Console
from ring_jax.cli.settings import load_run_config, require_workdir
from ring_jax.config import ConfigError
from ring_jax.data.pack import pack

SUMMARY = "writes the packed rows of a run's stages as shards that training reads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no operand: all is in the config."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Packs, or goes on with what was begun, and prints what the shards hold."""
    if args.config is None:
        raise ConfigError("pack: no settings; give the run's --config=FILE.py.")
    config, folder = load_run_config(args), require_workdir(args)
    console = Console()
    with console.waiting("packing"):
        manifest = pack(config, folder)
    console.print(_table(manifest["stages"]))
    console.print(
        f"train on them with --config.data.packed={folder}",
        soft_wrap=True,
        highlight=False,
    )
    if args.json:
        totals = {
            name: {key: stage[key] for key in ("num_steps", "num_tokens", "fill")}
            for name, stage in manifest["stages"].items()
        }
        print(json.dumps({"status": status.DONE, "stages": totals}))
    return status.DONE


def _table(stages: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    table.add_column("source")
    for header in ("steps", "rows", "tokens", "trained", "of packed rows"):
        table.add_column(header, justify="right")
    for name, stage in stages.items():
        num_rows = sum(source["num_rows"] for source in stage["sources"].values())
        table.add_row(
            name,
            "",
            *(f"{n:,}" for n in (stage["num_steps"], num_rows, stage["num_tokens"])),
            f"{stage['num_trained_tokens']:,}",
            f"{100 * stage['fill']:.1f} %",
        )
        for label, source in stage["sources"].items():
            tokens = sum(source["tokens_by_class"].values())
            counts = source["num_rows"], tokens, source["num_trained_tokens"]
            table.add_row("", label, "", *(f"{n:,}" for n in counts), "")
    return table
