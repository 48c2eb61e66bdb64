# SPDX-License-Identifier: Apache-2.0
"""The held-out panel: the model writes freely, verifiers grade what it wrote.

Accuracy is free-running: decoding starts from the prompt alone and nothing of the gold
reply is shown. The held-out loss is teacher-forced; it stands beside the accuracy under
its own name and is never an accuracy.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from ring_jax.config import ConfigError, RunConfig, VerificationConfig
from ring_jax.data.chat import parse_reply, prompt_text, render_prompt
from ring_jax.data.prepared import PreparedData
from ring_jax.data.schema import Row
from ring_jax.evaluate.heldout_loss import HeldoutLoss
from ring_jax.generate import Completion, Engine
from ring_jax.model import Transformer
from ring_jax.verify import Question, grade_all, most_frequent_answer_score


class Panel:
    """Grades a model on the held-out rows of every source; made before training."""

    def __init__(self, config: RunConfig, data: PreparedData, workdir: Path):
        """Chooses and renders the items, so that what cannot be asked fails now.

        Args:
          config: of the run; `evaluate` sets the number of items and of tokens.
          data: tokenizer and held-out rows.
          workdir: the run folder, whose `samples/` receives graded outputs.

        Raises:
          ConfigError: all prompts of a source are longer than a prompt may be.
        """
        self._config = config
        self._tokenizer = data.tokenizer
        self._workdir = workdir
        self._items = {
            source: _items(rows.heldout, source, config, data)
            for source, rows in data.sources.items()
            if rows.heldout
        }
        self._heldout_loss = HeldoutLoss(config, data)

    def __call__(self, model: Transformer, stage: str) -> list[dict[str, Any]]:
        """Grades a model, and writes `samples/<stage>.jsonl`; a mesh is in force.

        Returns:
          One row per source as `metrics.jsonl` keeps it; a source that no verifier
          grades has a held-out loss only, and None for the other scores.
        """
        graded = self._graded(model)
        losses = self._heldout_loss(model)
        rows = [
            _summary(source, items, graded[source], losses[source])
            for source, items in self._items.items()
        ]
        if jax.process_index() == 0:
            samples = [sample for of_source in graded.values() for sample in of_source]
            _write_samples(self._workdir / "samples" / f"{stage}.jsonl", samples)
        return rows

    def _graded(self, model: Transformer) -> dict[str, list[dict[str, Any]]]:
        engine = Engine(
            model,
            self._tokenizer,
            config=self._config.evaluate,
            dtype=self._config.train.compute_dtype,
            pace=self._config.generate,
        )
        asked = [
            (source, item)
            for source, items in self._items.items()
            for item in items
            if item.row.verifier
        ]
        completions = engine.generate([item.prompt_ids for _, item in asked])
        graded: dict[str, list[dict[str, Any]]] = {source: [] for source in self._items}
        samples = grade_completions([item.row for _, item in asked], completions)
        for (source, item), sample in zip(asked, samples, strict=True):
            graded[source].append({**sample, "prompt": item.prompt})
        return graded


def grade_completions(
    rows: Sequence[Row], completions: Sequence[Completion]
) -> list[dict[str, Any]]:
    """Grades what was said to held-out rows, as `samples/<stage>.jsonl` keeps it."""
    replies = [parse_reply(completion.text) for completion in completions]
    questions = [
        Question(
            verifier=row.verifier,
            reply=reply.answer,
            answer=row.answer,
            metadata=row.metadata,
        )
        for row, reply in zip(rows, replies, strict=True)
    ]
    verdicts = grade_all(questions, config=VerificationConfig())
    return [
        {
            "source": row.source,
            "domain": row.domain,
            "task": row.task,
            "level": row.level,
            "output": completion.text,
            "answer": row.answer,
            "extracted": reply.answer.strip(),
            "correct": verdict.outcome == "right",
            "well_formed": reply.is_well_formed,
            "num_tokens": len(completion.ids),
            "stop_reason": completion.stop_reason,
        }
        for row, completion, reply, verdict in zip(
            rows, completions, replies, verdicts, strict=True
        )
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    """A held-out row and what is asked of it; no verifier, no prompt."""

    row: Row
    prompt: str
    prompt_ids: list[int]


def _items(
    rows: Sequence[Row], source: str, config: RunConfig, data: PreparedData
) -> list[_Item]:
    items = [
        _item(row, config, data) for row in rows[: config.evaluate.items_per_source]
    ]
    limit = config.evaluate.max_prompt_tokens
    fitting = [item for item in items if len(item.prompt_ids) <= limit]
    if items and not fitting:
        shortest = min(len(item.prompt_ids) for item in items)
        raise ConfigError(
            f"data.sources.{source}: its held-out prompts have at least {shortest} "
            f"tokens, more than evaluate.max_prompt_tokens={limit}; raise it."
        )
    if num_long := len(items) - len(fitting):
        logging.info("panel: left out %d long prompts of %s", num_long, source)
    return fitting


def _item(row: Row, config: RunConfig, data: PreparedData) -> _Item:
    if not row.verifier:
        return _Item(row, "", [])
    template = config.data.template
    ids = render_prompt(row, data.tokenizer, template=template)
    return _Item(row, prompt_text(row, template=template), ids)


def _summary(
    source: str,
    items: Sequence[_Item],
    graded: Sequence[Mapping[str, Any]],
    heldout_loss: float | None,
) -> dict[str, Any]:
    answers = [sample["answer"] for sample in graded]
    return {
        "source": source,
        "domain": items[0].row.domain,
        "task": _common([item.row.task for item in items]),
        "level": _common([item.row.level for item in items]),
        "num_items": len(graded) or len(items),
        "accuracy": _mean([sample["correct"] for sample in graded]),
        "most_frequent": most_frequent_answer_score(answers) if answers else None,
        "well_formed": _mean([sample["well_formed"] for sample in graded]),
        "mean_tokens": _mean([sample["num_tokens"] for sample in graded]),
        "heldout_loss": heldout_loss,
    }


def _common(values: Sequence[str]) -> str:
    """Returns what all rows of a source share; a mixed source has no task."""
    return values[0] if len(set(values)) == 1 else ""


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _write_samples(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, path)
