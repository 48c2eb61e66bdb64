# SPDX-License-Identifier: Apache-2.0
"""How tokens and experts meet where devices share the experts: three transports.

- `fsdp`: the experts' weights come to the tokens, as every other weight does.
- `ring`: each device gets all tokens of its expert group, runs the pairs of its own
  experts, and the sums are scattered back. A token moves once, however many of its
  experts are there.
- `ragged_all_to_all`: each (token, expert) pair moves to the device of its expert and
  back.

All three are dropless: they compute what one device would, for any routing. Rows that
a device computes at once are bounded: `SLACK` times the mean. A device with more takes
further passes over what is left, shorter ones, so that the memory is the mean's and an
overload costs time only. The gradient takes the same passes, and computes all but the
first again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import hardware
from pallas_kernels.choice import log_once
from pallas_kernels.grouped_matmul import Tails
from pallas_kernels.varying import vary_alike
from ring_jax import collectives
from ring_jax.config import ModelConfig
from ring_jax.model.dispatch import (
    Routes,
    combine,
    dispatch,
    gather_rows,
    plan_routes,
    sort_pairs,
)
from ring_jax.sharding import EXPERT_AXIS

SLACK = 1.25
"""Rows of a pass over the mean of the devices. Balanced routing keeps below it."""
FURTHER_SHARE = 4
"""Rows of the first pass over those of a further one, which holds sums besides."""
ROW_TILE = 256
HBM_OVER_LINKS = 12
"""HBM bandwidth over that of a ring both ways: 15 on v5p, 9 on v6e, 9 on v5e."""

type RunRows = Callable[..., jax.Array]
"""(x_RD, gate_up, down, row_weights_R, group_sizes_E) -> y_RD: the experts' SwiGLU.

Takes `tails` of `grouped_matmul.plan_rows` by name."""

type BringBack = Callable[[jax.Array], jax.Array]
"""What the experts are done with -> f32[M, D], the sums of this device's tokens."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpertWeights:
    """The routed experts of a layer that a device has, whole but for `tensor`."""

    gate_up_EDF: jax.Array
    """[E, D, 2F], gate and then up: as kernels and wires take it."""
    down_EFD: jax.Array


def run_local(
    run_rows: RunRows,
    x_MD: jax.Array,
    expert_ids_MA: jax.Array,
    weights_MA: jax.Array,
    experts: ExpertWeights,
) -> tuple[jax.Array, BringBack]:
    """Runs tokens through experts that are all here.

    Args:
      run_rows: computes sorted rows.
      x_MD: tokens.
      expert_ids_MA: i32; E for padding.
      weights_MA: f32, of each expert's result in the token's.
      experts: all E.

    Returns:
      What the experts are done with, and what makes of it f32[M, D], the weighted sums.
    """
    with jax.named_scope("dispatch"):
        E = experts.gate_up_EDF.shape[0]
        routes = plan_routes(expert_ids_MA, num_experts=E)
    return _run_routes(run_rows, x_MD, weights_MA, experts, routes), _as_it_is


def run_fsdp(
    run_rows: RunRows,
    x_MD: jax.Array,
    expert_ids_MA: jax.Array,
    weights_MA: jax.Array,
    experts: ExpertWeights,
) -> tuple[jax.Array, BringBack]:
    """Does what `run_local` does, with a share of the experts on each device."""
    gather = functools.partial(collectives.all_gather, axes=(EXPERT_AXIS,), dim=0)
    experts = jax.tree.map(gather, experts)
    return run_local(run_rows, x_MD, expert_ids_MA, weights_MA, experts)


def run_ring(
    run_rows: RunRows,
    x_MD: jax.Array,
    expert_ids_MA: jax.Array,
    weights_MA: jax.Array,
    experts: ExpertWeights,
) -> tuple[jax.Array, BringBack]:
    """Does what `run_local` does, with a share of the experts on each device.

    Sums of a token's rows are rounded to `x_MD`'s type before they go back.
    """
    E, num_pairs = experts.gate_up_EDF.shape[0], expert_ids_MA.size
    gather = functools.partial(collectives.all_gather, axes=(EXPERT_AXIS,), dim=0)
    with jax.named_scope("transport"):
        x_all_MD, weights_all_MA = gather(x_MD), gather(weights_MA)
        ids_MA = jax.lax.all_gather(expert_ids_MA, EXPERT_AXIS, tiled=True)
    with jax.named_scope("dispatch"):
        ids_MA -= E * jax.lax.axis_index(EXPERT_AXIS)
        is_here_MA = (ids_MA >= 0) & (ids_MA < E)
        routes = plan_routes(jnp.where(is_here_MA, ids_MA, E), num_experts=E)
    size = _rows_of_pass(num_pairs, routes.order_R.size)

    def run_pass(
        arrays: tuple, routes: Routes, first: jax.Array, size: int, tails: Tails
    ) -> jax.Array:
        x_MD, weights_MA, experts = arrays
        window = routes.window(first, size)
        run = functools.partial(run_rows, tails=tails)
        return _run_routes(run, x_MD, weights_MA, experts, window)

    arrays = (x_all_MD, weights_all_MA, experts)
    num_rows = jnp.sum(routes.group_sizes_E)
    out_MD = _in_passes(_Passes(run_pass, size), arrays, routes, num_rows)

    def bring_back(out_MD: jax.Array) -> jax.Array:
        with jax.named_scope("transport"):
            out_MD = out_MD.astype(x_MD.dtype)
            return collectives.reduce_scatter(out_MD, (EXPERT_AXIS,), dim=0)

    return out_MD, bring_back


def run_ragged(
    run_rows: RunRows,
    x_MD: jax.Array,
    expert_ids_MA: jax.Array,
    weights_MA: jax.Array,
    experts: ExpertWeights,
) -> tuple[jax.Array, BringBack]:
    """Does what `run_ring` does; rows, in `x_MD`'s type, move instead of tokens."""
    num_devices = jax.lax.axis_size(EXPERT_AXIS)
    E = experts.gate_up_EDF.shape[0] * num_devices
    with jax.named_scope("dispatch"):
        routes = plan_routes(expert_ids_MA, num_experts=E)
        x_RD, weights_R = dispatch(x_MD, routes), sort_pairs(weights_MA, routes)
    with jax.named_scope("transport"):
        counts_JE = jax.lax.all_gather(routes.group_sizes_E, EXPERT_AXIS)
    size = _rows_of_pass(x_RD.shape[0], x_RD.shape[0] * num_devices)

    def run_pass(
        arrays: tuple, counts_JE: jax.Array, first: jax.Array, size: int, tails: Tails
    ) -> jax.Array:
        x_RD, weights_R, experts = arrays
        exchange = Exchange(counts_JE, first, num_sent=x_RD.shape[0], num_received=size)
        with jax.named_scope("transport"):
            x_CD = exchange_rows(x_RD, exchange)
            weights_C = exchange_values(weights_R, exchange)
        sizes_E = exchange.group_sizes()
        y_CD = run_rows(
            *(x_CD, experts.gate_up_EDF, experts.down_EFD, weights_C, sizes_E),
            tails=tails,
        )
        with jax.named_scope("transport"):
            return return_rows(y_CD, exchange)

    rows_J = jnp.sum(counts_JE.reshape(num_devices, num_devices, -1), axis=(0, 2))
    arrays = (x_RD, weights_R, experts)
    num_rows = jnp.max(rows_J)
    y_RD = _in_passes(_Passes(run_pass, size), arrays, counts_JE, num_rows)

    def bring_back(y_RD: jax.Array) -> jax.Array:
        with jax.named_scope("combine"):
            return combine(y_RD, routes)

    return y_RD, bring_back


def _as_it_is(out_MD: jax.Array) -> jax.Array:
    return out_MD


TRANSPORTS = {"fsdp": run_fsdp, "ring": run_ring, "ragged_all_to_all": run_ragged}


def _run_routes(
    run_rows: RunRows,
    x_MD: jax.Array,
    weights_MA: jax.Array,
    experts: ExpertWeights,
    routes: Routes,
) -> jax.Array:
    with jax.named_scope("dispatch"):
        x_RD, weights_R = dispatch(x_MD, routes), sort_pairs(weights_MA, routes)
    y_RD = run_rows(
        x_RD, experts.gate_up_EDF, experts.down_EFD, weights_R, routes.group_sizes_E
    )
    with jax.named_scope("combine"):
        return combine(y_RD, routes)


def _rows_of_pass(mean: int, most: int) -> int:
    return min(most, _whole_tiles(int(mean * SLACK)))


def _whole_tiles(num_rows: int) -> int:
    return -(-num_rows // ROW_TILE) * ROW_TILE


@dataclasses.dataclass(frozen=True)
class _Passes:
    """How many rows are computed at once."""

    run: Callable[[Any, Any, jax.Array, int, Tails], jax.Array]
    """(arrays, plan, first row, number of rows, tails) -> their part of the sums."""
    size: int
    """Rows of the first pass, nearly always the only one."""

    @property
    def further_size(self) -> int:
        """Rows of a further pass."""
        return min(self.size, _whole_tiles(self.size // FURTHER_SHARE))

    def num_further(self, num_rows: jax.Array) -> jax.Array:
        """Returns how many passes follow the first."""
        return -(-jnp.maximum(num_rows - self.size, 0) // self.further_size)

    def first(self, plan: Any) -> Callable[[Any], jax.Array]:
        """Returns the first pass, of the arrays alone."""
        return lambda arrays: self.run(
            arrays, plan, jnp.zeros((), jnp.int32), self.size, "own"
        )

    def further(self, plan: Any, index: jax.Array) -> Callable[[Any], jax.Array]:
        """Returns a further pass, of the arrays alone."""
        first = self.size + index * self.further_size
        size = self.further_size
        return lambda arrays: self.run(arrays, plan, first, size, "whole")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_passes(
    passes: _Passes, arrays: Any, plan: Any, num_rows: jax.Array
) -> jax.Array:
    """Sums passes over so many rows.

    Their number is known only when it runs: a loop whose gradient is another. What
    comes beside the first pass can hide behind it.
    """
    return _add_further(passes, arrays, plan, num_rows, passes.first(plan)(arrays))


def _add_further(
    passes: _Passes, arrays: Any, plan: Any, num_rows: jax.Array, first: jax.Array
) -> jax.Array:
    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        return total + passes.further(plan, index)(arrays)

    return jax.lax.fori_loop(0, passes.num_further(num_rows), add, first)


def _in_passes_forward(passes, arrays, plan, num_rows):
    # A policy of `jax.checkpoint` decides what is kept of the first pass.
    first, pull_back = jax.vjp(passes.first(plan), arrays)
    out = _add_further(passes, arrays, plan, num_rows, first)
    return out, (pull_back, arrays, plan, num_rows)


def _in_passes_backward(passes, residuals, grad):
    pull_back, arrays, plan, num_rows = residuals

    def add(index: jax.Array, totals: Any) -> Any:
        _, pull_back = jax.vjp(passes.further(plan, index), arrays)
        return jax.tree.map(jnp.add, totals, pull_back(grad)[0])

    num_further = passes.num_further(num_rows)
    return jax.lax.fori_loop(0, num_further, add, pull_back(grad)[0]), None, None


_in_passes.defvjp(_in_passes_forward, _in_passes_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exchange:
    """Which rows move between devices of the expert axis in one pass.

    Every device has its rows sorted by expert, over all E of them. The device of an
    expert lays what it gets by expert, then by sender, and a pass moves the rows that
    lie in the window from `first` on. J devices, X experts of each: E = J * X.
    """

    counts_JE: jax.Array
    """i32, rows that each device has for each expert."""
    first: jax.Array
    """i32[]"""
    num_sent: int = dataclasses.field(metadata={"static": True})
    """R, rows of a device; some may have no expert."""
    num_received: int = dataclasses.field(metadata={"static": True})
    """C, rows of the window."""

    def group_sizes(self) -> jax.Array:
        """Returns the rows of each of this device's experts in the window; i32[X]."""
        low_JE, high_JE = self._window()
        return jnp.sum(self._mine(high_JE - low_JE), axis=0)

    def slices(self) -> tuple[jax.Array, ...]:
        """Returns, for `jax.lax.ragged_all_to_all`, which slices go where.

        Returns:
          i32[J * X] each: where slices begin here, how long they are, where they begin
          at the receiver; and of what this device receives: how long, where it begins
          here, where at the sender.
        """
        me = jax.lax.axis_index(EXPERT_AXIS)
        starts_JE = self._starts()
        sent_JE = jnp.cumsum(self.counts_JE, axis=1) - self.counts_JE
        low_JE, high_JE = self._window()
        begin_JE = sent_JE + low_JE - starts_JE
        sizes_JE = high_JE - low_JE
        there_JE = low_JE - self.first
        sent = (begin_JE[me], sizes_JE[me], there_JE[me])
        received = (sizes_JE, there_JE, begin_JE)
        return *sent, *(self._mine(array).reshape(-1) for array in received)

    def senders(self) -> tuple[jax.Array, jax.Array]:
        """Returns of each row of the window its sender and its row there; i32[C] each.

        The sender's row is outside of its rows where the window has none.
        """
        starts_J = self._mine(self._starts()).T.reshape(-1)
        counts_J = self._mine(self.counts_JE).T.reshape(-1)
        sent_JE = jnp.cumsum(self.counts_JE, axis=1) - self.counts_JE
        begin_J = self._mine(sent_JE).T.reshape(-1)
        place_C = self.first + jnp.arange(self.num_received)
        is_at_least = place_C[:, None] >= (starts_J + counts_J)[None]
        segment_C = jnp.sum(is_at_least, axis=1)
        is_row_C = segment_C < counts_J.size
        segment_C = jnp.minimum(segment_C, counts_J.size - 1)
        row_C = begin_J[segment_C] + place_C - starts_J[segment_C]
        sender_C = segment_C % self.counts_JE.shape[0]
        return sender_C, jnp.where(is_row_C, row_C, self.num_sent)

    def receivers(self) -> tuple[jax.Array, jax.Array]:
        """Returns of each row here its receiver and its row in the window there."""
        me = jax.lax.axis_index(EXPERT_AXIS)
        J, E = self.counts_JE.shape
        counts_E = self.counts_JE[me]
        ends_E = jnp.cumsum(counts_E)
        row_R = jnp.arange(self.num_sent)
        expert_R = jnp.sum(row_R[:, None] >= ends_E[None], axis=1)
        is_row_R = expert_R < E
        expert_R = jnp.minimum(expert_R, E - 1)
        start_E = self._starts()[me] - (ends_E - counts_E) - self.first
        place_R = row_R + start_E[expert_R]
        return expert_R // (E // J), jnp.where(is_row_R, place_R, self.num_received)

    def _starts(self) -> jax.Array:
        """Returns where each sender's rows of an expert begin at the receiver."""
        J, E = self.counts_JE.shape
        counts_JEJ = self.counts_JE.T.reshape(J, E // J, J)
        ends = jnp.cumsum(counts_JEJ.reshape(J, -1), axis=1).reshape(counts_JEJ.shape)
        return (ends - counts_JEJ).reshape(E, J).T

    def _window(self) -> tuple[jax.Array, jax.Array]:
        """Returns from where to where each sender's rows lie in the window."""
        starts_JE = self._starts()
        last = self.first + self.num_received
        low_JE = jnp.clip(starts_JE, self.first, last)
        return low_JE, jnp.clip(starts_JE + self.counts_JE, self.first, last)

    def _mine(self, array_JE: jax.Array) -> jax.Array:
        """Returns the columns of this device's experts: E / J of them."""
        X = array_JE.shape[1] // array_JE.shape[0]
        first = X * jax.lax.axis_index(EXPERT_AXIS)
        return jax.lax.dynamic_slice_in_dim(array_JE, first, X, axis=1)


@jax.custom_vjp
def exchange_rows(x_RD: jax.Array, exchange: Exchange) -> jax.Array:
    """Sends rows to the devices of their experts; [C, D], 0 where none came."""
    if _can_run_ragged():
        here, sizes, there, received, _, _ = exchange.slices()
        return _send(x_RD, exchange.num_received, here, sizes, there, received)
    return exchange_values(x_RD, exchange)


@jax.custom_vjp
def return_rows(y_CD: jax.Array, exchange: Exchange) -> jax.Array:
    """Sends rows back; [R, D]. The transpose of `exchange_rows`."""
    if _can_run_ragged():
        _, sizes, _, received, here, there = exchange.slices()
        return _send(y_CD, exchange.num_sent, here, received, there, sizes)
    return _return_values(y_CD, exchange)


@jax.custom_vjp
def exchange_values(values_R: jax.Array, exchange: Exchange) -> jax.Array:
    """Does what `exchange_rows` does by a gather: for numbers, and for CPUs."""
    sender_C, row_C = exchange.senders()
    return _gather_from(values_R, sender_C, row_C)


def _return_values(values_C: jax.Array, exchange: Exchange) -> jax.Array:
    receiver_R, row_R = exchange.receivers()
    return _gather_from(values_C, receiver_R, row_R)


def _gather_from(values: jax.Array, device: jax.Array, row: jax.Array) -> jax.Array:
    """Returns rows of other devices, 0 for a row that is outside of theirs."""
    size = values.shape[0]
    everything = jax.lax.all_gather(values, EXPERT_AXIS, tiled=True)
    is_row = (row >= 0) & (row < size)
    return gather_rows(everything, jnp.where(is_row, device * size + row, -1))


def _define_transposes() -> None:
    pairs = (
        (exchange_rows, return_rows),
        (return_rows, exchange_rows),
        (exchange_values, _return_values),
    )
    for function, transpose in pairs:

        def forward(values, exchange, function=function):
            return function(values, exchange), exchange

        def backward(exchange, grad, transpose=transpose):
            return transpose(grad, exchange), None

        function.defvjp(forward, backward)


_define_transposes()


def _send(rows: jax.Array, num_received: int, *slices: jax.Array) -> jax.Array:
    """Moves slices of rows between devices; rows that nobody sends are 0."""
    zeros = jnp.zeros((num_received, rows.shape[1]), rows.dtype)
    (empty, _) = vary_alike(zeros, rows)
    return jax.lax.ragged_all_to_all(rows, empty, *slices, axis_name=EXPERT_AXIS)


def _can_run_ragged() -> bool:
    """Whether XLA has the collective: its CPU compiler does not."""
    return hardware.target_tpu() is not None


def choose_transport(
    config: ModelConfig, *, num_tokens: int, num_devices: int, itemsize: int
) -> str:
    """Picks the transport with the least traffic in a layer that is computed again.

    In bytes a device, with J devices along the expert axis, M tokens of each:

    - fsdp: experts of the others twice, their gradients once, 3 (J - 1) / J of all.
    - ring: tokens twice, sums once, gradients of both: 5 (J - 1) M D. Each pass over
      pairs also reads those of others, J - 1 times M A rows, three times in each
      direction, from an HBM that is `HBM_OVER_LINKS` as fast.
    - ragged: rows there and back, there again, and gradients of both: 5 M A D, of
      which J / 4 cross each link, and at least those that leave, (J - 1) / J. (An
      all-to-all takes a quarter of the time of a gather of the same array: "How to
      scale your model", sharded matrices.)

    Args:
      config: the model.
      num_tokens: M of one device.
      num_devices: J.
      itemsize: bytes of a number on the wire.
    """
    moe, J = config.moe, num_devices
    others = (J - 1) / J
    experts = 3 * moe.num_experts * config.model_dim * moe.expert_dim * itemsize
    tokens = num_tokens * config.model_dim * itemsize
    rows = tokens * moe.num_experts_per_token
    cost = {
        "fsdp": 3 * others * experts,
        "ring": (J - 1) * (5 * tokens + 6 * rows / HBM_OVER_LINKS),
        "ragged_all_to_all": 5 * rows * max(others, J / 4),
    }
    best = min(cost, key=cost.__getitem__)
    figures = ", ".join(f"{name} {each / 2**20:,.0f}" for name, each in cost.items())
    log_once(
        f"experts over {J} devices: {best}, by the MiB that cross a device's links in "
        f"a layer ({figures})"
    )
    return best
