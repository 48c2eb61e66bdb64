# SPDX-License-Identifier: Apache-2.0
"""Cached, batched decoding says what the plain model would say, row by row."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.config import (
    ConfigError,
    EvaluateConfig,
    GenerateConfig,
    MeshConfig,
    ModelConfig,
    MoeConfig,
)
from ring_jax.data import tokenizer as tokenizers
from ring_jax.generate import GREEDY, Engine, Request, Sampling, programs
from ring_jax.model import Transformer, init_transformer

TOKENIZER = tokenizers.train(["seven plus eight is fifteen"] * 3, vocab_size=280)
NUM_UNUSED = 8
# Weights of this size make tokens follow from context: with small ones a model repeats
# one token whatever it has read, and a broken cache would go unnoticed.
MODEL = ModelConfig(
    vocab_size=TOKENIZER.vocab_size + NUM_UNUSED,
    model_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    moe=MoeConfig(
        num_experts=8, num_experts_per_token=2, num_shared_experts=1, expert_dim=16
    ),
    init_std=0.5,
    eos_id=TOKENIZER.eos_id,
    pad_id=TOKENIZER.eos_id,
)
SIZES = EvaluateConfig(max_prompt_tokens=12, max_new_tokens=10, batch_size=4)
PROMPTS = [[5, 60, 31], [9], [70, 71, 72, 73, 74, 75], list(range(20, 32)), [9, 10]]


@functools.partial(jax.jit, static_argnums=0)
def initialize(config: ModelConfig, seed: int) -> Transformer:
    return init_transformer(config, jax.random.key(seed))


def create(*, seed: int = 0) -> Transformer:
    return initialize(MODEL, seed)


def complete(model, prompts, *, config=SIZES, sampling=GREEDY, **options):
    engine = Engine(model, TOKENIZER, config=config, **options)
    return [completion.ids for completion in engine.generate(prompts, sampling)]


@jax.jit
def next_logits(model, ids_BT, length):
    """The plain model on one row without padding before it, as the definition reads."""
    slots_BT = jnp.arange(ids_BT.shape[1])[None]
    hidden_BTD, _ = model(
        ids_BT,
        segments_BT=(slots_BT < length).astype(jnp.int32),
        positions_BT=slots_BT,
    )
    return model.logits(hidden_BTD)[0, length - 1, : TOKENIZER.vocab_size]


def uncached_greedy(model, prompt: list[int], *, num_tokens: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + num_tokens:
        row = np.zeros((1, SIZES.max_prompt_tokens + SIZES.max_new_tokens), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(next_logits(model, row, len(ids)))))
        if ids[-1] == TOKENIZER.eos_id:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cached_greedy_is_the_uncached_argmax_step_by_step(mesh, seed):
    model = create(seed=seed)
    expected = [uncached_greedy(model, prompt, num_tokens=10) for prompt in PROMPTS]
    assert complete(model, PROMPTS) == expected
    # The check means something only if the model does not say one thing to all.
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)


def test_a_row_does_not_depend_on_its_neighbours(mesh):
    model = create()
    together = complete(model, PROMPTS)
    alone = [complete(model, [prompt])[0] for prompt in PROMPTS]
    assert together == alone
    assert complete(model, PROMPTS[::-1]) == together[::-1]


def test_a_row_does_not_depend_on_its_padding(mesh):
    model = create()
    wider = dataclasses.replace(SIZES, max_prompt_tokens=29, batch_size=3)
    assert complete(model, PROMPTS, config=wider) == complete(model, PROMPTS)


def test_fewer_new_tokens_give_a_prefix(mesh):
    model = create()
    shorter = dataclasses.replace(SIZES, max_new_tokens=4)
    long, short = complete(model, PROMPTS), complete(model, PROMPTS, config=shorter)
    assert short == [ids[:4] for ids in long]


def with_end_token_at(model: Transformer, name: int) -> Transformer:
    """Swaps the end token with another in embedding and head."""
    end = TOKENIZER.eos_id
    order = np.arange(MODEL.vocab_size)
    order[[end, name]] = order[[name, end]]
    model.embed_VD[...] = model.embed_VD[...][order]
    assert model.head_DV is not None
    model.head_DV[...] = model.head_DV[...][:, order]
    return model


def test_a_row_stops_at_its_end_token_and_others_go_on(mesh):
    said = complete(create(), PROMPTS)
    swapped = said[0][3]
    model = with_end_token_at(create(), swapped)
    completions = Engine(model, TOKENIZER, config=SIZES).generate(PROMPTS)
    first = completions[0]
    assert first.ids == [*said[0][: said[0].index(swapped)], TOKENIZER.eos_id]
    assert first.stop_reason == "stop" and first.text.endswith("<|endoftext|>")
    for before, completion in zip(said, completions, strict=True):
        has_ended = completion.ids[-1] == TOKENIZER.eos_id
        assert (completion.stop_reason == "stop") == has_ended
        assert TOKENIZER.eos_id not in completion.ids[:-1]
        assert len(completion.ids) == SIZES.max_new_tokens or has_ended
        assert has_ended == (swapped in before)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=5.0)])
def test_ids_without_a_token_never_appear(mesh, sampling):
    model = create()
    assert model.head_DV is not None
    # Unused rows of the head are made the most probable ones whatever was read.
    head_DV = model.head_DV[...]
    loud = 50.0 * jnp.sign(head_DV[:, TOKENIZER.vocab_size :])
    model.head_DV[...] = head_DV.at[:, TOKENIZER.vocab_size :].set(loud)
    for ids in complete(model, PROMPTS, sampling=sampling):
        assert max(ids) < TOKENIZER.vocab_size


def asked(prompts, *, temperature=1.5, seed=3):
    """Requests that draw, each by a seed of its own."""
    return [
        Request(
            prompt_ids=tuple(prompt),
            sampling=Sampling(temperature=temperature, top_k=50, seed=seed + number),
        )
        for number, prompt in enumerate(prompts)
    ]


def answers(model, requests, *, config=SIZES):
    engine = Engine(model, TOKENIZER, config=config)
    return [completion.ids for completion in engine.complete(requests)]


def test_draws_depend_on_seed_and_prompt_and_not_on_neighbours(mesh):
    model, requests = create(), asked(PROMPTS)
    drawn = answers(model, requests)
    assert drawn == answers(model, requests)
    assert drawn == answers(model, requests[::-1])[::-1]
    assert drawn == [answers(model, [request])[0] for request in requests]
    assert drawn != answers(model, asked(PROMPTS, seed=4))
    assert drawn != complete(model, PROMPTS)
    # Two askings of one prompt are two draws.
    one, two = answers(model, asked([PROMPTS[0]] * 2))
    assert one != two


@pytest.mark.parametrize("shape", [{"fsdp": 2, "expert": 4}, {"data": 4, "tensor": 2}])
def test_a_larger_mesh_says_the_same(mesh, shape):
    requests = asked(PROMPTS)
    expected = answers(create(), requests)
    larger = sharding.make_mesh(MeshConfig(**({"data": 1} | shape)), jax.devices()[:8])
    with jax.set_mesh(larger):
        # Three slots do not divide over the devices; more are made.
        config = dataclasses.replace(SIZES, batch_size=3)
        assert answers(create(), requests, config=config) == expected


def with_pace(model, requests, *, config=SIZES, **pace):
    engine = Engine(model, TOKENIZER, config=config, pace=GenerateConfig(**pace))
    return engine.complete(requests)


LONG = EvaluateConfig(max_prompt_tokens=80, max_new_tokens=10, batch_size=2)


def test_a_neighbour_changes_no_bit(mesh):
    """Not even of log-probabilities, though prompts are of very different lengths."""
    model = create()
    prompts = [PROMPTS[0], list(range(5, 75)), [9], list(range(60, 80))]
    requests = asked(prompts)
    together = with_pace(model, requests, config=LONG, steps_per_dispatch=3)
    for request, completion in zip(requests, together, strict=True):
        (alone,) = with_pace(model, [request], config=LONG, steps_per_dispatch=3)
        assert alone == completion


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_steps_of_a_dispatch_change_nothing(mesh, steps):
    requests = asked(PROMPTS)
    wanted = with_pace(create(), requests)
    assert with_pace(create(), requests, steps_per_dispatch=steps) == wanted


def test_kept_prefixes_change_no_bit_and_are_not_read_again(mesh, monkeypatch):
    model = create()
    common = list(range(5, 45))
    requests = asked([common + [60], common + [61, 62], common + [60]])
    sizes = []
    plain = programs.read

    def counting(decoder, cache, chunk):
        sizes.append(chunk.ids_JT.shape[1])
        return plain(decoder, cache, chunk)

    monkeypatch.setattr(programs, "read", counting)
    pace = {"config": LONG, "prefill_chunk_tokens": 16}
    wanted = with_pace(model, requests, prefix_cache_tokens=0, **pace)
    assert sizes == [16] * 9
    sizes.clear()
    found = with_pace(model, requests, prefix_cache_tokens=200, **pace)
    # Two chunks of the first are all of the second's but its last; the third is there.
    assert sizes == [16] * 4
    assert found == wanted


def test_nothing_is_compiled_after_the_first_requests(mesh):
    compiled = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event and duration_secs >= 0:
            compiled.append(event)

    engine = Engine(create(), TOKENIZER, config=LONG)
    lengths = (3, 20, 40, 75)
    engine.complete(asked([list(range(5, 5 + n)) for n in lengths]))
    engine.complete(asked([list(range(5, 5 + n)) for n in lengths]))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        rng = np.random.default_rng(0)
        prompts = [rng.integers(5, 250, n).tolist() for n in (1, 2, 17, 70, 33, 64, 5)]
        requests = [
            dataclasses.replace(
                request,
                max_new_tokens=1 + number,
                stop=("seven",),
                stop_ids=(7,),
                max_think_tokens=number,
            )
            for number, request in enumerate(asked(prompts, temperature=0.9))
        ]
        engine.complete(requests)
        assert not compiled
        # The listener does hear.
        jax.jit(lambda x: x + len(prompts))(1.5)
        assert compiled
    finally:
        jax.monitoring.clear_event_listeners()


def test_log_probabilities_are_those_of_the_plain_model(mesh):
    model, prompt = create(), PROMPTS[2]
    (completion,) = Engine(model, TOKENIZER, config=SIZES).generate([prompt])
    ids = list(prompt)
    for token, found in zip(completion.ids, completion.log_probabilities, strict=True):
        row = np.zeros((1, 22), np.int32)
        row[0, : len(ids)] = ids
        wanted_V = jax.nn.log_softmax(next_logits(model, row, len(ids)))
        # float32 of two orders of summing.
        assert found == pytest.approx(float(wanted_V[token]), abs=1e-4)
        ids.append(token)


def test_stop_tokens_and_texts_end_a_completion(mesh):
    model = create()
    request = Request(prompt_ids=tuple(PROMPTS[0]))
    (plain,) = with_pace(model, [request])
    token = plain.ids[4]
    by_id = dataclasses.replace(request, stop_ids=(token,))
    (stopped,) = with_pace(model, [by_id])
    assert stopped.ids == plain.ids[: plain.ids.index(token) + 1]
    assert stopped.stop_reason == "stop"
    # A text that begins in one token and ends in the next.
    texts = [TOKENIZER.decode([i]) for i in plain.ids]
    pairs = zip(texts, texts[1:], strict=False)
    number = next(n for n, (a, b) in enumerate(pairs) if a.isascii() and b.isascii())
    text = texts[number][-1] + texts[number + 1][0]
    by_text = dataclasses.replace(request, stop=("never said", text))
    (stopped,) = with_pace(model, [by_text])
    assert stopped.stop_reason == "stop"
    assert stopped.text == plain.text[: plain.text.index(text)]
    assert plain.ids[: len(stopped.ids)] == stopped.ids
    assert len(stopped.ids) <= number + 2
    assert len(stopped.log_probabilities) == len(stopped.ids)


THINK, END_OF_THINK = (TOKENIZER.special_id(name) for name in ("<think>", "</think>"))


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_a_think_block_is_closed_when_its_tokens_are_spent(mesh, budget):
    request = Request(prompt_ids=(*PROMPTS[0], THINK))
    (free,) = with_pace(create(), [request])
    assert END_OF_THINK not in free.ids
    limited = dataclasses.replace(request, max_think_tokens=budget)
    (closed,) = with_pace(create(), [limited])
    assert closed.ids[: budget + 1] == [*free.ids[:budget], END_OF_THINK]
    assert END_OF_THINK not in closed.ids[budget + 1 :]
    assert len(closed.ids) == SIZES.max_new_tokens
    # Without an open block there is nothing to close.
    outside = dataclasses.replace(limited, prompt_ids=tuple(PROMPTS[0]))
    assert with_pace(create(), [outside])[0].ids == complete(create(), [PROMPTS[0]])[0]


def test_the_repetition_penalty_reads_prompt_and_answer(mesh):
    request = Request(
        prompt_ids=tuple(PROMPTS[3]), sampling=Sampling(repetition_penalty=1e6)
    )
    (completion,) = with_pace(create(), [request], steps_per_dispatch=3)
    assert len(set(completion.ids)) == len(completion.ids)
    assert not set(completion.ids) & set(PROMPTS[3])


def test_a_stream_tells_the_whole_text_and_may_be_left(mesh):
    engine = Engine(
        create(), TOKENIZER, config=SIZES, pace=GenerateConfig(steps_per_dispatch=2)
    )
    requests = asked(PROMPTS)
    wanted = engine.complete(requests)
    texts, ends = [""] * len(requests), 0
    for told in engine.stream(requests):
        texts[told.number] += told.text
        ends += told.completion is not None
    for text, completion in zip(texts, wanted, strict=True):
        assert completion.text.startswith(text)
        assert completion.text[len(text) :].strip("\ufffd") == ""
    assert ends == len(requests)
    for _ in range(3):
        next(iter(engine.stream(requests)))
    assert engine.complete(requests) == wanted


def test_bfloat16_decodes_too(mesh):
    for ids in complete(create(), PROMPTS, dtype="bfloat16"):
        assert 0 < len(ids) <= SIZES.max_new_tokens


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[1] * 13], "13 tokens.*max_prompt_tokens=12"), ([[1], []], "no tokens")],
)
def test_a_prompt_that_does_not_fit_is_a_mistake_of_one_line(mesh, prompts, message):
    with pytest.raises(ConfigError, match=message) as caught:
        complete(create(), prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 11}, "max_new_tokens=11.*max_new_tokens=10"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_think_tokens": -1}, "max_think_tokens=-1"),
        ({"stop_ids": tuple(range(16))}, "16 stop_ids"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_is_a_mistake_of_one_line(mesh, fields, message):
    request = Request(prompt_ids=(1, 2), **fields)
    with pytest.raises(ConfigError, match=message) as caught:
        with_pace(create(), [request])
    assert "\n" not in str(caught.value)


def test_a_batch_beyond_the_positions_of_the_model_is_refused(mesh):
    long = dataclasses.replace(SIZES, max_new_tokens=16_380)
    with pytest.raises(ConfigError, match="12 .*=16380 .*=16384"):
        Engine(create(), TOKENIZER, config=long)


def test_nothing_asked_is_nothing_said(mesh):
    assert complete(create(), []) == []


def test_models_of_one_shape_share_one_program(mesh):
    complete(create(seed=0), PROMPTS)
    program: Any = programs.decode
    before = program._cache_size()
    complete(create(seed=1), PROMPTS[:2])
    assert program._cache_size() == before
