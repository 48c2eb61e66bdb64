# SPDX-License-Identifier: Apache-2.0
"""What a training step will cost on a pod that is not there.

plan = plan_step(config, find_pod("v5p:4x4x4"), cache=default_cache())
"""

from ring_jax.plan.compile import CompiledStep as CompiledStep
from ring_jax.plan.compile import CompileError as CompileError
from ring_jax.plan.compile import Overflow as Overflow
from ring_jax.plan.compile import compile_step as compile_step
from ring_jax.plan.compile import default_cache as default_cache
from ring_jax.plan.cost import BYTES_PER_SECOND_PER_HOST as BYTES_PER_SECOND_PER_HOST
from ring_jax.plan.cost import Plan as Plan
from ring_jax.plan.cost import plan_step as plan_step
from ring_jax.plan.layouts import collective_lines as collective_lines
from ring_jax.plan.layouts import parameter_layouts as parameter_layouts
from ring_jax.plan.layouts import total_collectives as total_collectives
from ring_jax.plan.memory import EXACT as EXACT
from ring_jax.plan.memory import PROGRAM as PROGRAM
from ring_jax.plan.memory import Memory as Memory
from ring_jax.plan.search import Tried as Tried
from ring_jax.plan.search import compile_best as compile_best
from ring_jax.plan.search import compile_until_it_fits as compile_until_it_fits
from ring_jax.plan.search import overrides as overrides
from ring_jax.plan.topology import Pod as Pod
from ring_jax.plan.topology import find_pod as find_pod
