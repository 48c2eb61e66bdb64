# SPDX-License-Identifier: Apache-2.0
"""A client of servers with OpenAI's chat-completions protocol (vLLM, SGLang, others).

Prompts are asked in threads, at a limited pace. What a server cannot answer now (it is
busy, broke, slow, or answers no JSON) is asked again after a wait that doubles; what it
refuses (a wrong key, an unknown model) ends the work in one line.

Source: https://platform.openai.com/docs/api-reference/chat/create. Reasoning comes as
`reasoning_content`, as DeepSeek's and vLLM's servers send it, or inside the content.
"""

import collections
import dataclasses
import http.client
import json
import os
import queue
import random
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from ring_jax.config import ConfigError, TeacherConfig, TeacherSamplingConfig
from ring_jax.curate.journal import Journal, answer_key

MAX_WAIT_SECONDS = 120.0
"""Between two tries, and at most what a server's Retry-After may ask for."""
GRACE_SECONDS = 10.0
"""For answers that are under way when the work is interrupted: they are paid for."""
TOO_LONG = "prompt_too_long"
"""`finish_reason` of an answer that the server's context has no room for."""
_CONTEXT = re.compile(r"context[ _](length|size|window)", re.IGNORECASE)
"""In the refusals of vLLM, SGLang, llama.cpp and OpenAI."""
_REFUSALS = {400, 401, 403, 404, 405, 413, 422}
"""Statuses that the same request would meet again."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    key: str
    prompt: str
    turns: Sequence[Mapping[str, Any]]
    number: int


class _NoAnswerError(Exception):
    """A try that failed and may succeed later."""

    def __init__(self, reason: str, wait_seconds: float = 0.0):
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _TooLongError(Exception):
    """A prompt for which the server's context has no room."""


class ChatServer:
    """Answers prompts; a function of prompts and sampling that gives texts in order.

    Equal prompts of one call get different answers, and the same ones in every run:
    the second has the second seed, and its own place in the journal.
    """

    def __init__(self, config: TeacherConfig, journal: Journal):
        for name in ("url", "model"):
            if not getattr(config, name):
                raise ConfigError(f"teacher.{name} is empty; name the server's.")
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError(f"teacher.url={config.url!r} must begin with http(s)://.")
        self._config = config
        self._journal = journal
        self._key = _read_key(config.key_variable)
        self._pace = _Pace(config.requests_per_minute)

    def __call__(
        self, prompts: Sequence[str], sampling: TeacherSamplingConfig
    ) -> list[str]:
        """Asks for what the journal lacks, and returns an answer to each prompt.

        Raises:
          ConfigError: the server refuses the request.
          OSError: it failed `max_tries` times; all answers so far are in the journal.
        """
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = self.answers(asked, sampling)
        for answer in answers:
            if answer["finish_reason"] == TOO_LONG:
                raise ConfigError(
                    f"teacher {self._config.url} refuses a prompt with "
                    f"{answer['detail']}; lower max_tokens, or give it more context."
                )
        return [answer["answer"] for answer in answers]

    def answers(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        sampling: TeacherSamplingConfig,
    ) -> list[dict[str, Any]]:
        """Asks for what the journal lacks, and returns what it then holds.

        Args:
          conversations: lists of turns as the protocol writes them.
          sampling: of all of them.

        Returns:
          `answer`, `finish_reason` and what else is known of each, in order. What the
          server's context has no room for has the finish reason `TOO_LONG` and a
          `detail`; it is asked again in another run.

        Raises:
          ConfigError, OSError: as above.
        """
        seen: collections.Counter[str] = collections.Counter()
        jobs = []
        for turns in conversations:
            prompt = _name(turns)
            number, seen[prompt] = seen[prompt], seen[prompt] + 1
            key = answer_key(
                model=self._config.model,
                sampling=sampling,
                prompt=prompt,
                number=number,
            )
            jobs.append(_Job(key, prompt, turns, number))
        missing = [job for job in jobs if job.key not in self._journal]
        too_long: dict[str, str] = {}

        def ask(job: _Job, stop: threading.Event) -> None:
            try:
                self._ask(job, sampling, stop)
            except _TooLongError as error:
                too_long[job.key] = str(error)

        _run_all(missing, ask, num_threads=self._config.num_parallel)
        return [
            {"answer": "", "finish_reason": TOO_LONG, "detail": too_long[job.key]}
            if job.key in too_long
            else self._journal.entry(job.key)
            for job in jobs
        ]

    def _ask(
        self, job: _Job, sampling: TeacherSamplingConfig, stop: threading.Event
    ) -> None:
        config = self._config
        asked = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed + job.number,
        }
        body = {
            "model": config.model,
            "messages": list(job.turns),
            **asked,
        }
        wait = config.first_wait_seconds
        for number in range(1, config.max_tries + 1):
            self._pace.wait(stop)
            if stop.is_set():
                return
            try:
                answer, about = self._post(body)
            except _NoAnswerError as error:
                if number == config.max_tries:
                    raise OSError(
                        f"teacher {config.url}: {number} tries failed, the last with "
                        f"{error}. Answers so far are kept; run the command again."
                    ) from None
                pause = min(max(wait, error.wait_seconds), MAX_WAIT_SECONDS)
                # Spread, so that parallel requests do not come back all at once.
                pause *= random.uniform(0.75, 1.25)
                logging.warning("teacher: %s; again in %.1f s", error, pause)
                if stop.wait(pause):
                    return
                wait *= 2
            else:
                self._journal.add(job.key, answer, **about, prompt=job.prompt, **asked)
                return

    def _post(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self._config.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
        )
        try:
            with urllib.request.urlopen(
                request, timeout=self._config.timeout_seconds
            ) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise _failure(error, self._config) from None
        except (OSError, http.client.HTTPException) as error:
            raise _NoAnswerError(repr(error)) from None
        return _read_answer(text)


def _name(turns: Sequence[Mapping[str, Any]]) -> str:
    """Returns what a conversation's answers are kept under: one question, its text."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        return turns[0]["content"]
    return json.dumps(turns, ensure_ascii=False)


def _read_key(variable: str) -> str:
    if variable and not os.environ.get(variable):
        raise ConfigError(
            f"teacher.key_variable={variable!r}: the environment has no such variable."
        )
    return os.environ.get(variable, "") if variable else ""


def _failure(
    error: urllib.error.HTTPError, config: TeacherConfig
) -> ConfigError | _NoAnswerError | _TooLongError:
    said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
    reason = f"status {error.code} ({said})"
    if error.code in _REFUSALS and _CONTEXT.search(said):
        return _TooLongError(reason)
    if error.code in _REFUSALS:
        return ConfigError(
            f"teacher {config.url} refuses model={config.model!r} with {reason}; mend "
            "teacher.url, teacher.model, the key or the sampling."
        )
    asked = error.headers.get("Retry-After", "")
    return _NoAnswerError(reason, float(asked) if asked.isdigit() else 0.0)


def _read_answer(text: bytes) -> tuple[str, dict[str, Any]]:
    """Finds the text in a response, reasoning first, and what the journal keeps."""
    try:
        response = json.loads(text)
        choice = response["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        if reasoning:
            content = f"<think>{reasoning}</think>\n{content}"
        if not isinstance(content, str):
            raise TypeError(f"content is {type(content).__name__}")
        # Half a surrogate pair is no text that a file could hold.
        return content.encode("utf-8", "replace").decode(), {
            "model": str(response.get("model", "")),
            "finish_reason": choice.get("finish_reason"),
            "usage": response.get("usage"),
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = text[:80].decode("utf-8", "replace")
        raise _NoAnswerError(f"a response that is none ({said!r}: {error!r})") from None


class _Pace:
    """Lets callers pass at most so often, in all threads together."""

    def __init__(self, per_minute: float):
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, stop: threading.Event) -> None:
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._seconds
        stop.wait(mine - now)


def _run_all(
    jobs: Sequence[_Job],
    run: Callable[[_Job, threading.Event], None],
    *,
    num_threads: int,
) -> None:
    """Runs every job, and raises the first error; an error or Ctrl-C ends the others.

    The threads are no pool's: a pool is waited for at the interpreter's end, and a
    server may take a quarter of an hour for an answer that nobody wants any more.
    """
    waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    for job in jobs:
        waiting.put(job)
    threads = [
        threading.Thread(target=_work, args=(run, waiting, ended, stop), daemon=True)
        for _ in range(min(num_threads, len(jobs)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            if error := ended.get():
                raise error
    finally:
        stop.set()
        until = time.monotonic() + GRACE_SECONDS
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(max(0.0, until - time.monotonic()))


def _work(
    run: Callable[[_Job, threading.Event], None],
    waiting: queue.SimpleQueue[_Job],
    ended: queue.SimpleQueue[BaseException | None],
    stop: threading.Event,
) -> None:
    """Runs jobs until none waits, or one failed; puts what came of each."""
    while not stop.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        error: BaseException | None = None
        try:
            run(job, stop)
        except (ConfigError, OSError) as caught:
            error = caught
        finally:
            # Also of a bug of ours, or all would wait for this job for ever.
            if error := error or sys.exception():
                stop.set()
            ended.put(error)
