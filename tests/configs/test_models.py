# SPDX-License-Identifier: Apache-2.0
"""The models that we ship are the models that they are named after."""

import importlib
import pathlib

import pytest

from ring_jax.checkpoint.huggingface import config_from_hf, config_to_hf
from ring_jax.config import ModelConfig, from_config_dict
from ring_jax.model import count_parameters

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
}


def load(name: str) -> ModelConfig:
    tree = importlib.import_module(f"configs.models.{name}").get_config()
    return from_config_dict(ModelConfig, tree)


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
