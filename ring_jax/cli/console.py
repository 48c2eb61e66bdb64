# SPDX-License-Identifier: Apache-2.0
"""Where the verbs print."""

import rich.console


class Console(rich.console.Console):
    """A console whose closed pipe is an error like any other; rich would exit."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, which the command answers in one place."""
        raise BrokenPipeError
