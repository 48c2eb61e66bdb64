# SPDX-License-Identifier: Apache-2.0
"""Which mesh, remat and number of microbatches suit a run on a pod.

All combinations that divide evenly are ranked in closed form (`closed_form.py`); the
best few are compiled, since the closed form only says what is worth compiling, and so
are the run's own settings: it does not see what a good choice hides.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ring_jax import sharding
from ring_jax.config import ConfigError, MeshConfig, RunConfig
from ring_jax.plan.closed_form import REMAT, ClosedForm, Prediction
from ring_jax.plan.compile import CompileError, Overflow
from ring_jax.plan.cost import Plan, plan_step
from ring_jax.plan.topology import Pod

NUM_COMPILED = 3
"""Candidates that `compile_best` compares with the run as it is."""
NUM_TRIED = 6
"""Candidates that are compiled before a run is said not to fit."""
SPARE = 0.05
"""Share of HBM that a candidate leaves free: the closed form is no compiler."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run the step, as the closed form sees it."""

    config: RunConfig
    prediction: Prediction


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate that was compiled."""

    candidate: Candidate
    outcome: Plan | Overflow | CompileError


def compile_best(
    config: RunConfig, pod: Pod, *, cache: pathlib.Path
) -> Iterator[Tried]:
    """Compiles the run as it is, if it divides, and then the best candidates.

    Raises:
      ConfigError: no mesh divides the model and the batch.
    """
    ranked = rank(config, pod)
    others = _distinct(ranked, pod)
    if given := next((c for c in ranked if _is_given(config, c)), None):
        yield Tried(given, _try(given, pod, cache))
        others = [candidate for candidate in others if candidate != given]
    scales = dict.fromkeys(REMAT, 1.0)
    num_fits = 0
    for tried in _try_in_order(others, pod, scales, cache):
        yield tried
        num_fits += isinstance(tried.outcome, Plan)
        if num_fits == NUM_COMPILED:
            return


def compile_until_it_fits(
    config: RunConfig, pod: Pod, overflow: Overflow, *, cache: pathlib.Path
) -> Iterator[Tried]:
    """Compiles changes to a step that overflowed, the cheapest first; ends with a fit.

    The closed form's bytes are scaled to agree with the compiler's, first for the step
    that overflowed, then for each remat by what was compiled with it. Candidates that
    so fit are tried from the fastest on, and last the one that takes least.

    Raises:
      ConfigError: no mesh divides the model and the batch.
    """
    train, candidates = config.train, rank(config, pod)
    given = ClosedForm.of(config, pod).on(overflow.mesh_shape)
    predicted = given.predict(
        remat=train.remat, num_microbatches=train.num_microbatches
    )
    scales = dict.fromkeys(REMAT, overflow.needed / predicted.hbm_bytes)
    for tried in _try_in_order(candidates, pod, scales, cache):
        yield tried
        if isinstance(tried.outcome, Plan):
            return
    smallest = min(candidates, key=_hbm_bytes)
    yield Tried(smallest, _try(smallest, pod, cache))


def _try_in_order(
    candidates: list[Candidate],
    pod: Pod,
    scales: dict[str, float],
    cache: pathlib.Path,
) -> Iterator[Tried]:
    """Compiles the first candidates that should fit, and learns from those that do not.

    Args:
      candidates: in order.
      pod: for which.
      scales: remat -> bytes by the compiler for each that the closed form predicts.
      cache: of compiled steps.
    """
    num_tried = 0
    for candidate in candidates:
        if _scaled(candidate, scales) > _room(pod):
            continue
        outcome = _try(candidate, pod, cache)
        yield Tried(candidate, outcome)
        num_tried += 1
        if num_tried == NUM_TRIED:
            return
        if isinstance(outcome, Overflow):
            scale = outcome.needed / candidate.prediction.hbm_bytes
            scales[candidate.config.train.remat] = scale


def _scaled(candidate: Candidate, scales: Mapping[str, float]) -> float:
    return scales[candidate.config.train.remat] * candidate.prediction.hbm_bytes


def overrides(before: RunConfig, after: RunConfig) -> list[str]:
    """Returns the command line's words that turn one config into the other."""
    words = []
    for section in ("mesh", "train"):
        old, new = (
            dataclasses.asdict(getattr(config, section)) for config in (before, after)
        )
        words += [
            f"--config.{section}.{name}={value}"
            for name, value in new.items()
            if old[name] != value
        ]
    return words


def rank(config: RunConfig, pod: Pod) -> list[Candidate]:
    """Returns all candidates that divide evenly, the fastest first.

    Raises:
      ConfigError: there is none.
    """
    model, found = ClosedForm.of(config, pod), []
    for mesh in _meshes(pod):
        if not model.divides(mesh):
            continue
        placed = model.on(mesh)
        numbers = _powers_of_two(placed.rows_of_device)
        for remat, number in itertools.product(REMAT, numbers):
            prediction = placed.predict(remat=remat, num_microbatches=number)
            changed = _change(config, mesh, remat, number)
            found.append(Candidate(changed, prediction))
    if not found:
        raise ConfigError(
            f"plan: no mesh of {pod.num_devices} devices divides the model and "
            f"train.global_batch_size={config.train.global_batch_size}; change that."
        )
    return sorted(found, key=_seconds)


def _is_given(config: RunConfig, candidate: Candidate) -> bool:
    """Tells whether a candidate is the run as it is; -1 stands for any size."""
    sizes = dataclasses.asdict(candidate.config.mesh)
    mesh = dataclasses.asdict(config.mesh)
    return candidate.config.train == config.train and all(
        mesh[axis] in (-1, size) for axis, size in sizes.items()
    )


def _try(
    candidate: Candidate, pod: Pod, cache: pathlib.Path
) -> Plan | Overflow | CompileError:
    try:
        return plan_step(candidate.config, pod, cache=cache)
    except CompileError as error:
        return error


def _room(pod: Pod) -> float:
    return (1.0 - SPARE) * pod.tpu.hbm_bytes


def _distinct(candidates: list[Candidate], pod: Pod) -> list[Candidate]:
    """Returns the best candidate that should fit of each mesh and remat, in order."""
    best: dict[tuple, Candidate] = {}
    for candidate in candidates:
        if candidate.prediction.hbm_bytes > _room(pod):
            continue
        key = (candidate.config.mesh, candidate.config.train.remat)
        best.setdefault(key, candidate)
    return list(best.values())


def _seconds(candidate: Candidate) -> tuple[float, int, int]:
    """Orders by time; of equals, the simpler mesh and the larger microbatch."""
    sizes = dataclasses.astuple(candidate.config.mesh)
    num_axes = sum(size > 1 for size in sizes)
    num_parts = candidate.config.train.num_microbatches
    return candidate.prediction.seconds, num_axes, num_parts


def _hbm_bytes(candidate: Candidate) -> float:
    return candidate.prediction.hbm_bytes


def _meshes(pod: Pod) -> Iterator[dict[str, int]]:
    """Yields all meshes of a pod; the first axis joins its slices, no other does."""
    first, *others = sharding.MESH_AXES
    per_slice = pod.num_devices // pod.num_slices
    for sizes in _factors(per_slice, len(others)):
        yield {first: pod.num_slices, **dict(zip(others, sizes, strict=True))}


def _factors(product: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (product,)
        return
    for size in range(1, product + 1):
        if product % size == 0:
            for rest in _factors(product // size, count - 1):
                yield size, *rest


def _powers_of_two(count: int) -> list[int]:
    """Returns the powers of two that divide a count."""
    return [2**i for i in range(count.bit_length()) if count % 2**i == 0]


def _change(
    config: RunConfig, mesh: Mapping[str, int], remat: Any, num_microbatches: int
) -> RunConfig:
    train = dataclasses.replace(
        config.train, remat=remat, num_microbatches=num_microbatches
    )
    return dataclasses.replace(config, mesh=MeshConfig(**mesh), train=train)
