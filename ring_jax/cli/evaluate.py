# SPDX-License-Identifier: Apache-2.0
"""`ring evaluate`: what a model can, by suites whose replies are graded."""

import argparse
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.table

from ring_jax.cli import status
from ring_jax.cli.asked_model import (
    ONLY_ASKED,
    load_asked_config,
    open_model,
    open_run_chat,
)
from ring_jax.cli.console import Console
from ring_jax.cli.devices import use_devices
from ring_jax.cli.settings import override, require_workdir
from ring_jax.config import ConfigError, RunConfig, SuiteConfig
from ring_jax.evaluate.complete import EngineCompleter
from ring_jax.evaluate.run import evaluate
from ring_jax.evaluate.server import ServerCompleter
from ring_jax.evaluate.suites import choose_suites

SUMMARY = "grades what a model says to suites of questions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring evaluate`."""
    parser.add_argument(
        "--suites",
        default="",
        metavar="NAME,NAME",
        help="what is asked; reasoning, general and all stand for groups",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="a chat-completions server that answers instead of the run's model",
    )
    parser.add_argument("--model", metavar="NAME", help="as the server calls it")
    parser.add_argument(
        "--label",
        metavar="NAME",
        help="of the folder under evaluation/; else the stage, or the server's model",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates, and prints a line for each suite; 3 where one is not whole."""
    workdir = require_workdir(args)
    if (args.server is None) != (args.model is None):
        raise ConfigError("evaluate: give --server=URL and --model=NAME together.")
    config = _config(args, workdir)
    names = [name.strip() for name in args.suites.split(",") if name.strip()]
    suites = choose_suites(names, config.suites)
    if args.server is None:
        scores = _by_engine(config, workdir, suites, label=args.label)
    else:
        scores = _by_server(args, config, workdir, suites)
    asked = {name: scores["suites"][name] for name in suites}
    _print(asked, workdir / "evaluation" / scores["label"])
    is_whole = all(summary["status"] == "done" for summary in asked.values())
    code = status.DONE if is_whole else status.STOPPED
    if args.json:
        print(json.dumps({"status": code, "label": scores["label"], "suites": asked}))
    return code


def _config(args: argparse.Namespace, workdir: pathlib.Path) -> RunConfig:
    """Reads the run's settings; a server, or an imported model, needs no run."""
    has_config = args.config is not None or (workdir / "config.json").is_file()
    if args.server is None or has_config:
        return load_asked_config(args, workdir)
    return override(RunConfig, dataclasses.asdict(ONLY_ASKED), args.overrides)


def _by_server(
    args: argparse.Namespace,
    config: RunConfig,
    workdir: pathlib.Path,
    suites: Mapping[str, SuiteConfig],
) -> dict[str, Any]:
    server = dataclasses.replace(
        config.suites.server, url=args.server, model=args.model
    )
    return evaluate(
        suites,
        ServerCompleter(server),
        workdir=workdir,
        label=_label(args.label or re.sub(r"[^\w.-]+", "_", args.model)),
        model={"name": args.model},
        config=config.suites,
    )


def _by_engine(
    config: RunConfig,
    workdir: pathlib.Path,
    suites: Mapping[str, SuiteConfig],
    *,
    label: str | None,
) -> dict[str, Any]:
    chat = open_run_chat(config, workdir)
    use_devices(config)
    with open_model(config, workdir) as (model, step):
        return evaluate(
            suites,
            EngineCompleter(model, chat, config=config),
            workdir=workdir,
            label=_label(label or _stage_at(config, step)),
            model={"name": workdir.resolve().name, "step": step},
            config=config.suites,
        )


def _stage_at(config: RunConfig, step: int) -> str:
    """Names the stage that ended at a step, or else the step."""
    end = 0
    for name, stage in config.stages.items():
        end += stage.num_steps
        if end == step:
            return name
    return f"step_{step}"


def _label(label: str) -> str:
    if not re.fullmatch(r"[\w-][\w.-]*", label):
        raise ConfigError(
            f"--label={label!r} names a folder; use letters, digits, _ . and -."
        )
    return label


def _print(asked: Mapping[str, Mapping[str, Any]], folder: pathlib.Path) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("suite", no_wrap=True)
    table.add_column("metric")
    for name in ("score", "95 %", "items", "cut off"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status")
    for name, summary in asked.items():
        table.add_row(
            name,
            summary["metric"],
            _percent(summary["score"]),
            _interval(summary),
            str(summary["num_items"]),
            _percent(summary["truncated_share"]),
            summary["status"],
        )
    console = Console()
    console.print(table)
    for name, summary in asked.items():
        if summary["reason"]:
            line = f"{name} is {summary['status']}: {summary['reason']}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"Records and scores are in {folder}.", soft_wrap=True)


def _interval(summary: Mapping[str, Any]) -> str:
    if summary["score"] is None:
        return "-"
    return f"{_percent(summary['low'])} to {_percent(summary['high'])}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
