# SPDX-License-Identifier: Apache-2.0
"""Starts the TPU's compiler, which needs no TPU: a process for each compilation.

libtpu takes its flags when it is loaded, so that a process can compile for one set of
flags only, and this one never loads it.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Exit)\b.*$", re.MULTILINE)
_MAX_REASON = 1000
_PR_SET_PDEATHSIG = 1


class CompileError(RuntimeError):
    """The compiler is missing, refused the program, or dumped nothing to read."""


def ask_compiler(
    module: str,
    request: bytes,
    reply: Path,
    *,
    flags: Sequence[str] = (),
    python: str = sys.executable,
) -> bytes:
    """Runs a module that compiles what it reads from standard input.

    Args:
      module: of this repository.
      request: what it reads.
      reply: the file that it writes.
      flags: of libtpu.
      python: interpreter of an environment with jax, libtpu and what is compiled.

    Returns:
      What it wrote.

    Raises:
      CompileError: it cannot be started, or wrote nothing; with its last error.
    """
    try:
        process = subprocess.run(
            [python, "-m", module],
            input=request,
            capture_output=True,
            env=compiler_environment(flags),
            check=False,
        )
    except OSError as error:
        raise CompileError(f"python={python!r}: {error}.") from error
    if process.returncode != 0 or not reply.exists():
        errors = _ERROR.findall(process.stderr.decode(errors="replace"))
        reason = errors[-1] if errors else f"exit status {process.returncode}"
        raise CompileError(reason[:_MAX_REASON])
    return reply.read_bytes()


def compiler_environment(flags: Sequence[str] = ()) -> dict[str, str]:
    """Returns the variables of a process that compiles for a TPU that is not there."""
    return {
        **os.environ,
        # For other interpreters, too; they must find the module and what it imports.
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "JAX_PLATFORMS": "cpu",
        # The programs are those of a run, whatever tests set, and are compiled anew:
        # one that was kept leaves no dumps.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": " ".join(flags),
    }


def dump_flags(folder: Path) -> tuple[str, ...]:
    """Returns the flags by which libtpu dumps its final bundles into a folder."""
    return (
        f"--xla_jf_dump_to={folder}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=final_bundles",
    )


def end_with_parent() -> None:
    """Lets this process end with the one that started it.

    A killed command would leave minutes of work for nobody. (libtpu needs Linux.)
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
