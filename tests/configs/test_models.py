# SPDX-License-Identifier: Apache-2.0
"""The models that we ship are the models that they are named after."""

import dataclasses
import importlib
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.checkpoint.huggingface import config_from_hf, config_to_hf
from ring_jax.config import ModelConfig, RunConfig, UpcycleConfig, from_config_dict
from ring_jax.model import abstract_transformer, count_parameters, init_transformer

FOLDER = pathlib.Path(__file__).parent.parent.parent / "configs" / "models"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))

LITE = (16_801_974_272, 2_753_153_024)
# Published totals; those of Ling-plus follow from the shapes of its two releases.
COUNTS = {
    "ling_lite": LITE,
    "ling_lite_base": LITE,
    "ling_lite_1_5": LITE,
    "ling_coder_lite": LITE,
    "ling_plus": (290_602_910_976, 29_004_170_496),
    "ling_plus_0325": (292_540_679_424, 30_941_938_944),
    "smollm2_135m": (134_515_008, 134_515_008),
}


def load(name: str) -> ModelConfig:
    tree = importlib.import_module(f"configs.models.{name}").get_config()
    return from_config_dict(ModelConfig, tree)


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_a_model_are_the_reviewed_ones(name, check_golden):
    check_golden(f"configs/{name}.txt", as_lines(dataclasses.asdict(load(name))))


def test_the_settings_of_the_quickstart_are_the_reviewed_ones(check_golden):
    tree = importlib.import_module("configs.quickstart").get_config()
    settings = dataclasses.asdict(from_config_dict(RunConfig, tree))
    check_golden("configs/quickstart.txt", as_lines(settings))


def test_the_upcycling_is_the_reviewed_one(check_golden):
    tree = importlib.import_module("configs.upcycle.eight_experts").get_config()
    settings = dataclasses.asdict(from_config_dict(UpcycleConfig, tree))
    check_golden("configs/upcycle/eight_experts.txt", as_lines(settings))


def as_lines(tree: Mapping[str, Any], path: str = "") -> str:
    """Writes one `path = value` a line, in the schema's order."""
    lines = ""
    for key, value in tree.items():
        inner = f"{path}.{key}" if path else key
        is_inner = isinstance(value, Mapping) and value
        lines += as_lines(value, inner) if is_inner else f"{inner} = {value!r}\n"
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_of_a_model_are_the_reviewed_ones(name, check_golden):
    lines = []
    # Of all axes that split weights; the others keep copies.
    config = load(name)
    sizes = {
        "fsdp": 2,
        "context": 2,
        "expert": 2,
        "tensor": math.gcd(2, config.num_kv_heads),
    }
    with jax.sharding.use_abstract_mesh(sharding.abstract_mesh(**sizes)):
        model = abstract_transformer(config)
    for path, leaf in jax.tree.leaves_with_path(model):
        dims = [
            str(size) if axes is None else f"{size}@{axes}".replace("'", "")
            for size, axes in zip(leaf.shape, leaf.sharding.spec, strict=True)
        ]
        # The last key is the parameter's own field.
        parameter = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        lines.append(f"{parameter}: {leaf.dtype}[{', '.join(dims)}]\n")
    check_golden(f"parameters/{name}.txt", "".join(lines))


def test_the_initial_values_are_the_reviewed_ones(mesh, check_golden):
    model = jax.jit(lambda: init_transformer(load("tiny"), jax.random.key(0)))()
    lines = []
    for path, leaf in jax.tree.leaves_with_path(model):
        values = np.asarray(leaf, np.float64)
        parameter = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        # Two digits: what a draw of this many values settles.
        moments = (
            f"mean {abs(values.mean()):.2f}, standard deviation {values.std():.2g}"
        )
        lines.append(f"{parameter}: {moments}\n")
    check_golden("parameters/tiny_initial_values.txt", "".join(lines))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_survives_its_config_json(name):
    config = load(name)
    assert config_from_hf(config_to_hf(config, dtype="bfloat16")) == config


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_model_has_its_published_size(name):
    count = count_parameters(load(name))
    assert (count.total, count.activated) == COUNTS[name]


def test_the_tiny_model_is_tiny():
    count = count_parameters(load("tiny"))
    assert 1_500_000 < count.total < 2_000_000
    assert count.activated < 0.6 * count.total


def test_the_releases_of_ling_lite_differ_where_the_published_ones_do():
    lite = load("ling_lite")
    assert (lite.norm_head, lite.norm_eps, lite.rope_theta) == (True, 1e-6, 600000.0)
    assert lite.max_positions == 16384
    assert load("ling_lite_base").norm_eps == 1e-5
    newer = load("ling_lite_1_5")
    assert (newer.norm_head, newer.norm_eps) == (False, 1e-6)
    assert newer.max_positions == 32768
    coder = load("ling_coder_lite")
    assert (coder.rope_theta, coder.max_positions) == (10000.0, 4096)
