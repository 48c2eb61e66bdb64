# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a run folder."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from ring_jax.config import ConfigError

LOCK_FILE = "lock"


@contextlib.contextmanager
def only_run_in(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a run folder; the system ends it with the process.

    Raises:
      ConfigError: another process trains there.
    """
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"workdir={workdir} is in use by {file.read()}: two runs would write "
                "the same files. Wait for it, stop it, or choose another workdir."
            ) from None
        except OSError:
            # Some network folders know no locks: then nothing keeps a second run out.
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
