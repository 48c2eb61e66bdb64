# SPDX-License-Identifier: Apache-2.0
"""Attention by its definition, in numpy float64, and what tests compare with it."""

import jax
import jax.numpy as jnp
import numpy as np

H = 16
# Softmax averages values of standard normals; scores and sums of up to 1,024 terms are
# rounded to float32 (2^-24 relative). bfloat16 rounds query, weights and results to 8
# bits, gradients of up to 10 by 2^-8 * 8.
TOLERANCE = {"float32": 3e-5, "bfloat16": 5e-2}


def segments(rows):
    """Returns i32[B, T] of rows of lengths; T is the longest row of the case."""
    T = max(sum(lengths) for lengths in rows)
    segments_BT = np.zeros((len(rows), T), np.int32)
    for row, lengths in zip(segments_BT, rows, strict=True):
        documents = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        row[: documents.size] = documents
    return jnp.asarray(segments_BT)


def operands(segments_BT, heads=(4, 1), dtype="float32", width=H):
    """Returns query, key, value and a cotangent of the output."""
    rng = np.random.default_rng(0)
    N, K = heads
    shapes = [(*segments_BT.shape, n, width) for n in (N, K, K, N)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def expected(arrays, segments_BT):
    """Attends and differentiates in float64, pair by pair of heads, without jax."""
    query, key, value, grad = (np.asarray(x, np.float64) for x in arrays)
    out, grad_query, grad_key, grad_value = map(
        np.zeros_like, (query, query, key, value)
    )
    group, scale = query.shape[2] // key.shape[2], query.shape[3] ** -0.5
    position = np.arange(query.shape[1])
    for b, segment in enumerate(np.asarray(segments_BT)):
        visible = (segment[:, None] == segment[None]) & (segment[:, None] > 0)
        visible &= position[:, None] >= position[None]
        for n in range(query.shape[2]):
            q, k, v, g = (
                query[b, :, n],
                key[b, :, n // group],
                value[b, :, n // group],
                grad[b, :, n],
            )
            weights = np.where(visible, np.exp(q @ k.T * scale), 0.0)
            weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
            out[b, :, n] = weights @ v
            shift = np.sum(g * out[b, :, n], axis=1, keepdims=True)
            grad_scores = weights * (g @ v.T - shift) * scale
            grad_query[b, :, n] = grad_scores @ k
            grad_key[b, :, n // group] += grad_scores.T @ q
            grad_value[b, :, n // group] += weights.T @ g
    return out, grad_query, grad_key, grad_value


def found(attend, arrays, segments_BT):
    """Returns the output and the three gradients, of one compiled program."""

    @jax.jit
    def both_passes(inputs, grad_BTNH, segments_BT):
        out_BTNH, pull_back = jax.vjp(lambda *x: attend(*x, segments_BT), *inputs)
        return out_BTNH, *pull_back(grad_BTNH)

    *inputs, grad_BTNH = arrays
    return both_passes(inputs, grad_BTNH, segments_BT)


def assert_close(actual, wanted, dtype="float32"):
    for a, b in zip(actual, wanted, strict=True):
        assert a.dtype == jnp.dtype(dtype)
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=tolerance, atol=tolerance
        )
