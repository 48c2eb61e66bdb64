# SPDX-License-Identifier: Apache-2.0
"""What the model says: batched decoding with a cache of keys and values."""

from ring_jax.generate.engine import Completion as Completion
from ring_jax.generate.engine import Engine as Engine
from ring_jax.generate.sampler import Sampler as Sampler
