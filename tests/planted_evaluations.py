# SPDX-License-Identifier: Apache-2.0
"""Invented evaluations of a base, two stages and a reference, as folders of a run."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Suite -> group, capability, items, samples, chance, and the invented share of right
# answers of base, reasoning, generalisation and reference; None: not evaluated.
SUITES = {
    "aime24": ("reasoning", "mathematics", 30, 4, None, (0.1, 0.5, 0.55, 0.7)),
    "math_500": ("reasoning", "mathematics", 120, 1, None, (0.6, 0.85, 0.86, 0.92)),
    "livecodebench": ("reasoning", "code", 80, 1, None, (0.2, 0.35, 0.34, 0.4)),
    "gpqa": ("reasoning", "science", 100, 1, 0.25, (0.3, 0.45, 0.47, 0.5)),
    "ifeval": ("general", "instruction", 150, 1, None, (0.8, 0.35, 0.76, 0.8)),
    "t_eval": ("general", "tool use", 90, 1, 0.1, (0.85, 0.3, 0.8, None)),
    "bfcl": ("general", "tool use", 90, 1, 0.0, (0.68, 0.4, 0.64, 0.6)),
    "mmlu": ("general", "knowledge", 300, 1, 0.25, (0.72, 0.63, 0.64, 0.8)),
}
LABELS = ("base", "reasoning", "generalisation", "a-larger-model")
LEVELS = ("easy", "medium", "hard")


def write_evaluations(run: Path) -> dict[str, Path]:
    """Writes three evaluations into a run folder and a reference beside it."""
    folders = {label: run / "evaluation" / label for label in LABELS[:-1]}
    folders[LABELS[-1]] = run.parent / "reference"
    for index, (label, folder) in enumerate(folders.items()):
        suites = {}
        for name, planted in SUITES.items():
            records = list(_records(name, index))
            suites[name] = _suite(planted, records)
            if records:
                write_records(folder, name, records)
        if label == "generalisation":
            suites["gpqa"] |= {"status": "partial", "reason": "stopped after 3 hours"}
        write_scores(folder, suites, label=label, date=f"2026-01-0{index + 1}")
    return folders


def write_scores(
    folder: Path, suites: Mapping[str, Any], *, label: str, date: str = "2026-01-01"
) -> Path:
    """Writes `scores.json` of an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"label": label, "model": f"tiny, {label}", "date": date}
    text = json.dumps({**scores, "suites": suites}, indent=1)
    (folder / "scores.json").write_text(text)
    return folder


def write_records(folder: Path, suite: str, records: Sequence[Mapping]) -> None:
    """Writes the graded outputs of a suite."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / f"{suite}.jsonl").write_text("".join(lines))


def suite(score: float | None, *, group: str = "general", **values: Any) -> dict:
    """Returns a suite of `scores.json` with a score, done unless said otherwise."""
    return {
        "group": group,
        "capability": "knowledge",
        "metric": "accuracy",
        "score": score,
        "num_items": 10,
        "num_samples": 1,
        "status": "done",
        **values,
    }


def record(key: str, is_correct: bool, **values: Any) -> dict:
    """Returns a graded output."""
    return {
        "id": key,
        "sample": 0,
        "prompt": f"Question {key}?",
        "output": f"<think>Of {key}.</think>{key}",
        "think": f"Of {key}.",
        "extracted": key,
        "answer": key,
        "is_correct": is_correct,
        "detail": "",
        "num_tokens": 12,
        "num_think_tokens": 8,
        "stop_reason": "stop",
        "is_well_formed": True,
        "difficulty": "easy",
        **values,
    }


def _records(name: str, index: int):
    _, _, num_items, num_samples, _, shares = SUITES[name]
    share = shares[index]
    if share is None:
        return
    noise = random.Random(f"{name} {index}")
    for item in range(num_items):
        # An item's own difficulty, the same for all models, makes their answers agree.
        hardness = random.Random(f"{name} of {item}").random()
        for sample in range(num_samples):
            is_right = hardness + noise.gauss(0, 0.15) < share
            yield _output(name, item, sample, is_right, (noise, index, hardness))


def _output(name, item, sample, is_right, drawn) -> dict:
    noise, index, hardness = drawn
    said = str(item * 3 if is_right else item * 3 + 1)
    length = int((200, 2600, 1900, 3000)[index] * noise.lognormvariate(0, 0.6))
    is_cut = not is_right and index > 0 and noise.random() < 0.3
    thinking = f"<think>\n{item} and {item} and {item} make {said}. Wait, once more.\n"
    closing = "" if is_cut or noise.random() < 0.03 * index else "</think>\n\n"
    return record(
        f"{name}/{item}",
        is_right,
        sample=sample,
        prompt=f"Planted item {item} of {name}: how much is {item} + {item} + {item}?",
        output=f"{thinking}{closing}{'' if is_cut else said}",
        think=thinking.removeprefix("<think>"),
        extracted=None if is_cut else said,
        answer=str(item * 3),
        num_tokens=length + 20,
        num_think_tokens=length,
        stop_reason="length" if is_cut else "stop",
        is_well_formed=bool(closing),
        difficulty=LEVELS[int(hardness * 3)],
    )


def _suite(planted: tuple, records: Sequence[Mapping]) -> dict:
    group, capability, _, num_samples, chance, _ = planted
    named = {"group": group, "capability": capability, "num_samples": num_samples}
    named |= {"metric": f"avg@{num_samples}", "chance": chance}
    if not records:
        reason = "its checker needs a package that is not installed"
        return {**named, "score": None, "status": "refused", "reason": reason}
    score = _mean(records, "is_correct")
    half = 1.96 * (score * (1 - score) / len(records)) ** 0.5
    return {
        **named,
        "score": score,
        "low": max(0.0, score - half),
        "high": min(1.0, score + half),
        "num_items": len(records) // num_samples,
        "by_difficulty": {
            level: {
                "score": _mean(found, "is_correct"),
                "num_items": len(found) // num_samples,
            }
            for level in LEVELS
            if (found := [r for r in records if r["difficulty"] == level])
        },
        "truncated_share": sum(r["stop_reason"] == "length" for r in records)
        / len(records),
        "malformed_share": 1 - _mean(records, "is_well_formed"),
        "mean_think_tokens": _mean(records, "num_think_tokens"),
        "mean_tokens": _mean(records, "num_tokens"),
        "status": "done",
        "reason": "",
    }


def _mean(records: Sequence[Mapping], key: str) -> float:
    return sum(record[key] for record in records) / len(records)
