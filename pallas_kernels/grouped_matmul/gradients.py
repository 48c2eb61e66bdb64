# SPDX-License-Identifier: Apache-2.0
"""The gradients of the three grouped products, each of which is two of the three."""

from collections.abc import Callable
from typing import Any

import jax

type Product = Callable[[jax.Array, jax.Array, Any], jax.Array]


def with_gradients(
    multiply: Product, multiply_transposed: Product, outer: Callable[..., jax.Array]
) -> tuple[Product, Product, Callable[..., jax.Array]]:
    """Makes an implementation's three products differentiable, to any order.

    Args:
      multiply: out[r, f] = sum_d x[r, d] w[e(r), d, f], of x, w and the tiles.
      multiply_transposed: out[r, d] = sum_f x[r, f] w[e(r), d, f].
      outer: out[e, d, f] = sum over the rows r of e of x[r, d] y[r, f], of x, y, the
        tiles and the result's dtype.

    Returns:
      The same three, which the rest of the package calls.
    """
    matmul = jax.custom_vjp(multiply)
    transposed = jax.custom_vjp(multiply_transposed)
    products = jax.custom_vjp(outer, nondiff_argnums=(3,))

    def matmul_backward(residuals, grad_RF):
        x_RD, w_EDF, tiles = residuals
        grad_x_RD = transposed(grad_RF, w_EDF, tiles)
        grad_w_EDF = products(x_RD, grad_RF, tiles, w_EDF.dtype)
        return grad_x_RD, grad_w_EDF, None

    def transposed_backward(residuals, grad_RD):
        x_RF, w_EDF, tiles = residuals
        grad_x_RF = matmul(grad_RD, w_EDF, tiles)
        grad_w_EDF = products(grad_RD, x_RF, tiles, w_EDF.dtype)
        return grad_x_RF, grad_w_EDF, None

    def products_forward(x_RD, y_RF, tiles, dtype):
        return products(x_RD, y_RF, tiles, dtype), (x_RD, y_RF, tiles)

    def products_backward(dtype, residuals, grad_EDF):
        del dtype
        x_RD, y_RF, tiles = residuals
        grad_x_RD = transposed(y_RF, grad_EDF, tiles)
        grad_y_RF = matmul(x_RD, grad_EDF, tiles)
        return grad_x_RD.astype(x_RD.dtype), grad_y_RF.astype(y_RF.dtype), None

    matmul.defvjp(_keeping_inputs(matmul), matmul_backward)
    transposed.defvjp(_keeping_inputs(transposed), transposed_backward)
    products.defvjp(products_forward, products_backward)
    return matmul, transposed, products


def _keeping_inputs(product: Product) -> Callable[..., tuple]:
    return lambda *inputs: (product(*inputs), inputs)
