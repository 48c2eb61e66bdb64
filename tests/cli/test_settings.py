# SPDX-License-Identifier: Apache-2.0
"""What `--config` and its overrides turn into, and how each mistake is answered."""

import argparse
import dataclasses
import pathlib

import pytest

from ring_jax.cli.settings import load_run_config, load_run_folder_config
from ring_jax.config import ConfigError, to_json

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CONFIG = """
from ring_jax.config import (
    DataConfig, RunConfig, SourceConfig, StageConfig, to_config_dict,
)

def get_config(size="4"):
    cfg = to_config_dict(RunConfig(
        data=DataConfig(sources={"chat": SourceConfig(), "sums": SourceConfig()}),
        stages={
            "reasoning": StageConfig(mixture={"sums": 1.0, "chat": 0.5}),
            "base": StageConfig(mixture={"chat": 1.0}),
        },
    ))
    cfg.model.num_layers = int(size)
    return cfg
"""


@pytest.fixture
def config_file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "run.py"
    file.write_text(CONFIG)
    return file


def load(config: object, *words: str, workdir: pathlib.Path | None = None):
    overrides = [tuple(word.split("=", 1)) for word in words]
    return load_run_config(
        argparse.Namespace(
            verb="inspect",
            config=None if config is None else str(config),
            workdir=workdir,
            overrides=overrides,
        )
    )


def mistake(config: object, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_overrides_are_read_by_the_type_of_their_field(config_file):
    run = load(
        config_file,
        "config.seed=7",
        "config.train.optimizer.weight_decay=1",
        "config.train.tensorboard=true",
        "config.train.remat=none",
        "config.data.tokenizer.path=none",
        "config.train.peak_flops_per_second=2e12",
        "config.init_from=models/a=b",
    )
    assert run.seed == 7
    assert run.train.optimizer.weight_decay == 1.0
    assert run.train.tensorboard is True
    assert run.train.remat == "none"
    assert run.data.tokenizer.path is None
    assert run.train.peak_flops_per_second == 2e12
    assert run.init_from == "models/a=b"


def test_overrides_reach_into_open_tables(config_file):
    run = load(
        config_file,
        "config.stages.base.num_steps=5",
        "config.stages.base.mixture.sums=0.25",
        "config.data.class_weights.prompt=0.5",
    )
    assert run.stages["base"].num_steps == 5
    assert dict(run.stages["base"].mixture) == {"chat": 1.0, "sums": 0.25}
    assert run.data.class_weights["prompt"] == 0.5
    # Stages run in this order, and sources are numbered in it.
    assert list(run.stages) == ["reasoning", "base"]


def test_an_override_below_an_absent_section_makes_it(config_file):
    run = load(config_file, "config.model.rope_scaling.factor=8")
    assert run.model.rope_scaling is not None
    assert run.model.rope_scaling.factor == 8.0
    assert run.model.rope_scaling.original_max_positions == 32768


def test_the_last_override_wins_and_the_argument_reaches_the_file(config_file):
    run = load(f"{config_file}:6", "config.seed=1", "config.seed=2")
    assert (run.seed, run.model.num_layers) == (2, 6)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("config.train.num_microbatch=2", ["num_microbatches", "Did you mean"]),
        ("config.trian.seq_len=2", ["config.trian", "`train`"]),
        ("config.seed=x", ["config.seed='x'", "int"]),
        ("config.seed=1.5", ["config.seed='1.5'", "int"]),
        ("config.train.tensorboard=yes", ["'yes'", "bool"]),
        ("config.train.remat=all", ["'all'", "matmuls"]),
        ("config.train=5", ["config.train='5'", "section"]),
        ("config.seed.x=5", ["config.seed.x", "single value"]),
        ("config.stages.bsae.num_steps=5", ["config.stages.bsae", "`base`"]),
        ("config.stages.base.mixture.sum=1", ["['sum']", "`sums`"]),
        ("config.stages.base.mixture.sums=-1", ["mixture", "above 0"]),
        (
            "config.model.moe.num_experts_per_token=65",
            ["num_experts_per_token=65", "num_experts=64"],
        ),
        ("config.model.num_layers=0", ["model: num_layers=0 must be at least 1"]),
        ("config.model.num_kv_heads=0", ["num_kv_heads=0 must be at least 1"]),
        ("config.train.num_microbatches=0", ["num_microbatches=0", "at least 1"]),
        ("config.train.log_every_steps=0", ["log_every_steps=0", "at least 1"]),
        ("config.stages.base.learning_rate=nan", ["learning_rate=nan", "above 0"]),
        ("config.evaluate.batch_size=0", ["batch_size=0 must be at least 1"]),
    ],
)
def test_a_wrong_override_is_one_line_that_helps(config_file, word, parts):
    line = mistake(config_file, word)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("import nowhere_at_all", ["ModuleNotFoundError in line 1", "nowhere_at_all"]),
        ("def get_config():\n    return 1 / 0\n", ["ZeroDivisionError in line 2"]),
        ("def get_config(:\n", ["SyntaxError in line 1"]),
        ("config = 3\n", ["no function get_config()"]),
        ("def get_config():\n    return 3\n", ["returned int", "to_config_dict"]),
        (CONFIG.replace("num_layers =", "num_layer ="), ["num_layers", "in line 14"]),
    ],
)
def test_a_broken_config_file_is_one_line_that_says_where(tmp_path, text, parts):
    file = tmp_path / "broken.py"
    file.write_text(text)
    line = mistake(file)
    assert all(part in line for part in [str(file), *parts]), line


def test_a_missing_config_file_suggests_its_neighbour(config_file):
    line = mistake(config_file.with_name("runs.py"))
    assert f"Did you mean `{config_file}`?" in line


def test_a_run_folder_stands_in_for_a_config_file(config_file, tmp_path):
    run = load(config_file, "config.seed=3")
    (tmp_path / "config.json").write_text(to_json(run))
    assert load_run_folder_config(tmp_path) == run
    edited = load(None, "config.seed=4", workdir=tmp_path)
    assert edited == dataclasses.replace(run, seed=4)


@pytest.mark.parametrize("text", [None, "{", '{"sead": 1}', "[]"])
def test_a_folder_without_readable_settings_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="config.json"):
        load_run_folder_config(tmp_path)


def test_a_models_file_is_no_run(tmp_path):
    file = tmp_path / "model.py"
    file.write_text(
        "from ring_jax.config import ModelConfig, to_config_dict\n"
        "def get_config():\n    return to_config_dict(ModelConfig())\n"
    )
    assert "holds a model, not a run" in mistake(file)


@pytest.mark.parametrize(
    ("name", "verb"), [("demo", "curate"), ("synthesis", "synthesise")]
)
def test_a_file_of_another_verb_names_the_verb(name, verb):
    file = CONFIGS / "data" / f"{name}.py"
    assert f"`ring {verb}` takes it" in mistake(file)


def test_without_any_settings_the_line_says_how_to_give_them():
    line = mistake(None)
    assert "--config=FILE.py" in line
    assert "--workdir=DIR" in line
