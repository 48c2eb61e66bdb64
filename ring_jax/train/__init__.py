# SPDX-License-Identifier: Apache-2.0
"""When it steps."""

from ring_jax.train.loop import Run as Run
from ring_jax.train.loop import TrainingStoppedError as TrainingStoppedError
from ring_jax.train.loop import check_run as check_run
from ring_jax.train.loop import train as train
