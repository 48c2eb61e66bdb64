# SPDX-License-Identifier: Apache-2.0
"""Runs stacked layers, and brings the weights of the next one meanwhile.

Where devices store weights in parts, a layer that gathers its own waits for them: in a
mixture of experts, hundreds of MB for a few ms of work. So a layer gets its weights
gathered, and those of the next one come while it computes; backward those of the one
before, beside a gradient that begins with computing the layer again. That is the
prefetching of FSDP (arXiv:2304.11277, section 3.3) in one loop of a compiled program.
Gathered weights of two layers are there at a time, and those of the last one wait for
the backward pass, whatever is kept of other things (`Remat`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from ring_jax import sharding
from ring_jax.model.weight_traffic import WeightTraffic

MAX_UNROLLED_LAYERS = 4
"""A loop over more layers stays a loop: it compiles once. Unrolled, a CPU's step is a
tenth faster, as no weights are copied to be kept for the backward pass."""

type Remat = Literal["none", "matmuls", "kernels", "block", "offload"]

type RunLayer = Callable[
    [jax.Array, Any, Any, Any, "Arriving"], tuple[jax.Array, Any, "Arriving"]
]
"""(x_BTD, layer, shared, own, arriving) -> (x_BTD, what the layer reports, arriving).

The `Arriving` is passed through."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arriving:
    """What comes while a layer computes (`arrive_forward`, `arrive_backward`)."""

    weights: Any = None
    """Come in both passes."""
    gradients: Any = None
    """Come in the backward pass alone."""


@dataclasses.dataclass(frozen=True)
class LayerStack:
    """How the layers of a stack are run."""

    run_layer: RunLayer
    remat: Remat
    """What the backward pass computes again."""
    dtype: DTypeLike
    """Of gathered weights."""

    def __call__(
        self, x_BTD: jax.Array, layers: Any, shared: Any, own: Any
    ) -> tuple[jax.Array, Any]:
        """Runs the layers one after the other.

        Args:
          x_BTD: the residual stream.
          layers: a module whose arrays have an L in front.
          shared: passed to every layer; has no gradient.
          own: arrays with an L in front, for each layer its own; has no gradient.

        Returns:
          The new residual stream, and what the layers report with an L in front.
        """
        if sharding.are_weights_in_parts():
            return _run_prefetching(self, x_BTD, layers, shared, own)
        run = self.checkpointed(layers)

        def run_next(x_BTD: jax.Array, inputs: tuple) -> tuple[jax.Array, Any]:
            layer, own = inputs
            x_BTD, report, _ = run(x_BTD, layer, shared, own, Arriving())
            return x_BTD, report

        return _scan(run_next, x_BTD, (layers, own))

    def checkpointed(self, layers: Any) -> RunLayer:
        """Returns `run_layer`, of which only what `remat` says is kept."""
        if self.remat == "none":
            return self.run_layer

        def run(x_BTD: jax.Array, *others: Any) -> tuple[jax.Array, Any, Any]:
            return self.run_layer(checkpoint_name(x_BTD, "layer_input"), *others)

        # Unrolled, XLA would find the recomputation equal to the first computation.
        return jax.checkpoint(
            run, policy=_saved(self.remat), prevent_cse=_is_unrolled(layers)
        )


@jax.custom_vjp
def arrive_forward[Tree](x: jax.Array, arriving: Tree) -> tuple[jax.Array, Tree]:
    """Has weights arrive before `x` is used further on, in the forward pass.

    XLA orders a program from its end, and puts what only the end needs there, where
    little is left to hide it behind.
    """
    return jax.lax.optimization_barrier((x, arriving))


@jax.custom_vjp
def arrive_backward[Weights, Tree](
    x: jax.Array, weights: Weights, arriving: Tree
) -> tuple[jax.Array, Weights, Tree]:
    """Stands between two halves of a layer, of which the second uses `weights`.

    In the backward pass, what arrives has arrived after the second half, in the place
    of `arriving`'s gradient; and then only are the gradients of `weights` summed,
    beside the first half.
    """
    return x, weights, arriving


arrive_forward.defvjp(
    lambda x, arriving: (arrive_forward(x, arriving), None),
    lambda _, grads: grads,
)
arrive_backward.defvjp(
    lambda *args: (args, None),
    lambda _, grads: jax.lax.optimization_barrier(grads),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_prefetching(
    stack: LayerStack, x_BTD: jax.Array, layers: Any, shared: Any, own: Any
) -> tuple[jax.Array, Any]:
    traffic = WeightTraffic(layers, stack.dtype)

    def run_next(carry: tuple, inputs: tuple) -> tuple[tuple, Any]:
        (x_BTD, layer, coming), (number, own) = carry, inputs
        arriving = Arriving(traffic.send(coming, number + 1))
        x_BTD, report, arriving = stack.run_layer(x_BTD, layer, shared, own, arriving)
        return (x_BTD, *traffic.receive(arriving.weights, number + 1)), report

    carry = (x_BTD, *traffic.start())
    (x_BTD, *_), reports = _scan(run_next, carry, (_numbers(layers), own))
    return x_BTD, reports


def _forward(
    stack: LayerStack, x_BTD: jax.Array, layers: Any, shared: Any, own: Any
) -> tuple[tuple[jax.Array, Any], tuple]:
    run = stack.checkpointed(layers)
    traffic = WeightTraffic(layers, stack.dtype)

    def run_next(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
        (x_BTD, layer, coming), (number, own) = carry, inputs
        # No gradients come, but the backward pass needs a place for them.
        no_gradients = traffic.like_sent_back(coming, number + 1)
        arriving = Arriving(traffic.send(coming, number + 1), no_gradients)
        # The layer is gathered again, and the others are there anyway.
        (x_BTD, report, arriving), pull_back = jax.vjp(
            run,
            *(x_BTD, layer, shared, own, arriving),
            saveable_args=(True, False, False, False, False),
        )
        carry = (x_BTD, *traffic.receive(arriving.weights, number + 1))
        return carry, (report, pull_back)

    carry = (x_BTD, *traffic.start())
    (x_BTD, *left), (reports, pull_backs) = _scan(
        run_next, carry, (_numbers(layers), own)
    )
    return (x_BTD, reports), (pull_backs, left, layers, shared, own)


def _backward(stack: LayerStack, residuals: tuple, grads: tuple) -> tuple:
    pull_backs, (last, coming), layers, shared, own = residuals
    grad_BTD, grad_reports = grads
    traffic = WeightTraffic(layers, stack.dtype)
    end = 2 * _num_layers(layers)

    def pull_back_next(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        grad_BTD, layer, coming, going, grad_layers = carry
        number, pull_back, grad_report, own = inputs
        arriving = Arriving(
            traffic.send(coming, end - number), traffic.send_back(going)
        )
        pull_back.args_res[1:] = [layer, shared, own, arriving]
        grad_BTD, grad_copies, _, _, arriving = pull_back(
            (grad_BTD, grad_report, arriving)
        )
        going, grad_layers = traffic.receive_back(
            arriving.gradients, grad_copies, grad_layers, number
        )
        layer, coming = traffic.receive(arriving.weights, end - number)
        return (grad_BTD, layer, coming, going, grad_layers), None

    inputs = (_numbers(layers), pull_backs, grad_reports, own)
    carry = (grad_BTD, last, coming, *traffic.nothing(last, coming))
    (grad_BTD, _, _, *left), _ = _scan(pull_back_next, carry, inputs, reverse=True)
    return grad_BTD, traffic.drain(*left), None, None


_run_prefetching.defvjp(_forward, _backward)


def _scan(run: Callable, carry: Any, inputs: Any, *, reverse: bool = False) -> Any:
    unroll = _is_unrolled(inputs)
    return jax.lax.scan(run, carry, inputs, reverse=reverse, unroll=unroll)


def _is_unrolled(layers: Any) -> bool:
    return _num_layers(layers) <= MAX_UNROLLED_LAYERS


def _num_layers(layers: Any) -> int:
    return jax.tree.leaves(layers)[0].shape[0]


def _numbers(layers: Any) -> jax.Array:
    return jnp.arange(_num_layers(layers))


def _saved(remat: Remat) -> Callable | None:
    policies = jax.checkpoint_policies
    kernels = policies.save_only_these_names("attention", "experts")
    if remat == "kernels":
        return kernels
    if remat == "matmuls":
        matmuls = policies.dots_with_no_batch_dims_saveable
        return policies.save_from_both_policies(matmuls, kernels)
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["layer_input"],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return None
