# SPDX-License-Identifier: Apache-2.0
"""`ring generate`: what the newest model of a run says to prompts, or in a chat."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

from ring_jax.cli import status
from ring_jax.cli.asked_model import (
    load_asked_config,
    make_engine,
    open_model,
    open_run_chat,
)
from ring_jax.cli.conversation import converse
from ring_jax.cli.devices import use_devices
from ring_jax.cli.questions import Question, read_questions, to_requests
from ring_jax.cli.settings import require_workdir
from ring_jax.cli.traces import add_trace_arguments, is_sampling, write_traces_of
from ring_jax.config import ConfigError
from ring_jax.data.chat_format import ChatFormat
from ring_jax.generate import Completion

SUMMARY = "answers prompts with the newest model of a run"


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
    add_trace_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Answers what is asked, each answer as it was generated, without its end token."""
    if is_sampling(args):
        return write_traces_of(args)
    workdir = require_workdir(args)
    if [args.prompt is None, args.file is None, not args.chat].count(False) != 1:
        raise ConfigError(
            "generate: give one of --prompt=TEXT, --file=FILE and --chat."
        )
    config = load_asked_config(args, workdir)
    questions = [] if args.chat else read_questions(args, config.generate)
    chat = open_run_chat(config, workdir)
    requests = to_requests(questions, config, chat)
    use_devices(config)
    num_slots = 1 if args.chat else min(config.evaluate.batch_size, len(questions))
    with open_model(config, workdir) as (model, _):
        engine = make_engine(model, chat, config, num_slots=num_slots)
        if args.chat:
            answered = converse(engine, config, chat)
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
        _print(answered, chat)
    if args.json:
        print(json.dumps({"status": status.DONE, "completions": said}))
    return status.DONE


def _print(answered: Sequence[tuple[Question, Completion]], chat: ChatFormat) -> None:
    for question, completion in answered:
        if len(answered) > 1:
            print(f"> {question.turns()[-1].content}")
        print(chat.spoken(completion.text) + _remark(completion))


def _remark(completion: Completion) -> str:
    if completion.stop_reason == "stop":
        return ""
    return f" ... (cut off after {len(completion.ids)} tokens)"
