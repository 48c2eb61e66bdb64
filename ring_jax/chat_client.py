# SPDX-License-Identifier: Apache-2.0
"""A client of servers with OpenAI's protocol (vLLM, SGLang, others).

Requests go out in threads, at a limited pace. What a server cannot answer now (it is
busy, broke, slow, or answers no JSON) is asked again after a wait that doubles; what it
refuses (a wrong key, an unknown model) is a `ConfigError` of one line.

Source: https://platform.openai.com/docs/api-reference/chat/create. Reasoning comes as
`reasoning_content`, as DeepSeek's and vLLM's servers send it, or inside the content.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from ring_jax.config import ConfigError, TeacherConfig

MAX_WAIT_SECONDS = 120.0
"""Between two tries, and at most what a server's Retry-After may ask for."""
GRACE_SECONDS = 10.0
"""For answers that are under way when the work is interrupted: they are paid for."""
_CONTEXT = re.compile(r"context[ _](length|size|window)", re.IGNORECASE)
"""In the refusals of vLLM, SGLang, llama.cpp and OpenAI."""
_REFUSALS = {400, 401, 403, 404, 405, 413, 422}
"""Statuses that the same request would meet again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """What a server said to one request."""

    text: str
    """Reasoning first, between think tags, if there is any."""
    about: Mapping[str, Any]
    """`model`, `finish_reason` and `usage`, as the server reports them."""


class TooLongError(Exception):
    """A prompt for which the server's context has no room."""


class NoAnswerError(Exception):
    """A try that failed and may succeed later."""

    def __init__(self, reason: str, wait_seconds: float = 0.0):
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class ServerClient:
    """Posts to one server until it answers; threads may post at once."""

    def __init__(self, config: TeacherConfig, *, name: str):
        """Checks the settings, and reads the key.

        Args:
          config: which server and model, and how it is asked.
          name: of these settings, for messages, such as "teacher".

        Raises:
          ConfigError: there is no address, model or key.
        """
        for field in ("url", "model"):
            if not getattr(config, field):
                raise ConfigError(f"{name}.{field} is empty; name the server's.")
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError(f"{name}.url={config.url!r} must begin with http(s)://.")
        self.config = config
        self._name = name
        self._key = _read_key(config.key_variable, name)
        self._pace = _Pace(config.requests_per_minute)

    def post[Answer](
        self,
        path: str,
        asked: Mapping[str, Any],
        read: Callable[[bytes], Answer],
        stop: threading.Event,
    ) -> Answer | None:
        """Asks until there is an answer; None when `stop` is set meanwhile.

        Args:
          path: behind the server's address, such as `chat/completions`.
          asked: fields of the request; the model is added.
          read: makes the answer of a response; raises `NoAnswerError` where it is none.
          stop: ends the waiting between tries.

        Raises:
          ConfigError: the server refuses the request.
          TooLongError: its context has no room for the request.
          OSError: it failed `max_tries` times.
        """
        config = self.config
        body = {"model": config.model, **asked}
        wait = config.first_wait_seconds
        for number in range(1, config.max_tries + 1):
            self._pace.wait(stop)
            if stop.is_set():
                return None
            try:
                return read(self._response(path, body))
            except NoAnswerError as error:
                if number == config.max_tries:
                    raise OSError(
                        f"{self._name} {config.url}: {number} tries failed, the last "
                        f"with {error}. Answers so far are kept; run the command again."
                    ) from None
                pause = min(max(wait, error.wait_seconds), MAX_WAIT_SECONDS)
                # Spread, so that parallel requests do not come back all at once.
                pause *= random.uniform(0.75, 1.25)
                logging.warning("%s: %s; again in %.1f s", self._name, error, pause)
                if stop.wait(pause):
                    return None
                wait *= 2
        return None

    def _response(self, path: str, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self.config.url.rstrip('/')}/{path}",
            data=json.dumps(body).encode(),
            headers=headers,
        )
        try:
            with urllib.request.urlopen(
                request, timeout=self.config.timeout_seconds
            ) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise self._failure(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(repr(error)) from None

    def _failure(
        self, error: urllib.error.HTTPError
    ) -> ConfigError | TooLongError | NoAnswerError:
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
        reason = f"status {error.code} ({said})"
        if error.code in _REFUSALS and _CONTEXT.search(said):
            return TooLongError(reason)
        if error.code in _REFUSALS:
            name, config = self._name, self.config
            return ConfigError(
                f"{name} {config.url} refuses model={config.model!r} with {reason}; "
                f"mend {name}.url, {name}.model, the key or what else it is sent."
            )
        asked = error.headers.get("Retry-After", "")
        return NoAnswerError(reason, float(asked) if asked.isdigit() else 0.0)


class ChatClient:
    """Asks one model of one server for replies; threads may ask at once."""

    def __init__(self, config: TeacherConfig):
        self.config = config
        self._server = ServerClient(config, name="teacher")

    def ask(self, asked: Mapping[str, Any], stop: threading.Event) -> Answered | None:
        """Asks with the fields of a request, `messages` among them.

        Returns, and raises, as `ServerClient.post`.
        """
        return self._server.post("chat/completions", asked, _read_answer, stop)


def _read_key(variable: str, name: str) -> str:
    if variable and not os.environ.get(variable):
        raise ConfigError(
            f"{name}.key_variable={variable!r}: the environment has no such variable."
        )
    return os.environ.get(variable, "") if variable else ""


def _read_answer(text: bytes) -> Answered:
    """Finds the text in a response, reasoning first, and what is told about it."""
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
        text_only = content.encode("utf-8", "replace").decode()
        about = {
            "model": str(response.get("model", "")),
            "finish_reason": choice.get("finish_reason"),
            "usage": response.get("usage"),
        }
        return Answered(text_only, about)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = text[:80].decode("utf-8", "replace")
        raise NoAnswerError(f"a response that is none ({said!r}: {error!r})") from None


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


def ask_all[Job, Result](
    jobs: Sequence[Job],
    run: Callable[[Job, threading.Event], Result],
    *,
    num_threads: int,
) -> Iterator[Result]:
    """Runs every job, and yields what comes of each, in the order in which they end.

    The first error is raised; an error, Ctrl-C or leaving early ends the others. The
    threads are no pool's: a pool is waited for at the interpreter's end, and a server
    may take a quarter of an hour for an answer that nobody wants any more.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    ended: queue.SimpleQueue[_Ended[Result]] = queue.SimpleQueue()
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
            result = ended.get()
            if isinstance(result, BaseException):
                raise result
            yield result[0]
    finally:
        stop.set()
        until = time.monotonic() + GRACE_SECONDS
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(max(0.0, until - time.monotonic()))


type _Ended[Result] = tuple[Result] | BaseException


def _work[Job, Result](
    run: Callable[[Job, threading.Event], Result],
    waiting: queue.SimpleQueue[Job],
    ended: queue.SimpleQueue[_Ended[Result]],
    stop: threading.Event,
) -> None:
    """Runs jobs until none waits, or one failed; puts what came of each."""
    while not stop.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        result: _Ended[Result] | None = None
        try:
            result = (run(job, stop),)
        except (ConfigError, OSError) as caught:
            result = caught
        finally:
            # Also of a bug of ours, or all would wait for this job for ever.
            result = result or sys.exception() or SystemExit()
            if isinstance(result, BaseException):
                stop.set()
            ended.put(result)
