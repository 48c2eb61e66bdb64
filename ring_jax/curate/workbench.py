# SPDX-License-Identifier: Apache-2.0
"""What a process needs to take jobs of a curation: the settings, and the steps."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Protocol

from ring_jax.config import CurateConfig
from ring_jax.curate.rows import Step


class Job[Result](Protocol):
    """A part of a curation that depends on no other, and can be sent elsewhere.

    Its result is a function of the job alone, and running it twice is as good as once.
    """

    def run(self, workbench: "Workbench") -> Result:
        """Does the work."""
        ...


class Workbench:
    """The settings of a curation, and its steps, opened when a job first asks."""

    def __init__(
        self,
        config: CurateConfig,
        open_steps: Callable[[], contextlib.AbstractContextManager[Mapping[str, Step]]],
    ):
        self.config = config
        self._open_steps = open_steps
        self._opened = contextlib.ExitStack()

    @functools.cached_property
    def steps(self) -> Mapping[str, Step]:
        """The steps of a chunk in their order."""
        return self._opened.enter_context(self._open_steps())

    def close(self) -> None:
        """Ends what the steps started, such as verifiers."""
        self._opened.close()
