# SPDX-License-Identifier: Apache-2.0
"""How the tensors of a stored model hold our parameters, read in both directions.

A table has a row for each kind of tensor. Which tables there are: `architectures.py`,
and for GGUF files `gguf.py`.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ring_jax.checkpoint.rearrange import rearrange, restore, stored_shape
from ring_jax.config import ModelConfig


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

    def put(self, params: Mapping[str, np.ndarray], stored: np.ndarray) -> None:
        """Writes the stored tensor into the parameters, given by path."""
        row = 0
        for block in self.blocks:
            num_rows = block.stored_shape[0]
            array = params[block.path]
            slab = array if block.layer is None else array[block.layer]
            block.put(slab, stored[row : row + num_rows])
            row += num_rows


def parameter_shapes(
    table: Sequence[Weight], config: ModelConfig
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a model by path."""
    shapes = {}
    for weight in table:
        for path in itertools.chain(*_paths(weight, config)):
            sizes = _sizes(path, config)
            shapes[path] = tuple(sizes[letter] for letter in _dims(path))
    return shapes


def tensors(table: Sequence[Weight], config: ModelConfig) -> dict[str, Tensor]:
    """Returns every tensor of a stored model by name, layer after layer."""
    found = []
    for number, weight in enumerate(table):
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
        "moe_layers.": not config.is_dense,
        ".shared.": config.moe.num_shared_experts > 0,
        ".out_bias_": config.has_output_bias,
        ".query_bias_": config.has_qkv_bias,
        ".key_bias_": config.has_qkv_bias,
        ".value_bias_": config.has_qkv_bias,
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
