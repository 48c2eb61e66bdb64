# SPDX-License-Identifier: Apache-2.0
"""What goes into the fused head and cross-entropy, and what comes out."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
    """A teacher's likeliest outcomes; the mass they leave is one outcome more.

    The divergence is KL(teacher || student) over these O + 1 outcomes.
    """

    ids_MO: jax.Array
    """int[M, O], the columns of the head that are named, each once; -1 names none."""
    log_probs_MO: jax.Array
    """float[M, O], normalised over the teacher's whole vocabulary."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """A reference model, whose logits are formed beside the student's, chunk by chunk.

    The divergence is KL(reference || student) over the vocabulary; nothing of the
    reference is differentiated.
    """

    hidden_MD: jax.Array
    """float[M, D], what the reference's head reads; its D may differ."""
    head_DV: jax.Array
    """float[D, V], with the student's V columns."""


type SecondTarget = TopK | Frozen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenResults:
    """What is known of each token, f32[M] in nats."""

    log_prob_M: jax.Array
    """Of the target; NaN where the target is no column of the head."""
    log_partition_M: jax.Array
    """log sum exp of the logits."""
    divergence_M: jax.Array | None = None
    """From the second target distribution, where one was given."""

    def loss(self, z_loss_coef: float = 0.0) -> jax.Array:
        """Returns cross-entropy + z_loss_coef * log_partition**2, f32[M].

        Source of the z-loss: arXiv:2204.02311, section 5.
        """
        return z_loss_coef * jnp.square(self.log_partition_M) - self.log_prob_M


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenWeights:
    """What a sum over tokens multiplies each of their terms by; f32[M], or None for 0.

    Known before the forward pass, and not differentiated.
    """

    cross_entropy_M: jax.Array
    z_loss_M: jax.Array | None = None
    """Of log_partition**2."""
    divergence_M: jax.Array | None = None
    """Of the divergence from the second target distribution."""
