# SPDX-License-Identifier: Apache-2.0
"""`ring report`: a run folder as one HTML file."""

import argparse
import json
import pathlib

from ring_jax.cli import status
from ring_jax.cli.settings import require_workdir
from ring_jax.report import write_report

SUMMARY = "writes the report of a run, finished or not, as one HTML file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring report`."""
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FILE.html",
        help="the file to write; default: report.html in the run folder",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    path = write_report(require_workdir(args), args.out)
    print(path)
    if args.json:
        print(json.dumps({"status": status.DONE, "report": str(path)}))
    return status.DONE
