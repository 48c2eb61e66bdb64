# SPDX-License-Identifier: Apache-2.0
"""What `ring train` asks the model when a stage has ended: suites, and held-out loss.

Accuracy is free-running: decoding starts from the prompt alone and nothing of the gold
reply is shown. The held-out loss is teacher-forced; it stands beside the accuracy under
its own name and is never an accuracy.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ring_jax import processes
from ring_jax.config import RunConfig
from ring_jax.data.chat_format import OurChat
from ring_jax.data.prepared import PreparedData
from ring_jax.evaluate import records as files
from ring_jax.evaluate.complete import EngineCompleter
from ring_jax.evaluate.heldout import choose_heldout, with_heldout
from ring_jax.evaluate.heldout_loss import HeldoutLoss
from ring_jax.evaluate.items import read_suites
from ring_jax.evaluate.run import evaluate
from ring_jax.evaluate.suites import choose_suites, suite_names
from ring_jax.evaluate.together import LeadingCompleter, follow
from ring_jax.model import Transformer


class StageEnd:
    """Evaluates the model of a run; made before training."""

    def __init__(
        self,
        config: RunConfig,
        data: PreparedData,
        workdir: Path,
        *,
        identify: Callable[[], Mapping[str, Any]],
    ):
        """Reads and renders the items, so that what cannot be asked fails now.

        Args:
          config: of the run; `suites.at_stage_end` names the suites.
          data: tokenizer and held-out rows.
          workdir: the run folder, whose `evaluation/<stage>/` is written.
          identify: says which model the newest checkpoint holds; the first process
            asks it.

        Raises:
          ConfigError: a suite is unknown or has an item that cannot be asked, or all
            prompts of a source are longer than a prompt may be.
        """
        self._config, self._workdir, self._identify = config, workdir, identify
        self._chat = OurChat(data.tokenizer, config.data.template)
        rows = {source: rows.heldout for source, rows in data.sources.items()}
        heldout = choose_heldout(config, rows, self._chat)
        chosen = choose_suites(
            suite_names(config.suites.at_stage_end), with_heldout(config, heldout)
        )
        self._suites = read_suites(chosen, heldout)
        self._heldout_loss = HeldoutLoss(config, data)

    def __call__(self, model: Transformer, stage: str) -> dict[str, Any]:
        """Evaluates a model that is checkpointed; a mesh is in force.

        What an interrupted start has asked is not asked again.

        Returns:
          The scores by suite and the held-out losses by source, as `metrics.jsonl`
          keeps them; the first process's.
        """
        scores = self._scores(model, stage) if self._suites else {}
        return {"scores": scores, "heldout_loss": self._heldout_loss(model)}

    def _scores(self, model: Transformer, stage: str) -> dict[str, float | None]:
        completer = EngineCompleter(model, self._chat, config=self._config)
        if not processes.is_first():
            follow(completer)
            return {}
        leading = LeadingCompleter(completer)
        identity = self._identify()
        folder = self._workdir / "evaluation" / stage
        files.forget_others(folder, self._suites, model=identity)
        scores = evaluate(
            self._suites,
            leading,
            workdir=self._workdir,
            label=stage,
            model=identity,
            config=self._config.suites,
        )
        leading.end()
        return {name: scores["suites"][name]["score"] for name in self._suites}
