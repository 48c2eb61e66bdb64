# SPDX-License-Identifier: Apache-2.0
"""A routed model made of a dense one computes the same, and exports as a BailingMoE."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from ring_jax.checkpoint.mlx_check import max_logit_difference_to_mlx
from ring_jax.checkpoint.model_folder import export_folder, import_folder
from ring_jax.checkpoint.tree import place
from ring_jax.checkpoint.upcycle import upcycle
from ring_jax.config import ConfigError, ModelConfig, UpcycleConfig
from ring_jax.model import abstract_transformer
from tests.bailing_reference import random_parameters

DENSE = ModelConfig(
    vocab_size=96,
    model_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    num_dense_layers=3,
    rope_theta=1e4,
    norm_head=False,
    tie_embeddings=True,
    eos_id=1,
    pad_id=1,
)
# Weights of two experts sum to 1 within an ulp, and each product is rounded again:
# some ulps of float32 (6e-8) of logits of standard deviation 1, over three layers.
ROUNDING = 1e-5
# As between mlx-lm and our own layers, see tests/model/test_mlx_parity.py.
MLX_TOLERANCE = 2e-4

VARIANTS = {
    "eight_experts": {},
    "four_of_six": {"num_experts": 6, "num_experts_per_token": 4},
    "all_of_two": {"num_experts": 2, "num_experts_per_token": 2},
    "shared": {"num_shared_experts": 2},
    "first_layer_dense": {"num_dense_layers": 1},
}


@jax.jit
def _logits(model, ids_BT):
    return model.logits(_run(model, ids_BT)[0])


@jax.jit
def _load(model, ids_BT):
    return _run(model, ids_BT)[1].load_E


def _run(model, ids_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1])[None], ids_BT.shape)
    return model(ids_BT, segments_BT=jnp.ones_like(ids_BT), positions_BT=positions_BT)


def _logits_of(config, params):
    return functools.partial(_logits, place(abstract_transformer(config), params))


IDS_BT = np.random.default_rng(1).integers(0, DENSE.vocab_size, (2, 40), np.int32)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_outputs_equal_those_of_the_dense_model(mesh, changes):
    params = random_parameters(DENSE)
    config, made = upcycle(DENSE, params, UpcycleConfig(**changes))
    assert not config.is_dense
    before_BTV = _logits_of(DENSE, params)(IDS_BT)
    after_BTV = _logits_of(config, made)(IDS_BT)
    assert before_BTV.std() > 0.5
    np.testing.assert_allclose(after_BTV, before_BTV, atol=ROUNDING, rtol=0)


def test_experts_are_chosen_by_the_token(mesh):
    config, made = upcycle(DENSE, random_parameters(DENSE), UpcycleConfig())
    load_LE = _load(place(abstract_transformer(config), made), IDS_BT)
    # Random inputs of 32 channels: not all experts, but most, and none gets all.
    assert ((load_LE > 0).sum(axis=1) > 4).all()
    assert load_LE.max() < 0.5


def test_noise_moves_the_experts_apart_by_its_share(mesh):
    params = random_parameters(DENSE)
    config, made = upcycle(DENSE, params, UpcycleConfig(noise_std=0.1))
    plain = upcycle(DENSE, params, UpcycleConfig())[1]
    for path, array in made.items():
        if path.endswith(("gate_up_ED2F", "down_EFD")):
            added = (array - plain[path]).std() / plain[path].std()
            assert 0.09 < added < 0.11
            assert np.abs(array[:, 0] - array[:, 1]).max() > 0
        else:
            np.testing.assert_array_equal(array, plain[path])
    before_BTV = _logits_of(DENSE, params)(IDS_BT)
    after_BTV = _logits_of(config, made)(IDS_BT)
    assert np.abs(after_BTV - before_BTV).max() > 100 * ROUNDING


def test_the_dense_parameters_are_left_as_they_were():
    params = random_parameters(DENSE)
    before = {path: array.copy() for path, array in params.items()}
    made = upcycle(DENSE, params, UpcycleConfig(noise_std=0.1))[1]
    for path, array in params.items():
        np.testing.assert_array_equal(array, before[path])
    again = upcycle(DENSE, params, UpcycleConfig(noise_std=0.1))[1]
    for path, array in made.items():
        np.testing.assert_array_equal(array, again[path])
    other = upcycle(DENSE, params, UpcycleConfig(seed=1))[1]
    router = "moe_layers.moe.router_DE"
    assert not np.array_equal(made[router], other[router])


@pytest.mark.parametrize("changes", [{}, VARIANTS["shared"]], ids=["plain", "shared"])
def test_mlx_opens_it_as_a_bailing_moe_and_agrees_with_the_dense_model(
    mesh, tmp_path, changes
):
    params = random_parameters(DENSE)
    config, made = upcycle(DENSE, params, UpcycleConfig(**changes))
    vocab = {"a": 0, "<|endoftext|>": 1}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    folder = export_folder(
        made,
        config,
        tmp_path / "export",
        tokenizer=tmp_path,
        chat_template="",
        dtype="float32",
    )
    assert "BailingMoeForCausalLM" in (folder / "config.json").read_text()
    assert import_folder(folder)[0] == config
    dense = _logits_of(DENSE, params)
    assert max_logit_difference_to_mlx(folder, dense, IDS_BT) <= MLX_TOLERANCE


def test_what_cannot_be_upcycled_is_refused_in_one_line():
    params = random_parameters(DENSE)
    routed, made = upcycle(DENSE, params, UpcycleConfig())
    with pytest.raises(ConfigError, match="is routed already"):
        upcycle(routed, made, UpcycleConfig())
    with pytest.raises(ConfigError, match="leaves no layer"):
        upcycle(DENSE, params, UpcycleConfig(num_dense_layers=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_token": 1}, "num_experts_per_token=1"),
        ({"num_experts": 2, "num_experts_per_token": 3}, "num_experts=2"),
        ({"num_shared_experts": -1}, "num_shared_experts=-1"),
        ({"noise_std": float("nan")}, "noise_std=nan"),
    ],
)
def test_settings_that_would_not_compute_the_same_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        UpcycleConfig(**changes)
