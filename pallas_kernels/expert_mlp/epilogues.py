# SPDX-License-Identifier: Apache-2.0
"""What the layer does with its grouped products' rows, in float32."""

import dataclasses

import jax

from pallas_kernels.grouped_matmul.epilogue import Epilogue, Slices


def _swiglu(
    gate_CF: jax.Array, up_CF: jax.Array, weights_C1: jax.Array
) -> tuple[Slices, None]:
    return (gate_CF * jax.nn.sigmoid(gate_CF) * up_CF * weights_C1,), None


def _swiglu_and_inputs(
    gate_CF: jax.Array, up_CF: jax.Array, weights_C1: jax.Array
) -> tuple[Slices, None]:
    hidden, terms = _swiglu(gate_CF, up_CF, weights_C1)
    return (*hidden, gate_CF, up_CF), terms


def _swiglu_backward(
    grad_CF: jax.Array, gate_CF: jax.Array, up_CF: jax.Array, weights_C1: jax.Array
) -> tuple[Slices, jax.Array]:
    """Takes d loss / d (weighted row) @ down^T; `gate` and `up` as they were."""
    sigmoid_CF = jax.nn.sigmoid(gate_CF)
    silu_CF = gate_CF * sigmoid_CF
    hidden_CF, weighted_CF = silu_CF * up_CF, grad_CF * weights_C1
    slope_CF = sigmoid_CF + silu_CF * (1.0 - sigmoid_CF)
    outputs = (
        weighted_CF * up_CF * slope_CF,
        weighted_CF * silu_CF,
        hidden_CF * weights_C1,
    )
    return outputs, grad_CF * hidden_CF


SWIGLU = Epilogue(
    "expert_gate_up",
    _swiglu,
    product_slices=2,
    is_weighted=True,
    zeroes_free_rows=False,
)
"""gate, up -> weighted hidden."""
SWIGLU_AND_INPUTS = dataclasses.replace(
    SWIGLU, apply=_swiglu_and_inputs, output_slices=(1, 2)
)
"""gate, up -> weighted hidden; gate and up, for the backward pass."""
SWIGLU_BACKWARD = Epilogue(
    "expert_hidden_gradient",
    _swiglu_backward,
    operand_slices=(2,),
    output_slices=(2, 1),
    is_weighted=True,
    sums_columns=True,
    num_in_place=1,
    zeroes_free_rows=False,
)
"""grad @ down^T; gate and up -> their gradients, in their place; the weighted hidden
rows; and, summed, the gradient of the row weights."""
