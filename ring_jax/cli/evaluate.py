# SPDX-License-Identifier: Apache-2.0
"""`ring evaluate`: what a model can, by suites whose replies are graded."""

import argparse
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.table

from ring_jax.cli import status
from ring_jax.cli.asked_model import (
    ONLY_ASKED,
    check_label,
    evaluation_label,
    load_asked_config,
    open_model,
    open_run_chat,
)
from ring_jax.cli.console import Console
from ring_jax.cli.devices import use_devices
from ring_jax.cli.lm_eval import by_lm_eval
from ring_jax.cli.settings import override, require_workdir
from ring_jax.config import ConfigError, RunConfig, SuitesConfig
from ring_jax.data.prepared import open_sources
from ring_jax.evaluate.complete import EngineCompleter
from ring_jax.evaluate.heldout import HELDOUT, choose_heldout, with_heldout
from ring_jax.evaluate.items import AskedSuite, read_suites
from ring_jax.evaluate.run import evaluate
from ring_jax.evaluate.server import ServerCompleter
from ring_jax.evaluate.suites import (
    SUITES,
    asks_heldout,
    choose_suites,
    suite_names,
)

SUMMARY = "grades what a model says to suites of questions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring evaluate`."""
    parser.add_argument(
        "--suites",
        default="",
        metavar="NAME,NAME",
        help="what is asked; heldout, reasoning, general and all stand for groups; "
        "default: what the run asks at the end of a stage",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="a chat-completions server that answers instead of the run's model",
    )
    parser.add_argument("--model", metavar="NAME", help="as the server calls it")
    parser.add_argument(
        "--lm-eval",
        metavar="TASK,TASK",
        help="tasks of lm-eval instead of suites, asked of the run's model",
    )
    parser.add_argument(
        "--lm-eval-path",
        type=pathlib.Path,
        metavar="FOLDER",
        help="more tasks, as YAML files of lm-eval",
    )
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
    if args.lm_eval is not None:
        _check_lm_eval(args, config.suites)
        tasks = _words(args.lm_eval)
        evaluated = by_lm_eval(
            config, workdir, tasks, path=args.lm_eval_path, label=args.label
        )
        return _finish(args, workdir, *evaluated)
    suites = _suites(args.suites or config.suites.at_stage_end, config, workdir)
    if args.server is None:
        scores = _by_engine(config, workdir, suites, label=args.label)
    else:
        scores = _by_server(args, config, workdir, suites)
    return _finish(args, workdir, scores, list(suites))


def _finish(
    args: argparse.Namespace,
    workdir: pathlib.Path,
    scores: Mapping[str, Any],
    names: Sequence[str],
) -> int:
    """Prints the suites that were asked, and returns the exit status."""
    asked = {name: scores["suites"][name] for name in names}
    _print(asked, workdir / "evaluation" / scores["label"])
    is_whole = all(summary["status"] == "done" for summary in asked.values())
    code = status.DONE if is_whole else status.STOPPED
    if args.json:
        print(json.dumps({"status": code, "label": scores["label"], "suites": asked}))
    return code


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_lm_eval(args: argparse.Namespace, config: SuitesConfig) -> None:
    for flag, is_given in (
        ("--suites", args.suites),
        ("--server", args.server),
        ("--config.suites.num_samples", config.num_samples is not None),
    ):
        if is_given:
            raise ConfigError(
                f"{flag} is nothing that --lm-eval takes; give one of the two."
            )
    if not _words(args.lm_eval):
        raise ConfigError("--lm-eval names no task; give --lm-eval=TASK,TASK.")


def _config(args: argparse.Namespace, workdir: pathlib.Path) -> RunConfig:
    """Reads the run's settings; a server, or an imported model, needs no run."""
    has_config = args.config is not None or (workdir / "config.json").is_file()
    if args.server is None or has_config:
        return load_asked_config(args, workdir)
    return override(RunConfig, dataclasses.asdict(ONLY_ASKED), args.overrides)


def _suites(
    text: str, config: RunConfig, workdir: pathlib.Path
) -> dict[str, AskedSuite]:
    """Reads the items of the suites that are named; the run's sources where needed."""
    names, heldout = suite_names(text), {}
    settings = config.suites
    has_heldout = any(source.num_heldout for source in config.data.sources.values())
    if has_heldout and asks_heldout(names, settings):
        rows = {name: rows.heldout for name, rows in open_sources(config).items()}
        heldout = choose_heldout(config, rows, open_run_chat(config, workdir))
        settings = with_heldout(config, heldout)
    chosen = choose_suites(names, settings)
    if not chosen:
        raise ConfigError(
            "evaluate: name suites with --suites=NAME,NAME; there are "
            f"{', '.join({**SUITES, **settings.own})}; and {HELDOUT} (rows of a run), "
            "reasoning, general, all."
        )
    return read_suites(chosen, heldout)


def _by_server(
    args: argparse.Namespace,
    config: RunConfig,
    workdir: pathlib.Path,
    suites: Mapping[str, AskedSuite],
) -> dict[str, Any]:
    server = dataclasses.replace(
        config.suites.server, url=args.server, model=args.model
    )
    return evaluate(
        suites,
        ServerCompleter(server),
        workdir=workdir,
        label=check_label(args.label or re.sub(r"[^\w.-]+", "_", args.model)),
        model={"name": args.model},
        config=config.suites,
    )


def _by_engine(
    config: RunConfig,
    workdir: pathlib.Path,
    suites: Mapping[str, AskedSuite],
    *,
    label: str | None,
) -> dict[str, Any]:
    chat = open_run_chat(config, workdir)
    use_devices(config)
    with open_model(config, workdir) as (model, identity):
        return evaluate(
            suites,
            EngineCompleter(model, chat, config=config),
            workdir=workdir,
            label=evaluation_label(config, identity["step"], label),
            model=identity,
            config=config.suites,
        )


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
