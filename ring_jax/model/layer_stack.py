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
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from ring_jax import sharding
from ring_jax.model.layers import gathered

MAX_UNROLLED_LAYERS = 4
"""A loop over more layers stays a loop: it compiles once. Unrolled, a CPU's step is a
tenth faster, as no weights are copied to be kept for the backward pass."""

type Remat = Literal["none", "matmuls", "kernels", "block", "offload"]

type RunLayer = Callable[[jax.Array, Any, Any, Any, Any], tuple[jax.Array, Any, Any]]
"""(x_BTD, layer, shared, own, arriving) -> (x_BTD, what the layer reports, arriving).

`arriving` is passed through, by `arrive_backward` and `arrive_forward`; or None."""


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
            x_BTD, report, _ = run(x_BTD, layer, shared, own, None)
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

    def gathered(self, layers: Any, number: jax.Array | int) -> Any:
        """Returns a layer gathered; past the ends the last one on that side.

        So the last gather of the forward pass is the first that the backward pass
        needs.
        """
        return gathered(_at(layers, number), self.dtype)


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
    def run_next(carry: tuple, inputs: tuple) -> tuple[tuple, Any]:
        (x_BTD, layer), (number, own) = carry, inputs
        following = stack.gathered(layers, number + 1)
        x_BTD, report, following = stack.run_layer(x_BTD, layer, shared, own, following)
        return (x_BTD, following), report

    carry = (x_BTD, stack.gathered(layers, 0))
    (x_BTD, _), reports = _scan(run_next, carry, (_numbers(layers), own))
    return x_BTD, reports


def _forward(
    stack: LayerStack, x_BTD: jax.Array, layers: Any, shared: Any, own: Any
) -> tuple[tuple[jax.Array, Any], tuple]:
    run = stack.checkpointed(layers)

    def run_next(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
        (x_BTD, layer), (number, own) = carry, inputs
        following = stack.gathered(layers, number + 1)
        # The layer is gathered again, and the others are there anyway.
        (x_BTD, report, following), pull_back = jax.vjp(
            run,
            *(x_BTD, layer, shared, own, following),
            saveable_args=(True, False, False, False, False),
        )
        return (x_BTD, following), (report, pull_back)

    carry = (x_BTD, stack.gathered(layers, 0))
    (x_BTD, last), (reports, pull_backs) = _scan(
        run_next, carry, (_numbers(layers), own)
    )
    return (x_BTD, reports), (pull_backs, last, layers, shared, own)


def _backward(stack: LayerStack, residuals: tuple, grads: tuple) -> tuple:
    pull_backs, last, layers, shared, own = residuals
    grad_BTD, grad_reports = grads

    def pull_back_next(carry: tuple, inputs: tuple) -> tuple[tuple, Any]:
        grad_BTD, layer, late = carry
        number, pull_back, grad_report, own = inputs
        previous = stack.gathered(layers, number - 1)
        # What is computed again awaits nothing: `layer` stands for what arrives.
        pull_back.args_res[1:] = [layer, shared, own, layer]
        grad_BTD, grad_copies, _, _, previous = pull_back(
            (grad_BTD, grad_report, previous)
        )
        found = _late(grad_copies)
        grad_layer = _scattered(stack, _at(layers, number), late, grad_copies)
        return (grad_BTD, previous, found), grad_layer

    nothing = jax.tree.map(jnp.zeros_like, _late(last))
    inputs = (_numbers(layers), pull_backs, grad_reports, own)
    (grad_BTD, _, late), grad_layers = _scan(
        pull_back_next, (grad_BTD, last, nothing), inputs, reverse=True
    )
    grad_layers = _shifted(stack, layers, late, grad_layers)
    return grad_BTD, grad_layers, None, None


_run_prefetching.defvjp(_forward, _backward)


def _at(layers: Any, number: jax.Array | int) -> Any:
    number = jnp.clip(number, 0, _num_layers(layers) - 1)
    return jax.tree.map(
        lambda w: jax.lax.dynamic_index_in_dim(w, number, keepdims=False), layers
    )


def _late(copies: Any) -> list[nnx.Param]:
    """Returns the gradients that are summed while the next layer computes.

    Those of all but the experts: they are small, and there is little after them in
    their own layer. An expert's gradients are large, and come halfway.
    """
    params = jax.tree.leaves(copies, is_leaf=_is_param)
    return [param for param in params if _is_late(param)]


def _is_late(param: nnx.Param) -> bool:
    return sharding.stored_by(param.dims) is not None and "E" not in param.dims


def _is_param(node: Any) -> bool:
    return isinstance(node, nnx.Param)


def _scattered(
    stack: LayerStack, layer: Any, late: list[nnx.Param], grad_copies: Any
) -> Any:
    """Sums gradients where they are stored: those of `late` in the place of its own."""
    others = iter(late)
    grad_copies = jax.tree.map(
        lambda param: next(others) if _is_late(param) else param,
        grad_copies,
        is_leaf=_is_param,
    )
    gather = functools.partial(gathered, dtype=stack.dtype)
    return jax.vjp(gather, layer)[1](grad_copies)[0]


def _shifted(
    stack: LayerStack, layers: Any, late: list[nnx.Param], grad_layers: Any
) -> Any:
    """Gives late gradients, found one layer before their own, to their layers."""
    params = _late(_at(layers, 0))
    dims = [param.dims for param in params]

    def gather(weights: list[jax.Array]) -> list[sharding.Copies]:
        return sharding.gather(weights, dims, stack.dtype)

    _, scatter = jax.vjp(gather, [param[...] for param in params])
    (firsts,) = scatter([param.get_value() for param in late])
    others = iter(firsts)

    def shift(param: nnx.Param) -> nnx.Param:
        if not _is_late(param):
            return param
        stacked = jnp.concatenate([next(others)[None], param[...][:-1]])
        return nnx.Param(stacked, dims=param.dims)

    return jax.tree.map(shift, grad_layers, is_leaf=_is_param)


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
