# SPDX-License-Identifier: Apache-2.0
"""The names that Hugging Face gives to a BailingMoE: its tensors and its config.json.

One table of each, read in both directions. No other file knows these names.
Source: `modeling_bailing_moe.py`, `configuration_bailing_moe.py` of inclusionAI/Ling.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ring_jax.checkpoint.rearrange import rearrange, restore, stored_shape
from ring_jax.config import ConfigError, ModelConfig, MoeConfig, YarnConfig

ARCHITECTURE = "BailingMoeForCausalLM"

type Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of the table: a tensor of theirs, and our parameters that it holds."""

    ours: tuple[str, ...]
    """Paths; `layers.` stands for `dense_layers.` and for `moe_layers.`."""
    theirs: str
    """Their name; {L} and {E} count dimensions of ours."""
    rows: str
    """Their dimensions in our letters; ` + ` puts blocks one below the other."""
    half: int | None = None
    """Which half of our dimension 2; None where there is none."""


WEIGHTS = (
    Weight(("embed_VD",), "model.word_embeddings.weight", "VD"),
    Weight(
        ("layers.attention_norm_D",), "model.layers.{L}.input_layernorm.weight", "D"
    ),
    Weight(
        (
            "layers.attention.query_DNH",
            "layers.attention.key_DKH",
            "layers.attention.value_DKH",
        ),
        "model.layers.{L}.attention.query_key_value.weight",
        "(NH)D + (KH)D + (KH)D",
    ),
    Weight(
        (
            "layers.attention.query_bias_NH",
            "layers.attention.key_bias_KH",
            "layers.attention.value_bias_KH",
        ),
        "model.layers.{L}.attention.query_key_value.bias",
        "(NH) + (KH) + (KH)",
    ),
    Weight(
        ("layers.attention.out_NHD",),
        "model.layers.{L}.attention.dense.weight",
        "D(NH)",
    ),
    Weight(
        ("layers.attention.out_bias_D",), "model.layers.{L}.attention.dense.bias", "D"
    ),
    Weight(
        ("layers.mlp_norm_D",),
        "model.layers.{L}.post_attention_layernorm.weight",
        "D",
    ),
    Weight(
        ("dense_layers.mlp.gate_up_D2F",),
        "model.layers.{L}.mlp.gate_proj.weight",
        "FD",
        half=0,
    ),
    Weight(
        ("dense_layers.mlp.gate_up_D2F",),
        "model.layers.{L}.mlp.up_proj.weight",
        "FD",
        half=1,
    ),
    Weight(
        ("dense_layers.mlp.down_FD",), "model.layers.{L}.mlp.down_proj.weight", "DF"
    ),
    Weight(("moe_layers.moe.router_DE",), "model.layers.{L}.mlp.gate.weight", "ED"),
    Weight(
        ("moe_layers.moe.gate_up_ED2F",),
        "model.layers.{L}.mlp.experts.{E}.gate_proj.weight",
        "FD",
        half=0,
    ),
    Weight(
        ("moe_layers.moe.gate_up_ED2F",),
        "model.layers.{L}.mlp.experts.{E}.up_proj.weight",
        "FD",
        half=1,
    ),
    Weight(
        ("moe_layers.moe.down_EFD",),
        "model.layers.{L}.mlp.experts.{E}.down_proj.weight",
        "DF",
    ),
    Weight(
        ("moe_layers.moe.shared.gate_up_D2F",),
        "model.layers.{L}.mlp.shared_experts.gate_proj.weight",
        "FD",
        half=0,
    ),
    Weight(
        ("moe_layers.moe.shared.gate_up_D2F",),
        "model.layers.{L}.mlp.shared_experts.up_proj.weight",
        "FD",
        half=1,
    ),
    Weight(
        ("moe_layers.moe.shared.down_FD",),
        "model.layers.{L}.mlp.shared_experts.down_proj.weight",
        "DF",
    ),
    Weight(("final_norm_D",), "model.norm.weight", "D"),
    Weight(("head_DV",), "lm_head.weight", "VD"),
)


@dataclasses.dataclass(frozen=True)
class Block:
    """The part of one parameter that a tensor holds."""

    path: str
    layer: int | None
    """Index of the parameter's dimension L; None for a parameter without."""
    index: tuple[int | slice, ...]
    """What the tensor holds of the other dimensions."""
    dims: str
    """The letters that are left by the index."""
    pattern: str
    sizes: Mapping[str, int]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the block in the tensor."""
        return stored_shape(self.pattern, self.sizes)

    def take(self, slab: np.ndarray) -> np.ndarray:
        """Returns the block as stored, from the parameter's slab of this layer."""
        return rearrange(slab[self.index], self.dims, self.pattern)

    def put(self, slab: np.ndarray, stored: np.ndarray) -> None:
        """Writes the stored block into the parameter's slab of this layer."""
        slab[self.index] = restore(stored, self.pattern, self.dims, self.sizes)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of theirs: blocks of ours, one below the other."""

    blocks: tuple[Block, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as stored."""
        shapes = [block.stored_shape for block in self.blocks]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a model by path."""
    shapes = {}
    for weight in WEIGHTS:
        for path in itertools.chain(*_paths(weight, config)):
            sizes = _sizes(path, config)
            shapes[path] = tuple(sizes[letter] for letter in _dims(path))
    return shapes


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Returns every tensor of a model's folder by name, layer after layer."""
    found = []
    for number, weight in enumerate(WEIGHTS):
        for paths in _paths(weight, config):
            sizes = _sizes(paths[0], config)
            counted = re.findall(r"{(\w)}", weight.theirs)
            for counts in itertools.product(*(range(sizes[c]) for c in counted)):
                at = dict(zip(counted, counts, strict=True))
                tensor = Tensor(tuple(_blocks(weight, paths, sizes, at)))
                if "L" in at and paths[0].startswith("moe_layers."):
                    at["L"] += config.num_dense_layers
                # Before all layers come the embedding's rows, after them the others.
                layer = at.get("L", -1 if number == 0 else config.num_layers)
                found.append(((layer, number), weight.theirs.format(**at), tensor))
    found.sort(key=_by_layer)
    return {name: tensor for _, name, tensor in found}


def _by_layer(entry: tuple) -> tuple[int, int]:
    return entry[0]


def _blocks(
    weight: Weight, paths: list[str], sizes: Mapping[str, int], at: Mapping[str, int]
) -> list[Block]:
    blocks = []
    for path, pattern in zip(paths, weight.rows.split(" + "), strict=True):
        fixed = dict(at) if weight.half is None else {**at, "2": weight.half}
        dims = _dims(path).removeprefix("L")
        index = tuple(fixed.get(letter, slice(None)) for letter in dims)
        left = "".join(letter for letter in dims if letter not in fixed)
        blocks.append(Block(path, at.get("L"), index, left, pattern, sizes))
    return blocks


def _paths(weight: Weight, config: ModelConfig) -> list[list[str]]:
    """Returns the row's paths, once per kind of layer, where the model has them."""
    kinds = ("layers.",)
    if weight.ours[0].startswith("layers."):
        kinds = ("dense_layers.", "moe_layers.")
    rows = []
    for kind in kinds:
        paths = [re.sub(r"^layers\.", kind, path) for path in weight.ours]
        if _is_present(paths[0], config):
            rows.append(paths)
    return rows


def _is_present(path: str, config: ModelConfig) -> bool:
    has = {
        "dense_layers.": config.num_dense_layers > 0,
        ".shared.": config.moe.num_shared_experts > 0,
        ".out_bias_": config.has_output_bias,
        ".query_bias_": config.has_qkv_bias,
        "head_DV": not config.tie_embeddings,
    }
    return all(is_there for part, is_there in has.items() if part in path)


def _sizes(path: str, config: ModelConfig) -> dict[str, int]:
    """Returns the size of each letter in a parameter's name."""
    moe, num_dense = config.moe, config.num_dense_layers
    if path.startswith("dense_layers."):
        num_layers, mlp_dim = num_dense, config.mlp_dim
    else:
        num_layers, mlp_dim = config.num_layers - num_dense, moe.expert_dim
    if ".shared." in path:
        mlp_dim *= moe.num_shared_experts
    return {
        "V": config.vocab_size,
        "D": config.model_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "E": moe.num_experts,
        "F": mlp_dim,
        "L": num_layers,
        "2": 2,
    }


def _dims(path: str) -> str:
    letters = path.rpartition("_")[2]
    return f"L{letters}" if "layers." in path else letters


# Our setting, their key, and what their class takes when the key is absent or null.
FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("vocab_size", "vocab_size", 30592),
    ("model_dim", "hidden_size", 1024),
    ("num_layers", "num_hidden_layers", 24),
    ("num_heads", "num_attention_heads", 16),
    ("num_kv_heads", "num_key_value_heads", 0),
    ("head_dim", "head_dim", 0),
    ("mlp_dim", "intermediate_size", 0),
    ("num_dense_layers", "first_k_dense_replace", 0),
    ("moe.num_experts", "num_experts", 16),
    ("moe.num_experts_per_token", "num_experts_per_tok", 2),
    ("moe.num_shared_experts", "num_shared_experts", 0),
    ("moe.expert_dim", "moe_intermediate_size", 0),
    ("moe.renormalize_weights", "norm_topk_prob", True),
    ("norm_eps", "rms_norm_eps", 1e-5),
    ("rope_theta", "rope_theta", 10000.0),
    ("max_positions", "max_position_embeddings", 16384),
    ("norm_head", "norm_head", False),
    ("tie_embeddings", "tie_word_embeddings", False),
    ("has_output_bias", "use_bias", True),
    ("has_qkv_bias", "use_qkv_bias", False),
    ("init_std", "initializer_range", 0.02),
    ("eos_id", "eos_token_id", 126081),
    ("pad_id", "pad_token_id", 126081),
)

YARN_FIELDS = (
    ("factor", "factor"),
    ("original_max_positions", "original_max_position_embeddings"),
    ("beta_fast", "beta_fast"),
    ("beta_slow", "beta_slow"),
    ("mscale", "mscale"),
    ("mscale_all_dim", "mscale_all_dim"),
)

# Keys with one value that this architecture computes. Absent or null is that value.
_FIXED = {
    "hidden_act": "silu",
    "norm_softmax": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
    "multi_gate": False,
    "score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "moe_router_enable_shared_expert": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}

# More tensors than any BailingMoE has; a config.json is a stranger's input.
_MAX_SIZE = 2**31 - 1
_MAX_EXPERTS_IN_ALL = 10**6


def config_to_hf(config: ModelConfig, *, dtype: Dtype) -> dict[str, Any]:
    """Returns the config.json of a model, every key that a reader would default."""
    settings = _flat(config)
    yarn = config.rope_scaling
    scaling = None
    if yarn is not None:
        # The published file reads `type` only, newer readers `rope_type`.
        scaling = {"type": "yarn", "rope_type": "yarn"}
        scaling |= {theirs: getattr(yarn, ours) for ours, theirs in YARN_FIELDS}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "bailing_moe",
        **{theirs: settings[ours] for ours, theirs, _ in FIELDS},
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "norm_softmax": False,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def config_from_hf(tree: Mapping[str, Any]) -> ModelConfig:
    """Reads a config.json; absent keys take the defaults of the published class.

    Raises:
      ConfigError: one line, when it is another architecture or a variant that is not
        computed here, or a value is of the wrong type.
    """
    architecture = (tree.get("architectures") or [None])[0]
    if architecture != ARCHITECTURE:
        raise ConfigError(
            f"config.json: architectures={tree.get('architectures')} is not "
            f"[{ARCHITECTURE!r}] (BailingMoE v1, as Ling-lite and Ling-plus); no other "
            "architecture can be read."
        )
    for key, value in _FIXED.items():
        if tree.get(key, value) not in (value, None):
            raise ConfigError(
                f"config.json: {key}={tree[key]!r} is a variant that is not computed "
                f"here; it must be {value!r}."
            )
    settings = {ours: _field(tree, key, default) for ours, key, default in FIELDS}
    settings["rope_scaling"], theta = _rope(tree)
    if "rope_theta" not in tree and theta is not None:
        settings["rope_theta"] = theta
    _derive(settings)
    moe = {
        name.removeprefix("moe."): settings.pop(name)
        for name in list(settings)
        if name.startswith("moe.")
    }
    try:
        return ModelConfig(moe=MoeConfig(**moe), **settings)
    except ConfigError as error:
        raise ConfigError(f"config.json: {error}") from None


def _derive(settings: dict[str, Any]) -> None:
    """Fills in what the published class derives from other keys."""
    settings["num_kv_heads"] = settings["num_kv_heads"] or settings["num_heads"]
    if not settings["head_dim"] and settings["num_heads"]:
        settings["head_dim"] = settings["model_dim"] // settings["num_heads"]
    if not settings["num_dense_layers"]:
        # No layer has this width: any value computes the same.
        settings["mlp_dim"] = settings["mlp_dim"] or settings["moe.expert_dim"]
    theirs = {ours: key for ours, key, _ in FIELDS}
    may_be_zero = ("num_dense_layers", "moe.num_shared_experts", "eos_id", "pad_id")
    for name, value in settings.items():
        is_count = type(value) is int and name not in may_be_zero
        if type(value) is int and not is_count <= value <= _MAX_SIZE:
            raise ConfigError(f"config.json: {theirs[name]}={value} is no such number.")
    if settings["num_layers"] * settings["moe.num_experts"] > _MAX_EXPERTS_IN_ALL:
        raise ConfigError(
            f"config.json: num_hidden_layers={settings['num_layers']} times "
            f"num_experts={settings['moe.num_experts']} is beyond any BailingMoE."
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
