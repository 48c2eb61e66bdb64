# SPDX-License-Identifier: Apache-2.0
"""The held-out panel: what a model answers on its own, graded by each task's verifier.

Accuracy is free-running: greedy decoding from the prompt alone. The teacher-forced
loss on the same rows stands beside it under its own name.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import RunConfig
from ring_jax.data.chat import parse_reply, prompt_text, render_prompt
from ring_jax.data.pipeline import PreparedData, heldout_batches
from ring_jax.data.schema import Row
from ring_jax.generate import Completion, Engine
from ring_jax.model import Transformer
from ring_jax.objectives import next_tokens, training_loss
from ring_jax.verify import grade, most_frequent_answer_score


class Panel:
    """Grades the models of a run; its compiled programs serve every stage."""

    def __init__(self, config: RunConfig, data: PreparedData, workdir: pathlib.Path):
        """Keeps what every stage is graded on; a mesh must be in force when called."""
        self._config = config
        self._data = data
        self._samples = workdir / "samples"
        self._loss = jax.jit(self._sums)
        count = config.evaluate.items_per_source
        self._graded = {
            name: [row for row in source.heldout if row.verifier][:count]
            for name, source in data.sources.items()
        }

    def __call__(self, model: Transformer, stage: str) -> list[dict[str, Any]]:
        """Grades the model at the end of a stage, and keeps every item's record.

        Returns:
          A row per source with held-out rows: free-running `accuracy`, the score of
          always giving the most frequent answer, the share of well-formed replies, new
          tokens per reply, the mean teacher-forced loss; None where one does not apply.
        """
        engine = Engine(
            model,
            self._data.tokenizer,
            config=self._config.evaluate,
            dtype=self._config.train.compute_dtype,
        )
        rows = [row for graded in self._graded.values() for row in graded]
        template, tokenizer = self._config.data.template, self._data.tokenizer
        prompts = [render_prompt(row, tokenizer, template=template) for row in rows]
        items: dict[str, list[dict[str, Any]]] = {name: [] for name in self._graded}
        for row, completion in zip(rows, engine.generate(prompts), strict=True):
            items[row.source].append(grade_item(row, completion, template=template))
        self._write(stage, items)
        return [
            self._row(model, name, items[name])
            for name, source in self._data.sources.items()
            if source.heldout
        ]

    def _row(
        self, model: Transformer, name: str, items: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        first = self._data.sources[name].heldout[0]
        answers = [row.answer for row in self._graded[name]]
        return {
            "source": name,
            "domain": first.domain,
            "task": first.task,
            "level": first.level,
            "num_items": len(items) or len(self._data.sources[name].heldout),
            "accuracy": _mean([item["correct"] for item in items]),
            "most_frequent": most_frequent_answer_score(answers) if items else None,
            "well_formed": _mean([item["well_formed"] for item in items]),
            "mean_tokens": _mean([item["num_tokens"] for item in items]),
            "heldout_loss": self._heldout_loss(model, name),
        }

    def _heldout_loss(self, model: Transformer, name: str) -> float:
        layout = sharding.on_mesh(sharding.activation("BT"), jax.sharding.get_mesh())
        total = np.zeros(2)
        for batch in heldout_batches(self._config, self._data, source=name):
            placed = jax.tree.map(lambda x: jax.device_put(x, layout), batch)
            total += jax.device_get(self._loss(model, placed))
        return float(total[0] / total[1])

    def _sums(self, model: Transformer, batch: Batch) -> jax.Array:
        """Returns f32[2]: the weighted cross-entropy of a batch, and its weight."""
        weight = jnp.sum(next_tokens(batch).weights_BT)
        _, stats = training_loss(
            model,
            batch,
            config=self._config.train,
            num_sources=len(self._data.sources),
            total_weight=jnp.maximum(weight, 1e-6),
            share=1.0,
            noise=None,
        )
        return jnp.stack([stats.cross_entropy * weight, weight])

    def _write(self, stage: str, items: Mapping[str, list[dict[str, Any]]]) -> None:
        self._samples.mkdir(exist_ok=True)
        lines = [json.dumps(item) for name in items for item in items[name]]
        draft = self._samples / f"{stage}.tmp"
        draft.write_text("".join(line + "\n" for line in lines), "utf-8")
        draft.replace(self._samples / f"{stage}.jsonl")


def grade_item(row: Row, completion: Completion, *, template: str) -> dict[str, Any]:
    """Grades one reply; what comes back is a line of `samples/<stage>.jsonl`."""
    reply = parse_reply(completion.text)
    verdict = grade(
        verifier=row.verifier,
        reply=reply.answer,
        answer=row.answer,
        metadata=row.metadata,
    )
    return {
        "source": row.source,
        "domain": row.domain,
        "task": row.task,
        "level": row.level,
        "prompt": prompt_text(row, template=template),
        "output": completion.text,
        "answer": row.answer,
        "extracted": verdict.extracted,
        "correct": verdict.is_correct,
        "well_formed": reply.is_well_formed,
        "num_tokens": len(completion.ids),
        "stop_reason": completion.stop_reason,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
