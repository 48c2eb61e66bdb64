# SPDX-License-Identifier: Apache-2.0
"""Who answers: our engine as it is asked directly, and a server on this machine."""

import dataclasses
import functools

import jax
import pytest

from ring_jax.cli.asked_model import ONLY_ASKED
from ring_jax.config import (
    EvaluateConfig,
    ModelConfig,
    MoeConfig,
    TeacherConfig,
    TrainConfig,
)
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import render_prompt
from ring_jax.data.chat_format import OurChat
from ring_jax.data.schema import Message, Row
from ring_jax.evaluate.complete import Ask, EngineCompleter, Said, Unsaid
from ring_jax.evaluate.server import MAX_FAILURES, ServerCompleter
from ring_jax.generate import Engine, Request, Sampling
from ring_jax.model import init_transformer
from tests.loopback_server import chat_message, serving

MODEL = ModelConfig(
    vocab_size=400,
    model_dim=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    moe=MoeConfig(
        num_experts=4, num_experts_per_token=2, num_shared_experts=1, expert_dim=8
    ),
    init_std=0.5,
    max_positions=128,
    eos_id=1,
    pad_id=1,
)


def ask(question: str, *, sample: int = 0, **changes) -> Ask:
    row = Row(
        id=question,
        messages=(Message("user", question), Message("assistant", "yes")),
        source="test",
        domain="test",
        licence="NOASSERTION",
        package="test==1",
        answer="yes",
        verifier="match",
    )
    settings = {"temperature": 1.0, "top_p": 0.9, "seed": 5 + sample}
    settings |= {"max_new_tokens": 12, **changes}
    return Ask(row=row, sample=sample, **settings)


class CountingChat(OurChat):
    num_rendered = 0

    def prompts(self, conversations):
        CountingChat.num_rendered += len(conversations)
        return super().prompts(conversations)


def test_an_engine_answers_as_when_it_is_asked_directly(mesh):
    tokenizer = tokenizers.train(["a b c d e f g"] * 20, vocab_size=300)
    model = jax.jit(functools.partial(init_transformer, MODEL))(jax.random.key(0))
    render = functools.partial(render_prompt, tokenizer=tokenizer, template="ring")
    run = ONLY_ASKED.__class__(
        model=MODEL,
        data=ONLY_ASKED.data,
        train=TrainConfig(seq_len=1, compute_dtype="float32"),
        evaluate=EvaluateConfig(batch_size=2),
        stages=ONLY_ASKED.stages,
    )
    chat = CountingChat(tokenizer, "ring")
    completer = EngineCompleter(model, chat, config=run)
    asked = [ask("a b?", sample=number) for number in range(3)]
    asked = [dataclasses.replace(one, row=asked[0].row) for one in asked]
    asked += [ask("c?", temperature=0.0), ask("long " * 100)]
    rows = [one.row for one in asked]
    # The longest prompt that leaves half of the positions has room for the rest.
    assert completer.max_new_tokens(rows, 12) == 12
    shorter = completer.max_new_tokens(rows, 1000)
    assert shorter == 128 - len(render(asked[0].row))
    said = {(s.ask.row.id, s.ask.sample): s for s in completer.complete(asked)}
    assert len(said) == 5
    # Three rows, whose room was asked for twice; to answer, none was rendered again.
    assert chat.num_rendered == 2 * 3
    engine = Engine(
        model,
        tokenizer,
        config=EvaluateConfig(max_prompt_tokens=64, max_new_tokens=12, batch_size=2),
    )
    for one in asked[:4]:
        sampling = Sampling(temperature=one.temperature, top_p=one.top_p, seed=one.seed)
        request = Request(prompt_ids=tuple(render(one.row)), sampling=sampling)
        (direct,) = engine.complete([request])
        found = said[one.row.id, one.sample]
        assert isinstance(found, Said)
        assert found.text == direct.text.removesuffix("<|endoftext|>")
        assert found.num_tokens == len(direct.ids)
        assert found.stop_reason == direct.stop_reason
    long = said["long " * 100, 0]
    assert isinstance(long, Said) and long.stop_reason == "prompt_too_long"


def completer_of(url: str) -> ServerCompleter:
    return ServerCompleter(
        TeacherConfig(
            url=url, model="m", max_tries=2, first_wait_seconds=0.0, num_parallel=2
        )
    )


def test_a_server_is_asked_for_each_sample_and_its_reasoning_is_kept():
    def reply(body):
        number = body["seed"]
        if number == 6:
            return 200, chat_message("", finish="length", reasoning="on and on")
        return 200, chat_message(f"say {number}", reasoning="hm")

    asked = [ask("Why?", sample=number) for number in range(3)]
    with serving(reply) as server:
        found = list(completer_of(server.url).complete(asked))
    said = {one.ask.sample: one for one in found if isinstance(one, Said)}
    assert len(said) == 3
    assert said[0].text == "<think>hm</think>\nsay 5"
    assert (said[0].num_tokens, said[0].num_think_tokens) == (9, None)
    assert (said[1].text, said[1].stop_reason) == ("<think>on and on", "length")
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Why?"}]
    settings = {name: server.asked[0][name] for name in ("temperature", "top_p")}
    assert settings == {"temperature": 1.0, "top_p": 0.9}
    assert {body["max_tokens"] for body in server.asked} == {12}
    assert {body["seed"] for body in server.asked} == {5, 6, 7}


def test_an_item_that_a_server_refuses_costs_no_other():
    def reply(body):
        if "odd" in body["messages"][0]["content"]:
            return 400, {"error": "no such letters"}
        if "long" in body["messages"][0]["content"]:
            return 400, {"error": "maximum context length is 4096 tokens"}
        return 200, chat_message("yes")

    asked = [ask("one?"), ask("an odd one?"), ask("a long one?"), ask("another?")]
    with serving(reply) as server:
        found = list(completer_of(server.url).complete(asked))
    unsaid = [one for one in found if isinstance(one, Unsaid)]
    assert [one.ask.row.id for one in unsaid] == ["an odd one?"]
    assert "no such letters" in unsaid[0].reason
    said = {one.ask.row.id: one for one in found if isinstance(one, Said)}
    assert said["a long one?"].stop_reason == "prompt_too_long"
    assert len(said) == 3


def test_a_server_that_fails_all_the_time_is_not_asked_for_ever():
    asked = [ask(f"{number}?") for number in range(100)]
    with serving(lambda body: (500, {})) as server:
        found = completer_of(server.url).complete(asked)
        for _ in range(MAX_FAILURES):
            assert isinstance(next(found), Unsaid)
        with pytest.raises(OSError, match="failures in a row"):
            next(found)
        assert len(server.asked) < 4 * MAX_FAILURES
