# SPDX-License-Identifier: Apache-2.0
"""Records as TensorBoard scalars, beside `metrics.jsonl`."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ring_jax.config import ConfigError


def tensorboard_mirror(
    workdir: pathlib.Path,
) -> Callable[[Mapping[str, Any]], None]:
    """Returns a function that writes a train record's numbers to `tensorboard/`.

    Raises:
      ConfigError: the package that writes event files is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # an extra
    except ModuleNotFoundError:
        raise ConfigError(
            "train.tensorboard needs a package: pip install 'ring_jax[tensorboard]'."
        ) from None
    writer = SummaryWriter(str(workdir / "tensorboard"))

    def write(record: Mapping[str, Any]) -> None:
        if record["kind"] != "train":
            return
        for name, value in record.items():
            if "/" in name:
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    return write
