# SPDX-License-Identifier: Apache-2.0
"""Opening an exported folder with mlx-lm, an implementation that we did not write."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ring_jax.config import ConfigError


def max_logit_difference_to_mlx(
    folder: str | Path,
    our_logits: Callable[[np.ndarray], np.ndarray],
    ids_BT: np.ndarray,
) -> float:
    """Returns max |ours - theirs| / max(1, standard deviation of theirs).

    Args:
      folder: an exported float32 folder; mlx's CPU expert matmul takes nothing else.
      our_logits: i32[B, T] -> f32[B, T, V], of the model that was exported.
      ids_BT: i32[B, T], full rows without padding.

    Raises:
      ConfigError: mlx-lm is not installed.
    """
    theirs_BTV = mlx_logits(folder, ids_BT)
    difference = np.abs(np.asarray(our_logits(ids_BT)) - theirs_BTV)
    return float(difference.max() / max(1.0, theirs_BTV.std()))


def mlx_logits(folder: str | Path, ids_BT: np.ndarray) -> np.ndarray:
    """Runs mlx-lm's model of a folder on the CPU; returns f32[B, T, V].

    Raises:
      ConfigError: mlx-lm is not installed.
    """
    try:
        import mlx.core as mx
        from mlx_lm.utils import load_model
    except ImportError:
        raise ConfigError(
            "opening the export with mlx-lm needs it: pip install 'ring_jax[parity]'."
        ) from None
    mx.set_default_device(mx.Device(mx.cpu))
    # The CPU build of mlx 0.32 crashes in compiled functions when top-k is 1.
    mx.disable_compile()
    model, _ = load_model(Path(folder))
    return np.array(model(mx.array(ids_BT)).astype(mx.float32))
