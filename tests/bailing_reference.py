# SPDX-License-Identifier: Apache-2.0
"""BailingMoE v1 defined in plain numpy float64, by a Hugging Face folder's own names.

Written from the published description, independent of our model and of our name table,
so that a mistake in either shows. One sequence, no cache, loops where they are clearer.
Source: `modeling_bailing_moe.py` of inclusionAI/Ling; arXiv:2503.05139, section 2.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ring_jax.checkpoint.huggingface import parameter_shapes
from ring_jax.config import ModelConfig

type Tensors = Mapping[str, np.ndarray]


def logits(config: Mapping[str, Any], tensors: Tensors, ids: np.ndarray) -> np.ndarray:
    """Returns f64[T, V] of one sequence.

    Args:
      config: the content of config.json.
      tensors: Hugging Face name -> array in PyTorch's [out, in] layout.
      ids: int[T].
    """
    eps = config["rms_norm_eps"]
    x = tensors["model.word_embeddings.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {
            name.removeprefix(prefix): array
            for name, array in tensors.items()
            if name.startswith(prefix)
        }
        normed = _rms_norm(x, own["input_layernorm.weight"], eps)
        x = x + _attention(config, own, normed)
        normed = _rms_norm(x, own["post_attention_layernorm.weight"], eps)
        if layer < config["first_k_dense_replace"]:
            x = x + _swiglu(own, "mlp.", normed)
        else:
            x = x + _moe(config, own, normed)
    x = _rms_norm(x, tensors["model.norm.weight"], eps)
    tied = config["tie_word_embeddings"]
    head = tensors["model.word_embeddings.weight" if tied else "lm_head.weight"]
    if config["norm_head"]:
        head = head / (np.sqrt(np.sum(head**2, axis=0, keepdims=True)) + 1e-7)
    return x @ head.T


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _linear(own: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    return x @ own[f"{name}.weight"].T + own.get(f"{name}.bias", 0.0)


def _swiglu(own: Tensors, prefix: str, x: np.ndarray) -> np.ndarray:
    gate = _linear(own, f"{prefix}gate_proj", x)
    up = _linear(own, f"{prefix}up_proj", x)
    return _linear(own, f"{prefix}down_proj", gate / (1 + np.exp(-gate)) * up)


def _attention(config: Mapping[str, Any], own: Tensors, x: np.ndarray) -> np.ndarray:
    length, heads = len(x), config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"] or heads
    width = config["head_dim"] or config["hidden_size"] // heads
    rows = _linear(own, "attention.query_key_value", x)
    query, key, value = np.split(
        rows, [heads * width, (heads + kv_heads) * width], axis=-1
    )
    query = _rotate(config, query.reshape(length, heads, width))
    key = _rotate(config, key.reshape(length, kv_heads, width))
    value = value.reshape(length, kv_heads, width)
    out = np.zeros((length, heads, width))
    for head in range(heads):
        of_kv = head // (heads // kv_heads)
        scores = query[:, head] @ key[:, of_kv].T / math.sqrt(width)
        scores[np.triu_indices(length, 1)] = -np.inf
        out[:, head] = _softmax(scores) @ value[:, of_kv]
    return _linear(own, "attention.dense", out.reshape(length, heads * width))


def _rotate(config: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Rotates the pairs (i, i + width/2) by their angle at each position."""
    length, _, width = x.shape
    frequencies, magnitude = _frequencies(config, width)
    angles = np.arange(length)[:, None] * frequencies
    pairs = x[..., : width // 2] + 1j * x[..., width // 2 :]
    turned = pairs * (magnitude * np.exp(1j * angles))[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _frequencies(config: Mapping[str, Any], width: int) -> tuple[np.ndarray, float]:
    theta, scaling = config["rope_theta"], config["rope_scaling"]
    plain = np.array([theta ** (-2 * j / width) for j in range(width // 2)])
    if scaling is None:
        return plain, 1.0
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        return (
            width
            * math.log(original / (rotations * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low = max(math.floor(dimension(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension(scaling["beta_slow"])), width - 1)
    ramp = np.array(
        [
            min(max((j - low) / max(high - low, 0.001), 0.0), 1.0)
            for j in range(width // 2)
        ]
    )

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    blended = plain / factor * ramp + plain * (1 - ramp)
    scale = magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return blended, scale


def _moe(config: Mapping[str, Any], own: Tensors, x: np.ndarray) -> np.ndarray:
    top_k = config["num_experts_per_tok"]
    probabilities = _softmax(_linear(own, "mlp.gate", x))
    out = np.zeros_like(x)
    for token, row in enumerate(probabilities):
        chosen = np.argsort(-row, kind="stable")[:top_k]
        weights = row[chosen]
        if config["norm_topk_prob"] and top_k > 1:
            weights = weights / weights.sum()
        for expert, weight in zip(chosen, weights, strict=True):
            out[token] += weight * _swiglu(own, f"mlp.experts.{expert}.", x[token])
    if config["num_shared_experts"]:
        out += _swiglu(own, "mlp.shared_experts.", x)
    return out


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Reads a folder's safetensors files with the reference library, as float64."""
    return {
        name: array.astype(np.float64)
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in safetensors.numpy.load_file(file).items()
    }


def random_parameters(config: ModelConfig, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws parameters by path with which every part of the model has a say.

    Matrices keep the variance of what they multiply, so that logits have a standard
    deviation of about 1 at every depth, and a tolerance on them means something.
    """
    random, params = np.random.default_rng(seed), {}
    for path, shape in parameter_shapes(config).items():
        name = path.rpartition(".")[2]
        draw = random.normal(size=shape)
        if "norm" in name:
            draw = 1.0 + 0.2 * draw
        elif "bias" in name:
            draw = 0.3 * draw
        elif name == "head_DV" or (name == "embed_VD" and config.tie_embeddings):
            draw *= config.model_dim**-0.5
        elif name != "embed_VD":
            draw *= _fan_in(name, shape) ** -0.5
        params[path] = draw.astype(np.float32)
    if config.norm_head:
        # Channels of the head have norm 1, its entries V**-0.5.
        params["final_norm_D"] *= (config.vocab_size / config.model_dim) ** 0.5
    return params


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    sizes = dict(zip(reversed(name.rpartition("_")[2]), reversed(shape), strict=False))
    if name.startswith("out"):
        return sizes["N"] * sizes["H"]
    return sizes["F" if name.startswith("down") else "D"]
