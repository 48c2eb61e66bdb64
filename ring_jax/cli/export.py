# SPDX-License-Identifier: Apache-2.0
"""`ring export`: the newest model of a run as a Hugging Face folder."""

import argparse
import json
import pathlib

from ring_jax.checkpoint.model_folder import Dtype, export_folder
from ring_jax.checkpoint.trained_model import TrainedModel, read_trained_model
from ring_jax.cli import status
from ring_jax.cli.settings import load_run_folder_config, require_workdir
from ring_jax.data.chat import CHAT_TEMPLATES
from ring_jax.data.chat_template import read_chat_template

SUMMARY = "writes the model of a run as a Hugging Face folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring export`."""
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        metavar="TYPE",
        default="bfloat16",
        help="float32, which is exact, or bfloat16",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="the folder to write; default: export in the run folder",
    )


def run(args: argparse.Namespace) -> int:
    """Exports the newest checkpoint that verifies, and prints the folder."""
    workdir = require_workdir(args)
    out = args.out or workdir / "export"
    model = export_newest(workdir, out, dtype=args.dtype)
    if args.json:
        print(
            json.dumps({"status": status.DONE, "step": model.step, "folder": str(out)})
        )
    return status.DONE


def export_newest(
    workdir: pathlib.Path, out: pathlib.Path, *, dtype: Dtype
) -> TrainedModel:
    """Writes the newest checkpoint that verifies to `out`, and returns its model.

    Raises:
      ConfigError: there is no checkpoint or tokenizer, or `out` holds something else.
      StorageError: no checkpoint verifies.
    """
    model = read_trained_model(workdir / "checkpoints")
    export_folder(
        model.params,
        model.config,
        out,
        tokenizer=workdir / "tokenizer",
        chat_template=_chat_template(workdir),
        dtype=dtype,
    )
    megabytes = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6
    print(f"step {model.step}: {megabytes:,.1f} MB of {dtype} in {out}")
    return model


def _chat_template(workdir: pathlib.Path) -> str:
    """Returns what an import brought along, else the template of the run."""
    if (template := read_chat_template(workdir / "tokenizer")) is not None:
        return template.text
    return CHAT_TEMPLATES[load_run_folder_config(workdir).data.template]
