# SPDX-License-Identifier: Apache-2.0
"""The model of a run folder that is asked: settings, chat format, engine."""

import argparse
import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ring_jax import sharding
from ring_jax.checkpoint import place
from ring_jax.checkpoint.trained_model import (
    ModelIdentity,
    TrainedModel,
    read_trained_model,
)
from ring_jax.cli.settings import (
    load_imported_config,
    load_run_config,
    override,
)
from ring_jax.config import (
    ConfigError,
    DataConfig,
    EvaluateConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from ring_jax.data.chat_format import ChatFormat, open_chat
from ring_jax.generate import Engine
from ring_jax.model import Transformer, abstract_transformer

# An imported folder has a model and no run; these are the settings of a run that is
# only asked. Its one stage and source are there because a run must have them.
ONLY_ASKED = RunConfig(
    data=DataConfig(sources={"prompts": SourceConfig(num_heldout=0)}, template="ling"),
    train=TrainConfig(seq_len=1),
    evaluate=EvaluateConfig(max_prompt_tokens=512, max_new_tokens=512),
    stages={"none": StageConfig(mixture={"prompts": 1.0})},
)


class AskedModel(NamedTuple):
    """A model that is ready to answer."""

    model: Transformer
    """Its parameters are on the mesh in force."""
    identity: dict[str, Any]
    """Its run's name, its step and its digest; see `identity_of`."""


def load_asked_config(args: argparse.Namespace, workdir: pathlib.Path) -> RunConfig:
    """Reads a run's settings, or makes those of an imported folder, which has none.

    Raises:
      ConfigError: one line, whatever is wrong with them.
    """
    path = workdir / "config.json"
    is_imported = path.is_file() and '"stages"' not in path.read_text("utf-8")
    if args.config is not None or not is_imported:
        return load_run_config(args)
    only_asked = load_imported_config(workdir, ONLY_ASKED)
    half = only_asked.model.max_positions // 2
    sizes = dataclasses.replace(
        only_asked.evaluate,
        max_prompt_tokens=min(only_asked.evaluate.max_prompt_tokens, half),
        max_new_tokens=min(only_asked.evaluate.max_new_tokens, half),
    )
    only_asked = dataclasses.replace(only_asked, evaluate=sizes)
    return override(RunConfig, dataclasses.asdict(only_asked), args.overrides)


def identity_of(
    workdir: pathlib.Path, model: ModelIdentity | TrainedModel
) -> dict[str, Any]:
    """Returns what tells a run's model from others, as an evaluation keeps it."""
    name = workdir.resolve().name
    return {"name": name, "step": model.step, "digest": model.digest}


def open_run_chat(config: RunConfig, workdir: pathlib.Path) -> ChatFormat:
    """Finds how the model of a run folder is spoken to; see `open_chat`."""
    return open_chat(
        workdir / "tokenizer",
        template=config.data.template,
        eos_id=config.model.eos_id,
    )


@contextlib.contextmanager
def open_model(config: RunConfig, workdir: pathlib.Path) -> Iterator[AskedModel]:
    """Loads the newest model of a run folder, and keeps its mesh in force."""
    mesh = sharding.without_context(sharding.make_mesh(config.mesh))
    trained = read_trained_model(workdir / "checkpoints")
    with jax.set_mesh(mesh):
        model = place(abstract_transformer(trained.config), trained.params)
        yield AskedModel(model, identity_of(workdir, trained))


def make_engine(
    model: Transformer, chat: ChatFormat, config: RunConfig, *, num_slots: int
) -> Engine:
    """Makes an engine of the sizes of `config.evaluate`, but for its slots."""
    return Engine(
        model,
        chat.tokenizer,
        config=dataclasses.replace(config.evaluate, batch_size=num_slots),
        dtype=config.train.compute_dtype,
        pace=config.generate,
    )


def evaluation_label(config: RunConfig, step: int, given: str | None) -> str:
    """Names an evaluation: as asked, else by the stage that ended at a step.

    Raises:
      ConfigError: what is asked cannot name a folder.
    """
    return check_label(given or _stage_at(config, step))


def check_label(label: str) -> str:
    """Returns a label that can name a folder.

    Raises:
      ConfigError: it cannot.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", label):
        raise ConfigError(
            f"--label={label!r} names a folder; use letters, digits, _ . and -."
        )
    return label


def _stage_at(config: RunConfig, step: int) -> str:
    end = 0
    for name, stage in config.stages.items():
        end += stage.num_steps
        if end == step:
            return name
    return f"step_{step}"
