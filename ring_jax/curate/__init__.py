# SPDX-License-Identifier: Apache-2.0
"""What is worth reading: from raw files to shards of rows that can be trusted."""

from ring_jax.curate.manifest import Manifest as Manifest
from ring_jax.curate.manifest import load_manifest as load_manifest
from ring_jax.curate.pipeline import curate as curate
