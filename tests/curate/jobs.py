# SPDX-License-Identifier: Apache-2.0
"""Jobs that go wrong on purpose; workers of a cluster import them from here."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import time

from ring_jax.config import ConfigError, CurateConfig, RawSourceConfig
from ring_jax.curate.workbench import Workbench


def no_workbench() -> Workbench:
    """Stands where a curation has its workbench; jobs here ask nothing of it."""
    config = CurateConfig(sources={"none": RawSourceConfig()})
    return Workbench(config, functools.partial(contextlib.nullcontext, {}))


@dataclasses.dataclass(frozen=True)
class Square:
    number: int
    seconds: float = 0.0

    def run(self, workbench: Workbench) -> int:
        time.sleep(self.seconds)
        return self.number**2


@dataclasses.dataclass(frozen=True)
class Fails:
    """Fails in its own way until it was tried `times` times; then gives its number."""

    folder: pathlib.Path
    way: str
    times: int
    number: int = -1

    def __str__(self) -> str:
        return f"job {self.number}"

    def run(self, workbench: Workbench) -> int:
        num_before = len(list(self.folder.iterdir()))
        if num_before >= self.times:
            return self.number
        (self.folder / str(num_before)).touch()
        if self.way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.way == "disk":
            raise OSError(28, "No space left on device")
        if self.way == "mistake":
            raise ConfigError("taxonomy: it has no topic.")
        raise AssertionError("our bug")
