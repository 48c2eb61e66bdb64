# SPDX-License-Identifier: Apache-2.0
"""The experts of a Mixture-of-Experts layer: SwiGLU of rows that are sorted by expert.

    gate, up = x[r] gate_up[e(r)]
    y[r] = row_weights[r] * (silu(gate) * up) down[e(r)]

Two grouped products forward and four backward, which share one plan of the rows. What
stands between them is done on a product's rows before they are written
(`epilogues.py`), so that on a TPU no other pass reads or writes an array of R rows:

    forward    x, gate_up, weights -> weighted hidden (, gate and up)
               weighted hidden, down -> y
    backward   dy, down^T, gate, up, weights -> d(gate, up), weighted hidden, d weights
               weighted hidden, dy -> d down           d(gate, up), gate_up^T -> dx
               x, d(gate, up) -> d gate_up

A row's weight multiplies its hidden row, before the down projection, and not the
result: that is narrower, the backward pass needs the weighted hidden row as well, and
the result is still rounded once. The weight's gradient is <dy, hidden down> =
<dy down^T, hidden>, so that the unweighted result is neither kept nor computed again
(as in SonicMoE, arXiv:2512.14080).
"""

import functools
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.expert_mlp.epilogues import (
    SWIGLU,
    SWIGLU_AND_INPUTS,
    SWIGLU_BACKWARD,
)
from pallas_kernels.grouped_matmul import (
    Groups,
    fused_matmul,
    grouped_matmul,
    grouped_matmul_transposed,
    grouped_outer,
    resolve_plan,
)
from pallas_kernels.varying import vary_alike

Save = Literal["gate_up", "nothing"]

__all__ = ["Save", "expert_mlp"]


def expert_mlp(
    x_RD: jax.Array,
    gate_up_ED2F: jax.Array,
    down_EFD: jax.Array,
    row_weights_R: jax.Array,
    groups: Groups,
    *,
    save: Save = "gate_up",
    implementation: str | None = None,
) -> jax.Array:
    """Runs each row through the SwiGLU of its expert, times the row's weight.

    Differentiable once, in x, both weights and the row weights.

    Args:
      x_RD: float[R, D], rows sorted by expert.
      gate_up_ED2F: float[E, D, 2, F], used in x's dtype.
      down_EFD: float[E, F, D], used in x's dtype.
      row_weights_R: f32[R].
      groups: int[E], rows of each expert, their sum at most R; or a plan of them
        (`grouped_matmul.plan_rows`), for a shard of the experts.
      save: what the backward pass finds: gate and up, [R, 2F] in x's dtype, or only
        the inputs, from which it computes gate and up again. Gate and up are named
        "experts" for policies of `jax.checkpoint`.
      implementation: one of `grouped_matmul`; None takes the plan's, or else the best
        that can run.

    Returns:
      [R, D] in x's dtype, rounded after the weight; 0 in rows without an expert.

    Raises:
      ValueError: shapes that do not fit, sizes that cannot be, or unknown choices.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    _check(x_RD, gate_up_ED2F, down_EFD, row_weights_R, save)
    plan = resolve_plan("expert_mlp", groups, x_RD, gate_up_ED2F, implementation)
    E, D, _, F = gate_up_ED2F.shape
    gate_up_EDF = gate_up_ED2F.reshape(E, D, 2 * F)
    arrays = vary_alike(x_RD, gate_up_EDF, down_EFD, row_weights_R, plan)
    return _expert_mlp(save, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _expert_mlp(save, x_RD, gate_up_EDF, down_EFD, row_weights_R, plan):
    del save
    (weighted_RF,), _ = fused_matmul(
        x_RD, gate_up_EDF, plan, SWIGLU, row_weights_R=row_weights_R
    )
    return grouped_matmul(weighted_RF, down_EFD, plan)


def _forward(save, x_RD, gate_up_EDF, down_EFD, row_weights_R, plan):
    epilogue = SWIGLU_AND_INPUTS if save == "gate_up" else SWIGLU
    (weighted_RF, *saved), _ = fused_matmul(
        x_RD, gate_up_EDF, plan, epilogue, row_weights_R=row_weights_R
    )
    saved = [checkpoint_name(array, "experts") for array in saved]
    y_RD = grouped_matmul(weighted_RF, down_EFD, plan)
    return y_RD, (x_RD, gate_up_EDF, down_EFD, row_weights_R, plan, saved)


def _backward(save, residuals, grad_RD):
    del save
    x_RD, gate_up_EDF, down_EFD, row_weights_R, plan, saved = residuals
    # An array [R, 2F], as its weights are [E, D, 2F].
    (inputs_RF,) = saved or [grouped_matmul(x_RD, gate_up_EDF, plan)]
    (grad_inputs_RF, weighted_RF), grad_row_weights_R = fused_matmul(
        grad_RD,
        down_EFD,
        plan,
        SWIGLU_BACKWARD,
        operands=[inputs_RF],
        row_weights_R=row_weights_R,
        is_transposed=True,
    )
    assert grad_row_weights_R is not None
    # In this order rows are freed soonest.
    grad_down_EFD, grad_inputs_RF = jax.lax.optimization_barrier(
        (
            grouped_outer(weighted_RF, grad_RD, plan, dtype=down_EFD.dtype),
            grad_inputs_RF,
        )
    )
    grad_gate_up_EDF, grad_inputs_RF = jax.lax.optimization_barrier(
        (
            grouped_outer(x_RD, grad_inputs_RF, plan, dtype=gate_up_EDF.dtype),
            grad_inputs_RF,
        )
    )
    grad_x_RD = grouped_matmul_transposed(grad_inputs_RF, gate_up_EDF, plan)
    return (
        grad_x_RD,
        grad_gate_up_EDF,
        grad_down_EFD,
        grad_row_weights_R.astype(row_weights_R.dtype),
        None,
    )


_expert_mlp.defvjp(_forward, _backward)


def _check(x_RD, gate_up_ED2F, down_EFD, row_weights_R, save) -> None:
    shapes = (
        f"x {x_RD.shape}, gate_up {gate_up_ED2F.shape}, down {down_EFD.shape}, "
        f"row_weights {row_weights_R.shape}"
    )
    fits = (x_RD.ndim, gate_up_ED2F.ndim) == (2, 4)
    if fits:
        E, D, two, F = gate_up_ED2F.shape
        fits = (x_RD.shape[1], two, down_EFD.shape) == (D, 2, (E, F, D))
    if not fits or row_weights_R.shape != x_RD.shape[:1]:
        raise ValueError(
            f"expert_mlp: {shapes}: they must be [R, D], [E, D, 2, F], [E, F, D], [R]."
        )
    if save not in ("gate_up", "nothing"):
        raise ValueError(f'expert_mlp: save={save!r} must be "gate_up" or "nothing".')
