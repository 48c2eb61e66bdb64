# SPDX-License-Identifier: Apache-2.0
"""What the layer does with its grouped products' rows, in float32."""

import jax

from pallas_kernels.grouped_matmul.epilogue import Epilogue, Slices


def _swiglu(gate_CF: jax.Array, up_CF: jax.Array) -> tuple[Slices, None]:
    return (gate_CF * jax.nn.sigmoid(gate_CF) * up_CF,), None


def _swiglu_and_inputs(gate_CF: jax.Array, up_CF: jax.Array) -> tuple[Slices, None]:
    (hidden_CF,), _ = _swiglu(gate_CF, up_CF)
    return (hidden_CF, gate_CF, up_CF), None


def _weigh(product_CD: jax.Array, weights_C1: jax.Array) -> tuple[Slices, None]:
    return (product_CD * weights_C1,), None


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


SWIGLU = Epilogue("expert_gate_up", _swiglu, product_slices=2, zeroes_free_rows=False)
"""gate, up -> hidden."""
SWIGLU_AND_INPUTS = Epilogue(
    "expert_gate_up",
    _swiglu_and_inputs,
    product_slices=2,
    output_slices=(1, 2),
    zeroes_free_rows=False,
)
"""gate, up -> hidden; gate and up, for the backward pass."""
WEIGH = Epilogue("expert_down", _weigh, is_weighted=True)
"""product -> row weight * product."""
SWIGLU_BACKWARD = Epilogue(
    "expert_hidden_gradient",
    _swiglu_backward,
    operand_slices=(2,),
    output_slices=(2, 1),
    is_weighted=True,
    sums_columns=True,
    zeroes_free_rows=False,
)
"""grad @ down^T; gate and up -> their gradients; the weighted hidden rows; and,
summed, the gradient of the row weights."""
