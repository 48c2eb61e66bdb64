# SPDX-License-Identifier: Apache-2.0
"""A dense Llama out of a GGUF file: settings, weights, tokenizer, chat template.

Sources: `docs/gguf.md` of ggml-org/ggml for the keys; `convert_hf_to_gguf.py` of
ggml-org/llama.cpp for how it stores a `LlamaForCausalLM`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ring_jax.checkpoint import weights
from ring_jax.checkpoint.gguf_file import GgufFile, open_gguf
from ring_jax.checkpoint.gguf_tokenizer import special_tokens, tokenizer_json
from ring_jax.checkpoint.weights import Weight
from ring_jax.config import ConfigError, ModelConfig

_WEIGHTS = (
    Weight(("embed_VD",), "token_embd.weight", "VD"),
    Weight(("dense_layers.attention_norm_D",), "blk.{L}.attn_norm.weight", "D"),
    Weight(("dense_layers.attention.query_DNH",), "blk.{L}.attn_q.weight", "(NH)D"),
    Weight(("dense_layers.attention.query_bias_NH",), "blk.{L}.attn_q.bias", "(NH)"),
    Weight(("dense_layers.attention.key_DKH",), "blk.{L}.attn_k.weight", "(KH)D"),
    Weight(("dense_layers.attention.key_bias_KH",), "blk.{L}.attn_k.bias", "(KH)"),
    Weight(("dense_layers.attention.value_DKH",), "blk.{L}.attn_v.weight", "(KH)D"),
    Weight(("dense_layers.attention.value_bias_KH",), "blk.{L}.attn_v.bias", "(KH)"),
    Weight(("dense_layers.attention.out_NHD",), "blk.{L}.attn_output.weight", "D(NH)"),
    Weight(("dense_layers.attention.out_bias_D",), "blk.{L}.attn_output.bias", "D"),
    Weight(("dense_layers.mlp_norm_D",), "blk.{L}.ffn_norm.weight", "D"),
    Weight(("dense_layers.mlp.gate_up_D2F",), "blk.{L}.ffn_gate.weight", "FD", half=0),
    Weight(("dense_layers.mlp.gate_up_D2F",), "blk.{L}.ffn_up.weight", "FD", half=1),
    Weight(("dense_layers.mlp.down_FD",), "blk.{L}.ffn_down.weight", "DF"),
    Weight(("final_norm_D",), "output_norm.weight", "D"),
    Weight(("head_DV",), "output.weight", "VD"),
)
_INTERLEAVED = ("attn_q.weight", "attn_q.bias", "attn_k.weight", "attn_k.bias")

_MAX_SIZE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """What a file holds."""

    config: ModelConfig
    params: dict[str, np.ndarray]
    """f32, by path."""
    tokenizer: str
    """Content of a `tokenizer.json`."""
    chat_template: str | None
    """Jinja text."""
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """`bos_token` and `eos_token`, which a chat template may write."""


def import_gguf(path: str | Path) -> GgufModel:
    """Reads a file, dequantised to float32.

    Raises:
      ConfigError: one line that names the file and what is wrong with it.
    """
    with open_gguf(path) as file:
        try:
            config = _config(file)
            _check(file, config)
            tokenizer = tokenizer_json(file.metadata, vocab_size=config.vocab_size)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        template = file.metadata.get("tokenizer.chat_template")
        return GgufModel(
            config=config,
            params=_params(file, config),
            tokenizer=tokenizer,
            chat_template=template if isinstance(template, str) else None,
            special_tokens=special_tokens(file.metadata),
        )


def _config(file: GgufFile) -> ModelConfig:
    metadata = file.metadata
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise ConfigError(
            f"general.architecture={architecture!r} cannot be read; it must be 'llama'."
        )
    _refuse_variants(metadata)
    num_layers = _size(metadata, "llama.block_count")
    if num_layers > len(file.tensors):
        raise ConfigError(
            f"llama.block_count={num_layers}, but the file has {len(file.tensors)} "
            "tensors in all."
        )
    num_heads = _size(metadata, "llama.attention.head_count")
    model_dim = _size(metadata, "llama.embedding_length")
    head_dim = _size(metadata, "llama.attention.key_length", model_dim // num_heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (other := _size(metadata, key, head_dim)) != head_dim:
            raise ConfigError(f"{key}={other} is not the width {head_dim} of a head.")
    eos_id = _number(metadata, "tokenizer.ggml.eos_token_id", int)
    vocab = file.tensors.get("token_embd.weight")
    return ModelConfig(
        vocab_size=vocab.shape[0] if vocab and vocab.shape else 0,
        model_dim=model_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_size(metadata, "llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        mlp_dim=_size(metadata, "llama.feed_forward_length"),
        num_dense_layers=num_layers,
        norm_eps=_number(metadata, "llama.attention.layer_norm_rms_epsilon", float),
        rope_theta=_number(metadata, "llama.rope.freq_base", float, 10000.0),
        max_positions=_size(metadata, "llama.context_length"),
        norm_head=False,
        tie_embeddings="output.weight" not in file.tensors,
        has_output_bias="blk.0.attn_output.bias" in file.tensors,
        has_qkv_bias="blk.0.attn_q.bias" in file.tensors,
        init_std=0.02,
        eos_id=eos_id,
        pad_id=_number(metadata, "tokenizer.ggml.padding_token_id", int, eos_id),
    )


def _refuse_variants(metadata: Mapping[str, Any]) -> None:
    for key, plain in (
        ("llama.expert_count", 0),
        ("llama.rope.scaling.type", "none"),
    ):
        if metadata.get(key, plain) != plain:
            raise ConfigError(
                f"{key}={metadata[key]!r} is a variant that is not computed here; it "
                f"must be {plain!r}."
            )


def _size(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    size = _number(metadata, key, int, default)
    if not 1 <= size <= _MAX_SIZE:
        raise ConfigError(f"{key}={size} is no such number.")
    return size


def _number[Number: (int, float)](
    metadata: Mapping[str, Any],
    key: str,
    kind: type[Number],
    default: Number | None = None,
) -> Number:
    value = metadata.get(key, default)
    if type(value) is not kind:
        raise ConfigError(f"{key}={value!r} must be of type {kind.__name__}.")
    # A float32 such as 9.999999747378752e-06 was once written as 1e-05.
    return kind(str(np.float32(value))) if kind is float else value


def _check(file: GgufFile, config: ModelConfig) -> None:
    """Holds the tensors' names and shapes against the settings."""
    table = weights.tensors(_WEIGHTS, config)
    expected = {name: tensor.shape for name, tensor in table.items()}
    found = {name: info.shape for name, info in file.tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ConfigError(
                f"tensor `{name}` has shape {found.get(name)}; the model of the "
                f"metadata has {expected.get(name)}."
            )


def _params(file: GgufFile, config: ModelConfig) -> dict[str, np.ndarray]:
    shapes = weights.parameter_shapes(_WEIGHTS, config)
    params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for name, tensor in weights.tensors(_WEIGHTS, config).items():
        stored = file.read(name)
        if name.endswith(_INTERLEAVED):
            stored = _halves(stored, config.head_dim)
        tensor.put(params, stored)
    return params


def _halves(interleaved: np.ndarray, head_dim: int) -> np.ndarray:
    """Puts rotary pairs (2i, 2i + 1) of each head back to (i, i + H/2).

    The converter interleaves them for llama.cpp's "normal" rotary embedding.
    """
    pairs = interleaved.reshape(-1, head_dim // 2, 2, *interleaved.shape[1:])
    return pairs.swapaxes(1, 2).reshape(interleaved.shape)
