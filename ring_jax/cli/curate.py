# SPDX-License-Identifier: Apache-2.0
"""`ring curate`: from raw files to shards, a manifest and a quarantine."""

import argparse
import json
import pathlib

import rich.box
import rich.console
import rich.table

from ring_jax.cli import status
from ring_jax.cli.console import Console
from ring_jax.cli.settings import load_config_file, override
from ring_jax.config import ConfigError, CurateConfig
from ring_jax.curate import Manifest, curate

SUMMARY = "makes training shards of raw files, and says what it removed and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no operand: all is in the config."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Curates, and prints what came of each step; 3 where no row is left."""
    config = _load(args)
    folder = args.workdir or (config.output_dir and pathlib.Path(config.output_dir))
    if not folder:
        raise ConfigError("curate: name the folder of the shards with --workdir=DIR.")
    manifest = curate(config, folder)
    _print(manifest, folder, Console())
    code = status.DONE if manifest["num_rows"] else status.STOPPED
    if args.json:
        counts = {
            name: manifest[name]
            for name in ("num_records", "num_rows", "num_quarantined")
        }
        print(json.dumps({"status": code, "manifest": str(folder), **counts}))
    return code


def _load(args: argparse.Namespace) -> CurateConfig:
    if args.config is None:
        raise ConfigError("curate: no settings; give --config=configs/data/FILE.py.")
    tree = load_config_file(args.config).to_dict()
    if "sources" not in tree:
        raise ConfigError(
            f"--config={args.config} holds no curation; name a file such as "
            "configs/data/demo.py."
        )
    return override(CurateConfig, tree, args.overrides)


def _print(
    manifest: Manifest, folder: pathlib.Path, console: rich.console.Console
) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step")
    table.add_column("reason")
    for header in ("rows in", "removed", "rows out"):
        table.add_column(header, justify="right")
    for step in manifest["steps"]:
        num_removed = step["rows_in"] - step["rows_out"]
        table.add_row(
            step["name"],
            "",
            *(f"{n:,}" for n in (step["rows_in"], num_removed, step["rows_out"])),
        )
        for reason, removed in step["removed"].items():
            table.add_row("", reason, "", f"{removed['count']:,}", "")
    console.print(table)
    console.print(
        f"{manifest['num_rows']:,} of {manifest['num_records']:,} records are in the "
        f"shards of {folder}; {manifest['num_quarantined']:,} are in its "
        "quarantine.jsonl, each with its reason. report.html shows both.",
        soft_wrap=True,
        highlight=False,
    )
