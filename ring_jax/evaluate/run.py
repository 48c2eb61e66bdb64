# SPDX-License-Identifier: Apache-2.0
"""Suites from their items to their scores: asked, graded beside, kept, summarised.

A second start asks and grades what is missing. What goes wrong in one suite (a server
that errs, a verifier that cannot work here) marks that suite, and the rest goes on.
"""

import datetime
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from absl import logging

from ring_jax.config import ConfigError, SuitesConfig
from ring_jax.data.chat import END_TOKEN, Reply, parse_reply
from ring_jax.data.schema import Message, Row
from ring_jax.data.sources.split import digest
from ring_jax.evaluate import records as files
from ring_jax.evaluate.complete import Ask, Completer, Said, Unsaid
from ring_jax.evaluate.items import AskedSuite, level_of
from ring_jax.evaluate.records import Records
from ring_jax.evaluate.scores import refuse, summarise
from ring_jax.evaluate.votes import Key, spellings, unite
from ring_jax.verify import COMPARING, Answer, Question, Sandbox, final_answer

GRADED = ("right", "wrong")
"""Outcomes that are verdicts; the others are tried again by a second start."""


def evaluate(
    suites: Mapping[str, AskedSuite],
    completer: Completer,
    *,
    workdir: pathlib.Path,
    label: str,
    model: Mapping[str, Any],
    config: SuitesConfig,
) -> dict[str, Any]:
    """Evaluates suites, and writes `<workdir>/evaluation/<label>/`.

    Args:
      suites: by name, with their items.
      completer: who answers.
      workdir: receives the folder.
      label: names the folder.
      model: what tells it from others; a folder is of one model.
      config: limits of the verifiers.

    Returns:
      What `scores.json` holds: of these suites, and of those done before.

    Raises:
      ConfigError: before anything is asked: the folder was begun with something else.
    """
    folder = workdir / "evaluation" / label
    files.begin(folder, suites, model=model)
    known = {name: Records(folder / f"{name}.jsonl") for name in suites}
    scores = files.read_json(folder / files.SCORES)
    scores |= {"label": label, "model": model["name"]}
    scores["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    scores.setdefault("suites", {})
    limits = config.verification
    with Sandbox(
        num_workers=limits.num_workers,
        timeout_seconds=limits.timeout_seconds,
        max_memory_bytes=limits.max_memory_bytes,
    ) as sandbox:
        for name, suite in suites.items():
            work = _SuiteRun(suite, known[name], completer, sandbox)
            try:
                scores["suites"][name] = work.summary(work.run())
            except KeyboardInterrupt:
                scores["suites"][name] = work.summary("interrupted")
                raise
            finally:
                files.write_json(folder / files.SCORES, scores)
            _tell(name, scores["suites"][name])
    return scores


def _tell(name: str, summary: Mapping[str, Any]) -> None:
    logging.info(
        "suite %s: %s %s of %d items, %s%s",
        name,
        summary["metric"],
        summary["score"],
        summary["num_items"],
        summary["status"],
        f" ({summary['reason']})" if summary["reason"] else "",
    )


class _SuiteRun:
    """One suite on its way."""

    def __init__(
        self,
        asked: AskedSuite,
        records: Records,
        completer: Completer,
        sandbox: Sandbox,
    ):
        self._suite, self._rows = asked
        self._records = records
        self._completer, self._sandbox = completer, sandbox
        # Unbounded: replies wait for their verdict, and the device waits for nobody.
        self._waiting: dict[Future[Answer], dict[str, Any]] = {}
        self._is_refused = False
        self._votes: dict[Key, str] = {}

    def summary(self, reason: str) -> dict[str, Any]:
        """Summarises what is known; `reason` says why that is not all."""
        if self._is_refused:
            return refuse(self._suite, self._rows, reason=reason)
        known = list(self._records.by_key.values())
        votes = self._votes or spellings(self._rows, known)
        return summarise(self._suite, self._rows, known, votes=votes, reason=reason)

    def run(self) -> str:
        """Asks and grades what is missing; returns why some still is."""
        if reason := self._refusal():
            self._is_refused = True
            return reason
        try:
            self._grade_again()
            reasons = self._ask(self._missing())
            self._keep_graded(wait=True)
        finally:
            # What has no verdict yet is kept for a second start, which grades it.
            for record in self._waiting.values():
                self._records.add(record)
        self._vote()
        ungraded = [
            record["detail"]
            for record in self._records.by_key.values()
            if record["outcome"] not in GRADED
        ]
        if ungraded:
            reasons.append(f"{len(ungraded)} replies not graded ({ungraded[0]})")
        return "; ".join(reasons)

    def _vote(self) -> None:
        known = self._records.by_key
        self._votes = spellings(self._rows, known.values())
        if self._suite.num_samples > 1:
            are_right = {key: record["is_correct"] for key, record in known.items()}
            self._votes = unite(
                self._votes, self._rows, are_right=are_right, sandbox=self._sandbox
            )

    def _refusal(self) -> str:
        """Tells why a verifier of the suite cannot work here, before time is spent."""
        first_of = {row.verifier: row for row in reversed(self._rows)}
        for row in first_of.values():
            question = _question(row, gold_text(row))
            try:
                answer = self._sandbox.submit(question).result()
            except ConfigError as error:
                return str(error)
            if answer.outcome == "error":
                return f"item {row.id}: {answer.detail}"
        return ""

    def _missing(self) -> list[Ask]:
        suite, known = self._suite, self._records.by_key
        pairs = [
            (row, sample)
            for row in self._rows
            for sample in range(suite.num_samples)
            if (row.id, sample) not in known
        ]
        if not pairs:
            return []
        limit = self._completer.max_new_tokens(self._rows, suite.max_new_tokens)
        return [
            Ask(
                row=row,
                sample=sample,
                temperature=suite.temperature,
                top_p=suite.top_p,
                seed=digest(f"{suite.seed}/{row.id}/{sample}") % 2**32,
                max_new_tokens=limit,
            )
            for row, sample in pairs
        ]

    def _grade_again(self) -> None:
        rows = {row.id: row for row in self._rows}
        for record in list(self._records.by_key.values()):
            if record["outcome"] not in GRADED:
                row = rows[record["id"]]
                reply = read_reply(record["output"], record["stop_reason"])
                self._submit(row, reply, dict(record))

    def _ask(self, asked: Sequence[Ask]) -> list[str]:
        """Asks, and gives each reply to a verifier; returns what went wrong."""
        rows = {row.id: row for row in self._rows}
        unsaid: list[str] = []
        reasons: list[str] = []
        for result in _until_error(self._completer.complete(asked), reasons):
            if isinstance(result, Unsaid):
                unsaid.append(result.reason)
                continue
            row = rows[result.ask.row.id]
            reply = read_reply(result.text, result.stop_reason)
            self._submit(row, reply, _record(row, result, reply))
            self._keep_graded(wait=False)
        if unsaid:
            reasons.insert(0, f"{len(unsaid)} replies are missing ({unsaid[-1]})")
        return reasons

    def _submit(self, row: Row, reply: Reply, record: dict[str, Any]) -> None:
        if reply.answer:
            future = self._sandbox.submit(_question(row, reply.answer))
        else:
            future = Future[Answer]()
            future.set_result(Answer("wrong", "the reply has no answer"))
        self._waiting[future] = record

    def _keep_graded(self, *, wait: bool) -> None:
        for future in list(self._waiting):
            if wait or future.done():
                answer = _answer_of(future)
                record = self._waiting.pop(future)
                record |= {
                    "is_correct": answer.outcome == "right",
                    "detail": answer.detail,
                    "outcome": answer.outcome,
                }
                self._records.add(record)


def _answer_of(future: Future[Answer]) -> Answer:
    try:
        return future.result()
    except ConfigError as error:  # a worker that does not start any more
        return Answer("error", str(error))


def _until_error(
    said: Iterator[Said | Unsaid], reasons: list[str]
) -> Iterator[Said | Unsaid]:
    """Passes on what comes; an error ends it, and its line goes to `reasons`."""
    while True:
        try:
            result = next(said)
        except StopIteration:
            return
        except (ConfigError, OSError) as error:
            reasons.append(" ".join(str(error).split()))
            return
        yield result


def read_reply(text: str, stop_reason: str) -> Reply:
    """Takes a reply apart; one whose prompt opened the reasoning has its tag again."""
    if "</think>" in text and "<think>" not in text:
        text = f"<think>{text}"
    return parse_reply(text + END_TOKEN if stop_reason == "stop" else text)


def gold_text(row: Row) -> str:
    """Writes the gold reply of a row as a model would."""
    calls = "".join(
        f"<tool_call>{call.to_json()}</tool_call>" for call in row.reply.tool_calls
    )
    return row.reply.content + calls


def _question(row: Row, reply: str) -> Question:
    return Question(
        verifier=row.verifier, reply=reply, answer=row.answer, metadata=row.metadata
    )


def _record(row: Row, said: Said, reply: Reply) -> dict[str, Any]:
    does_compare = row.verifier in COMPARING
    return {
        "id": row.id,
        "sample": said.ask.sample,
        "prompt": "\n\n".join(map(_content, row.messages[:-1])),
        "output": said.text,
        "think": reply.think,
        "extracted": final_answer(reply.answer) if does_compare else reply.answer,
        "answer": row.answer,
        "is_correct": False,
        "detail": "not graded yet",
        "outcome": "waiting",
        "num_tokens": said.num_tokens,
        "num_think_tokens": said.num_think_tokens,
        "stop_reason": said.stop_reason,
        "is_well_formed": reply.is_well_formed,
        "difficulty": level_of(row),
    }


def _content(message: Message) -> str:
    return message.content
