# SPDX-License-Identifier: Apache-2.0
"""Grading in processes of their own: what hangs, forks or eats memory harms one row.

A worker leads a process group; what does not answer in time is killed with all that it
started, and a new worker takes the next row. Verdicts come in the order of the rows,
whatever the number of workers.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Self

import ring_jax
from ring_jax.config import ConfigError

Outcome = Literal["right", "wrong", "timeout", "crashed", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a verifier is asked, as `ring_jax.verify.grade` takes it."""

    verifier: str
    reply: str
    answer: str
    metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A reply with a program, and inputs that it is run on."""

    reply: str
    inputs: Sequence[str]
    metadata: Mapping[str, Any]
    """Of the row: `function`, `preamble` and `seconds`, as the verifier reads them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What came of it."""

    outcome: Outcome
    detail: str = ""


class Sandbox:
    """Worker processes that grade; a context manager, which ends them."""

    def __init__(
        self, *, num_workers: int, timeout_seconds: float, max_memory_bytes: int
    ):
        self._timeout_seconds = timeout_seconds
        self._max_memory_bytes = max_memory_bytes
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers)
        # One row may take its whole time: the other workers go on meanwhile.
        self._max_waiting = 256 * num_workers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().kill()

    def grade(self, questions: Iterable[Question]) -> list[Answer]:
        """Grades each question within the limits; answers in the same order."""
        return list(self.stream(questions))

    def submit(self, question: Question) -> Future[Answer]:
        """Grades one question beside the caller, who holds how many are waiting."""
        return self._threads.submit(self._grade_one, question)

    def stream(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Grades as `grade` does, and holds a bounded number of questions at a time."""
        waiting: collections.deque[Future[Answer]] = collections.deque()
        for question in questions:
            waiting.append(self._threads.submit(self._grade_one, question))
            if len(waiting) >= self._max_waiting:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def outputs(self, trials: Iterable[Trial]) -> list[list[str | None]]:
        """Runs programs within the limits, all inputs of one within the time of a row.

        Returns:
          What each printed or returned on each input, in the same order; None where it
          did not end well.

        Raises:
          ConfigError: programs cannot be confined on this machine.
        """
        return list(self._threads.map(self._run_one, trials))

    def _run_one(self, trial: Trial) -> list[str | None]:
        reply = self._ask("program", dataclasses.asdict(trial))
        return reply.get("outputs", [None] * len(trial.inputs))

    def _grade_one(self, question: Question) -> Answer:
        family = question.verifier.partition("/")[0]
        reply = self._ask(family, dataclasses.asdict(question))
        if "correct" in reply:
            outcome = "right" if reply["correct"] else "wrong"
            return Answer(outcome, reply["detail"])
        return Answer(reply.get("end", "error"), reply["error"])

    def _ask(self, family: str, request: Mapping[str, Any]) -> dict[str, Any]:
        # As many threads as workers: a thread without an idle worker may start one.
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self._max_memory_bytes)
        reply = worker.ask(family, request, self._timeout_seconds)
        if "end" in reply:
            worker.kill()
        else:
            self._idle.put(worker)
        return reply


# Importing a verifier's packages is not the row's own time.
_START_SECONDS = 120.0


class _Worker:
    def __init__(self, max_memory_bytes: int):
        command = [
            sys.executable,
            "-m",
            "ring_jax.verify.worker",
            str(max_memory_bytes),
        ]
        self._prepared: set[str] = set()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its group is killed with it
            env=_environment(),
        )

    def ask(
        self, family: str, request: Mapping[str, Any], timeout_seconds: float
    ) -> dict[str, Any]:
        """Returns what the worker answers; `error` and `end` where it did not."""
        if family not in self._prepared:
            self._prepare(family)
        line = self._exchange(_line(request), timeout_seconds)
        if line is None:
            told = f"no verdict after {timeout_seconds:g} seconds"
            return {"end": "timeout", "error": told}
        if not line.endswith(b"\n"):
            return {"end": "crashed", "error": "its worker ended without a verdict"}
        return json.loads(line)

    def _prepare(self, family: str) -> None:
        line = self._exchange(_line({"prepare": family}), _START_SECONDS)
        reply = json.loads(line) if line else {"error": "it ended or did not answer"}
        if "ready" not in reply:
            self.kill()
            raise ConfigError(
                f"verification: a worker for {family!r} does not start "
                f"({reply['error'].rstrip('.')}); install what it needs, or raise "
                "verification.max_memory_bytes."
            )
        self._prepared.add(family)

    def _exchange(self, request: bytes, timeout_seconds: float) -> bytes | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(request)
            stdin.flush()
        except BrokenPipeError:
            return b""
        if not select.select([stdout], [], [], timeout_seconds)[0]:
            return None
        # A verdict is one short write, which a pipe does not split.
        return stdout.readline()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process.wait()


def _line(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _environment() -> dict[str, str]:
    """What a worker needs to import us, and no secret of the shell that started us."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV")
    # A checkout that is not installed is found from wherever the command was started.
    ours = str(pathlib.Path(ring_jax.__file__).parents[1])
    paths = filter(None, [ours, os.environ.get("PYTHONPATH", "")])
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(paths),
        # Threads of a numeric library would count against the address space.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
