# SPDX-License-Identifier: Apache-2.0
"""What is kept: checkpoints of a run, and model folders of the Hugging Face world."""

from ring_jax.checkpoint.digests import digests as digests
from ring_jax.checkpoint.huggingface import config_from_hf as config_from_hf
from ring_jax.checkpoint.huggingface import config_to_hf as config_to_hf
from ring_jax.checkpoint.huggingface import parameter_shapes as parameter_shapes
from ring_jax.checkpoint.mlx_check import (
    max_logit_difference_to_mlx as max_logit_difference_to_mlx,
)
from ring_jax.checkpoint.model_folder import export_folder as export_folder
from ring_jax.checkpoint.model_folder import import_folder as import_folder
from ring_jax.checkpoint.model_folder import read_config as read_config
from ring_jax.checkpoint.store import Restored as Restored
from ring_jax.checkpoint.store import StorageError as StorageError
from ring_jax.checkpoint.store import Store as Store
from ring_jax.checkpoint.store import check_model as check_model
from ring_jax.checkpoint.store import read_newest as read_newest
from ring_jax.checkpoint.tree import flatten as flatten
from ring_jax.checkpoint.tree import place as place
from ring_jax.checkpoint.tree import unflatten as unflatten
