# SPDX-License-Identifier: Apache-2.0
"""`benchmarks.generate`, as small as it gets: that both sides do the same work."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from benchmarks import generate, grading
from benchmarks.generate import Compared, Sizes, Weights
from ring_jax.checkpoint.huggingface import parameter_shapes
from ring_jax.checkpoint.upcycle import upcycle
from ring_jax.config import ModelConfig
from ring_jax.data import tokenizer as tokenizers

TOKENIZER = tokenizers.train(["seven plus eight is fifteen"] * 3, vocab_size=280)
# A token that the model has no weights to say: an answer never ends before its length.
TOKENIZER.end_token = "[gMASK]"
DENSE = ModelConfig(
    vocab_size=TOKENIZER.vocab_size,
    model_dim=32,
    num_layers=2,
    num_dense_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    norm_head=False,
    eos_id=1,
    pad_id=1,
)
SIZES = Sizes(prompt_tokens=9, new_tokens=6, turn_tokens=2, passes={3: 1, 1: 2})


def make_weights(*, is_routed: bool) -> Weights:
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(0, 0.3, shape).astype(np.float32)
        for path, shape in parameter_shapes(DENSE).items()
    }
    config = DENSE
    params["head_DV"][:, TOKENIZER.eos_id] = 0
    if is_routed:
        config, params = upcycle(DENSE, params, generate.EXPERTS)
    return Weights(config, params, TOKENIZER)


@pytest.mark.parametrize("is_routed", [False, True], ids=["dense", "moe"])
def test_both_sides_say_the_same_and_nothing_is_compiled_meanwhile(
    mesh, is_routed, monkeypatch
):
    # Turns of a model this small tell no speeds: that they were timed is enough.
    def turns(seconds, prompts, sizes):
        return {"turns": sum(map(len, seconds))}

    monkeypatch.setattr(generate, "speeds_of", turns)
    prompt_ids = np.random.default_rng(1).integers(20, 270, (3, 12)).astype(np.int32)
    found = generate.compare(make_weights(is_routed=is_routed), SIZES, prompt_ids)
    assert list(found) == [3, 1]
    for size, result in found.items():
        assert result.same_tokens == 1
        assert result.recompilations == 0
        assert {speed["turns"] for speed in result.speeds.values()} == {
            3 * SIZES.passes[size]
        }
    assert len(found[3].speeds) == 2
    assert len(found[1].speeds) == 3


def test_a_compilation_is_counted(mesh):
    with generate.compilations() as compiled:
        jax.jit(lambda x: x * 3 + 1)(np.float32(2))
    assert compiled


def test_reading_prompts_is_what_the_first_turn_takes_longer():
    seconds = [[3.0, 1.0, 1.0], [4.0, 2.0, 1.0], [2.0, 1.0, 9.0]]
    speeds = generate.speeds_of(seconds, [[1] * 10] * 4, SIZES)
    assert speeds == {"prefill": 20.0, "decode": 8.0}


def test_tokens_are_the_same_up_to_the_first_that_is_not():
    assert generate.same_share([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == 1
    assert generate.same_share([[1, 2, 3, 4]], [[1, 5, 3, 4]]) == 0.25


def test_the_faster_peer_and_the_slower_model_count():
    def compared(ours: float, batch: float, step: float) -> Compared:
        speeds = {generate.OURS: ours, "BatchGenerator": batch, "generate_step": step}
        phases = {n: {"prefill": 2 * v, "decode": v} for n, v in speeds.items()}
        return Compared(phases, 1.0, 0)

    found = {
        "dense": {16: compared(9, 3, 1), 1: compared(4, 2, 4)},
        "moe": {16: compared(8, 4, 1), 1: compared(3, 2, 1)},
    }
    line = generate.summary(found)
    assert line["ratio_to_mlx_lm_batch16"] == 2
    assert line["ratio_to_mlx_lm_batch1"] == 1
    assert line["ratio_to_mlx_lm_prefill"] == 1
    worse = dataclasses.replace(found["moe"][1], recompilations=2, same_tokens=0.5)
    found["moe"][1] = worse
    assert generate.summary(found)["recompilations"] == 2
    assert generate.summary(found)["same_tokens"] == 0.5


def test_answers_are_graded_alone_and_beside():
    def decode() -> float:
        time.sleep(0.05)
        return 10.0

    found = grading.measure(decode, num_answers=60)
    assert found["grading_answers"] == 60
    assert found["grading_decode_share"] == 1
    assert found["grading_answers_per_second"] > 0
    assert found["grading_answers_per_second_beside"] > 0
    assert 0 < found["grading_cores"] <= found["grading_workers"] + 0.5
