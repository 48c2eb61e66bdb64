# SPDX-License-Identifier: Apache-2.0
"""GGUF files that llama.cpp's own package wrote, and files that nobody should read."""

import dataclasses
import struct
import sys

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_jax.checkpoint.gguf import import_gguf
from ring_jax.config import ConfigError, ModelConfig
from tests.bailing_reference import random_parameters

TOKENS = ["<|endoftext|>", "<|im_end|>", "<tool>", *"abcĠ12", "ab", "Ġc", "12"]
CONFIG = ModelConfig(
    vocab_size=len(TOKENS),
    model_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=96,
    num_dense_layers=2,
    norm_eps=1e-5,
    rope_theta=1e5,
    max_positions=99,
    norm_head=False,
    init_std=0.02,
    eos_id=1,
    pad_id=1,
)
NAMES = {
    "query_DNH": "attn_q",
    "key_DKH": "attn_k",
    "value_DKH": "attn_v",
    "query_bias_NH": "attn_q",
    "key_bias_KH": "attn_k",
    "value_bias_KH": "attn_v",
    "out_NHD": "attn_output",
    "out_bias_D": "attn_output",
    "attention_norm_D": "attn_norm",
    "mlp_norm_D": "ffn_norm",
    "down_FD": "ffn_down",
    "embed_VD": "token_embd",
    "final_norm_D": "output_norm",
    "head_DV": "output",
}


def _permuted(weights, num_heads):
    # As `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py does it.
    halves = weights.reshape(num_heads, 2, len(weights) // num_heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _layer_tensors(params, layer):
    """Yields names and arrays as the converter writes them, [out, in]."""
    for path, stack in params.items():
        own, name = stack[layer], path.rpartition(".")[2]
        if not path.startswith("dense_layers."):
            continue
        if name == "gate_up_D2F":
            yield "ffn_gate.weight", own[:, 0].T
            yield "ffn_up.weight", own[:, 1].T
            continue
        kind = "bias" if "bias" in name else "weight"
        if name == "out_NHD":
            own = own.reshape(-1, own.shape[-1]).T
        elif name.startswith(("query", "key", "value")):
            num_heads = own.shape[-2]
            own = own.reshape(-1) if kind == "bias" else own.reshape(len(own), -1).T
            own = own if name.startswith("value") else _permuted(own, num_heads)
        elif name == "down_FD":
            own = own.T
        yield f"{NAMES[name]}.{kind}", own


def _tensors(params):
    for path in ("embed_VD", "final_norm_D", "head_DV"):
        if path in params:
            array = params[path]
            yield f"{NAMES[path]}.weight", array.T if path == "head_DV" else array
    for layer in range(CONFIG.num_layers):
        for name, array in _layer_tensors(params, layer):
            yield f"blk.{layer}.{name}", array


def _write(path, config, params, *, kind=gguf.GGMLQuantizationType.F32, **metadata):
    writer = gguf.GGUFWriter(path, metadata.pop("arch", "llama"))
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.model_dim)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model(metadata.pop("model", "gpt2"))
    writer.add_tokenizer_pre(metadata.pop("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types(metadata.pop("types", [3, 3, 4] + [1] * (len(TOKENS) - 3)))
    writer.add_token_merges(metadata.pop("merges", ["a b", "Ġ c", "1 2"]))
    writer.add_eos_token_id(config.eos_id)
    writer.add_chat_template("{{ of_the_file }}")
    if experts := metadata.pop("experts", 0):
        writer.add_expert_count(experts)
    assert not metadata
    for name, array in _tensors(params):
        rows = np.ascontiguousarray(array)
        is_matrix = rows.ndim == 2
        raw = gguf.quants.quantize(rows, kind) if is_matrix else rows
        writer.add_tensor(name, raw, raw_dtype=kind if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VARIANTS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "biased": {"has_qkv_bias": True, "has_output_bias": True},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_what_the_converter_writes_is_read_back(tmp_path, changes):
    config = dataclasses.replace(CONFIG, **changes)
    params = random_parameters(config)
    model = import_gguf(_write(tmp_path / "a.gguf", config, params))
    assert model.config == config
    assert model.chat_template == "{{ of_the_file }}"
    assert model.params.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(model.params[path], array, err_msg=path)


# Steps between the values of a block: 2**-8 relative, 1/127 or 1/15 of the range.
ROUNDING = {"BF16": 2**-8, "F16": 2**-10, "Q8_0": 1 / 127, "Q4_1": 1 / 7}


@pytest.mark.parametrize("kind", ROUNDING)
def test_quantised_weights_come_back_within_their_rounding(tmp_path, kind):
    params = random_parameters(CONFIG)
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    model = import_gguf(_write(tmp_path / "a.gguf", CONFIG, params, kind=quantised))
    for path, array in params.items():
        error = np.abs(model.params[path] - array).max()
        assert error <= ROUNDING[kind] * np.abs(array).max(), path
    embed_VD = model.params["embed_VD"]
    assert np.abs(embed_VD - params["embed_VD"]).max() > 0


def test_the_tokenizer_splits_and_merges_as_the_file_says(tmp_path):
    params = random_parameters(CONFIG)
    ids = {}
    for pre in ("smollm", "gpt-2"):
        path = _write(tmp_path / f"{pre}.gguf", CONFIG, params, pre=pre)
        text = import_gguf(path).tokenizer
        backend = tokenizers.Tokenizer.from_str(text)
        ids[pre] = backend.encode("ab c12<|im_end|><tool>").tokens
        assert backend.decode(backend.encode("ab c12").ids) == "ab c12"
        special = {
            token.content
            for token in backend.get_added_tokens_decoder().values()
            if token.special
        }
        assert special == {"<|endoftext|>", "<|im_end|>"}
    # SmolLM splits digits, GPT-2 does not.
    assert ids["smollm"] == ["ab", "Ġc", "1", "2", "<|im_end|>", "<tool>"]
    assert ids["gpt-2"] == ["ab", "Ġc", "12", "<|im_end|>", "<tool>"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"arch": "qwen2"}, "general.architecture='qwen2'"),
        ({"experts": 8}, "llama.expert_count=8"),
        ({"model": "llama"}, "model='llama'"),
        ({"pre": "llama-bpe"}, "pre='llama-bpe'"),
        ({"merges": ["a b", "b a"]}, "merges has 'b a'"),
        ({"types": [1]}, "with 1 types"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_in_one_line(
    tmp_path, metadata, message
):
    params = random_parameters(CONFIG)
    path = _write(tmp_path / "a.gguf", CONFIG, params, **metadata)
    _refused(path, message)


def test_a_tensor_that_is_missing_or_more_is_named(tmp_path):
    params = random_parameters(CONFIG)
    deeper = dataclasses.replace(CONFIG, num_layers=3, num_dense_layers=3)
    path = _write(tmp_path / "a.gguf", deeper, params)
    _refused(path, r"tensor `blk.2.attn_k.weight` has shape None")
    shallow = dataclasses.replace(CONFIG, num_layers=1, num_dense_layers=1)
    path = _write(tmp_path / "b.gguf", shallow, params)
    _refused(path, r"`blk.1.attn_k.weight` .* has None")


def _refused(path, message):
    with pytest.raises(ConfigError, match=message) as caught:
        import_gguf(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    return _write(path, CONFIG, random_parameters(CONFIG)).read_bytes()


def test_no_file_and_no_gguf_are_told_apart(tmp_path):
    _refused(tmp_path / "nowhere.gguf", "is no file")
    _refused(tmp_path, "is no file")
    (tmp_path / "empty").write_bytes(b"")
    _refused(tmp_path / "empty", "is no GGUF file")
    (tmp_path / "text").write_text("GGML and more")
    _refused(tmp_path / "text", "is no GGUF file")
    (tmp_path / "old").write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(16))
    _refused(tmp_path / "old", "version 1")


def test_an_unknown_quantisation_is_named(tmp_path, whole):
    # A tensor's entry: name, number of dimensions, dimensions, type, offset.
    name = b"blk.1.attn_q.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8
    for type_id, message in ((38, "unknown quantisation 38"), (9, "Q8_1")):
        path = tmp_path / f"{type_id}.gguf"
        path.write_bytes(whole[:at] + struct.pack("<I", type_id) + whole[at + 4 :])
        _refused(path, message)


def test_a_length_beyond_the_file_takes_no_memory(tmp_path, whole):
    path = tmp_path / "long.gguf"
    path.write_bytes(whole[:8] + struct.pack("<Q", 2**60) + whole[16:])
    _refused(path, "truncated")


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path_factory, whole, share):
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    _refused(path, "truncated|is no GGUF file")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_in_the_header_is_one_line_or_another_model(
    tmp_path_factory, whole, data
):
    header = whole.index(b"blk.0.attn_k.weight")
    at = data.draw(st.integers(4, header))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        import_gguf(path)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017  (most damage is refused, not all)


def test_without_gguf_the_error_names_the_extra(tmp_path, whole, monkeypatch):
    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"ring_jax\[gguf\]"):
        import_gguf(path)
