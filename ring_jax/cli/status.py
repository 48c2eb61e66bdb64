# SPDX-License-Identifier: Apache-2.0
"""The exit statuses of `ring`, and which error ends with which."""

import errno

from ring_jax.config import ConfigError

DONE = 0
MISTAKE = 2
"""The user's: one line says what, which values, what to do. Nothing was written."""
STOPPED = 3
"""A guard or a check ended the work; what it found is in the run folder."""
ENVIRONMENT = 4
"""Disk, permission, a lost process: mend it and run the same command again."""
INTERRUPTED = 75
"""Preempted or interrupted (EX_TEMPFAIL): run the same command again."""

# Failures that no change of the code or of the command would mend. A missing file is
# not among them: where a user named it, ConfigError says so; elsewhere it is our bug.
_ENVIRONMENT_ERRNOS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


def status_of(error: BaseException) -> int | None:
    """Returns the exit status that an error ends with; None: the error is our bug."""
    if isinstance(error, ConfigError):
        return MISTAKE
    # A closed pipe (`ring inspect | head`) means that nobody waits for the rest.
    if isinstance(error, KeyboardInterrupt | BrokenPipeError):
        return INTERRUPTED
    # Our own (checkpoint.StorageError) carry a sentence and no number.
    if isinstance(error, OSError) and error.errno in {None, *_ENVIRONMENT_ERRNOS}:
        return ENVIRONMENT
    return None
