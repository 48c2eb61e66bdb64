# SPDX-License-Identifier: Apache-2.0
"""ring_jax: turns a compact Mixture-of-Experts language model into a reasoner."""

__version__ = "0.1.0"
