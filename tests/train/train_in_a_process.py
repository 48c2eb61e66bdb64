# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny run in a process of its own, to be killed: RUN.json WORKDIR."""

import pathlib
import sys

import jax
from rich.console import Console

from ring_jax import sharding
from ring_jax.config import run_config_from_json
from ring_jax.train import Run, train
from tests.train.conftest import CountedBatches


def main() -> None:
    """Runs the loop with the counted batches of the tests."""
    config = run_config_from_json(pathlib.Path(sys.argv[1]).read_text("utf-8"))
    run = Run(
        config=config,
        workdir=pathlib.Path(sys.argv[2]),
        mesh=sharding.make_mesh(config.mesh, jax.devices()[:1]),
        open_batches=lambda stage: CountedBatches(len(stage)),
        evaluate=lambda model, stage: {},
        console=Console(quiet=True),
    )
    train(run)


if __name__ == "__main__":
    main()
