# SPDX-License-Identifier: Apache-2.0
"""Reasoning traces: several answers to each row, and which of them is trained.

  rows -> samples of each -> judged -> OUTPUT.jsonl (rows for `ring curate`)
                                    -> OUTPUT.rejected.jsonl (each with its reason)

Beside them lies the folder OUTPUT.journal with every answer, on disk as soon as it
came, and the settings that it was begun with. The files are a function of rows,
settings and journal: the same command goes on, and asks for nothing twice.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ring_jax.config import (
    ConfigError,
    ConsistencyConfig,
    TraceConfig,
    VerificationConfig,
)
from ring_jax.curate.answers import keep_consistent, pass_rate
from ring_jax.curate.chat_server import TOO_LONG
from ring_jax.curate.forms import read_reply
from ring_jax.curate.journal import Journal
from ring_jax.curate.quarantine import rejection_to_json
from ring_jax.curate.rows import Rejection, reject
from ring_jax.curate.verification import verify
from ring_jax.data.output_folder import agree_on_plan, own_folder, write_whole
from ring_jax.data.schema import Message, Row, row_from_fields, row_to_json
from ring_jax.verify import COMPARING, Sandbox

SOURCE = "traces"
UNSAID = Message("assistant", "?")
REFUSED = "prompt_refused"
"""`finish_reason` of a prompt that the model's chat template refuses."""
MIN_VOTERS = 3

_UNFINISHED = {"length", "content_filter", TOO_LONG, REFUSED}


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One answer to a row."""

    text: str
    """Its reasoning first, between think tags."""
    finish_reason: str | None
    """`stop`; `length` where it was cut off, or why there is none."""
    detail: str = ""

    @property
    def is_finished(self) -> bool:
        """Tells whether it came to an end, and says something there."""
        is_open = self.text.lstrip().startswith("<think>") and (
            "</think>" not in self.text
        )
        is_cut = self.finish_reason in _UNFINISHED or is_open
        return not is_cut and bool(read_reply(self.text).content.strip())


Ask = Callable[[Sequence[Sequence[Message]]], list[Sample]]
"""Conversations -> one answer to each; equal ones get different answers."""
Judge = Callable[[Sequence[Row], Sequence[Sequence[Sample]]], list[Row | Rejection]]
"""Rows and the samples of each -> the row to be trained, or why there is none."""


def read_rows(path: pathlib.Path, config: TraceConfig) -> list[Row]:
    """Reads what is asked; a reply that a row brings is left out.

    Lines of a `.jsonl` file have the fields of a row, or `prompt` instead of
    `messages`; a line of any other file is a prompt.

    Raises:
      ConfigError: there is no file or no prompt, or a line is wrong.
    """
    if not path.is_file():
        raise ConfigError(f"--file={path} is no file; write prompts, one a line.")
    lines = path.read_text("utf-8", errors="replace").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"--file={path} has no prompt; write at least one.")
    return [
        _row(_fields(line, f"{path.name}:{number}", path.suffix), number, path, config)
        for number, line in numbered
    ]


def write_traces(
    rows: Sequence[Row],
    output: pathlib.Path,
    *,
    num_samples: int,
    plan: Mapping[str, Any],
    open_ask: Callable[[Journal], Ask],
    judge: Judge,
    config: TraceConfig,
) -> dict[str, Any]:
    """Samples, judges and writes; goes on with what was begun.

    Args:
      rows: of `read_rows`.
      output: `.jsonl`; what lies beside it is in the module's text.
      num_samples: of each row.
      plan: what decides the answers beside rows and settings: the model.
      open_ask: makes the function that answers.
      judge: `judge_finished`, or one of `make_grader`.
      config: the settings.

    Returns:
      Counts: `num_rows`, `num_samples`, and `rejected` by reason.

    Raises:
      ConfigError: the output belongs to other settings or to another command.
      OSError: the server does not answer, or the disk is full.
    """
    folder = output.with_suffix(".journal")
    if output.exists() and not folder.is_dir():
        raise ConfigError(
            f"--output={output} exists, and not from sampling; name another file."
        )
    with own_folder(folder, kind="journal of traces"):
        agree_on_plan(folder, {**_plan(rows, config, num_samples), **plan})
        kept: list[str] = []
        rejected: list[Rejection] = []
        with Journal(folder / "journal.jsonl") as journal:
            ask = open_ask(journal)
            for batch in itertools.batched(rows, config.batch_rows):
                samples = _sample(batch, ask, num_samples, config)
                for row in judge(
                    [_marked(row, plan, config) for row in batch], samples
                ):
                    if isinstance(row, Rejection):
                        rejected.append(row)
                    else:
                        kept.append(row_to_json(row))
        _write_lines(output, kept)
        lines = map(rejection_to_json, rejected)
        _write_lines(output.with_suffix(".rejected.jsonl"), lines)
    reasons = collections.Counter(one.reason for one in rejected)
    return {
        "num_rows": len(kept),
        "num_samples": len(rows) * num_samples,
        "rejected": dict(sorted(reasons.items())),
    }


def judge_finished(
    rows: Sequence[Row], samples: Sequence[Sequence[Sample]], *, config: TraceConfig
) -> list[Row | Rejection]:
    """Keeps the first or shortest answer that came to an end, right or wrong."""
    judged: list[Row | Rejection] = []
    for row, drawn in zip(rows, samples, strict=True):
        ends = _in_order(drawn, config)
        judged.append(
            _with_samples(row, drawn, reply=ends[0])
            if ends
            else _unanswered(row, drawn)
        )
    return judged


def make_grader(sandbox: Sandbox, config: TraceConfig) -> Judge:
    """Makes a judge that trains nothing but right answers; see `judge_graded`."""
    return functools.partial(judge_graded, sandbox=sandbox, config=config)


def judge_graded(
    rows: Sequence[Row],
    samples: Sequence[Sequence[Sample]],
    *,
    sandbox: Sandbox,
    config: TraceConfig,
) -> list[Row | Rejection]:
    """Keeps an answer that the row's verifier accepts, or that most samples give.

    A row with a gold answer is right by it; one without gets the majority's, where more
    than `min_agreement` of all samples agree, those without an answer included. The
    share of right samples is `metadata.pass_rate`, and difficulty is 1 minus it.

    Source: rejection sampling as arXiv:2504.07158 uses it; votes of arXiv:2203.11171.
    """
    rows = [_with_verifier(row, config) for row in rows]
    judged: dict[int, Row | Rejection] = {}
    for number, (row, drawn) in enumerate(zip(rows, samples, strict=True)):
        if not _in_order(drawn, config):
            judged[number] = _unanswered(row, drawn)
    for are_gold, decide in ((True, _verified), (False, _voted)):
        numbers = [
            number
            for number, row in enumerate(rows)
            if number not in judged and has_gold(row) == are_gold
        ]
        chosen = [(rows[number], samples[number]) for number in numbers]
        judged |= zip(numbers, decide(chosen, sandbox, config), strict=True)
    return [judged[number] for number in range(len(rows))]


def has_gold(row: Row) -> bool:
    """Tells whether a verifier can judge a row's answers by themselves."""
    return bool(row.answer) or row.verifier not in {*COMPARING, "match", ""}


def check_can_vote(
    rows: Iterable[Row], *, num_samples: int, config: TraceConfig
) -> None:
    """Refuses to grade rows by a majority that there cannot be.

    Raises:
      ConfigError: names a row.
    """
    for row in rows:
        if num_samples < MIN_VOTERS and not has_gold(_with_verifier(row, config)):
            raise ConfigError(
                f"row {row.id} has no answer to grade by, and --n={num_samples} has no "
                f"majority; give it one, or --n={MIN_VOTERS} or more."
            )


# Rows


def _fields(line: str, where: str, suffix: str) -> dict[str, Any]:
    if suffix != ".jsonl":
        return {"prompt": line}
    try:
        fields = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ConfigError(f"{where}: is not JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: is no object; write one a line.")
    if ("prompt" in fields) == ("messages" in fields):
        raise ConfigError(f"{where}: give it either prompt or messages.")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _row(
    fields: dict[str, Any], number: int, path: pathlib.Path, config: TraceConfig
) -> Row:
    where = f"{path.name}:{number}"
    if "prompt" in fields:
        prompt = fields.pop("prompt")
        turns: list[Any] = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"{where}: prompt={prompt!r} must be a text.")
    elif isinstance(fields["messages"], list):
        turns = fields["messages"]
    else:
        raise ConfigError(f"{where}: messages must be a list of turns.")
    defaults = {
        "source": SOURCE,
        "domain": config.domain,
        "licence": config.licence,
        "package": SOURCE,
    }
    last = turns[-1] if turns else None
    is_answered = isinstance(last, dict) and last.get("role") == "assistant"
    asked = turns[:-1] if is_answered else turns
    if not asked:
        raise ConfigError(f"{where}: has no turn to answer; add what a user says.")
    row = {**fields, "messages": [*asked, UNSAID]}
    return row_from_fields(row, where=where, defaults=defaults)


def _with_verifier(row: Row, config: TraceConfig) -> Row:
    return dataclasses.replace(row, verifier=row.verifier or config.verifier)


def _marked(row: Row, plan: Mapping[str, Any], config: TraceConfig) -> Row:
    """Says in a row which model answers it, and how it is sampled."""
    about = {
        "model": plan["model"],
        "sampling": plan["sampling"],
        "asked_as": config.asked_as,
    }
    return dataclasses.replace(row, metadata={**row.metadata, **about})


def _plan(rows: Sequence[Row], config: TraceConfig, num_samples: int) -> dict[str, Any]:
    """Returns what decides the files: not how fast, and from where, answers come."""
    settings = dataclasses.asdict(config)
    del settings["teacher"], settings["batch_rows"], settings["sampling"]
    del settings["verification"]["num_workers"]
    text = "\n".join(map(row_to_json, rows))
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return {"rows": digest, "n": num_samples, "traces": settings}


# Samples


def _sample(
    rows: Sequence[Row], ask: Ask, num_samples: int, config: TraceConfig
) -> list[tuple[Sample, ...]]:
    asked = [_asked(row, config) for row in rows for _ in range(num_samples)]
    return list(itertools.batched(ask(asked), num_samples))


def _asked(row: Row, config: TraceConfig) -> tuple[Message, ...]:
    *before, last = row.messages[:-1]
    if last.role == "user":
        content = config.asked_as.replace("{prompt}", last.content)
        last = dataclasses.replace(last, content=content)
    return (*before, last)


def _in_order(samples: Sequence[Sample], config: TraceConfig) -> list[Sample]:
    """Returns the answers that came to an end, the preferred one first."""
    ends = [sample for sample in samples if sample.is_finished]
    if config.choose == "shortest":
        return sorted(ends, key=lambda sample: len(sample.text))
    return ends


def _with_samples(row: Row, samples: Sequence[Sample], *, reply: Sample) -> Row:
    about = {
        "samples": [sample.text for sample in samples],
        "finish_reasons": [sample.finish_reason for sample in samples],
    }
    messages = (*row.messages[:-1], read_reply(reply.text))
    return dataclasses.replace(
        row, messages=messages, metadata={**row.metadata, **about}
    )


def _unanswered(row: Row, samples: Sequence[Sample]) -> Rejection:
    reasons = collections.Counter(sample.finish_reason for sample in samples)
    (reason, count), *_ = reasons.most_common(1)
    names = {TOO_LONG: TOO_LONG, REFUSED: REFUSED, "length": "never_stopped"}
    details = [sample.detail for sample in samples if sample.finish_reason == reason]
    detail = details[0] or (
        f"{count} of {len(samples)} samples ended with {reason}, and none has an answer"
    )
    name = names.get(reason or "", "no_answer")
    return reject(row, step=SOURCE, reason=name, detail=detail)


# Grades

_Drawn = tuple[Row, Sequence[Sample]]


def _verified(
    drawn: Sequence[_Drawn], sandbox: Sandbox, config: TraceConfig
) -> list[Row | Rejection]:
    """Grades every answer by the row's own verifier, all rows' together."""
    candidates = [
        _with_samples(row, samples, reply=sample)
        for row, samples in drawn
        for sample in _in_order(samples, config)
    ]
    settings: VerificationConfig = config.verification
    verdicts = iter(verify(candidates, sandbox=sandbox, config=settings))
    judged: list[Row | Rejection] = []
    for row, samples in drawn:
        found = list(itertools.islice(verdicts, len(_in_order(samples, config))))
        right = [one for one in found if isinstance(one, Row)]
        if right:
            judged.append(_graded(right[0], len(right) / len(samples), by="verifier"))
            continue
        first = next(one for one in found if isinstance(one, Rejection))
        detail = f"0 of {len(samples)} samples are right; the first: {first.detail}"
        judged.append(reject(row, step=SOURCE, reason="none_right", detail=detail))
    return judged


def _voted(
    drawn: Sequence[_Drawn], sandbox: Sandbox, config: TraceConfig
) -> list[Row | Rejection]:
    """Labels rows with the answer of most samples."""
    ballots = []
    for row, samples in drawn:
        ends = _in_order(samples, config)
        # The preferred answer first: of those that agree, the first becomes the reply.
        # One that never ended counts among all, and is for no answer.
        texts = [sample.text for sample in ends]
        texts += [""] * (len(samples) - len(ends))
        ballot = _with_samples(row, samples, reply=ends[0])
        metadata = {**ballot.metadata, "samples": texts}
        metadata.pop("pass_rate", None)
        ballots.append(dataclasses.replace(ballot, metadata=metadata))
    majority = ConsistencyConfig(min_samples=1, min_agreement=config.min_agreement)
    judged: list[Row | Rejection] = []
    voted = keep_consistent(ballots, sandbox=sandbox, config=majority)
    for (_, samples), one in zip(drawn, voted, strict=True):
        if isinstance(one, Row):
            rate = pass_rate(one)
            assert rate is not None  # it has samples and, by now, an answer
            texts = [sample.text for sample in samples]
            metadata = {**one.metadata, "samples": texts}
            one = dataclasses.replace(one, metadata=metadata)
            one = _graded(one, rate, by="majority")
        judged.append(one)
    return judged


def _graded(row: Row, rate: float, *, by: str) -> Row:
    about = {"pass_rate": rate, "graded_by": by}
    difficulty = round(1.0 - rate, 4)
    metadata = {**row.metadata, **about}
    return dataclasses.replace(row, difficulty=difficulty, metadata=metadata)


def _write_lines(path: pathlib.Path, lines: Iterable[str]) -> None:
    write_whole(path, "".join(f"{line}\n" for line in lines))
