# SPDX-License-Identifier: Apache-2.0
"""Head and cross-entropy in one pass over chunks of tokens, in plain XLA.

The logits of a chunk exist, those of the batch never do. One chunk goes

    hidden_CD ──> logits_CV ──> Reduced, a few numbers a token ──> results
                      │                        │
                   grad_CV <── cotangents of the reduced numbers
                      │
        gradient of hidden_CD, summand of the head's gradient

Only `Reduced` knows the vocabulary; every result is a small function of it, which JAX
differentiates. Two operations walk over the same chunks:

- `weighted_sum` knows the weights before it starts, and so the cotangents: it forms the
  gradients while the logits are at hand. Three matmuls, none repeated.
- `token_results` keeps `Reduced` and forms a chunk's logits again when the cotangents
  have come. Four matmuls.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.linear_cross_entropy.types import (
    Frozen,
    SecondTarget,
    TokenResults,
    TokenWeights,
    TopK,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """What the tokens of a chunk are compared with; not differentiated."""

    ids_C: jax.Array
    second: SecondTarget | None
    """A `Frozen` without its head, which no chunk cuts."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reduced:
    """What is left of a token's logits once the vocabulary is summed over."""

    rest_C: jax.Array
    """log sum exp of the logits that the teacher does not name: all, without a TopK."""
    target_C: jax.Array
    """The target's logit."""
    named_CO: jax.Array | None = None
    """The logits that a TopK names; -inf where it names none."""
    frozen_C: jax.Array | None = None
    """log sum exp of the logits of a Frozen."""
    divergence_C: jax.Array | None = None
    """From a Frozen."""


def token_results(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    second: SecondTarget | None,
    *,
    chunk_tokens: int,
    axis_name: str | None,
) -> TokenResults:
    """Computes each token's results, differentiable; see the package."""
    targets, frozen_head_DV = _split(targets_M, second)
    cut = functools.partial(_cut, num_tokens=len(targets_M), chunk_tokens=chunk_tokens)
    results_JC = _token_results(
        axis_name, cut(hidden_MD), head_DV, (cut(targets), frozen_head_DV)
    )
    return _joined(results_JC, num_tokens=len(targets_M))


def weighted_sum(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    weights: TokenWeights,
    second: SecondTarget | None,
    *,
    chunk_tokens: int,
    axis_name: str | None,
) -> tuple[jax.Array, TokenResults]:
    """Computes the sum, differentiable, and each token's results; see the package."""
    targets, frozen_head_DV = _split(targets_M, second)
    cut = functools.partial(_cut, num_tokens=len(targets_M), chunk_tokens=chunk_tokens)
    constants = cut(targets), frozen_head_DV, cut(weights)
    total, results_JC = _weighted_sum(axis_name, cut(hidden_MD), head_DV, constants)
    return total, _joined(results_JC, num_tokens=len(targets_M))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_results(
    axis_name: str | None, hidden_JCD: jax.Array, head_DV: jax.Array, constants: tuple
) -> TokenResults:
    return _token_results_forward(axis_name, hidden_JCD, head_DV, constants)[0]


def _token_results_forward(
    axis_name: str | None, hidden_JCD: jax.Array, head_DV: jax.Array, constants: tuple
) -> tuple[TokenResults, tuple]:
    targets, frozen_head_DV = constants
    heads = _Heads(head_DV.astype(hidden_JCD.dtype), frozen_head_DV, axis_name)

    def step(_: None, chunk: tuple[jax.Array, Targets]) -> tuple[None, tuple]:
        hidden_CD, targets = chunk
        reduced = heads.reduce(heads.logits(hidden_CD, targets), targets)
        return None, (_results(reduced, targets.second), reduced)

    _, (results_JC, reduced_JC) = jax.lax.scan(step, None, (hidden_JCD, targets))
    return results_JC, (hidden_JCD, head_DV, constants, reduced_JC)


def _token_results_backward(
    axis_name: str | None, residuals: tuple, cotangents_JC: TokenResults
) -> tuple:
    hidden_JCD, head_DV, (targets, frozen_head_DV), reduced_JC = residuals
    heads = _Heads(head_DV.astype(hidden_JCD.dtype), frozen_head_DV, axis_name)

    def step(grad_head_DV: jax.Array, chunk: tuple) -> tuple[jax.Array, jax.Array]:
        hidden_CD, targets, reduced, cotangents = chunk
        results = functools.partial(_results, second=targets.second)
        (grad,) = jax.vjp(results, reduced)[1](cotangents)
        logits = heads.logits(hidden_CD, targets)
        grad_CV = heads.logits_gradient(logits, targets, reduced, grad)
        is_used_C = _any_nonzero(cotangents)
        return heads.add_gradients(grad_head_DV, hidden_CD, grad_CV, is_used_C)

    grad_head_DV, grad_JCD = jax.lax.scan(
        step,
        heads.zero_gradient(hidden_JCD),
        (hidden_JCD, targets, reduced_JC, cotangents_JC),
    )
    return grad_JCD, grad_head_DV.astype(head_DV.dtype), None


_token_results.defvjp(_token_results_forward, _token_results_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(
    axis_name: str | None, hidden_JCD: jax.Array, head_DV: jax.Array, constants: tuple
) -> tuple[jax.Array, TokenResults]:
    targets, frozen_head_DV, weights_JC = constants
    results_JC = _token_results(
        axis_name, hidden_JCD, head_DV, (targets, frozen_head_DV)
    )
    return _total(results_JC, weights_JC), results_JC


def _weighted_sum_forward(
    axis_name: str | None, hidden_JCD: jax.Array, head_DV: jax.Array, constants: tuple
) -> tuple[tuple, tuple]:
    targets, frozen_head_DV, weights_JC = constants
    heads = _Heads(head_DV.astype(hidden_JCD.dtype), frozen_head_DV, axis_name)

    def step(grad_head_DV: jax.Array, chunk: tuple) -> tuple[jax.Array, tuple]:
        hidden_CD, targets, weights = chunk
        logits = heads.logits(hidden_CD, targets)
        reduced = heads.reduce(logits, targets)

        def total(reduced: Reduced) -> tuple[jax.Array, TokenResults]:
            results = _results(reduced, targets.second)
            return _total(results, weights), results

        grad, results = jax.grad(total, has_aux=True)(reduced)
        grad_CV = heads.logits_gradient(logits, targets, reduced, grad)
        grad_head_DV, grad_CD = heads.add_gradients(
            grad_head_DV, hidden_CD, grad_CV, _any_nonzero(weights)
        )
        return grad_head_DV, (results, grad_CD)

    grad_head_DV, (results_JC, grad_JCD) = jax.lax.scan(
        step, heads.zero_gradient(hidden_JCD), (hidden_JCD, targets, weights_JC)
    )
    # The head's own dtype rides along: the backward pass sees residuals, not inputs.
    residuals = grad_JCD, grad_head_DV, head_DV[:0]
    return (_total(results_JC, weights_JC), results_JC), residuals


def _weighted_sum_backward(
    axis_name: str | None, residuals: tuple, cotangents: tuple
) -> tuple:
    del axis_name
    grad_JCD, grad_head_DV, empty_0V = residuals
    scale = cotangents[0]
    grad_hidden_JCD = (scale * grad_JCD.astype(scale.dtype)).astype(grad_JCD.dtype)
    return grad_hidden_JCD, (scale * grad_head_DV).astype(empty_0V.dtype), None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


@dataclasses.dataclass(frozen=True)
class _Heads:
    """The heads of student and reference, and all that has a vocabulary dimension."""

    head_DV: jax.Array
    frozen_head_DV: jax.Array | None
    axis_name: str | None

    def logits(self, hidden_CD: jax.Array, targets: Targets) -> tuple:
        """Returns the logits of the student and of the reference or None; [C, V]."""
        student_CV = _product("CD,DV->CV", hidden_CD, self.head_DV)
        if not isinstance(targets.second, Frozen):
            return student_CV, None
        head_DV = self.frozen_head_DV
        assert head_DV is not None, "a Frozen has a head"
        hidden_CD = targets.second.hidden_MD
        head_DV = head_DV.astype(hidden_CD.dtype)
        return student_CV, _product("CD,DV->CV", hidden_CD, head_DV)

    def reduce(self, logits: tuple, targets: Targets) -> Reduced:
        """Sums over the vocabulary."""
        student_CV, frozen_CV = logits
        target_C = self._take(student_CV, targets.ids_C[:, None])[:, 0]
        match targets.second:
            case None:
                return Reduced(self._log_sum_exp(student_CV), target_C)
            case TopK(ids_CO):
                named_CO = self._take(student_CV, ids_CO)
                named_CO = jnp.where(ids_CO < 0, -jnp.inf, named_CO)
                # Not 1 - sum exp(named): that has no digits left where the teacher
                # names nearly all of the mass.
                rest_CV = self._put(student_CV, ids_CO, -jnp.inf)
                return Reduced(self._log_sum_exp(rest_CV), target_C, named_CO)
            case Frozen():
                rest_C = self._log_sum_exp(student_CV)
                frozen_C = self._log_sum_exp(frozen_CV)
                frozen_CV -= frozen_C[:, None]
                ratio_CV = frozen_CV - (student_CV - rest_C[:, None])
                divergence_C = jnp.sum(jnp.exp(frozen_CV) * ratio_CV, axis=1)
                return Reduced(
                    rest_C,
                    target_C,
                    frozen_C=frozen_C,
                    divergence_C=self._sum(divergence_C),
                )

    def logits_gradient(
        self, logits: tuple, targets: Targets, reduced: Reduced, grad: Reduced
    ) -> jax.Array:
        """Returns the gradient of the student's logits from that of what they became.

        d logsumexp / d logits is the softmax, d KL(reference || student) / d logits the
        difference of both softmaxes.
        """
        student_CV, frozen_CV = logits
        grad_divergence_C, scale_C = grad.divergence_C, grad.rest_C
        if grad_divergence_C is not None:
            scale_C += grad_divergence_C
        # Where the teacher names every column, nothing is left: exp(-inf), not NaN.
        rest_C = jnp.where(reduced.rest_C == -jnp.inf, 0.0, reduced.rest_C)
        # Behind the barrier they are arrays: a fusion over the columns would compute
        # each again for every column (XLA's CPU compiler, jax 0.12).
        scale_C, rest_C, own_C, grad_target_C = jax.lax.optimization_barrier(
            (scale_C, rest_C, self._own(targets.ids_C), grad.target_C)
        )
        grad_CV = scale_C[:, None] * jnp.exp(student_CV - rest_C[:, None])
        if reduced.frozen_C is not None and grad_divergence_C is not None:
            frozen_CV = jnp.exp(frozen_CV - reduced.frozen_C[:, None])
            grad_CV -= grad_divergence_C[:, None] * frozen_CV
        if isinstance(targets.second, TopK):
            grad_CV = self._put(grad_CV, targets.second.ids_MO, grad.named_CO)
        is_target_CV = jnp.arange(self._num_columns)[None] == own_C[:, None]
        return jnp.where(is_target_CV, grad_CV + grad_target_C[:, None], grad_CV)

    def zero_gradient(self, hidden_JCD: jax.Array) -> jax.Array:
        """Returns zeros for the head's gradient, float32 at least."""
        dtype = jnp.promote_types(hidden_JCD.dtype, jnp.float32)
        zeros_DV = jnp.zeros(self.head_DV.shape, dtype)
        varying = jax.typeof(self.head_DV).manual_axis_type.varying
        return jax.lax.pcast(zeros_DV, tuple(varying), to="varying")

    def add_gradients(
        self,
        grad_head_DV: jax.Array,
        hidden_CD: jax.Array,
        grad_CV: jax.Array,
        is_used_C: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the head's gradient with this chunk's added, and the chunk's own."""
        # For the layout that its matmuls like, tpu7x's compiler would copy the hidden
        # states of all chunks, and their gradients: memory that grows with the batch.
        hidden_CD, is_used_C = jax.lax.optimization_barrier((hidden_CD, is_used_C))
        # Both are masked, as 0 * NaN is NaN.
        grad_CV = jnp.where(is_used_C[:, None], grad_CV, 0.0).astype(hidden_CD.dtype)
        grad_CD = jnp.einsum("CV,DV->CD", grad_CV, self.head_DV)
        grad_CD = jax.lax.optimization_barrier(grad_CD)
        hidden_CD = jnp.where(is_used_C[:, None], hidden_CD, 0.0)
        return grad_head_DV + _product("CD,CV->DV", hidden_CD, grad_CV), grad_CD

    @property
    def _num_columns(self) -> int:
        return self.head_DV.shape[1]

    def _own(self, ids: jax.Array) -> jax.Array:
        """Returns ids as columns of this shard; those of no column here become V."""
        if self.axis_name is not None:
            ids -= jax.lax.axis_index(self.axis_name) * self._num_columns
        is_own = (ids >= 0) & (ids < self._num_columns)
        return jnp.where(is_own, ids, self._num_columns)

    def _take(self, logits_CV: jax.Array, ids_CO: jax.Array) -> jax.Array:
        """Returns the logits of some columns, [C, O]; NaN where there is no such."""
        found_CO = jnp.take_along_axis(
            logits_CV, self._own(ids_CO), axis=1, mode="fill", fill_value=0.0
        )
        size = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        exists_CO = (ids_CO >= 0) & (ids_CO < size * self._num_columns)
        return jnp.where(exists_CO, self._sum(found_CO), jnp.nan)

    def _put(self, x_CV: jax.Array, ids_CO: jax.Array, value: Any) -> jax.Array:
        """Overwrites some columns; those of no column here are left out."""
        rows_C1 = jnp.arange(x_CV.shape[0])[:, None]
        return x_CV.at[rows_C1, self._own(ids_CO)].set(value, mode="drop")

    def _log_sum_exp(self, logits_CV: jax.Array) -> jax.Array:
        peak_C = jnp.max(logits_CV, axis=1)
        if self.axis_name is not None:
            peak_C = jax.lax.pmax(peak_C, self.axis_name)
        peak_C = jnp.where(peak_C == -jnp.inf, 0.0, peak_C)
        sum_C = self._sum(jnp.sum(jnp.exp(logits_CV - peak_C[:, None]), axis=1))
        return peak_C + jnp.log(sum_C)

    def _sum(self, x: jax.Array) -> jax.Array:
        return x if self.axis_name is None else jax.lax.psum(x, self.axis_name)


def _results(reduced: Reduced, second: SecondTarget | None) -> TokenResults:
    log_partition_C, divergence_C = reduced.rest_C, reduced.divergence_C
    if isinstance(second, TopK):
        assert reduced.named_CO is not None
        outcomes = [reduced.named_CO, reduced.rest_C[:, None]]
        student_CO = jnp.concatenate(outcomes, axis=1)
        log_partition_C = jax.nn.logsumexp(student_CO, axis=1)
        divergence_C = _divergence(second, student_CO - log_partition_C[:, None])
    return TokenResults(
        reduced.target_C - log_partition_C, log_partition_C, divergence_C
    )


def _divergence(teacher: TopK, student_CO: jax.Array) -> jax.Array:
    """Returns KL(teacher || student) over the named outcomes and, last, the rest."""
    named_CO = teacher.log_probs_MO.astype(student_CO.dtype)
    named_CO = jnp.where(teacher.ids_MO < 0, -jnp.inf, named_CO)
    # Rounding may put the named mass above 1; then nothing is left, and counts nothing.
    mass_C1 = jax.nn.logsumexp(named_CO, axis=1, keepdims=True)
    rest_C1 = jnp.log(jnp.maximum(-jnp.expm1(mass_C1), 0.0))
    teacher_CO = jnp.concatenate([named_CO, rest_C1], axis=1)
    is_possible_CO = teacher_CO > -jnp.inf
    term_CO = jnp.exp(teacher_CO) * (teacher_CO - student_CO)
    return jnp.sum(jnp.where(is_possible_CO, term_CO, 0.0), axis=1)


def _total(results: TokenResults, weights: TokenWeights) -> jax.Array:
    """Sums the weighted terms; what has weight 0 counts nothing, NaN or not."""
    terms = (
        (weights.cross_entropy_M, -results.log_prob_M),
        (weights.z_loss_M, jnp.square(results.log_partition_M)),
        (weights.divergence_M, results.divergence_M),
    )
    return functools.reduce(
        jnp.add,
        [
            jnp.sum(jnp.where(weight != 0, weight * term, 0.0))
            for weight, term in terms
            if weight is not None and term is not None
        ],
    )


def _any_nonzero(tree: Any) -> jax.Array:
    return functools.reduce(jnp.logical_or, [x != 0 for x in jax.tree.leaves(tree)])


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _split(
    targets_M: jax.Array, second: SecondTarget | None
) -> tuple[Targets, jax.Array | None]:
    """Separates what is cut into chunks from the reference's head, which is not."""
    if not isinstance(second, Frozen):
        return Targets(targets_M, second), None
    without_head = dataclasses.replace(second, head_DV=None)
    return Targets(targets_M, without_head), second.head_DV


def _cut(tree: Any, *, num_tokens: int, chunk_tokens: int) -> Any:
    """Cuts dimension M of all arrays into [J, C], with C as even as J allows."""
    J = -(-num_tokens // chunk_tokens)
    C = -(-num_tokens // J)

    def cut(x: jax.Array) -> jax.Array:
        padding = [(0, J * C - num_tokens)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(J, C, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _joined(results_JC: TokenResults, *, num_tokens: int) -> TokenResults:
    return jax.tree.map(lambda x_JC: x_JC.reshape(-1)[:num_tokens], results_JC)
