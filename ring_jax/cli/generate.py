# SPDX-License-Identifier: Apache-2.0
"""`ring generate`: what the newest model of a run says to prompts, or in a chat."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax

from ring_jax import sharding
from ring_jax.checkpoint import place
from ring_jax.checkpoint.trained_model import read_trained_model
from ring_jax.cli import status
from ring_jax.cli.conversation import converse
from ring_jax.cli.devices import use_devices
from ring_jax.cli.questions import Question, read_questions, to_requests
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
from ring_jax.data.chat import END_TOKEN
from ring_jax.data.tokenizer import Tokenizer
from ring_jax.generate import Completion, Engine
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
        metavar="FILE",
        help="prompts instead: lines of a .txt, or objects of a .jsonl",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="a conversation instead: a turn a line, from standard input",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="FILE.jsonl",
        help="where answers are written, an object a line",
    )


def run(args: argparse.Namespace) -> int:
    """Answers what is asked, each answer as it was generated, without its end token."""
    workdir = require_workdir(args)
    if [args.prompt is None, args.file is None, not args.chat].count(False) != 1:
        raise ConfigError(
            "generate: give one of --prompt=TEXT, --file=FILE and --chat."
        )
    config = _config(args, workdir)
    questions = [] if args.chat else read_questions(args, config.generate)
    tokenizer = tokenizers.load(workdir / "tokenizer")
    requests = to_requests(questions, config, tokenizer)
    use_devices(config)
    num_slots = 1 if args.chat else min(config.evaluate.batch_size, len(questions))
    with _engine(config, workdir, tokenizer, num_slots=num_slots) as engine:
        if args.chat:
            answered = converse(engine, config, tokenizer)
        else:
            completions = engine.complete(requests)
            answered = list(zip(questions, completions, strict=True))
    said = [
        {"id": question.id, "prompt": question.turns()[-1].content}
        | dataclasses.asdict(completion)
        for question, completion in answered
    ]
    if args.output is not None:
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in said]
        args.output.write_text("".join(lines), encoding="utf-8")
    elif not args.chat:
        _print(answered)
    if args.json:
        print(json.dumps({"status": status.DONE, "completions": said}))
    return status.DONE


def _print(answered: Sequence[tuple[Question, Completion]]) -> None:
    for question, completion in answered:
        if len(answered) > 1:
            print(f"> {question.turns()[-1].content}")
        print(completion.text.removesuffix(END_TOKEN) + _remark(completion))


def _config(args: argparse.Namespace, workdir: pathlib.Path) -> RunConfig:
    path = workdir / "config.json"
    is_imported = path.is_file() and '"stages"' not in path.read_text("utf-8")
    if args.config is not None or not is_imported:
        return load_run_config(args)
    model = load_run_folder_model_config(workdir)
    only_asked = dataclasses.replace(ONLY_ASKED, model=model)
    return override(RunConfig, dataclasses.asdict(only_asked), args.overrides)


@contextlib.contextmanager
def _engine(
    config: RunConfig, workdir: pathlib.Path, tokenizer: Tokenizer, *, num_slots: int
) -> Iterator[Engine]:
    """Loads the newest model, and keeps its mesh in force."""
    mesh = sharding.without_context(sharding.make_mesh(config.mesh))
    trained = read_trained_model(workdir / "checkpoints")
    with jax.set_mesh(mesh):
        yield Engine(
            place(abstract_transformer(trained.config), trained.params),
            tokenizer,
            config=dataclasses.replace(config.evaluate, batch_size=num_slots),
            dtype=config.train.compute_dtype,
            pace=config.generate,
        )


def _remark(completion: Completion) -> str:
    if completion.stop_reason == "stop":
        return ""
    return f" ... (cut off after {len(completion.ids)} tokens)"
