# SPDX-License-Identifier: Apache-2.0
"""A synthetic run folder: invented numbers in the shape that `ring train` writes."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from ring_jax.config import (
    DataConfig,
    ModelConfig,
    MoeConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    to_json,
)
from tests.planted_evaluations import record, suite, write_records, write_scores

STAGE_STEPS = {"base": 200, "reasoning": 300, "generalisation": 150}
TASKS = {
    "chain_sum": ("reasoning", ("easy", "medium", "hard")),
    "number_sorting": ("reasoning", ("easy", "medium", "hard")),
    "capitals": ("knowledge", ("",)),
    "elements": ("knowledge", ("",)),
    "word_limits": ("instruction", ("",)),
    "weather_tools": ("tool", ("",)),
    "greetings": ("dialogue", ("",)),
}
# Invented accuracies (base, reasoning, generalisation) of each domain and level.
ACCURACY = {
    "easy": (0.03, 0.92, 0.90),
    "medium": (0.0, 0.46, 0.41),
    "hard": (0.0, 0.12, 0.10),
    "knowledge": (0.71, 0.22, 0.68),
    "instruction": (0.62, 0.18, 0.66),
    "tool": (0.55, 0.31, 0.58),
    "dialogue": (0.80, 0.40, 0.77),
}
NUM_LAYERS, NUM_EXPERTS, NUM_ITEMS = 4, 16, 32


@pytest.fixture
def synthetic_run(tmp_path) -> Path:
    """A finished run of three stages with evaluations and one resumption."""
    return write_synthetic_run(tmp_path / "synthetic-run")


def write_synthetic_run(workdir: Path) -> Path:
    """Writes a run folder; the same numbers every time."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(_config()))
    noise = random.Random(0)
    records = [*_start(), *_stage_records(noise), _event("end", 650, 1660)]
    lines = [json.dumps(record) for record in records]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for index, stage in enumerate(STAGE_STEPS):
        _write_evaluation(workdir / "evaluation" / stage, index)
    return workdir


def _sources() -> dict[str, tuple[str, str, Any]]:
    return {
        "_".join(filter(None, (task, level))): (domain, task, level)
        for task, (domain, levels) in TASKS.items()
        for level in levels
    }


def _config() -> RunConfig:
    sources = {
        name: SourceConfig(kind="synthetic", task=task, level=level)
        for name, (_, task, level) in _sources().items()
    }
    mixture = {name: 1.0 for name in sources}
    stages = {
        stage: StageConfig(mixture=mixture, num_steps=steps, learning_rate=1e-3)
        for stage, steps in STAGE_STEPS.items()
    }
    moe = MoeConfig(num_experts=NUM_EXPERTS, num_experts_per_token=4)
    return RunConfig(
        model=dataclasses.replace(ModelConfig(), num_layers=NUM_LAYERS, moe=moe),
        data=DataConfig(sources=sources),
        stages=stages,
    )


def _start():
    yield {
        "kind": "start",
        "time": 1000,
        "versions": {"ring_jax": "0.0-synthetic", "jax": "0.0-synthetic"},
        "devices": "1 x synthetic device",
        "num_parameters": 1_812_480,
        "num_active_parameters": 702_208,
    }


def _event(name: str, step: int, time: float, **rest) -> dict:
    return {"kind": "event", "event": name, "step": step, "time": time, **rest}


def _stage_records(noise: random.Random):
    step = 0
    for index, (stage, num_steps) in enumerate(STAGE_STEPS.items()):
        yield _event("stage_start", step, 1000 + step, stage=stage)
        for stage_step in range(1, num_steps + 1):
            step += 1
            if stage_step % 5 == 0:
                yield _train(stage, index, step, stage_step, noise)
            if stage_step % 50 == 0:
                yield {"kind": "router", "stage": stage, "step": step, **_load(step)}
                yield _event("checkpoint", step, 1000 + step)
            if step == 330:
                yield _event("resume", step, 1000 + step, checkpoint=300)
        losses = {name: 1.9 - 0.4 * index for name in _sources()} | {"chat": None}
        yield {
            "kind": "evaluation",
            "stage": stage,
            "step": step,
            "scores": {},
            "heldout_loss": losses,
        }


def _train(stage: str, index: int, step: int, stage_step: int, noise: random.Random):
    floor = (1.9, 0.7, 0.8)[index]
    loss = floor + (5.2 if index == 0 else 1.2) * math.exp(-stage_step / 45)
    loss += noise.gauss(0, 0.04)
    by_source = {
        f"loss/source/{name}": max(0.02, loss * (0.5 + 0.08 * i) + noise.gauss(0, 0.05))
        for i, name in enumerate(_sources())
    }
    shares = {"think": 0.8, "answer": 1.3, "stop": 0.1, "tool": 0.9, "prompt": 1.9}
    rate = 1e-3 * min(1, stage_step / 20) * (0.55 + 0.45 * math.cos(stage_step / 100))
    return {
        "kind": "train",
        "stage": stage,
        "step": step,
        "stage_step": stage_step,
        "time": 1000 + step,
        "train/loss": loss + 0.05,
        "train/cross_entropy": loss,
        "train/grad_norm": 0.4 + 6 * math.exp(-stage_step / 30) + noise.random() * 0.1,
        "train/learning_rate": rate,
        "train/trained_tokens": step * 3121,
        **by_source,
        **{f"loss/class/{name}": loss * share for name, share in shares.items()},
        "router/balance_loss": 1.02 + 0.4 * math.exp(-step / 60),
        "router/z_loss": 3 + 2 * math.exp(-step / 90),
        "router/max_load": 1.3 + 2 * math.exp(-step / 80) + 0.1 * noise.random(),
        "throughput/tokens_per_second": 13_000 + noise.gauss(0, 300),
        "throughput/mfu": 0.21 + noise.gauss(0, 0.005),
        "throughput/data_wait_share": 0.01,
    }


def _load(step: int) -> dict:
    noise = random.Random(step)
    spread = 0.15 + 1.2 * math.exp(-step / 150)
    rows = [
        [math.exp(noise.gauss(0, spread)) for _ in range(NUM_EXPERTS)]
        for _ in range(NUM_LAYERS)
    ]
    return {"load_LE": [[load / sum(row) for load in row] for row in rows]}


def _write_evaluation(folder: Path, index: int) -> None:
    suites = {}
    for task, (domain, levels) in TASKS.items():
        records = [
            _output(task, level, item, right=_num_right(domain, level, index))
            for level in levels
            for item in range(NUM_ITEMS)
        ]
        write_records(folder, f"heldout_{task}", records)
        shares = {level: _num_right(domain, level, index) for level in levels}
        suites[f"heldout_{task}"] = suite(
            sum(shares.values()) / (NUM_ITEMS * len(levels)),
            group="reasoning" if domain == "reasoning" else "general",
            capability=domain,
            metric="avg@1",
            num_items=len(records),
            chance=0.125,
            by_difficulty={
                level: {"score": right / NUM_ITEMS, "num_items": NUM_ITEMS}
                for level, right in shares.items()
                if level
            },
        )
    write_scores(folder, suites, label=folder.name)


def _num_right(domain: str, level: str, index: int) -> int:
    return round(ACCURACY[level or domain][index] * NUM_ITEMS)


def _output(task: str, level: str, item: int, *, right: int) -> dict:
    gold = str(item * 3)
    is_right = (item * 7 + len(task)) % NUM_ITEMS < right
    said = gold if is_right else str(item * 3 + 1)
    thinking = f"<think>\n{item} plus {item} is {2 * item}; plus {item} is {said}.\n"
    return record(
        f"{task}/{level}/{item}",
        is_right,
        prompt=f"Synthetic item {item} of {task}: what is {item} + {item} + {item}?",
        output=f"{thinking}</think>\n\n{said}",
        think=thinking.removeprefix("<think>"),
        extracted=said,
        answer=gold,
        num_tokens=20 + item,
        difficulty=level,
        is_well_formed=is_right or item % 3 > 0,
    )
