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
from collections.abc import Iterable, Iterator, Mapping
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

    def _grade_one(self, question: Question) -> Answer:
        # As many threads as workers: a thread without an idle worker may start one.
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self._max_memory_bytes)
        answer = worker.ask(question, self._timeout_seconds)
        if answer.outcome in ("timeout", "crashed"):
            worker.kill()
        else:
            self._idle.put(worker)
        return answer


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

    def ask(self, question: Question, timeout_seconds: float) -> Answer:
        family = question.verifier.partition("/")[0]
        if family not in self._prepared:
            self._prepare(family)
        line = self._exchange(_line(dataclasses.asdict(question)), timeout_seconds)
        if line is None:
            return Answer("timeout", f"no verdict after {timeout_seconds:g} seconds")
        if not line.endswith(b"\n"):
            return Answer("crashed", "its worker ended without a verdict")
        verdict = json.loads(line)
        if "error" in verdict:
            return Answer("error", verdict["error"])
        return Answer("right" if verdict["correct"] else "wrong", verdict["detail"])

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
