# SPDX-License-Identifier: Apache-2.0
"""Who takes the jobs of a curation: this process, or the workers of a Ray cluster."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from ring_jax.config import ScaleConfig
from ring_jax.curate.ray_engine import open_ray
from ring_jax.curate.workbench import Job, Workbench


class Engine(Protocol):
    """Runs jobs; their results come in the order of the jobs, whoever was first."""

    def run[Result](self, jobs: Iterable[Job[Result]]) -> Iterator[Result]:
        """Yields the result of each job; draws few jobs ahead of what it yields."""
        ...


@contextlib.contextmanager
def open_engine(
    config: ScaleConfig, make_workbench: Callable[[], Workbench]
) -> Iterator[Engine]:
    """Gives the engine of `config`, and ends all that it started.

    Args:
      config: which engine, and how large.
      make_workbench: called in each process that takes jobs; a picklable callable.

    Raises:
      ConfigError: Ray is not installed.
      OSError: the cluster cannot be reached, or a job failed three times.
    """
    if config.engine == "ray":
        with open_ray(config, make_workbench) as engine:
            yield engine
    else:
        with contextlib.closing(make_workbench()) as workbench:
            yield _ThisProcess(workbench)


class _ThisProcess:
    def __init__(self, workbench: Workbench):
        self._workbench = workbench

    def run[Result](self, jobs: Iterable[Job[Result]]) -> Iterator[Result]:
        for job in jobs:
            yield job.run(self._workbench)
