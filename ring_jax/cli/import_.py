# SPDX-License-Identifier: Apache-2.0
"""`ring import`: a model's folder or GGUF file as a run folder with one checkpoint."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ring_jax.checkpoint.gguf import import_gguf
from ring_jax.checkpoint.model_folder import import_folder, tokenizer_files
from ring_jax.checkpoint.store import Store
from ring_jax.checkpoint.upcycle import upcycle
from ring_jax.cli import status
from ring_jax.cli.settings import load_config_file, override, require_workdir
from ring_jax.config import ConfigError, ModelConfig, TrainConfig, UpcycleConfig
from ring_jax.data.chat import CHAT_TEMPLATES
from ring_jax.data.chat_template import read_chat_template

SUMMARY = "reads a Hugging Face folder or a GGUF file into a new run folder"

SPECIAL_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


class _Found(NamedTuple):
    """A model as a folder or a file holds it."""

    config: ModelConfig
    params: dict[str, np.ndarray]
    tokenizer: str
    """Content of a `tokenizer.json`."""
    chat_template: str | None
    special: dict[str, str]
    """Files that name the special tokens which a chat template writes and ends by."""
    compute_dtype: str = TrainConfig().compute_dtype
    """Which `ring generate` and `ring evaluate` then use."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring import`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--folder",
        type=pathlib.Path,
        metavar="DIR",
        help="the folder to read: config.json, *.safetensors, tokenizer.json",
    )
    source.add_argument(
        "--gguf",
        type=pathlib.Path,
        metavar="FILE.gguf",
        help="the file to read instead: a Llama, dequantised to float32",
    )


def run(args: argparse.Namespace) -> int:
    """Imports a model; with `--config`, a dense one becomes a mixture of experts.

    A run folder that is in use is refused.
    """
    workdir, settings = require_workdir(args), _load(args)
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"--workdir={workdir} is in use; name a new folder.")
    source: pathlib.Path = args.folder or args.gguf
    found = _read_folder(source) if args.folder else _read_gguf(source)
    config, params = found.config, found.params
    origin: dict[str, Any] = {"imported_from": source.name}
    if settings is not None:
        config, params = upcycle(config, params, settings)
        origin["upcycled"] = dataclasses.asdict(settings)
    store = Store(workdir / "checkpoints", keep=1, model=config)
    store.save(0, {"model": params}, {}, origin)
    store.close()
    template = found.chat_template or CHAT_TEMPLATES["ling"]
    (workdir / "tokenizer").mkdir()
    (workdir / "tokenizer" / "tokenizer.json").write_text(found.tokenizer, "utf-8")
    (workdir / "tokenizer" / "chat_template.jinja").write_text(template, "utf-8")
    for name, text in found.special.items():
        (workdir / "tokenizer" / name).write_text(text, "utf-8")
    written = {
        "model": dataclasses.asdict(config),
        "train": {"compute_dtype": found.compute_dtype},
    }
    (workdir / "config.json").write_text(json.dumps(written, indent=2), "utf-8")
    num_parameters = sum(array.size for array in params.values())
    print(f"{num_parameters:,} parameters of {source} in {workdir}")
    if args.json:
        out = {"status": status.DONE, "num_parameters": num_parameters}
        print(json.dumps(out))
    return status.DONE


def _load(args: argparse.Namespace) -> UpcycleConfig | None:
    if args.config is None:
        if args.overrides:
            name = args.overrides[0][0]
            raise ConfigError(
                f"import: --{name} changes a setting of --config, which is not given."
            )
        return None
    tree = load_config_file(args.config).to_dict()
    if "noise_std" not in tree:
        raise ConfigError(
            f"--config={args.config} holds no upcycling; name a file such as "
            "configs/upcycle/eight_experts.py."
        )
    return override(UpcycleConfig, tree, args.overrides)


def _read_folder(folder: pathlib.Path) -> _Found:
    config, params = import_folder(folder)
    tokenizer = tokenizer_files(folder, config)["tokenizer.json"]
    theirs = read_chat_template(folder)
    template = None if theirs is None else theirs.text
    files = {
        name: (folder / name).read_text("utf-8")
        for name in SPECIAL_FILES
        if (folder / name).is_file()
    }
    return _Found(config, params, tokenizer, template, files)


def _read_gguf(path: pathlib.Path) -> _Found:
    model = import_gguf(path)
    files = {"tokenizer_config.json": json.dumps(dict(model.special_tokens))}
    # As llama.cpp, whose files these are, keeps activations: bfloat16 changes answers.
    return _Found(
        model.config,
        model.params,
        model.tokenizer,
        model.chat_template,
        files,
        compute_dtype="float32",
    )
