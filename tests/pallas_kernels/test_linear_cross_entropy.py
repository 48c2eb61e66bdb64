# SPDX-License-Identifier: Apache-2.0
"""The fused head and cross-entropy against its definition, in float64 and beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from benchmarks.cross_entropy import LOSSES, temporary_gigabytes
from pallas_kernels.linear_cross_entropy import (
    Frozen,
    TokenWeights,
    TopK,
    linear_cross_entropy,
    linear_cross_entropy_sum,
    reference,
)

M, D, V, O = 24, 6, 40, 5  # noqa: E741  (O is a letter of docs/notation.md)
SECOND = ["none", "top_k", "frozen"]
# Sums of at most 40 float64 terms of order 1 in another order.
FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}
# The same in float32.
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def operands(dtype="float32"):
    """Returns hidden_MD, head_DV and targets_M."""
    rng = np.random.default_rng(0)
    hidden_MD = rng.standard_normal((M, D))
    head_DV = rng.standard_normal((D, V))
    targets_M = rng.integers(0, V, M)
    return (
        jnp.asarray(hidden_MD, dtype),
        jnp.asarray(head_DV, dtype),
        jnp.asarray(targets_M, jnp.int32),
    )


def second_target(kind, dtype="float32"):
    rng = np.random.default_rng(1)
    if kind == "none":
        return None
    if kind == "frozen":
        hidden_MD, head_DV = (rng.standard_normal(s) for s in ((M, 4), (4, V)))
        return Frozen(jnp.asarray(hidden_MD, dtype), jnp.asarray(head_DV, dtype))
    log_probs_MV = np.asarray(jax.nn.log_softmax(rng.standard_normal((M, V))))
    ids_MO = np.argsort(-log_probs_MV, axis=1)[:, :O]
    log_probs_MO = np.take_along_axis(log_probs_MV, ids_MO, axis=1)
    ids_MO[3, 2:] = -1
    return TopK(jnp.asarray(ids_MO, jnp.int32), jnp.asarray(log_probs_MO, dtype))


def token_weights(kind, dtype="float32"):
    rng = np.random.default_rng(2)
    draws_3M = rng.uniform(0, 2, (3, M))
    draws_3M[:, :3] = 0.0
    draws_3M[0, 5] = 0.0
    ce_M, z_M, divergence_M = jnp.asarray(draws_3M, dtype)
    return TokenWeights(ce_M, 0.01 * z_M, None if kind == "none" else divergence_M)


def mixed(results):
    """A loss that weighs tokens by what other tokens' results are, as DPO does."""
    margin = jnp.sum(jnp.tanh(results.log_prob_M) * jnp.arange(M))
    loss = jnp.sum(jnp.sin(jnp.arange(M)) * results.loss(0.01)) / (1 + margin**2)
    if results.divergence_M is not None:
        loss += jnp.sum(results.divergence_M * jnp.cos(jnp.arange(M)))
    return loss + jnp.sum(jnp.log1p(results.log_partition_M**2))


def weighted(results, weights):
    total = jnp.sum(weights.cross_entropy_M * -results.log_prob_M)
    total += jnp.sum(weights.z_loss_M * results.log_partition_M**2)
    if results.divergence_M is not None:
        total += jnp.sum(weights.divergence_M * results.divergence_M)
    return total


def value_and_gradients(function, hidden_MD, head_DV):
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(hidden_MD, head_DV)


def assert_close(found, expected, **tolerance):
    for got, want in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, **tolerance)


@pytest.mark.parametrize("chunk_tokens", [5, 8, 100])
@pytest.mark.parametrize("kind", SECOND)
def test_each_token_is_as_defined_under_any_cotangent(x64, kind, chunk_tokens):
    hidden_MD, head_DV, targets_M = operands("float64")
    second = second_target(kind, "float64")

    def ours(hidden_MD, head_DV):
        results = linear_cross_entropy(
            hidden_MD, head_DV, targets_M, second=second, chunk_tokens=chunk_tokens
        )
        return mixed(results)

    def definition(hidden_MD, head_DV):
        return mixed(
            reference.linear_cross_entropy(hidden_MD, head_DV, targets_M, second)
        )

    assert_close(
        value_and_gradients(ours, hidden_MD, head_DV),
        value_and_gradients(definition, hidden_MD, head_DV),
        **FLOAT64,
    )


@pytest.mark.parametrize("chunk_tokens", [5, 8, 100])
@pytest.mark.parametrize("kind", SECOND)
def test_the_weighted_sum_is_as_defined(x64, kind, chunk_tokens):
    hidden_MD, head_DV, targets_M = operands("float64")
    second, weights = second_target(kind, "float64"), token_weights(kind, "float64")

    def ours(hidden_MD, head_DV):
        total, _ = linear_cross_entropy_sum(
            hidden_MD,
            head_DV,
            targets_M,
            weights,
            second=second,
            chunk_tokens=chunk_tokens,
        )
        return jnp.sin(total)

    def definition(hidden_MD, head_DV):
        results = reference.linear_cross_entropy(hidden_MD, head_DV, targets_M, second)
        return jnp.sin(weighted(results, weights))

    assert_close(
        value_and_gradients(ours, hidden_MD, head_DV),
        value_and_gradients(definition, hidden_MD, head_DV),
        **FLOAT64,
    )


@pytest.mark.parametrize("kind", SECOND)
def test_gradients_are_the_slopes(x64, kind):
    hidden_MD, head_DV, targets_M = operands("float64")
    second, weights = second_target(kind, "float64"), token_weights(kind, "float64")

    @jax.jit
    def each(hidden_MD, head_DV):
        return linear_cross_entropy(
            hidden_MD, head_DV, targets_M, second=second, chunk_tokens=7
        )

    @jax.jit
    def summed(hidden_MD, head_DV):
        return linear_cross_entropy_sum(
            hidden_MD, head_DV, targets_M, weights, second=second, chunk_tokens=7
        )[0]

    for function in (each, summed):
        check_grads(function, (hidden_MD, head_DV), order=1, modes=["rev"])


def test_optax_gives_the_same(x64):
    hidden_MD, head_DV, targets_M = operands("float64")
    frozen = second_target("frozen", "float64")
    assert isinstance(frozen, Frozen)
    results = linear_cross_entropy(hidden_MD, head_DV, targets_M, second=frozen)
    logits_MV = hidden_MD @ head_DV
    expected_M = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits_MV, targets_M
    )
    assert_close(results.loss(), expected_M, **FLOAT64)
    expected_M = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits_MV),
        jax.nn.log_softmax(frozen.hidden_MD @ frozen.head_DV),
    )
    assert_close(results.divergence_M, expected_M, **FLOAT64)


@pytest.mark.parametrize("differentiable", [True, False])
def test_a_normalised_head_is_a_scaled_hidden_state(x64, differentiable):
    hidden_MD, head_DV, targets_M = operands("float64")

    def norm(head_DV):
        norm_D = jnp.sqrt(jnp.sum(head_DV**2, axis=1)) + 1e-7
        return norm_D if differentiable else jax.lax.stop_gradient(norm_D)

    def ours(hidden_MD, head_DV):
        scaled_MD = hidden_MD / norm(head_DV)[None]
        return mixed(linear_cross_entropy(scaled_MD, head_DV, targets_M))

    def definition(hidden_MD, head_DV):
        normed_DV = head_DV / norm(head_DV)[:, None]
        return mixed(reference.linear_cross_entropy(hidden_MD, normed_DV, targets_M))

    assert_close(
        value_and_gradients(ours, hidden_MD, head_DV),
        value_and_gradients(definition, hidden_MD, head_DV),
        **FLOAT64,
    )


@pytest.mark.parametrize("kind", SECOND)
def test_logits_of_ten_thousand_stay_finite(kind):
    _, _, targets_M = operands()
    hidden_MD = 1e4 * jnp.eye(M, D)
    head_DV = jnp.sign(operands()[1])
    second, weights = second_target(kind), token_weights(kind)
    if kind == "frozen":
        second = Frozen(-hidden_MD, head_DV)

    def ours(hidden_MD, head_DV):
        return linear_cross_entropy_sum(
            hidden_MD, head_DV, targets_M, weights, second=second, chunk_tokens=8
        )

    both_passes = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))
    (total, results), gradients = both_passes(hidden_MD, head_DV)
    for leaf in jax.tree.leaves((total, results, gradients)):
        assert np.all(np.isfinite(leaf))
    with jax.enable_x64(True):
        expected = reference.linear_cross_entropy(
            hidden_MD.astype("float64"), head_DV, targets_M, second
        )
    # float32 knows a log-partition of 1e4 to 2**-11, and so a probability to 5e-4.
    assert_close(results, expected, rtol=5e-4, atol=2e-3)


@pytest.mark.parametrize("bad", ["hidden", "target"])
def test_a_token_that_nobody_weighs_reaches_nothing(bad):
    hidden_MD, head_DV, targets_M = operands()
    weights = token_weights("none")
    dirty_MD, dirty_M = hidden_MD, targets_M
    if bad == "hidden":
        dirty_MD = hidden_MD.at[:3].set(jnp.nan)
    else:
        dirty_M = targets_M.at[:3].set(jnp.array([-100, V, -1]))

    def summed(hidden_MD, head_DV, targets_M):
        total, _ = linear_cross_entropy_sum(
            hidden_MD, head_DV, targets_M, weights, chunk_tokens=8
        )
        return total

    def each(hidden_MD, head_DV, targets_M):
        results = linear_cross_entropy(hidden_MD, head_DV, targets_M, chunk_tokens=8)
        return jnp.sum(results.log_prob_M[3:] ** 2)

    for function in (summed, each):
        grad = jax.value_and_grad(function, argnums=(0, 1))
        found = grad(dirty_MD, head_DV, dirty_M)
        np.testing.assert_array_equal(found[1][0][:3], 0.0)
        assert_close(found, grad(hidden_MD, head_DV, targets_M), **FLOAT32)


def test_a_target_that_is_no_column_has_no_probability():
    hidden_MD, head_DV, targets_M = operands()
    results = linear_cross_entropy(
        hidden_MD, head_DV, targets_M.at[:2].set(jnp.array([-1, V]))
    )
    assert np.all(np.isnan(results.log_prob_M) == (np.arange(M) < 2))


def top_k_of_one(logits_V, log_probs, ids):
    """The divergence of one token with the given logits, and its gradient."""
    second = TopK(jnp.array([ids]), jnp.array([log_probs], jnp.float32))

    def divergence(logits_V):
        results = linear_cross_entropy(
            jnp.ones((1, 1)), logits_V[None], jnp.zeros(1, jnp.int32), second=second
        )
        assert results.divergence_M is not None
        return results.divergence_M[0]

    return jax.value_and_grad(divergence)(jnp.asarray(logits_V, jnp.float32))


def test_a_tiny_rest_keeps_its_digits():
    # The student leaves 2e-12: one minus what it names would be 0 in float32.
    rest = np.exp(-27.6)
    log_probs = np.log([0.75, 0.25]) + np.log1p(-1e-6)
    value, grad_V = top_k_of_one([0.0, 0.0, -27.6, -27.6], log_probs, [0, 1])
    probs = np.exp(np.float32(log_probs).astype(np.float64))
    outcomes = np.array([*probs, 1 - probs.sum()])
    student = np.array([1, 1, 2 * rest]) / (2 + 2 * rest)
    expected = np.sum(outcomes * np.log(outcomes / student))
    # float32 knows the rest, 1e-6, to 6e-8, times log(1e-6 / 1e-12) = 13.
    np.testing.assert_allclose(value, expected, atol=1e-6)
    slope = np.sum(outcomes) * student - outcomes
    expected_V = [slope[0], slope[1], slope[2] / 2, slope[2] / 2]
    np.testing.assert_allclose(grad_V, expected_V, atol=1e-7)


@pytest.mark.parametrize(
    ("log_probs", "ids"),
    [
        (np.log([0.75, 0.25]), [0, 1]),
        (np.log([0.75, 0.25 + 1e-6]), [0, 1]),
        ([0.0, -np.inf], [0, 1]),
        (np.log([0.5, 0.2, 0.2, 0.1]), [0, 1, 2, 3]),
        ([0.0, 0.0], [-1, -1]),
        ([0.0, 0.0], [2, -1]),
    ],
    ids=["no_rest", "over_one", "impossible", "all_named", "nothing_named", "certain"],
)
def test_no_mass_left_or_none_named_stays_finite(log_probs, ids):
    logits_V = np.array([0.3, -1.0, 2.0, 0.1])
    value, grad_V = top_k_of_one(logits_V, log_probs, ids)
    student = np.exp(logits_V) / np.exp(logits_V).sum()
    named = [i for i in ids if i >= 0]
    probs = np.exp(np.asarray(log_probs, np.float64))[: len(named)]
    outcomes = np.array([*probs, max(0.0, 1 - probs.sum())])
    student_outcomes = np.array([*student[named], 1 - student[named].sum()])
    possible = outcomes > 1e-12
    ratio = outcomes[possible] / student_outcomes[possible]
    expected = np.sum(outcomes[possible] * np.log(ratio))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    expected_V = student * outcomes.sum()
    expected_V[named] -= probs
    if possible[-1]:
        rest = [i for i in range(4) if i not in named]
        expected_V[rest] -= outcomes[-1] * student[rest] / student[rest].sum()
    np.testing.assert_allclose(grad_V, expected_V, atol=1e-6)


@pytest.mark.parametrize("kind", SECOND)
def test_bfloat16_follows_float32_and_keeps_the_head_s_dtype(kind):
    hidden_MD, head_DV, targets_M = operands("bfloat16")
    second, weights = second_target(kind), token_weights(kind)

    def ours(hidden_MD, head_DV):
        return linear_cross_entropy_sum(
            hidden_MD, head_DV, targets_M, weights, second=second, chunk_tokens=8
        )[0]

    def definition(hidden_MD, head_DV):
        results = reference.linear_cross_entropy(hidden_MD, head_DV, targets_M, second)
        return weighted(results, weights)

    wide_MD, wide_DV = (x.astype("float32") for x in (hidden_MD, head_DV))
    expected, (expected_MD, expected_DV) = value_and_gradients(
        definition, wide_MD, wide_DV
    )
    total, (grad_MD, grad_DV) = value_and_gradients(ours, hidden_MD, wide_DV)
    # Products of bfloat16 are exact in float32, so the value differs by sums only.
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    # The gradient of a logit, at most 2 * 1.3, is rounded to 8 bits, 2**-9 of it, and
    # meets up to 40 factors of order 1; so is the gradient of hidden itself.
    assert (grad_MD.dtype, grad_DV.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(
        grad_MD.astype("float32"), expected_MD, rtol=2**-7, atol=0.03
    )
    np.testing.assert_allclose(grad_DV, expected_DV, rtol=2**-7, atol=0.03)


@pytest.mark.parametrize("operation", ["each", "sum"])
def test_memory_does_not_grow_with_the_batch(operation):
    def temporary_bytes(num_tokens):
        shapes = ((num_tokens, 64), "bfloat16"), ((64, 4096), "bfloat16")
        tokens = jax.ShapeDtypeStruct((num_tokens,), "int32")
        weights = jax.ShapeDtypeStruct((num_tokens,), "float32")

        def loss(hidden_MD, head_DV, targets_M, weights_M):
            if operation == "sum":
                return linear_cross_entropy_sum(
                    hidden_MD,
                    head_DV,
                    targets_M,
                    TokenWeights(weights_M),
                    chunk_tokens=128,
                )[0]
            results = linear_cross_entropy(
                hidden_MD, head_DV, targets_M, chunk_tokens=128
            )
            return jnp.sum(weights_M * results.loss())

        arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
        compiled = gradients.lower(*arrays, tokens, weights).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    few, many = temporary_bytes(512), temporary_bytes(4096)
    # Logits of all tokens would take 16 kB a token; what is kept takes a few numbers,
    # and the compiler may copy the rows of hidden or of its gradient, 128 B each.
    assert (many - few) / (4096 - 512) < 600


@pytest.mark.aot
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "tpu7x"])
def test_ling_lite_s_head_takes_little_memory_at_any_batch(chip, loss, absent_mesh):
    device = absent_mesh(chip).devices.flat[0]
    # Logits of 512 tokens and the bfloat16 head are 0.78; the float32 gradient of the
    # head is a result.
    for num_tokens in (8192, 32_768):
        assert temporary_gigabytes(loss, device, num_tokens) < 1.2


def sharded(function, mesh, *, tokens):
    """Runs a function of hidden_MD, head_DV, targets_M, second, weights on shards."""
    row, head = P(tokens, None), P(None, "vocabulary")

    def specs(tree):
        def spec(path, leaf):
            is_head = "head_DV" in jax.tree_util.keystr(path)
            return head if is_head else P(tokens, *(None,) * (leaf.ndim - 1))

        return jax.tree_util.tree_map_with_path(spec, tree)

    def run(hidden_MD, head_DV, targets_M, second, weights):
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(row, head, P(tokens), specs(second), specs(weights)),
            out_specs=P(tokens),
        )(hidden_MD, head_DV, targets_M, second, weights)

    return run


@pytest.mark.parametrize("sizes", [(1, 8), (2, 4)], ids=["vocabulary", "both"])
@pytest.mark.parametrize("kind", SECOND)
@pytest.mark.parametrize("operation", ["each", "sum"])
def test_a_vocabulary_in_shards_gives_the_same(operation, kind, sizes):
    mesh = jax.make_mesh(sizes, ("tokens", "vocabulary"), (AxisType.Auto,) * 2)
    hidden_MD, head_DV, targets_M = operands()
    second, weights = second_target(kind), token_weights(kind)

    def loss(hidden_MD, head_DV, targets_M, second, weights, *, axis_name):
        keywords = {"second": second, "chunk_tokens": 5, "axis_name": axis_name}
        if operation == "sum":
            return linear_cross_entropy_sum(
                hidden_MD, head_DV, targets_M, weights, **keywords
            )[0][None]
        results = linear_cross_entropy(hidden_MD, head_DV, targets_M, **keywords)
        loss_M = jnp.tanh(results.log_prob_M) + 0.01 * results.log_partition_M**2
        divergence_M = results.divergence_M
        return loss_M if divergence_M is None else loss_M + divergence_M**2

    on_shards = sharded(
        functools.partial(loss, axis_name="vocabulary"), mesh, tokens="tokens"
    )
    found, expected = (
        value_and_gradients(
            lambda hidden_MD, head_DV, function=function: jnp.sum(
                function(hidden_MD, head_DV, targets_M, second, weights)
            ),
            hidden_MD,
            head_DV,
        )
        for function in (on_shards, functools.partial(loss, axis_name=None))
    )
    assert_close(found, expected, **FLOAT32)


def test_shards_of_tokens_over_the_vocabulary_s_axis_are_refused():
    mesh = jax.make_mesh((8,), ("vocabulary",), (AxisType.Auto,))
    hidden_MD, head_DV, targets_M = operands()

    def run(hidden_spec, head_spec):
        return jax.shard_map(
            lambda *x: linear_cross_entropy(*x, axis_name="vocabulary").log_prob_M,
            mesh=mesh,
            in_specs=(hidden_spec, head_spec, hidden_spec),
            out_specs=hidden_spec,
        )(hidden_MD, head_DV, targets_M)

    with pytest.raises(ValueError, match="gather the tokens"):
        run(P("vocabulary"), P(None, "vocabulary"))
    with pytest.raises(ValueError, match="cut its V"):
        run(P(), P())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_MD": jnp.ones((M, D + 1))}, r"\(24, 7\).*must agree"),
        ({"hidden_MD": jnp.ones((M, D, 1))}, r"must be \[M, D\]"),
        ({"targets_M": jnp.ones(M)}, "targets are float32; give integers"),
        ({"chunk_tokens": 0}, "chunk_tokens=0"),
        ({"weights": TokenWeights(jnp.ones(1))}, "one for each of 24"),
        ({"second": second_target("frozen")}, "come together"),
        (
            {"second": Frozen(jnp.ones((M, 2)), jnp.ones((2, 3)))},
            r"\(2, 3\) must be .* V=40",
        ),
        (
            {"second": TopK(jnp.ones((M, 2), int), jnp.ones((M, 3)))},
            r"must both be \[M, O\]",
        ),
        (
            {"second": TopK(jnp.ones((1, 2), int), jnp.ones((1, 2)))},
            "for M=24 tokens",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(change, message):
    names = "hidden_MD", "head_DV", "targets_M", "weights"
    arguments = dict(zip(names, (*operands(), token_weights("none")), strict=True))
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy_sum(**(arguments | change))
