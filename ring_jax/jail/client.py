# SPDX-License-Identifier: Apache-2.0
"""The near end of a jail: cells are opened, and programs run in them."""

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import ring_jax


class JailError(OSError):
    """A program cannot be confined here; it was not run."""


class JailLostError(JailError):
    """The processes of the jail ended; a new one is needed."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """How a run ended."""

    exit_status: int
    """0 for success; -N where signal N ended it."""
    is_late: bool
    """It did not end in time, and was killed."""
    stdout: str
    stderr: str
    """The end of it."""


class Jail:
    """Starts cells, one at a time; a context manager, which ends them.

    A cell is a process tree in namespaces of its own: no network, no process of others,
    no file but Python's own (read-only) and `/tmp` (64 MiB, in memory, gone with the
    cell). A program in it is one process with threads and no capabilities; see
    `kernel.confine_program` for its limits. Memory is limited to the address space
    that this process itself may have, and to 4 GB.
    """

    def __init__(self):
        self._launcher = subprocess.Popen(
            [sys.executable, "-S", "-m", "ring_jax.jail.launcher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": str(pathlib.Path(ring_jax.__file__).parents[1])},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the launcher with all that runs in it."""
        self._launcher.kill()
        for stream in (self._launcher.stdin, self._launcher.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._launcher.wait()

    @contextlib.contextmanager
    def open_cell(self, files: Mapping[str, str]) -> Iterator["Cell"]:
        """Opens a cell with files in `/program`, which programs can read.

        Raises:
          JailError: the kernel refuses a part of the confinement; it says which.
        """
        self._ask({"files": dict(files)})
        try:
            yield Cell(self._ask)
        finally:
            self._ask({"close": True})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._launcher.stdin, self._launcher.stdout
        assert stdin is not None and stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        if not line.endswith(b"\n"):
            raise JailLostError("the processes of the jail ended")
        answer = json.loads(line)
        if "error" in answer:
            raise JailError(answer["error"])
        return answer


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """An open cell; each run starts a new process in it."""

    _ask: Any

    def run(
        self, arguments: Sequence[str], *, stdin: str = "", seconds: float
    ) -> Finished:
        """Runs `python` with arguments; standard library only.

        Args:
          arguments: for example the path of a file in `/program`.
          stdin: what the program reads.
          seconds: after which it is killed.

        Raises:
          JailError: the program could not be confined, and was not run.
        """
        request = {"arguments": list(arguments), "stdin": stdin, "seconds": seconds}
        return Finished(**self._ask(request))
