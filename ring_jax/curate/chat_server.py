# SPDX-License-Identifier: Apache-2.0
"""A teacher behind a server: prompts in, texts out, none paid for twice."""

import collections
import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.chat_client import ChatClient, TooLongError, ask_all
from ring_jax.config import ConfigError, TeacherConfig, TeacherSamplingConfig
from ring_jax.curate.journal import Journal, answer_key

TOO_LONG = "prompt_too_long"
"""`finish_reason` of an answer that the server's context has no room for."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    key: str
    prompt: str
    turns: Sequence[Mapping[str, Any]]
    number: int


class ChatServer:
    """Answers prompts; a function of prompts and sampling that gives texts in order.

    Equal prompts of one call get different answers, and the same ones in every run:
    the second has the second seed, and its own place in the journal.
    """

    def __init__(self, config: TeacherConfig, journal: Journal):
        self._config = config
        self._journal = journal
        self._client = ChatClient(config)

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
            except TooLongError as error:
                too_long[job.key] = str(error)

        for _ in ask_all(missing, ask, num_threads=self._config.num_parallel):
            pass
        return [
            {"answer": "", "finish_reason": TOO_LONG, "detail": too_long[job.key]}
            if job.key in too_long
            else self._journal.entry(job.key)
            for job in jobs
        ]

    def _ask(
        self, job: _Job, sampling: TeacherSamplingConfig, stop: threading.Event
    ) -> None:
        asked = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed + job.number,
        }
        answered = self._client.ask({"messages": list(job.turns), **asked}, stop)
        if answered is not None:
            about = {**answered.about, "prompt": job.prompt, **asked}
            self._journal.add(job.key, answered.text, **about)


def _name(turns: Sequence[Mapping[str, Any]]) -> str:
    """Returns what a conversation's answers are kept under: one question, its text."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        return turns[0]["content"]
    return json.dumps(turns, ensure_ascii=False)
