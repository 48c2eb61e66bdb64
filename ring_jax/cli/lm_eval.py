# SPDX-License-Identifier: Apache-2.0
"""`ring evaluate --lm-eval`: the tasks of lm-eval, asked of a run's model."""

import importlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ring_jax.cli.asked_model import evaluation_label, open_model, open_run_chat
from ring_jax.cli.devices import use_devices
from ring_jax.config import ConfigError, RunConfig
from ring_jax.evaluate.lm_eval_records import PREFIX
from ring_jax.evaluate.records import read_json


class Evaluated(NamedTuple):
    """What came of the tasks of a command."""

    scores: dict[str, Any]
    """As `scores.json` has them."""
    names: list[str]
    """Those of the command's tasks that are there."""


def by_lm_eval(
    config: RunConfig,
    workdir: pathlib.Path,
    names: Sequence[str],
    *,
    path: pathlib.Path | None,
    label: str | None,
) -> Evaluated:
    """Asks tasks by name; tells the figures of those that have no share of items.

    Raises:
      ConfigError: lm-eval is not installed, a task or its documents are not there, or
        the folder was begun with something else.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("--lm-eval needs lm-eval: pip install 'ring-jax[lm-eval]'.")
    # Nothing is downloaded in passing; who wants that sets these to 0.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    # Its modules name lm-eval's classes at their top, so they are imported with it.
    lm_eval_tasks = importlib.import_module("ring_jax.evaluate.lm_eval_tasks")
    lm_eval_model = importlib.import_module("ring_jax.evaluate.lm_eval_model")
    tasks = lm_eval_tasks.read_tasks(names, path=path, config=config.suites)
    chat = open_run_chat(config, workdir)
    use_devices(config)
    with open_model(config, workdir) as (model, identity):
        label = evaluation_label(config, identity["step"], label)
        folder = workdir / "evaluation" / label
        scores = lm_eval_tasks.evaluate_tasks(
            tasks,
            lm_eval_model.EngineLM(model, chat, config=config),
            folder=folder,
            model=identity,
            config=config.suites,
        )
    report = read_json(folder / lm_eval_tasks.REPORT)
    for name in tasks:
        if PREFIX + name not in scores["suites"]:
            metrics = report[name]["metrics"].items()
            figures = [f"{key} {value}" for key, value in metrics if value != "N/A"]
            print(f"{name}: {', '.join(figures)}")
    found = [PREFIX + name for name in tasks if PREFIX + name in scores["suites"]]
    return Evaluated(scores, found)
