# SPDX-License-Identifier: Apache-2.0
"""A process that grades what it is sent, under limits; `Sandbox` starts it.

One JSON object per line comes in (`verifier`, `reply`, `answer`, `metadata`; or
`inputs`, `reply`, `metadata` of a program; or `prepare`, a family of verifiers), one
goes out (`correct`, `outputs`, `ready` or `error`). What a verifier prints is lost, so
that it cannot answer in the worker's name.
"""

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile

from ring_jax.config import ConfigError
from ring_jax.jail import JailLostError
from ring_jax.verify import english, program
from ring_jax.verify.grade import grade

PACKAGES = {"reasoning_gym": "reasoning_gym", "math": "math_verify"}
"""Family of verifiers -> the package that it needs, which takes seconds to import."""
PREPARATIONS = {
    "program": program.proven_jail,
    "ifbench": english.prepare,
    "ifbench_loose": english.prepare,
    "ifeval": english.prepare,
    "ifeval_loose": english.prepare,
}
"""Family of verifiers -> what is done before its first row, which may take seconds."""

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


# A row's own metadata may lack what its verifier reads; files and network are refused.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


def main(max_memory_bytes: int) -> None:
    """Serves until its input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull, "r+b") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
    limit_memory(max_memory_bytes)
    program.start_jail()  # its processes have rights that are gone after the next line
    limit_rights()
    for line in requests:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)


def _answer(request: dict) -> dict:
    if "prepare" in request:
        return _prepare(request["prepare"])
    try:
        return _outputs(request) if "inputs" in request else _verdict(request)
    except JailLostError:
        raise  # this worker cannot make another, so that it ends
    except ConfigError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "memory: it asked for more than max_memory_bytes"}
    except _FAILURES as bad:
        return {"error": f"{type(bad).__name__}: {bad}"}


def _verdict(request: dict) -> dict:
    verdict = grade(
        verifier=request["verifier"],
        reply=request["reply"],
        answer=request["answer"],
        metadata=request["metadata"],
    )
    return {"correct": verdict.is_correct, "detail": verdict.detail}


def _outputs(request: dict) -> dict:
    asked = (request["reply"], request["inputs"], request["metadata"])
    return {"outputs": program.run_on(*asked)}


def _prepare(family: str) -> dict:
    try:
        if family in PREPARATIONS:
            PREPARATIONS[family]()
        importlib.import_module(PACKAGES.get(family, "json"))
    except ConfigError as error:
        return {"error": str(error)}
    except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"ready": True}


def limit_memory(max_memory_bytes: int) -> None:
    """Takes away memory beyond the limit, from this process and those it starts."""
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))


def limit_rights() -> None:
    """Takes away files that grow, core dumps and the network.

    The network namespace is empty where the kernel allows a process to make one;
    everywhere, Python's sockets refuse.
    """
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    # Where libraries ask for it, Python would look for it by writing a file.
    tempfile.tempdir = "/tmp"
    # A killed parent leaves no worker behind.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    socket.socket = _NoSocket


class _NoSocket(socket.socket):
    # A class, because others (ssl's) derive from it when they are imported.
    def __init__(self, *args, **kwargs):
        raise PermissionError("a verifier has no network")


if __name__ == "__main__":
    main(int(sys.argv[1]))
