# SPDX-License-Identifier: Apache-2.0
"""`ring generate`: what the newest model of a run says to one prompt or to many."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax

from ring_jax import sharding
from ring_jax.checkpoint import place
from ring_jax.checkpoint.trained_model import read_trained_model
from ring_jax.cli import status
from ring_jax.cli.devices import use_devices
from ring_jax.cli.settings import (
    load_run_config,
    load_run_folder_model_config,
    override,
    require_workdir,
)
from ring_jax.config import (
    ConfigError,
    DataConfig,
    EvaluateConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import END_TOKEN, render_prompt
from ring_jax.data.schema import Message, Row
from ring_jax.data.tokenizer import Tokenizer
from ring_jax.generate import Completion, Engine, Sampler
from ring_jax.model import abstract_transformer

SUMMARY = "answers prompts with the newest model of a run"

# An imported folder has a model and no run; these are the settings of a run that is
# only asked. Its one stage and source are there because a run must have them.
ONLY_ASKED = RunConfig(
    data=DataConfig(sources={"prompts": SourceConfig()}, template="ling"),
    train=TrainConfig(seq_len=1),
    evaluate=EvaluateConfig(max_prompt_tokens=512, max_new_tokens=512),
    stages={"none": StageConfig(mixture={"prompts": 1.0})},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring generate`."""
    parser.add_argument("--prompt", metavar="TEXT", help="what a user says")
    parser.add_argument(
        "--file",
        type=pathlib.Path,
        metavar="FILE.txt",
        help="prompts, one a line, instead of --prompt",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="NUMBER",
        help="0 takes the most probable token; above, tokens are drawn by config.seed",
    )


def run(args: argparse.Namespace) -> int:
    """Prints each completion as it was generated, without its end token."""
    workdir, prompts = require_workdir(args), _prompts(args)
    sampler = Sampler(temperature=args.temperature)
    config = _config(args, workdir)
    use_devices(config)
    tokenizer = tokenizers.load(workdir / "tokenizer")
    sampler = dataclasses.replace(sampler, seed=config.seed)
    completions = _complete(config, workdir, tokenizer, sampler, prompts)
    for prompt, completion in zip(prompts, completions, strict=True):
        if len(prompts) > 1:
            print(f"> {prompt}")
        print(completion.text.removesuffix(END_TOKEN) + _remark(completion))
    if args.json:
        said = [
            {"prompt": prompt, **dataclasses.asdict(completion)}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        print(json.dumps({"status": status.DONE, "completions": said}))
    return status.DONE


def _prompts(args: argparse.Namespace) -> list[str]:
    if (args.prompt is None) == (args.file is None):
        raise ConfigError("generate: give either --prompt=TEXT or --file=FILE.txt.")
    if args.file is None:
        prompts = [args.prompt]
    elif args.file.is_file():
        prompts = args.file.read_text("utf-8", errors="replace").splitlines()
    else:
        raise ConfigError(f"--file={args.file} is no file; write prompts, one a line.")
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise ConfigError("generate: there is no prompt; write at least one word.")
    return prompts


def _config(args: argparse.Namespace, workdir: pathlib.Path) -> RunConfig:
    path = workdir / "config.json"
    is_imported = path.is_file() and '"stages"' not in path.read_text("utf-8")
    if args.config is not None or not is_imported:
        return load_run_config(args)
    model = load_run_folder_model_config(workdir)
    only_asked = dataclasses.replace(ONLY_ASKED, model=model)
    return override(RunConfig, dataclasses.asdict(only_asked), args.overrides)


def _complete(
    config: RunConfig,
    workdir: pathlib.Path,
    tokenizer: Tokenizer,
    sampler: Sampler,
    prompts: Sequence[str],
) -> list[Completion]:
    template = config.data.template
    ids = [render_prompt(_row(p), tokenizer, template=template) for p in prompts]
    batch_size = min(config.evaluate.batch_size, len(prompts))
    mesh = sharding.without_context(sharding.make_mesh(config.mesh))
    trained = read_trained_model(workdir / "checkpoints")
    with jax.set_mesh(mesh):
        engine = Engine(
            place(abstract_transformer(trained.config), trained.params),
            tokenizer,
            config=dataclasses.replace(config.evaluate, batch_size=batch_size),
            dtype=config.train.compute_dtype,
            sampler=sampler,
        )
        return engine.generate(ids)


def _row(prompt: str) -> Row:
    # A row ends with a reply, and rendering a prompt leaves it out.
    unsaid = Message("assistant", "...")
    origin = dict.fromkeys(("id", "source", "domain", "licence", "package"), "prompt")
    return Row(messages=(Message("user", prompt), unsaid), **origin)


def _remark(completion: Completion) -> str:
    if completion.stop_reason == "stop":
        return ""
    return f" ... (cut off after {len(completion.ids)} tokens)"
