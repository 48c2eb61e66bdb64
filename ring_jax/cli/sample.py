# SPDX-License-Identifier: Apache-2.0
"""A run's data in small: read, tokenized and checked by the code that training uses."""

import dataclasses
import pathlib
import tempfile

from ring_jax.config import RunConfig
from ring_jax.data import pipeline


def prepare_sample(
    config: RunConfig, *, num_rows: int, workdir: pathlib.Path | None = None
) -> pipeline.PreparedData:
    """Prepares a few rows of each source, in a folder that is thrown away.

    Args:
      config: of the run.
      num_rows: training rows to read of each source.
      workdir: a run folder; when it has a tokenizer, that one is used.

    Raises:
      ConfigError: whatever training would refuse in these rows or their tokenizer.
    """
    sources = {
        name: dataclasses.replace(
            source,
            num_rows=min(source.num_rows, num_rows),
            num_heldout=min(source.num_heldout, 1),
        )
        for name, source in config.data.sources.items()
    }
    tokenizer = config.data.tokenizer
    if workdir is not None and (workdir / "tokenizer/tokenizer.json").is_file():
        tokenizer = dataclasses.replace(tokenizer, path=str(workdir / "tokenizer"))
    data = dataclasses.replace(
        config.data, sources=sources, tokenizer=tokenizer, cache_dir=None
    )
    with tempfile.TemporaryDirectory() as folder:
        return pipeline.prepare(dataclasses.replace(config, data=data), folder)
