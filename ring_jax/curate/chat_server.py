# SPDX-License-Identifier: Apache-2.0
"""A teacher behind a server: prompts in, texts out, none paid for twice."""

import collections
import dataclasses
import threading
from collections.abc import Sequence

from ring_jax.chat_client import ChatClient, TooLongError, ask_all
from ring_jax.config import ConfigError, TeacherConfig, TeacherSamplingConfig
from ring_jax.curate.journal import Journal, answer_key


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    place: int
    key: str
    prompt: str
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
        seen: collections.Counter[str] = collections.Counter()
        jobs = []
        for place, prompt in enumerate(prompts):
            number, seen[prompt] = seen[prompt], seen[prompt] + 1
            key = answer_key(
                model=self._config.model,
                sampling=sampling,
                prompt=prompt,
                number=number,
            )
            jobs.append(_Job(place, key, prompt, number))
        missing = [job for job in jobs if job.key not in self._journal]

        def ask(job: _Job, stop: threading.Event) -> None:
            self._ask(job, sampling, stop)

        for _ in ask_all(missing, ask, num_threads=self._config.num_parallel):
            pass
        return [self._journal.read(job.key) for job in jobs]

    def _ask(
        self, job: _Job, sampling: TeacherSamplingConfig, stop: threading.Event
    ) -> None:
        asked = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed + job.number,
        }
        messages = [{"role": "user", "content": job.prompt}]
        try:
            answered = self._client.ask({"messages": messages, **asked}, stop)
        except TooLongError as error:
            raise ConfigError(
                f"teacher {self._config.url} refuses a prompt with {error}; lower "
                "max_tokens, or give it more context."
            ) from None
        if answered is not None:
            about = {**answered.about, "prompt": job.prompt, **asked}
            self._journal.add(job.key, answered.text, **about)
