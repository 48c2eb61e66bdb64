# SPDX-License-Identifier: Apache-2.0
"""Where the verbs print."""

import contextlib

import rich.console


class Console(rich.console.Console):
    """A console whose closed pipe is an error like any other; rich would exit."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, which the command answers in one place."""
        raise BrokenPipeError

    def waiting(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Shows what is waited for: beside a spinner, in a file as a line."""
        if not self.is_terminal:
            self.print(what, soft_wrap=True, highlight=False)
        return self.status(what)
