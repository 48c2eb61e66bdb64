# SPDX-License-Identifier: Apache-2.0
"""From our settings to a Hugging Face config.json, and back.

Names are those of `architectures.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ring_jax.checkpoint import weights
from ring_jax.checkpoint.architectures import (
    ARCHITECTURES,
    LLAMA,
    Architecture,
    architecture_of,
)
from ring_jax.checkpoint.weights import Tensor
from ring_jax.config import ConfigError, ModelConfig, MoeConfig, YarnConfig

type Dtype = Literal["float32", "bfloat16"]

YARN_FIELDS = (
    ("factor", "factor"),
    ("original_max_positions", "original_max_position_embeddings"),
    ("beta_fast", "beta_fast"),
    ("beta_slow", "beta_slow"),
    ("mscale", "mscale"),
    ("mscale_all_dim", "mscale_all_dim"),
)

# More tensors than any BailingMoE has; a config.json is a stranger's input.
_MAX_SIZE = 2**31 - 1
_MAX_EXPERTS_IN_ALL = 10**6


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a model by path."""
    return weights.parameter_shapes(architecture_of(config).weights, config)


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Returns every tensor of a model's folder by name, layer after layer."""
    return weights.tensors(architecture_of(config).weights, config)


def config_to_hf(config: ModelConfig, *, dtype: Dtype) -> dict[str, Any]:
    """Returns the config.json of a model, every key that a reader would default."""
    settings, architecture = _flat(config), architecture_of(config)
    yarn = config.rope_scaling
    scaling = None
    if yarn is not None:
        # The published file reads `type` only, newer readers `rope_type`.
        scaling = {"type": "yarn", "rope_type": "yarn"}
        scaling |= {theirs: getattr(yarn, ours) for ours, theirs in YARN_FIELDS}
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        **{theirs: settings[ours] for ours, theirs, _ in architecture.fields},
        "rope_scaling": scaling,
        **architecture.written,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def config_from_hf(tree: Mapping[str, Any]) -> ModelConfig:
    """Reads a config.json; absent keys take the defaults of the published class.

    Raises:
      ConfigError: one line, when it is another architecture or a variant that is not
        computed here, or a value is of the wrong type.
    """
    name = (tree.get("architectures") or [None])[0]
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"config.json: architectures={tree.get('architectures')} is none of "
            f"{list(ARCHITECTURES)} (BailingMoE v1, as Ling-lite and Ling-plus, and "
            "dense Llamas); no other architecture can be read."
        )
    architecture = ARCHITECTURES[name]
    for key, value in architecture.fixed.items():
        if tree.get(key, value) not in (value, None):
            raise ConfigError(
                f"config.json: {key}={tree[key]!r} is a variant that is not computed "
                f"here; it must be {value!r}."
            )
    fields = architecture.fields
    settings = {ours: _field(tree, key, default) for ours, key, default in fields}
    settings["rope_scaling"], theta = _rope(tree)
    if "rope_theta" not in tree and theta is not None:
        settings["rope_theta"] = theta
    _derive(settings, architecture)
    moe = {
        name.removeprefix("moe."): settings.pop(name)
        for name in list(settings)
        if name.startswith("moe.")
    }
    try:
        return ModelConfig(moe=MoeConfig(**moe), **settings)
    except ConfigError as error:
        raise ConfigError(f"config.json: {error}") from None


def _derive(settings: dict[str, Any], architecture: Architecture) -> None:
    """Fills in what the published class derives from other keys."""
    settings["num_kv_heads"] = settings["num_kv_heads"] or settings["num_heads"]
    if not settings["head_dim"] and settings["num_heads"]:
        settings["head_dim"] = settings["model_dim"] // settings["num_heads"]
    if architecture is LLAMA:
        if settings["pad_id"] < 0:
            settings["pad_id"] = settings["eos_id"]
    elif not settings["num_dense_layers"]:
        # No layer has this width: any value computes the same.
        settings["mlp_dim"] = settings["mlp_dim"] or settings["moe.expert_dim"]
    _check_sizes(settings, architecture)
    if architecture is LLAMA:
        settings |= {"num_dense_layers": settings["num_layers"], "norm_head": False}


def _check_sizes(settings: Mapping[str, Any], architecture: Architecture) -> None:
    theirs = {ours: key for ours, key, _ in architecture.fields}
    may_be_zero = ("num_dense_layers", "moe.num_shared_experts", "eos_id", "pad_id")
    for name, value in settings.items():
        is_count = type(value) is int and name not in may_be_zero
        if type(value) is int and not is_count <= value <= _MAX_SIZE:
            raise ConfigError(f"config.json: {theirs[name]}={value} is no such number.")
    num_experts = settings.get("moe.num_experts", 1)
    if settings["num_layers"] * num_experts > _MAX_EXPERTS_IN_ALL:
        raise ConfigError(
            f"config.json: num_hidden_layers={settings['num_layers']} times "
            f"num_experts={num_experts} is beyond any model."
        )


def _field(tree: Mapping[str, Any], key: str, default: Any) -> Any:
    value = tree.get(key)
    if value is None:
        return default
    if isinstance(value, list) and len(value) == 1 and key.endswith("_token_id"):
        value = value[0]
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(
            f"config.json: {key}={value!r} must be of type {type(default).__name__}."
        )
    return value


def _rope(tree: Mapping[str, Any]) -> tuple[YarnConfig | None, float | None]:
    """Returns the scaling, and the theta of newer files, which keep both together."""
    scaling = tree.get("rope_scaling") or tree.get("rope_parameters")
    if scaling is None:
        return None, None
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"config.json: rope_scaling={scaling!r} must be an object.")
    theta = scaling.get("rope_theta")
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    if kind == "default":
        return None, theta
    known = {theirs: ours for ours, theirs in YARN_FIELDS}
    others = set(scaling) - {*known, "type", "rope_type", "rope_theta"}
    if kind != "yarn" or others:
        what = f"the keys {sorted(others)}" if kind == "yarn" else f"type {kind!r}"
        raise ConfigError(
            f"config.json: rope_scaling has {what}, not computed here; it must be "
            f"'yarn' with keys out of {list(known)}."
        )
    for key in ("factor", "original_max_position_embeddings"):
        if key not in scaling:
            raise ConfigError(
                f"config.json: rope_scaling lacks `{key}`; YaRN needs it."
            )
    defaults = YarnConfig()
    values = {
        ours: _field(scaling, theirs, getattr(defaults, ours))
        for theirs, ours in known.items()
    }
    return YarnConfig(**values), theta


def _flat(config: ModelConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    moe = settings.pop("moe")
    return settings | {f"moe.{name}": value for name, value in moe.items()}
