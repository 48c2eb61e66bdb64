# SPDX-License-Identifier: Apache-2.0
"""`ring report`: a run folder, or several evaluations, as one HTML file."""

import argparse
import json
import pathlib
from typing import Any

from ring_jax.cli import status
from ring_jax.cli.settings import require_workdir
from ring_jax.config import ConfigError
from ring_jax.report import (
    compare,
    figures,
    write_evaluation_page,
    write_model_card,
    write_report,
)

SUMMARY = "writes the report of a run, or a comparison of evaluations, as one HTML file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring report`."""
    parser.add_argument(
        "evaluations",
        nargs="*",
        type=pathlib.Path,
        metavar="FOLDER",
        help="evaluations to compare: the base, then its stages; a run folder stands "
        "for all of its evaluations; none: the report of the run in --workdir",
    )
    parser.add_argument(
        "--reference",
        action="append",
        type=pathlib.Path,
        metavar="FOLDER",
        help="the evaluation of a model to stand beside them; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FILE.html",
        help="the file to write; default: report.html in the run folder, or "
        "evaluation.html in the last of the folders; a comparison has a Markdown "
        "file beside it",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    written = _compare(args) if args.evaluations else _report(args)
    for name in ("report", "model_card"):
        if name in written:
            print(written[name])
    if args.json:
        print(json.dumps({"status": status.DONE, **written}))
    return status.DONE


def _report(args: argparse.Namespace) -> dict[str, Any]:
    if args.reference:
        raise ConfigError("--reference stands beside evaluations: name some FOLDER.")
    return {"report": str(write_report(require_workdir(args), args.out))}


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    if args.workdir is not None:
        raise ConfigError(
            f"--workdir={args.workdir} and {args.evaluations[0]}: name either a run, "
            "for its report, or the folders to compare."
        )
    if args.out is not None and args.out.suffix == ".md":
        raise ConfigError(f"--out={args.out} is the page; its .md is written beside.")
    comparison = compare(args.evaluations, args.reference or ())
    out = args.out or args.evaluations[-1] / "evaluation.html"
    page = write_evaluation_page(comparison, out)
    card = write_model_card(comparison, out.with_suffix(".md"))
    if (out.parent / "report.html").is_file() and out.parent in args.evaluations:
        write_report(out.parent)  # so that it links to the page beside it
    return {"report": str(page), "model_card": str(card), **figures(comparison)}
