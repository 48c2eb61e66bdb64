# SPDX-License-Identifier: Apache-2.0
"""The closed form, and what it ranks."""

import dataclasses
import math
import pathlib
import typing

import jax
import pytest

from ring_jax.config import ConfigError, MeshConfig, ModelConfig, TrainConfig
from ring_jax.model.flops import count_parameters
from ring_jax.plan import search
from ring_jax.plan.abstract import abstract_mesh_of, abstract_state
from ring_jax.plan.closed_form import REMAT, ClosedForm
from ring_jax.plan.compile import CompileError, Overflow
from ring_jax.plan.search import (
    compile_best,
    compile_until_it_fits,
    overrides,
    rank,
)
from ring_jax.plan.topology import find_pod

POD = find_pod("v5e:2x2")
NOWHERE = pathlib.Path("not used")


def mesh_of(**sizes: int) -> dict[str, int]:
    ones = {field.name: 1 for field in dataclasses.fields(MeshConfig)}
    return ones | sizes


def test_every_remat_has_a_cost():
    hints = typing.get_type_hints(TrainConfig)
    assert set(REMAT) == set(typing.get_args(hints["remat"]))


def test_the_state_of_a_device_is_that_of_its_blocks(small_run):
    run = small_run(mesh=MeshConfig(data=1, fsdp=4, expert=2))
    placed = ClosedForm.of(run, POD).on(mesh_of(fsdp=4, expert=2))
    mesh = abstract_mesh_of(run.mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        leaves = jax.tree.leaves(abstract_state(run))
    expected = 0
    for leaf in leaves:
        shape = leaf.shape
        if leaf.sharding is not None:
            layout = jax.sharding.NamedSharding(mesh, leaf.sharding.spec)
            shape = layout.shard_shape(leaf.shape)
        expected += math.prod(shape) * leaf.dtype.itemsize
    assert placed.state_bytes == expected


def test_a_device_without_neighbours_has_all_parameters_and_moves_nothing(small_run):
    run = small_run()
    placed = ClosedForm.of(run, find_pod("v5e:1x1")).on(mesh_of())
    assert placed.num_weights == count_parameters(run.model).total
    assert placed.gather_seconds == placed.sum_seconds == 0.0


def test_more_microbatches_take_less_memory_and_never_less_time(small_run):
    placed = ClosedForm.of(small_run(global_batch_size=64), POD).on(mesh_of(fsdp=4))
    found = [placed.predict(remat="none", num_microbatches=n) for n in (2, 4, 8)]
    assert [p.hbm_bytes for p in found] == sorted(
        (p.hbm_bytes for p in found), reverse=True
    )
    assert [p.seconds for p in found] == sorted(p.seconds for p in found)


def test_keeping_less_takes_less_memory_and_more_time(small_run):
    placed = ClosedForm.of(small_run(global_batch_size=1024), POD).on(mesh_of(fsdp=4))
    found = [
        placed.predict(remat=remat, num_microbatches=1)
        for remat in ("none", "matmuls", "kernels", "block", "offload")
    ]
    num_bytes = [p.hbm_bytes for p in found]
    assert num_bytes == sorted(num_bytes, reverse=True)
    assert len(set(num_bytes)) == len(num_bytes)
    assert [p.seconds for p in found] == sorted(p.seconds for p in found)


def test_copies_of_the_weights_cost_memory_and_a_sum(small_run):
    model = ClosedForm.of(small_run(), POD)
    split, copied = model.on(mesh_of(fsdp=4)), model.on(mesh_of(data=4))
    assert copied.state_bytes > 3 * split.state_bytes
    assert split.sum_seconds < copied.sum_seconds
    assert copied.gather_seconds == 0.0 < split.gather_seconds


def test_a_sum_over_slices_is_paced_by_the_network(small_run):
    run = small_run()
    mesh = dict.fromkeys(mesh_of(), 1)
    first = next(iter(mesh))
    within = ClosedForm.of(run, find_pod("v5e:2x4")).on(mesh | {first: 2, "fsdp": 4})
    across = ClosedForm.of(run, find_pod("v5e:2x2", num_slices=2)).on(
        mesh | {first: 2, "fsdp": 4}
    )
    tpu = POD.tpu
    ratio = 2 * tpu.link_bytes_per_second / tpu.network_bytes_per_second
    # Norms and routers, a hundredth of the parameters, are summed over fsdp, too.
    expected = pytest.approx(ratio * within.sum_seconds, rel=0.01)
    assert across.sum_seconds == expected


def test_candidates_divide_everything_and_use_all_devices(small_run):
    found = rank(small_run(), find_pod("v5e:2x4"))
    for candidate in found:
        sizes = dataclasses.asdict(candidate.config.mesh)
        assert math.prod(sizes.values()) == 8
        assert candidate.config.model.moe.num_experts % sizes["expert"] == 0
        train = candidate.config.train
        assert train.global_batch_size % train.num_microbatches == 0
    seconds = [candidate.prediction.seconds for candidate in found]
    assert seconds == sorted(seconds)
    assert len({candidate.config.mesh for candidate in found}) > 1


def test_a_batch_that_nothing_divides_is_refused_in_a_line(small_run):
    # Three rows of an odd length; a tensor axis has room for two devices.
    with pytest.raises(ConfigError, match="global_batch_size=3"):
        rank(small_run(global_batch_size=3, seq_len=255), POD)


def test_ling_lite_on_a_pod_is_ranked_in_seconds(small_run):
    run = dataclasses.replace(small_run(global_batch_size=256), model=ModelConfig())
    found = rank(run, find_pod("v5e-256"))
    assert {c.config.train.remat for c in found} == set(REMAT)


def test_overrides_are_the_words_that_differ(small_run):
    before = small_run()
    after = small_run(
        mesh=MeshConfig(data=1, fsdp=2, expert=2), remat="none", num_microbatches=2
    )
    assert overrides(before, before) == []
    assert overrides(before, after) == [
        "--config.mesh.fsdp=2",
        "--config.mesh.expert=2",
        "--config.train.num_microbatches=2",
        "--config.train.remat=none",
    ]


@dataclasses.dataclass
class Compiler:
    """Stands for the compiler: steps above a number of bytes overflow."""

    factor: float
    """Its bytes by those of the closed form."""
    seen: list

    def __call__(self, config, pod, *, cache):
        self.seen.append(config)
        train = config.train
        mesh = dataclasses.asdict(config.mesh)
        predicted = ClosedForm.of(config, pod).on(mesh)
        needed = (
            self.factor
            * predicted.predict(
                remat=train.remat, num_microbatches=train.num_microbatches
            ).hbm_bytes
        )
        available = pod.tpu.hbm_bytes
        if needed > available:
            return Overflow(int(needed), available, None, mesh)
        return Fit(config)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A plan, as far as the search looks at it."""

    config: object


@pytest.fixture
def compiler(monkeypatch):
    def make(factor):
        stand_in = Compiler(factor, [])
        monkeypatch.setattr(search, "plan_step", stand_in)
        monkeypatch.setattr(search, "Plan", Fit)
        return stand_in

    return make


def test_an_overflow_ends_with_the_fastest_change_that_fits(small_run, compiler):
    stand_in = compiler(factor=3.0)
    run = small_run(global_batch_size=16384, remat="none")
    overflow = stand_in(run, POD, cache=NOWHERE)
    assert isinstance(overflow, Overflow)
    tried = list(compile_until_it_fits(run, POD, overflow, cache=NOWHERE))
    assert isinstance(tried[-1].outcome, Fit)
    room = 0.95 * POD.tpu.hbm_bytes / 3.0
    fitting = [c for c in rank(run, POD) if c.prediction.hbm_bytes <= room]
    assert tried[-1].candidate == fitting[0]


def test_where_nothing_fits_the_smallest_was_tried_last(small_run, compiler):
    stand_in = compiler(factor=10**6)
    run = small_run()
    overflow = stand_in(run, POD, cache=NOWHERE)
    tried = list(compile_until_it_fits(run, POD, overflow, cache=NOWHERE))
    assert all(isinstance(one.outcome, Overflow) for one in tried)
    least = min(c.prediction.hbm_bytes for c in rank(run, POD))
    assert tried[-1].candidate.prediction.hbm_bytes == least


def test_the_run_as_it_is_competes_with_the_best_few(small_run, compiler):
    compiler(factor=1.0)
    run = small_run(mesh=MeshConfig(data=-1, expert=2), remat="offload")
    given, *others = compile_best(run, POD, cache=NOWHERE)
    assert given.candidate.config.mesh == MeshConfig(data=2, expert=2)
    assert given.candidate.config.train == run.train
    assert len(others) == search.NUM_COMPILED
    assert given not in others


def test_the_best_few_are_compiled_and_differ_in_mesh_or_remat(small_run, compiler):
    compiler(factor=1.0)
    run = small_run(mesh=MeshConfig(fsdp=3))
    tried = list(compile_best(run, POD, cache=NOWHERE))
    assert len(tried) == search.NUM_COMPILED
    kinds = {
        (one.candidate.config.mesh, one.candidate.config.train.remat) for one in tried
    }
    assert len(kinds) == len(tried)
    seconds = [one.candidate.prediction.seconds for one in tried]
    assert seconds == sorted(seconds)


def test_what_the_compiler_refuses_is_told_and_not_an_end(small_run, monkeypatch):
    def refuse(config, pod, *, cache):
        raise CompileError("plan: v5e:2x2: INTERNAL")

    monkeypatch.setattr(search, "plan_step", refuse)
    tried = list(compile_best(small_run(), POD, cache=NOWHERE))
    assert len(tried) > 1
    assert all("INTERNAL" in str(one.outcome) for one in tried)
