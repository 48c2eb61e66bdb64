# SPDX-License-Identifier: Apache-2.0
"""Gathers and sums made of permutes are those of XLA, and run along the torus."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from ring_jax import collectives

AXES = ("a", "b")


@dataclasses.dataclass(frozen=True)
class Chip:
    coords: tuple[int, ...]
    core_on_chip: int = 0


def mesh_of(*sizes: int) -> Mesh:
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Explicit,) * 2)


def runs_of(shape: tuple[int, ...], mesh_shape: tuple[int, int]):
    """How a mesh over chips in row-major order lies in a torus of the given shape."""
    chips = np.empty(int(np.prod(shape)), object)
    chips[:] = [Chip(tuple(map(int, place))) for place in np.ndindex(*shape)]
    mesh = mock.Mock(devices=chips.reshape(mesh_shape), axis_names=AXES)
    mesh.shape = dict(zip(AXES, mesh_shape, strict=True))
    with mock.patch.object(collectives, "_RUNS", {}) as learned:
        collectives.learn_torus(mesh)
        return learned[tuple(mesh.shape.items())]


def test_an_axis_is_cut_where_the_torus_turns():
    assert runs_of((2, 4, 4), (8, 4)) == {"a": ((0, 2), (1, 4)), "b": ((2, 4),)}
    assert runs_of((2, 4, 4), (2, 16)) == {
        "a": ((0, 2),),
        "b": ((1, 4), (2, 4)),
    }
    assert runs_of((8, 8), (4, 16)) == {"a": ((0, 4),), "b": ((0, 2), (1, 8))}
    assert runs_of((4, 4), (16, 1)) == {"a": ((0, 4), (1, 4)), "b": ()}


def test_far_lines_go_first_and_each_part_begins_along_another_axis():
    """Of 8 x 8 chips, `a` takes every second one along both axes, `b` neighbours."""
    mesh = mesh_of(4, 2)
    runs = {"a": ((0, 2), (1, 2)), "b": ((1, 2),)}
    with (
        mock.patch.dict(collectives._RUNS, {tuple(mesh.shape.items()): runs}),
        jax.set_mesh(mesh),
    ):
        gather = collectives.PhasedGather(AXES, 0, block=64, by_permutes=True)
        assert gather.num_phases == 3
        assert gather.torus is not None
        orders = [order for order, _, _ in gather.torus.parts]
        strides = [line.stride for line in gather.torus.lines]
    assert orders == [[0, 1, 2], [1, 0, 2]]
    # Lines 1 and 2 lie along the same axis of the torus, 1 over longer ways.
    assert strides == [2, 1, 1]


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8, 12, 16, 32, 64, 10, 7])
def test_factors_multiply_to_the_size(size):
    found = collectives.factors(size)
    assert np.prod(found) == size
    small = [factor for factor in (2, 3, 4) if size % factor == 0]
    assert not small or max(found) <= max(collectives.MAX_DIRECT, max(found[-1:]))


@pytest.mark.parametrize(
    "runs", [{}, {"a": ((0, 2),), "b": ((0, 2), (1, 2))}], ids=["flat", "torus"]
)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("axes", [("a", "b"), ("b",)])
def test_gather_and_its_gradient_are_those_of_xla(runs, dim, axes):
    mesh = mesh_of(2, 4)
    shape = [6, 96 * 8, 2] if dim else [96 * 8, 6, 2]
    spec = P(*(None,) * dim, axes)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    results = []
    with (
        mock.patch.dict(collectives._RUNS, {tuple(mesh.shape.items()): runs}),
        jax.set_mesh(mesh),
    ):
        x = jax.device_put(x, jax.NamedSharding(mesh, spec))
        for by_permutes in (False, True):
            gather = functools.partial(
                collectives.all_gather, axes=axes, dim=dim, by_permutes=by_permutes
            )

            def block(x, gather=gather):
                missing = tuple(set(AXES) - set(axes))
                x = jax.lax.pcast(x, missing, to="varying") if missing else x
                whole = gather(x)
                number = 1.0 + jax.lax.axis_index(AXES)
                return jnp.sum(jnp.sin(whole) * number)[None], whole[None]

            def loss(x, block=block):
                run = jax.shard_map(block, in_specs=spec, out_specs=(P(AXES), P(AXES)))
                sums, whole = run(x)
                return jnp.sum(sums), whole

            grad, whole = jax.jit(jax.grad(loss, has_aux=True))(x)
            results.append(jax.device_get((grad, whole)))
    (grad, whole), (grad_permuted, whole_permuted) = results
    np.testing.assert_array_equal(whole_permuted, whole)
    # Float32 sums of eight in another order.
    np.testing.assert_allclose(grad_permuted, grad, rtol=1e-5, atol=1e-5)


def test_a_scatter_s_gradient_is_a_gather():
    mesh = mesh_of(2, 4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64, 3)), jnp.float32)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, P(AXES)))

        def block(x):
            own = collectives.reduce_scatter(x[0], AXES, dim=0, by_permutes=True)
            return jnp.sin(own)

        run = jax.shard_map(block, in_specs=P(AXES), out_specs=P(AXES))
        grad = jax.jit(jax.grad(lambda x: jnp.sum(run(x))))(x)
    want = np.cos(np.sum(jax.device_get(x), axis=0))
    np.testing.assert_allclose(
        grad, np.broadcast_to(want, x.shape), rtol=1e-5, atol=1e-5
    )
