# SPDX-License-Identifier: Apache-2.0
"""The small parts: parameters with their layout, RMSNorm, SwiGLU."""

import jax
import jax.numpy as jnp
from flax import nnx

from ring_jax import sharding
from ring_jax.weight_gather import einsum


def normal(dims: str, shape: tuple[int, ...], std: float, rngs: nnx.Rngs) -> nnx.Param:
    """Creates a float32 parameter drawn from N(0, std**2), laid out by its letters."""
    draw = nnx.initializers.normal(std)(rngs.params(), shape, jnp.float32)
    return nnx.Param(jax.reshard(draw, sharding.weight(dims)), dims=dims)


def uniform(
    dims: str, shape: tuple[int, ...], bound: float, rngs: nnx.Rngs
) -> nnx.Param:
    """Creates a float32 parameter drawn evenly from (-bound, bound)."""
    draw = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
    return nnx.Param(jax.reshard(draw, sharding.weight(dims)), dims=dims)


def filled(dims: str, shape: tuple[int, ...], value: float) -> nnx.Param:
    """Creates a constant float32 parameter, laid out by its letters."""
    layout = sharding.weight(dims)
    return nnx.Param(
        jnp.full(shape, value, jnp.float32, out_sharding=layout), dims=dims
    )


def rms_norm(x_BTD: jax.Array, weight_D: jax.Array, *, eps: float) -> jax.Array:
    """Normalises in float32, casts down, then scales (facts: `BailingMoeRMSNorm`).

    The order matters in bfloat16: the weight multiplies what was already rounded.
    """
    x32_BTD = x_BTD.astype(jnp.float32)
    variance_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
    normed_BTD = (x32_BTD * jax.lax.rsqrt(variance_BT1 + eps)).astype(x_BTD.dtype)
    return normed_BTD * weight_D.astype(x_BTD.dtype)[None, None]


class GatedMlp(nnx.Module):
    """SwiGLU feed-forward layer; gate and up are one matmul.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202, equation 6.
    """

    def __init__(self, model_dim: int, mlp_dim: int, *, std: float, rngs: nnx.Rngs):
        D, F = model_dim, mlp_dim
        self.gate_up_D2F = normal("D2F", (D, 2, F), std, rngs)
        self.down_FD = normal("FD", (F, D), std, rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns down(silu(gate(x)) * up(x)); [B, T, D]."""
        # An equation has no digits: Z is the pair (gate, up).
        gate_up_BT2F = einsum("BTD,DZF->BTZF", x_BTD, self.gate_up_D2F[...])
        return einsum("BTF,FD->BTD", swiglu(gate_up_BT2F), self.down_FD[...])


@jax.custom_vjp
def swiglu(gate_up_2F: jax.Array) -> jax.Array:
    """Returns silu(gate) * up of an array [..., 2, F] that holds gate, then up.

    The gradient is written out: derived, it pads each half to the whole and adds them,
    which costs a CPU as much as a matmul in bfloat16.
    """
    return jax.nn.silu(gate_up_2F[..., 0, :]) * gate_up_2F[..., 1, :]


def _swiglu_forward(gate_up_2F: jax.Array) -> tuple[jax.Array, jax.Array]:
    return swiglu(gate_up_2F), gate_up_2F


def _swiglu_backward(gate_up_2F: jax.Array, grad_F: jax.Array) -> tuple[jax.Array]:
    gate_F = gate_up_2F[..., 0, :].astype(jnp.float32)
    up_F, grad_F = gate_up_2F[..., 1, :].astype(jnp.float32), grad_F.astype(jnp.float32)
    sigmoid_F = jax.nn.sigmoid(gate_F)
    grad_gate_F = grad_F * up_F * sigmoid_F * (1.0 + gate_F * (1.0 - sigmoid_F))
    grad_up_F = grad_F * gate_F * sigmoid_F
    return (jnp.stack([grad_gate_F, grad_up_F], axis=-2).astype(gate_up_2F.dtype),)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
