# SPDX-License-Identifier: Apache-2.0
"""`ring import`: a Hugging Face folder as a run folder with one checkpoint."""

import argparse
import dataclasses
import json
import pathlib

from ring_jax.checkpoint.model_folder import import_folder, tokenizer_files
from ring_jax.checkpoint.store import Store
from ring_jax.cli import status
from ring_jax.cli.settings import require_workdir
from ring_jax.config import ConfigError
from ring_jax.data.chat import CHAT_TEMPLATES
from ring_jax.data.chat_template import read_chat_template

SUMMARY = "reads a Hugging Face folder into a new run folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring import`."""
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        metavar="DIR",
        required=True,
        help="the folder to read: config.json, *.safetensors, tokenizer.json",
    )


def run(args: argparse.Namespace) -> int:
    """Imports a folder; a run folder that is in use is refused."""
    workdir = require_workdir(args)
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"--workdir={workdir} is in use; name a new folder.")
    config, params = import_folder(args.folder)
    tokenizer = tokenizer_files(args.folder, config)["tokenizer.json"]
    theirs = read_chat_template(args.folder)
    template = CHAT_TEMPLATES["ling"] if theirs is None else theirs.text
    store = Store(workdir / "checkpoints", keep=1, model=config)
    store.save(0, {"model": params}, {}, {"imported_from": args.folder.name})
    store.close()
    (workdir / "tokenizer").mkdir()
    (workdir / "tokenizer" / "tokenizer.json").write_text(tokenizer, "utf-8")
    (workdir / "tokenizer" / "chat_template.jinja").write_text(template, "utf-8")
    settings = json.dumps({"model": dataclasses.asdict(config)}, indent=2)
    (workdir / "config.json").write_text(settings, "utf-8")
    num_parameters = sum(array.size for array in params.values())
    print(f"{num_parameters:,} parameters of {args.folder} in {workdir}")
    if args.json:
        out = {"status": status.DONE, "num_parameters": num_parameters}
        print(json.dumps(out))
    return status.DONE
