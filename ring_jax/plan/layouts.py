# SPDX-License-Identifier: Apache-2.0
"""A run on a mesh as text that a person can review: layouts, and collectives.

Neither needs a device: layouts are part of an array's type, and the collectives are
those of a step that was compiled.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding

from ring_jax.config import RunConfig
from ring_jax.plan.abstract import abstract_mesh_of, abstract_state
from ring_jax.plan.step_time import Use

MIB = 2**20


@dataclasses.dataclass
class Total:
    """The collectives of a kind over an axis, in a step."""

    count: float = 0.0
    wire_bytes: float = 0.0
    """That a device sends."""
    seconds: float = 0.0
    exposed_seconds: float = 0.0


def parameter_layouts(config: RunConfig) -> str:
    """Returns a line for each parameter: its path, type with layout, and block.

    A type is written as jax writes it: f32[28, 64@expert, 2048@fsdp, 2, 1408]; the
    block is what one device has.
    """
    mesh = abstract_mesh_of(config.mesh)
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return "\n".join([f"mesh {axes}", *_lines(config, mesh)]) + "\n"


def _lines(config: RunConfig, mesh: AbstractMesh) -> Iterator[str]:
    with jax.sharding.use_abstract_mesh(mesh):
        model = abstract_state(config).model
    total = 0
    for path, leaf in jax.tree.leaves_with_path(model):
        # The last key is nnx.Param's own field.
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        layout = leaf.sharding.spec if leaf.sharding is not None else ()
        block = NamedSharding(mesh, jax.P(*layout)).shard_shape(leaf.shape)
        dims = ", ".join(
            f"{size}{_at(entry)}"
            for size, entry in zip(leaf.shape, _padded(layout, leaf.ndim), strict=True)
        )
        sizes = ",".join(str(size) for size in block)
        yield f"{name}: f32[{dims}], block [{sizes}]"
        total += 4 * _product(block)
    yield f"a device holds {total:,} bytes of parameters"


def _at(entry: Any) -> str:
    if not entry:
        return ""
    return f"@{entry}" if isinstance(entry, str) else f"@({','.join(entry)})"


def _padded(layout: Iterable[Any], ndim: int) -> list[Any]:
    entries = list(layout)
    return entries + [None] * (ndim - len(entries))


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def total_collectives(uses: Iterable[Use]) -> dict[tuple[str, str], Total]:
    """Sums collectives by kind and axes, those that send most first."""
    totals: dict[tuple[str, str], Total] = collections.defaultdict(Total)
    for use in uses:
        total = totals[use.collective.kind, use.collective.label]
        total.count += use.times
        total.wire_bytes += use.times * use.collective.wire_bytes
        total.seconds += use.seconds
        total.exposed_seconds += use.exposed_seconds
    return dict(sorted(totals.items(), key=_wire_bytes, reverse=True))


def collective_lines(uses: Iterable[Use]) -> str:
    """Returns a line for each kind and axes: how often, and bytes that a device sends.

    All of it is exact; seconds are left out.
    """
    lines = [
        f"{kind} over {axes}: {total.count:,.0f} times, {total.wire_bytes:,.0f} bytes"
        for (kind, axes), total in total_collectives(uses).items()
    ]
    return "\n".join(lines) + "\n"


def _wire_bytes(item: tuple[tuple[str, str], Total]) -> float:
    return item[1].wire_bytes
