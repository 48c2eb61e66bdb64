# SPDX-License-Identifier: Apache-2.0
"""`ring generate --n=N`: several answers to each row, of a run or of a server."""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ring_jax.cli import status
from ring_jax.cli.asked_model import (
    load_asked_config,
    make_engine,
    open_model,
    open_run_chat,
)
from ring_jax.cli.devices import use_devices
from ring_jax.cli.settings import override, require_workdir
from ring_jax.config import ConfigError, RunConfig, TeacherSamplingConfig, TraceConfig
from ring_jax.curate.chat_server import TOO_LONG, ChatServer
from ring_jax.curate.journal import Journal, answer_key
from ring_jax.curate.traces import (
    REFUSED,
    Ask,
    Judge,
    Sample,
    check_can_vote,
    judge_finished,
    make_grader,
    read_rows,
    write_traces,
)
from ring_jax.data.chat_format import ChatFormat
from ring_jax.data.chat_template import Failure, to_hugging_face
from ring_jax.data.schema import Message
from ring_jax.generate import Engine, Request, sampling_of
from ring_jax.verify import Sandbox

PREFIX = "config.traces"


def add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands that make `ring generate` sample traces."""
    parser.add_argument(
        "--n", type=int, metavar="N", help="samples of each row of --file, as traces"
    )
    parser.add_argument(
        "--grade",
        action="store_true",
        help="traces: keep right answers only, by verifier or by majority",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="traces of an OpenAI-compatible server, such as http://host:8000/v1",
    )
    parser.add_argument("--model", metavar="NAME", help="as the server calls it")


def is_sampling(args: argparse.Namespace) -> bool:
    """Tells whether traces are asked for.

    Raises:
      ConfigError: a model of a server that is not named.
    """
    if args.model is not None and args.server is None:
        raise ConfigError(f"--model={args.model} is a server's; give --server=URL.")
    return args.server is not None or args.n is not None or args.grade


def write_traces_of(args: argparse.Namespace) -> int:
    """Samples, judges and writes; prints counts; 3 where no row is left."""
    num_samples = 1 if args.n is None else args.n
    _check(args, num_samples)
    ours = [one for one in args.overrides if _is_of_traces(one[0])]
    theirs = [one for one in args.overrides if not _is_of_traces(one[0])]
    config = _trace_config(args, ours)
    rows = read_rows(args.file, config)
    if args.grade:
        check_can_vote(rows, num_samples=num_samples, config=config)
    open_asker = _open_server if args.server else _open_run
    with contextlib.ExitStack() as stack:
        rest = argparse.Namespace(**vars(args) | {"overrides": theirs})
        plan, open_ask = open_asker(
            rest, config, stack, num_requests=len(rows) * num_samples
        )
        judge = _open_judge(args, config, stack)
        found = write_traces(
            rows,
            args.output,
            num_samples=num_samples,
            plan=plan,
            open_ask=open_ask,
            judge=judge,
            config=config,
        )
    print(f"{found['num_rows']:,} of {len(rows):,} rows have a trace in {args.output}")
    for reason, count in found["rejected"].items():
        print(f"{count:,} rejected: {reason}")
    code = status.DONE if found["num_rows"] else status.STOPPED
    if args.json:
        print(json.dumps({"status": code, "output": str(args.output), **found}))
    return code


def _check(args: argparse.Namespace, num_samples: int) -> None:
    if args.prompt is not None or args.chat or args.file is None:
        raise ConfigError(
            "generate: traces take --file=FILE, no --prompt and no --chat."
        )
    if args.output is None or args.output.suffix != ".jsonl":
        raise ConfigError("generate: traces need --output=FILE.jsonl.")
    if args.output.resolve() == args.file.resolve():
        raise ConfigError(f"--output={args.output} is what is read; name another file.")
    if num_samples < 1:
        raise ConfigError(f"--n={num_samples} must be at least 1.")
    if args.server is None:
        return
    if not args.model:
        raise ConfigError(f"--server={args.server}: name its model with --model=NAME.")
    if args.workdir is not None or args.config is not None:
        raise ConfigError("generate: --server answers by itself; leave out the run.")


def _is_of_traces(name: str) -> bool:
    return name == PREFIX or name.startswith(f"{PREFIX}.")


def _trace_config(
    args: argparse.Namespace, overrides: Sequence[tuple[str, str]]
) -> TraceConfig:
    named = [(name.removeprefix("config."), text) for name, text in overrides]
    config = override(TraceConfig, dataclasses.asdict(TraceConfig()), named)
    if args.server:
        teacher = dataclasses.replace(config.teacher, url=args.server, model=args.model)
        config = dataclasses.replace(config, teacher=teacher)
    return config


def _open_judge(
    args: argparse.Namespace, config: TraceConfig, stack: contextlib.ExitStack
) -> Judge:
    if not args.grade:
        return functools.partial(judge_finished, config=config)
    limits = config.verification
    sandbox = Sandbox(
        num_workers=limits.num_workers,
        timeout_seconds=limits.timeout_seconds,
        max_memory_bytes=limits.max_memory_bytes,
    )
    return make_grader(stack.enter_context(sandbox), config)


_Opened = tuple[dict[str, Any], Callable[[Journal], Ask]]
"""What decides the answers, and what answers."""


def _open_server(
    args: argparse.Namespace,
    config: TraceConfig,
    stack: contextlib.ExitStack,
    *,
    num_requests: int,
) -> _Opened:
    del stack, num_requests
    if args.overrides:
        raise ConfigError(
            f"--{args.overrides[0][0]} is a setting of a run; those of a server begin "
            f"with --{PREFIX}."
        )

    def open_ask(journal: Journal) -> Ask:
        server = ChatServer(config.teacher, journal)

        def ask(conversations: Sequence[Sequence[Message]]) -> list[Sample]:
            asked = [[_turn(turn) for turn in turns] for turns in conversations]
            answers = server.answers(asked, config.sampling)
            return [_sample_of(answer) for answer in answers]

        return ask

    sampling = dataclasses.asdict(config.sampling)
    plan = {"model": args.model, "sampling": sampling, "grade": args.grade}
    return plan, open_ask


def _turn(turn: Message) -> dict[str, Any]:
    """Writes a turn for a server; reasoning of earlier turns stays here."""
    fields = to_hugging_face(turn)
    kept = ("role", "content", "tool_calls")
    return {name: fields[name] for name in kept if name in fields}


def _sample_of(entry: dict[str, Any]) -> Sample:
    return Sample(entry["answer"], entry.get("finish_reason"), entry.get("detail", ""))


def _open_run(
    args: argparse.Namespace,
    config: TraceConfig,
    stack: contextlib.ExitStack,
    *,
    num_requests: int,
) -> _Opened:
    workdir = require_workdir(args)
    run = load_asked_config(args, workdir)
    room = min(config.sampling.max_tokens, run.evaluate.max_new_tokens)
    sampling = dataclasses.replace(config.sampling, max_tokens=room)
    settings = dataclasses.replace(
        run.generate, temperature=sampling.temperature, top_p=sampling.top_p
    )
    run = dataclasses.replace(run, generate=settings)
    chat = open_run_chat(run, workdir)
    use_devices(run)
    num_slots = min(run.evaluate.batch_size, num_requests)
    opened, identity = stack.enter_context(open_model(run, workdir))
    engine = make_engine(opened, chat, run, num_slots=num_slots)
    model = f"{workdir.resolve().name}@{identity['step']}"

    def open_ask(journal: Journal) -> Ask:
        return _EngineAsk(engine, chat, run, sampling, (model, journal))

    about = dataclasses.asdict(settings)
    for name in ("steps_per_dispatch", "prefill_chunk_tokens", "prefix_cache_tokens"):
        del about[name]
    sizes = {"max_prompt_tokens": run.evaluate.max_prompt_tokens}
    plan = {
        "model": model,
        "sampling": {**about, "max_tokens": room, "seed": sampling.seed},
        "grade": args.grade,
        "evaluate": sizes,
    }
    return plan, open_ask


class _EngineAsk:
    """Answers by an engine, each on disk as soon as it has ended."""

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        run: RunConfig,
        sampling: TeacherSamplingConfig,
        kept: tuple[str, Journal],
    ):
        self._engine, self._chat, self._run = engine, chat, run
        self._sampling = sampling
        self._model, self._journal = kept

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Sample]:
        distinct = list(dict.fromkeys(map(tuple, conversations)))
        found = self._chat.prompts(distinct)
        prompts = dict(zip(distinct, found, strict=True))
        keys, requests = [], {}
        seen: collections.Counter[tuple[Message, ...]] = collections.Counter()
        samples: dict[str, Sample] = {}
        for turns in map(tuple, conversations):
            number, seen[turns] = seen[turns], seen[turns] + 1
            text = json.dumps([to_hugging_face(turn) for turn in turns])
            key = answer_key(
                model=self._model, sampling=self._sampling, prompt=text, number=number
            )
            keys.append(key)
            if (refusal := self._refusal(prompts[turns])) is not None:
                samples[key] = refusal
            elif key not in self._journal:
                ids = prompts[turns]
                assert not isinstance(ids, Failure)
                requests[key] = self._request(ids, number)
        self._answer(requests)
        return [
            samples[key] if key in samples else _sample_of(self._journal.entry(key))
            for key in keys
        ]

    def _refusal(self, ids: list[int] | Failure) -> Sample | None:
        if isinstance(ids, Failure):
            return Sample("", REFUSED, f"the chat template refuses it: {ids.reason}")
        most = self._run.evaluate.max_prompt_tokens
        if len(ids) <= most:
            return None
        detail = f"{len(ids)} tokens, but evaluate.max_prompt_tokens={most}"
        return Sample("", TOO_LONG, detail)

    def _request(self, ids: list[int], number: int) -> Request:
        settings = self._run.generate
        seed = self._sampling.seed
        return Request(
            prompt_ids=tuple(ids),
            sampling=sampling_of(settings, seed=seed, number=number),
            max_new_tokens=self._sampling.max_tokens,
            max_think_tokens=settings.max_think_tokens,
            stop=() if settings.stop is None else (settings.stop,),
            stop_ids=self._chat.stop_ids,
        )

    def _answer(self, requests: dict[str, Request]) -> None:
        keys = list(requests)
        for told in self._stream(list(requests.values())):
            if (completion := told.completion) is None:
                continue
            reply = self._chat.reply(completion.text)
            text = self._chat.spoken(completion.text)
            if reply.think and reply.content:
                text = f"<think>{reply.think}</think>\n{reply.content}"
            self._journal.add(
                keys[told.number],
                text,
                finish_reason=completion.stop_reason,
                num_tokens=len(completion.ids),
            )

    def _stream(self, requests: list[Request]) -> Iterator[Any]:
        return iter(self._engine.stream(requests)) if requests else iter(())
