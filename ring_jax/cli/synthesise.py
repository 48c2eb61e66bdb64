# SPDX-License-Identifier: Apache-2.0
"""`ring synthesise`: problems made of problems, by a teacher behind a server."""

import argparse
import json

import rich.box
import rich.table

from ring_jax.cli import status
from ring_jax.cli.console import Console
from ring_jax.cli.settings import load_config_file, override, require_workdir
from ring_jax.config import ConfigError, SynthesisConfig
from ring_jax.curate.synthesis import PROBLEMS, REJECTED, synthesise

SUMMARY = "makes new problems of problems, with a teacher's solutions that agree"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no operand: all is in the config."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Synthesises, and prints what became of each round; 3 where nothing is left."""
    if args.config is None:
        raise ConfigError(
            "synthesise: no settings; give --config=configs/data/FILE.py."
        )
    tree = load_config_file(args.config).to_dict()
    if "teacher" not in tree:
        raise ConfigError(
            f"--config={args.config} holds no synthesis; name a file such as "
            "configs/data/synthesis.py."
        )
    config = override(SynthesisConfig, tree, args.overrides)
    folder = require_workdir(args)
    summary = synthesise(config, folder)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what")
    table.add_column("problems", justify="right")
    for part, count in summary["accepted"].items():
        table.add_row(f"accepted, {part}", f"{count:,}")
    for reason, count in summary["rejected"].items():
        table.add_row(f"rejected, {reason}", f"{count:,}")
    console = Console()
    console.print(table)
    console.print(
        f"{summary['num_problems']:,} problems are in {folder / PROBLEMS}, for "
        f"`ring curate`; what was turned away is in {REJECTED} with its reason.",
        soft_wrap=True,
        highlight=False,
    )
    code = status.DONE if summary["num_problems"] else status.STOPPED
    if args.json:
        counts = {
            name: summary[name] for name in ("num_problems", "accepted", "rejected")
        }
        print(json.dumps({"status": code, "folder": str(folder), **counts}))
    return code
