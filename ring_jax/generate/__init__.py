# SPDX-License-Identifier: Apache-2.0
"""What the model says: many requests at a time over a cache of keys and values."""

from ring_jax.generate.engine import Engine as Engine
from ring_jax.generate.engine import Told as Told
from ring_jax.generate.engine import check_prompts as check_prompts
from ring_jax.generate.request import GREEDY as GREEDY
from ring_jax.generate.request import Completion as Completion
from ring_jax.generate.request import Request as Request
from ring_jax.generate.request import Sampling as Sampling
from ring_jax.generate.request import sampling_of as sampling_of
