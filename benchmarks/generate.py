# SPDX-License-Identifier: Apache-2.0
"""Generation against mlx-lm: the same weights, prompts and cores, in one process.

    python -m benchmarks.generate [--passes=1] [--answers=10000] [--model=dense]

SmolLM2-135M (see `benchmarks.smollm2`), and the mixture of eight experts, two a token,
that it is upcycled to; both float32. Prompts of 128 tokens of Python's documentation,
128 new tokens each, greedy; mlx-lm opens our export. The sides take turns of eight
tokens a prompt, which medians are of:

    decode    the tokens of a turn over its seconds
    prefill   prompt tokens over the seconds that the first turn takes longer

At batch 1 the faster of mlx-lm's two ways counts; of the two models, the lower ratio.
`--answers` are then graded with math-verify, by a worker a core: alone, and while the
dense model decodes. mlx-lm takes up most of half an hour. The last line is one JSON
object.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import mlx.nn as nn
import numpy as np
import tokenizers

from benchmarks import grading, mlx_peer, smollm2
from benchmarks.conditions import conditions
from benchmarks.mlx_peer import Ids, Rounds, Say
from ring_jax import sharding
from ring_jax.checkpoint import export_folder, place
from ring_jax.checkpoint.gguf import import_gguf
from ring_jax.checkpoint.upcycle import upcycle
from ring_jax.config import (
    EvaluateConfig,
    GenerateConfig,
    MeshConfig,
    ModelConfig,
    UpcycleConfig,
)
from ring_jax.data.tokenizer import Tokenizer
from ring_jax.generate import Engine, Request
from ring_jax.model import abstract_transformer

EXPERTS = UpcycleConfig(num_experts=8, num_experts_per_token=2)
UNSAID = "<gh_stars>"
"""A token that SmolLM2 has and does not say: as the end token it ends nothing."""
OURS = "ring_jax"
GRADED_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is asked."""

    prompt_tokens: int = 128
    new_tokens: int = 128
    turn_tokens: int = 8
    """New tokens a prompt between two looks at the clock."""
    passes: Mapping[int, int] = MappingProxyType({16: 1, 1: 3})
    """Batch size -> how often all is said; the first turn of each reads prompts."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """One model, as both sides get it."""

    config: ModelConfig
    params: Mapping[str, np.ndarray]
    tokenizer: Tokenizer


@dataclasses.dataclass
class Pass:
    """One side, once through all new tokens."""

    said: Ids = ()
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of each turn."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """What was found of one model at one batch size."""

    speeds: Mapping[str, Mapping[str, float]]
    """Tokens/s by side and phase."""
    same_tokens: float
    """Share of the tokens that both sides said alike."""
    recompilations: int
    """Programs that XLA compiled after both sides had said everything once."""


def main() -> None:
    """Times both models, prints a table and last one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=1, help="times as many passes")
    parser.add_argument("--new-tokens", type=int, default=128, help="times of eight")
    parser.add_argument("--answers", type=int, default=10_000, help="0 grades nothing")
    parser.add_argument("--model", choices=("dense", "moe"), help="one alone")
    flags = parser.parse_args()
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"The load average is {load:.1f}: timings of a busy machine mean little.")
    passes = {size: number * flags.passes for size, number in Sizes().passes.items()}
    sizes = Sizes(new_tokens=flags.new_tokens, passes=passes)
    source = import_gguf(smollm2.fetch())
    prompt_ids = smollm2.text_ids(source, num_windows=16)
    backend = tokenizers.Tokenizer.from_str(source.tokenizer)
    tokenizer = Tokenizer(backend, end_token=UNSAID, needed=(UNSAID,))
    dense = Weights(source.config, source.params, tokenizer)
    found: dict[str, Any] = {}
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        if flags.model != "moe":
            found["dense"] = compare(dense, sizes, prompt_ids)
        if flags.model != "dense":
            routed = Weights(*upcycle(dense.config, dense.params, EXPERTS), tokenizer)
            found["moe"] = compare(routed, sizes, prompt_ids)
            del routed
        graded = grade(dense, prompt_ids, flags.answers) if flags.answers else {}
    print(json.dumps(summary(found) | graded | conditions()))


def compare(
    weights: Weights, sizes: Sizes, prompt_ids: np.ndarray
) -> dict[int, Compared]:
    """Times both sides at each batch size; a mesh must be in force.

    Args:
      weights: the model.
      sizes: what is asked.
      prompt_ids: i32[B, T], at least as many and as long as the sizes say.
    """
    with exported(weights) as folder:
        peer = mlx_peer.open_peer(folder)
    return {
        size: _compare_batch(
            weights, peer, sizes, prompt_ids[:size, : sizes.prompt_tokens].tolist()
        )
        for size in sizes.passes
    }


def _compare_batch(
    weights: Weights, peer: nn.Module, sizes: Sizes, prompts: Ids
) -> Compared:
    sides = {OURS: engine_of(weights, sizes, prompts)}
    sides |= mlx_peer.ways(peer, num_prompts=len(prompts))
    take_turns({OURS: sides[OURS]}, prompts, sizes)
    with compilations() as compiled:
        passes = [
            take_turns(sides, prompts, sizes) for _ in range(sizes.passes[len(prompts)])
        ]
    speeds = {
        name: speeds_of([of[name].seconds for of in passes], prompts, sizes)
        for name in sides
    }
    for name, speed in speeds.items():
        line = "".join(f"{phase:>10}{value:9.1f}" for phase, value in speed.items())
        print(f"batch {len(prompts):<4}{name:16}{line} tokens/s", flush=True)
    last = passes[-1]
    same = min(same_share(last[OURS].said, theirs.said) for theirs in last.values())
    return Compared(speeds, same, len(compiled))


@contextlib.contextmanager
def exported(weights: Weights) -> Iterator[pathlib.Path]:
    """Writes the model as a float32 folder that mlx-lm can open."""
    with tempfile.TemporaryDirectory() as name:
        weights.tokenizer.save(pathlib.Path(name) / "tokenizer.json")
        yield export_folder(
            weights.params,
            weights.config,
            pathlib.Path(name) / "export",
            tokenizer=name,
            chat_template="",
            dtype="float32",
        )


def engine_of(weights: Weights, sizes: Sizes, prompts: Ids) -> Say:
    """Makes an engine with a slot a prompt; what was read before is read again."""
    engine = Engine(
        place(abstract_transformer(weights.config), weights.params),
        weights.tokenizer,
        config=EvaluateConfig(
            max_prompt_tokens=sizes.prompt_tokens,
            max_new_tokens=sizes.new_tokens,
            batch_size=len(prompts),
        ),
        pace=GenerateConfig(
            prefix_cache_tokens=0, steps_per_dispatch=sizes.turn_tokens
        ),
    )

    def say(prompts: Ids, num_new: int, num_round: int) -> Rounds:
        assert num_round == sizes.turn_tokens
        requests = [
            Request(prompt_ids=tuple(ids), max_new_tokens=num_new) for ids in prompts
        ]
        said: list[list[int]] = [[] for _ in prompts]
        for number, told in enumerate(engine.stream(requests), start=1):
            if told.completion is not None:
                said[told.number] = told.completion.ids
            if number % len(prompts) == 0:
                yield said

    return say


def take_turns(sides: Mapping[str, Say], prompts: Ids, sizes: Sizes) -> dict[str, Pass]:
    """Has the sides say some tokens, one after the other, until all is said."""
    num_new, num_turn = sizes.new_tokens, sizes.turn_tokens
    rounds = {name: side(prompts, num_new, num_turn) for name, side in sides.items()}
    passes = {name: Pass() for name in sides}
    for _ in range(num_new // num_turn):
        for name, of_pass in passes.items():
            start = time.perf_counter()
            of_pass.said = next(rounds[name])
            of_pass.seconds.append(time.perf_counter() - start)
    for name, of_pass in passes.items():
        lengths = {len(ids) for ids in of_pass.said}
        assert lengths == {num_new}, f"{name} said {lengths} tokens, not {num_new}"
    return passes


def speeds_of(
    seconds: Sequence[Sequence[float]], prompts: Ids, sizes: Sizes
) -> dict[str, float]:
    """Returns median tokens/s of both phases, of the turns of some passes."""
    later = statistics.median(turn for of_pass in seconds for turn in of_pass[1:])
    first = statistics.median(of_pass[0] for of_pass in seconds)
    assert first > later, "a turn that reads prompts was no longer: too busy a machine"
    return {
        "prefill": round(sum(map(len, prompts)) / (first - later), 2),
        "decode": round(len(prompts) * sizes.turn_tokens / later, 2),
    }


def same_share(ours: Ids, theirs: Ids) -> float:
    """Returns the share of tokens that are the same, up to the first that is not."""
    equal_BT = np.cumprod(np.array(ours) == np.array(theirs), axis=1)
    return float(equal_BT.mean())


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Yields a list to which each compilation adds itself."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event and duration_secs >= 0:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def summary(found: Mapping[str, Mapping[int, Compared]]) -> dict[str, Any]:
    """Returns the JSON line but for grading: the lowest ratios, and all tokens/s."""
    compared = [result for sizes in found.values() for result in sizes.values()]

    def lowest(phase: str, batch_size: int | None = None) -> float | None:
        ratios = [
            ratio_to_faster(result.speeds, phase)
            for sizes in found.values()
            for size, result in sizes.items()
            if batch_size in (None, size)
        ]
        return round(min(ratios), 3) if ratios else None

    return {
        "benchmark": "generate",
        "ratio_to_mlx_lm_batch16": lowest("decode", 16),
        "ratio_to_mlx_lm_batch1": lowest("decode", 1),
        "ratio_to_mlx_lm_prefill": lowest("prefill"),
        "recompilations": sum(result.recompilations for result in compared),
        "same_tokens": round(min(result.same_tokens for result in compared), 4),
        "tokens_per_second": {
            f"{model} batch {size}": result.speeds
            for model, sizes in found.items()
            for size, result in sizes.items()
        },
    }


def ratio_to_faster(speeds: Mapping[str, Mapping[str, float]], phase: str) -> float:
    """Returns our tokens/s over those of the faster of the others."""
    others = [speed[phase] for name, speed in speeds.items() if name != OURS]
    return speeds[OURS][phase] / max(others)


def grade(weights: Weights, prompt_ids: np.ndarray, num_answers: int) -> dict[str, Any]:
    """Grades answers alone, and while the model decodes; see `benchmarks.grading`."""
    sizes = Sizes()
    prompts = prompt_ids[:GRADED_BATCH, : sizes.prompt_tokens].tolist()
    sides = {OURS: engine_of(weights, sizes, prompts)}
    take_turns(sides, prompts, sizes)

    def decode() -> float:
        seconds = take_turns(sides, prompts, sizes)[OURS].seconds
        return speeds_of([seconds], prompts, sizes)["decode"]

    return grading.measure(decode, num_answers=num_answers)


if __name__ == "__main__":
    main()
