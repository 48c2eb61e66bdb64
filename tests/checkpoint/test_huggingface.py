# SPDX-License-Identifier: Apache-2.0
"""The tables of names cover a model exactly, and read back what they write."""

import collections
import dataclasses
import json
import math

import pytest

from ring_jax.checkpoint.architectures import architecture_of
from ring_jax.checkpoint.huggingface import (
    config_from_hf,
    config_to_hf,
    parameter_shapes,
    tensors,
)
from ring_jax.checkpoint.tree import flatten
from ring_jax.config import ConfigError, ModelConfig, MoeConfig, YarnConfig
from ring_jax.model import abstract_transformer

MOE = MoeConfig(num_experts=4, num_experts_per_token=2, expert_dim=24)
SMALL = ModelConfig(
    vocab_size=64,
    model_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=40,
    moe=MOE,
    eos_id=3,
    pad_id=2,
)
VARIANTS = {
    "plain": {},
    "dense_first": {"num_dense_layers": 2},
    "tied": {"tie_embeddings": True},
    "biased": {
        "num_dense_layers": 1,
        "has_output_bias": True,
        "has_qkv_bias": True,
    },
    "no_shared": {"moe": dataclasses.replace(MOE, num_shared_experts=0)},
    "llama": {"num_dense_layers": 3, "norm_head": False, "moe": MoeConfig()},
    "llama_biased": {
        "num_dense_layers": 3,
        "norm_head": False,
        "moe": MoeConfig(),
        "has_output_bias": True,
        "has_qkv_bias": True,
        "tie_embeddings": True,
    },
}


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def config(request):
    return dataclasses.replace(SMALL, **request.param)


def test_the_table_has_the_parameters_of_the_model(config):
    model = flatten(abstract_transformer(config))
    assert parameter_shapes(config) == {
        path: leaf.shape for path, leaf in model.items()
    }


def test_every_element_of_every_parameter_is_in_one_tensor(config):
    covered = collections.Counter()
    for tensor in tensors(config).values():
        rows = sum(block.stored_shape[0] for block in tensor.blocks)
        assert tensor.shape[0] == rows
        for block in tensor.blocks:
            covered[block.path] += math.prod(block.stored_shape)
    sizes = {path: math.prod(shape) for path, shape in parameter_shapes(config).items()}
    assert covered == sizes
    places = [
        (block.path, block.layer, str(block.index))
        for tensor in tensors(config).values()
        for block in tensor.blocks
    ]
    assert len(places) == len(set(places))


def test_ling_lite_has_the_published_tensors():
    table = {name: tensor.shape for name, tensor in tensors(ModelConfig()).items()}
    assert len(table) == 5603
    assert sum(math.prod(shape) for shape in table.values()) == 16_801_974_272
    layer = "model.layers.27."
    # Read off the published checkpoint.
    published = {
        "model.word_embeddings.weight": (126464, 2048),
        f"{layer}input_layernorm.weight": (2048,),
        f"{layer}attention.query_key_value.weight": (3072, 2048),
        f"{layer}attention.dense.weight": (2048, 2048),
        f"{layer}post_attention_layernorm.weight": (2048,),
        f"{layer}mlp.gate.weight": (64, 2048),
        f"{layer}mlp.experts.63.gate_proj.weight": (1408, 2048),
        f"{layer}mlp.experts.63.up_proj.weight": (1408, 2048),
        f"{layer}mlp.experts.63.down_proj.weight": (2048, 1408),
        f"{layer}mlp.shared_experts.gate_proj.weight": (2816, 2048),
        f"{layer}mlp.shared_experts.up_proj.weight": (2816, 2048),
        f"{layer}mlp.shared_experts.down_proj.weight": (2048, 2816),
        "model.norm.weight": (2048,),
        "lm_head.weight": (126464, 2048),
    }
    assert {name: table[name] for name in published} == published


def test_every_setting_of_a_model_survives_config_json(config):
    config = dataclasses.replace(
        config,
        rope_scaling=YarnConfig(factor=8.0, mscale_all_dim=0.5),
        rope_theta=1e4,
        norm_head=False,
        norm_eps=1e-5,
        init_std=0.01,
        max_positions=99,
    )
    tree = json.loads(json.dumps(config_to_hf(config, dtype="bfloat16")))
    assert config_from_hf(tree) == config
    table = architecture_of(config).fields
    names = {ours.removeprefix("moe.") for ours, _, _ in table}
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    if config.is_dense:
        # What is implied, and what no dense model has.
        names |= {"num_dense_layers", "norm_head"}
    else:
        fields |= {field.name for field in dataclasses.fields(MoeConfig)}
    # How experts and attention are computed is no property of the model.
    computed = {
        "implementation",
        "transport",
        "quantization",
        "attention_implementation",
    }
    computed &= fields
    assert fields - names == {"moe", "rope_scaling"} | computed


def test_keys_that_readers_default_otherwise_are_written():
    tree = config_to_hf(SMALL, dtype="float32")
    assert tree["use_bias"] is False
    assert tree["attention_dropout"] == 0.0
    yarn = dataclasses.replace(SMALL, rope_scaling=YarnConfig())
    scaling = config_to_hf(yarn, dtype="float32")["rope_scaling"]
    assert scaling["type"] == scaling["rope_type"] == "yarn"


def _tree(**changes):
    tree = config_to_hf(SMALL, dtype="float32") | changes
    return {key: value for key, value in tree.items() if value != "absent"}


def test_absent_keys_take_the_defaults_of_the_published_class():
    tree = {"architectures": ["BailingMoeForCausalLM"], "vocab_size": 126464}
    config = config_from_hf(tree | {"moe_intermediate_size": 512})
    assert config == ModelConfig(
        model_dim=1024,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        head_dim=64,
        mlp_dim=512,
        moe=MoeConfig(
            num_experts=16,
            num_experts_per_token=2,
            num_shared_experts=0,
            expert_dim=512,
        ),
        norm_eps=1e-5,
        rope_theta=10000.0,
        norm_head=False,
        has_output_bias=True,
        init_std=0.02,
    )


def test_a_head_width_that_is_absent_is_the_share_of_a_head():
    assert config_from_hf(_tree(head_dim=None)).head_dim == 8
    assert config_from_hf(_tree(head_dim="absent")).head_dim == 8
    assert config_from_hf(_tree()).head_dim == 16


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_yarn_is_read_from_either_key(key):
    scaling = {key: "yarn", "factor": 4, "original_max_position_embeddings": 32768}
    assert config_from_hf(_tree(rope_scaling=scaling)).rope_scaling == YarnConfig()


def test_rope_settings_of_newer_files_are_read():
    rope = {"rope_type": "default", "rope_theta": 12345.0}
    tree = _tree(rope_scaling="absent", rope_theta="absent", rope_parameters=rope)
    config = config_from_hf(tree)
    assert (config.rope_scaling, config.rope_theta) == (None, 12345.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BailingMoeV2ForCausalLM"]}, "BailingMoeV2ForCausalLM"),
        ({"architectures": "absent"}, "architectures=None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"score_function": "sigmoid"}, "score_function='sigmoid'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "lacks `original_max"),
        ({"rope_scaling": {"type": "yarn", "truncate": 1}}, r"keys \['truncate'\]"),
        ({"rope_scaling": 4.0}, "rope_scaling=4.0 must be an object"),
        ({"hidden_size": "32"}, "hidden_size='32' must be of type int"),
        ({"hidden_size": -32}, "hidden_size=-32"),
        ({"norm_head": 1}, "norm_head=1 must be of type bool"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_experts": 10**9}, "beyond any model"),
        ({"num_experts_per_tok": 5}, "num_experts_per_token=5"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size=0"),
        ({"eos_token_id": 64}, "eos_id=64"),
        ({"first_k_dense_replace": 3}, "norm_head=True"),
        ({"first_k_dense_replace": 4}, "num_dense_layers=4"),
    ],
)
def test_a_model_that_is_not_computed_here_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_hf(_tree(**changes))
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def _llama(**changes):
    dense = dataclasses.replace(SMALL, num_dense_layers=3, norm_head=False)
    return config_to_hf(dense, dtype="float32") | changes


def test_smollm2_has_the_published_tensors():
    published = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "tie_word_embeddings": True,
    }
    table = tensors(config_from_hf(published))
    assert len(table) == 272
    assert sum(math.prod(tensor.shape) for tensor in table.values()) == 134_515_008
    assert table["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)


def test_a_llama_without_a_padding_token_pads_with_its_end_token():
    assert config_from_hf(_llama(pad_token_id=None)).pad_id == SMALL.eos_id
    assert config_from_hf(_llama(pad_token_id=5)).pad_id == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "type 'llama3'"),
        ({"intermediate_size": 0}, "intermediate_size=0"),
    ],
)
def test_a_llama_that_is_not_computed_here_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_hf(_llama(**changes))
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def test_a_llama_with_half_of_the_biases_is_refused():
    with pytest.raises(ConfigError, match="all biases or none"):
        dataclasses.replace(
            SMALL, num_dense_layers=3, norm_head=False, has_qkv_bias=True
        )
