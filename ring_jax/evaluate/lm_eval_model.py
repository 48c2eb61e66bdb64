# SPDX-License-Identifier: Apache-2.0
"""A model of ours as lm-eval's tasks ask it; needs the extra `lm_eval`.

Source: `lm_eval/api/model.py` of lm-eval 0.4.13, whose `TemplateLM` is filled in, and
`lm_eval/models/huggingface.py` there, whose cutting of long texts is followed.
"""

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from lm_eval.api.instance import (  # pyright: ignore[reportMissingImports]  # in the extra
    Instance,
)
from lm_eval.api.model import (  # pyright: ignore[reportMissingImports]  # in the extra
    TemplateLM,
)
from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]  # in the extra
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]  # in the extra
    get_rolling_token_windows,
    make_disjoint_window,
)

from ring_jax.config import ConfigError, RunConfig
from ring_jax.data.chat_format import ChatFormat
from ring_jax.data.chat_template import Failure
from ring_jax.data.schema import Message
from ring_jax.data.sources.split import digest
from ring_jax.data.tokenizer import THINK_TOKENS
from ring_jax.evaluate.complete import engine_for, num_think_tokens, room_for
from ring_jax.evaluate.lm_eval_records import CONVERSATION, UNASKED, Spoken
from ring_jax.evaluate.token_likelihood import Continuation, score
from ring_jax.generate import Completion, Request, Sampling
from ring_jax.model import Transformer

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
KNOWN = {*SAMPLING, "until", "max_gen_toks", "do_sample"}
"""What a task may ask of generation, under lm-eval's names."""


class EngineLM(TemplateLM):
    """Answers lm-eval's requests by a model on the mesh in force."""

    def __init__(self, model: Transformer, chat: ChatFormat, *, config: RunConfig):
        """Keeps the model; an engine is made for each task, in its size.

        Args:
          model: parameters on the mesh in force.
          chat: how it is spoken to.
          config: of the run; `evaluate.batch_size` is how many are asked at a time.
        """
        super().__init__()
        self._model, self._chat, self._config = model, chat, config
        self.spoken: dict[tuple[str, int], Spoken] = {}
        """What was generated: (task, number of the document) -> the first reply."""
        self._written: set[str] = set()

    @property
    def eot_token_id(self) -> int:
        """The end token, which also stands before a text that has no context."""
        return self._chat.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self._model.config.max_positions

    @property
    def tokenizer_name(self) -> str:
        """Names what renders chats, for caches that we do not use."""
        return type(self._chat).__name__

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Writes turns down as JSON, and a reply that is begun.

        They are rendered when they are asked, many at once and each turn apart, so that
        no text of an item can forge a turn.
        """
        turns = [[turn["role"], turn["content"]] for turn in chat_history]
        begun = "" if add_generation_prompt else turns.pop()[1]
        chat = CONVERSATION + json.dumps([turns, begun], ensure_ascii=False)
        self._written.add(chat)
        return chat

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Encodes text; a special token spelled out in it stays plain text."""
        del add_special_tokens, kwargs
        return self._chat.tokenizer.encode(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores what follows each context, and tells whether it would be said."""
        pairs = [request.args for request in requests]
        rendered = self._render(context for context, _ in pairs)
        asked = []
        for context, continuation in pairs:
            if context in rendered:
                parts = rendered[context], self.tok_encode(continuation)
            elif context:
                parts = self._encode_pair(context, continuation)
            else:
                parts = [self.prefix_token_id], self.tok_encode(continuation)
            asked.append(((context, continuation), *parts))
        return self._loglikelihood_tokens(asked, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts, in windows where one is longer than the model reads."""
        del disable_tqdm
        windows: list[Continuation] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                context, scored = make_disjoint_window(pair)
                windows.append(Continuation([*context, *scored], len(context)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, self._score(windows), strict=True):
            sums[owner] += found[0]
        return sums

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Completes contexts; a prompt without room is not asked, and says nothing.

        Of a reply with reasoning the answer is returned, and texts in `until` end that
        only; reasoning that never ends has none.
        """
        del disable_tqdm
        wanted = [_settings(request) for request in requests]
        rendered = self._render(request.args[0] for request in requests)
        prompts = [
            rendered.get(request.args[0]) or self.tok_encode(request.args[0])
            for request in requests
        ]
        most = max(settings["max_gen_toks"] for settings in wanted)
        room = room_for([len(ids) for ids in prompts], most, self.max_length)
        seeds = _seeds(requests)
        asked: dict[int, Request] = {}
        for number, (ids, settings) in enumerate(zip(prompts, wanted, strict=True)):
            limit = min(settings["max_gen_toks"], room)
            if 0 < len(ids) <= self.max_length - limit:
                asked[number] = self._request(ids, settings, limit, seeds[number])
        said = {
            number: self._said(completion)
            for number, completion in self._completions(asked)
        }
        answers = []
        for number, request in enumerate(requests):
            one = said.get(number, UNASKED)
            key = str(request.task_name), int(request.doc_id or 0)
            self.spoken.setdefault(key, one)
            answers.append(_answer(one.text, wanted[number]["until"]))
        return answers

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        del kwargs
        continuations, num_cut = [], 0
        for _, context, continuation in requests:
            ids = [*context, *continuation]
            num_left_out = max(len(ids) - self.max_length - 1, 0)
            num_cut += num_left_out > 0
            continuations.append(
                Continuation(ids[num_left_out:], len(context) - num_left_out)
            )
        if num_cut:
            logging.warning(
                "lm-eval: %d of %d texts are longer than %d tokens; their beginnings "
                "are left out",
                num_cut,
                len(requests),
                self.max_length,
            )
        return self._score(continuations)

    def _score(self, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        scored = score(
            self._model,
            continuations,
            dtype=self._config.train.compute_dtype,
            max_rows=self._config.evaluate.batch_size,
        )
        return [(one.log_likelihood, one.is_greedy) for one in scored]

    def _render(self, contexts: Iterator[str]) -> dict[str, list[int]]:
        """Renders each different chat once, to the tokens of its prompt."""
        chats = [one for one in dict.fromkeys(contexts) if one in self._written]
        written = [json.loads(chat.removeprefix(CONVERSATION)) for chat in chats]
        found = self._chat.prompts(
            [[Message(role, text) for role, text in turns] for turns, _ in written]
        )
        rendered = {}
        for chat, (_, begun), ids in zip(chats, written, found, strict=True):
            if isinstance(ids, Failure):
                raise ConfigError(f"--lm-eval: the chat template fails: {ids.reason}.")
            rendered[chat] = [*ids, *self.tok_encode(begun)]
        return rendered

    def _request(
        self, ids: list[int], settings: Mapping[str, Any], limit: int, seed: int
    ) -> Request:
        tokenizer = self._chat.tokenizer
        thinks = all(map(tokenizer.has_special, THINK_TOKENS))
        named = {name: settings[name] for name in SAMPLING if name in settings}
        return Request(
            prompt_ids=tuple(ids),
            sampling=Sampling(**named, seed=seed),
            max_new_tokens=limit,
            max_think_tokens=self._config.generate.max_think_tokens,
            # Inside reasoning these texts end nothing; the answer is cut afterwards.
            stop=() if thinks else tuple(settings["until"]),
            stop_ids=self._chat.stop_ids,
        )

    def _completions(
        self, asked: Mapping[int, Request]
    ) -> Iterator[tuple[int, Completion]]:
        if not asked:
            return
        requests = list(asked.values())
        engine = engine_for(
            requests,
            self._model,
            tokenizer=self._chat.tokenizer,
            config=self._config,
        )
        yield from zip(asked, engine.complete(requests), strict=True)

    def _said(self, completion: Completion) -> Spoken:
        return Spoken(
            self._chat.spoken(completion.text),
            completion.stop_reason,
            len(completion.ids),
            num_think_tokens(completion.ids, self._chat.tokenizer),
        )


def _settings(request: Instance) -> dict[str, Any]:
    settings = dict(normalize_gen_kwargs(request.args[1]))
    if unknown := set(settings) - KNOWN:
        raise ConfigError(
            f"--lm-eval: {request.task_name} asks generation for {sorted(unknown)}, "
            f"which the engine has not; it has {sorted(KNOWN)}."
        )
    settings["until"] = [text for text in settings["until"] if text]
    return settings


def _seeds(requests: Sequence[Instance]) -> list[int]:
    """Gives each sample of each document draws of its own."""
    counts: collections.Counter[tuple[Any, Any]] = collections.Counter()
    seeds = []
    for request in requests:
        key = request.task_name, request.doc_id
        seeds.append(digest(f"{key[0]}/{key[1]}/{counts[key]}") % 2**32)
        counts[key] += 1
    return seeds


def _answer(text: str, until: list[str]) -> str:
    opening, closing = THINK_TOKENS
    if opening in text and closing not in text:
        return ""
    end = closing if closing in text else None
    return postprocess_generated_text(text, until, end)
