# SPDX-License-Identifier: Apache-2.0
"""The processes between `Jail` and a program; run as `python -S -m` this module.

  launcher    outside; makes a cell at a time, and gives it its user
    builder   in new namespaces; builds the folder tree of the cell, then waits
      keeper  process 1 of the cell; starts the program, run after run
        program   one process with threads, without rights, under limits

Whichever ends takes those below with it: the kernel kills a cell's processes with its
process 1. One JSON object per line comes in and one goes out; launcher and keeper share
both pipes, since only one of them is ever awaited. The program has neither.
"""

import json
import os
import pathlib
import resource
import signal
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ring_jax.jail import kernel, seccomp

# The exit status of a child that has replied with its error.
_HAS_TOLD = 3
_NEW_ROOT = "/tmp"
_DEVICES = ("null", "zero", "random", "urandom")
# Where libraries of the system lie, on the file systems of today and of yesterday.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
# The environment's own is a link to it, and is not shown.
_INTERPRETER = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    # Of a Python that was moved after it was built.
    "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",
    "PATH": "/usr/bin:/bin",
}
# What a program says of its own failure; the last lines are enough to tell.
_MAX_ERROR_BYTES = 2000


def main() -> None:
    """Makes a cell for each request, until the input ends."""
    if not seccomp.is_supported():
        _reply({"error": f"system calls of {os.uname().machine} are not known here"})
        return
    while request := _next_request():
        if "files" in request:
            _make_cell(request)
        else:
            _reply({"closed": True})  # it had ended by itself


def _make_cell(request: Mapping[str, Any]) -> None:
    told, tell = os.pipe()
    go, let_go = os.pipe()
    builder = os.fork()
    if builder == 0:
        os.close(told)
        os.close(let_go)
        _end_with(_build, request, tell, go)
    os.close(tell)
    os.close(go)
    if os.read(told, 1):
        _give_identity(builder, let_go)
    os.close(told)
    os.close(let_go)
    code = os.waitstatus_to_exitcode(os.waitpid(builder, 0)[1])
    if code == 0:
        _reply({"closed": True})
    elif code != _HAS_TOLD:
        _reply({"error": f"a process of the cell ended with status {code}"})


def _give_identity(builder: int, let_go: int) -> None:
    try:
        kernel.write_identity(builder)
        os.write(let_go, b"x")
    except OSError as error:
        _reply({"error": f"user namespace: {error}"})


def _end_with(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in a forked child, and ends the child whatever comes."""
    code = 1
    try:
        function(*arguments)
        code = 0
    except (OSError, subprocess.SubprocessError) as error:
        _reply({"error": str(error)})
        code = _HAS_TOLD
    finally:
        os._exit(code)


def _build(request: Mapping[str, Any], tell: int, go: int) -> None:
    launcher = os.getppid()
    kernel.drop_groups()
    os.unshare(kernel.ALL_NAMESPACES)
    os.write(tell, b"x")
    if not os.read(go, 1):
        os._exit(_HAS_TOLD)  # the launcher has
    for descriptor in (tell, go):
        os.close(descriptor)
    kernel.keep_mounts_private()
    folders = {path: kernel.open_read_only(path) for path in _shown_paths()}
    devices = {name: kernel.open_device(f"/dev/{name}") for name in _DEVICES}
    kernel.take_identity()
    kernel.die_with_parent()  # which a change of user would undo
    if os.getppid() != launcher:
        os._exit(_HAS_TOLD)  # too late to hear of its end
    root = pathlib.Path(_NEW_ROOT)
    kernel.mount_memory(str(root), num_bytes=kernel.SCRATCH_BYTES, num_files=1000)
    # Before the rest: Python itself may be installed below /tmp.
    (root / "tmp").mkdir()
    scratch = str(root / "tmp")
    kernel.mount_memory(scratch, num_bytes=kernel.SCRATCH_BYTES, num_files=1000)
    _furnish(root, folders, devices, request["files"])
    kernel.change_root(_NEW_ROOT)
    kernel.freeze("/")
    keeper = os.fork()
    if keeper == 0:
        _end_with(_keep)
    os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])))


def _shown_paths() -> list[str]:
    """Lists what Python needs to start, no path inside another."""
    paths = [path for path in _SYSTEM if os.path.exists(path)]
    ours = (sys.base_prefix, sys.base_exec_prefix, sysconfig.get_path("stdlib"))
    paths += [os.path.realpath(path) for path in ours]
    paths.append(os.path.dirname(_INTERPRETER))
    shown: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(pathlib.Path(path).is_relative_to(other) for other in shown):
            shown.append(path)
    return [path for path in shown if not os.path.islink(path)]


def _furnish(
    root: pathlib.Path,
    folders: Mapping[str, int],
    devices: Mapping[str, int],
    files: Mapping[str, str],
) -> None:
    for path in _SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), f"{root}{path}")
    for path, tree in folders.items():
        place = pathlib.Path(f"{root}{path}")
        # Asked of the mount: this user may not walk to the path outside.
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        kernel.place(tree, str(place))
    (root / "dev").mkdir()
    for name, tree in devices.items():
        (root / "dev" / name).touch()
        kernel.place(tree, str(root / "dev" / name))
    (root / "program").mkdir(exist_ok=True)
    for name, text in files.items():
        (root / "program" / name).write_bytes(text.encode("utf-8", "replace"))


def _keep() -> None:
    kernel.die_with_parent()
    kernel.hide_memory()
    # Process 1 is safe from signals of its own cell but those it has a handler for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _reply({"ready": True})
    while (request := _next_request()) and "arguments" in request:
        _reply(_run(**request))


def _run(*, arguments: Sequence[str], stdin: str, seconds: float) -> dict[str, Any]:
    """Runs Python once, and tells how it ended and what it printed."""
    # Files without a name: a pipe would have to be served while the program runs.
    descriptors = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    with (
        open(descriptors[0], "w+b") as given,
        open(descriptors[1], "w+b") as printed,
        open(descriptors[2], "w+b") as complained,
    ):
        given.write(stdin.encode("utf-8", "replace"))
        given.seek(0)
        with subprocess.Popen(
            [_INTERPRETER, "-I", "-B", *arguments],
            stdin=given,
            stdout=printed,
            stderr=complained,
            cwd="/tmp",
            env=_ENVIRONMENT,
            preexec_fn=lambda: kernel.confine_program(
                memory_bytes=_memory_bytes(), cpu_seconds=int(seconds) + 1
            ),
        ) as program:
            is_late = _is_late(program, seconds)
        complained.seek(max(0, complained.seek(0, os.SEEK_END) - _MAX_ERROR_BYTES))
        printed.seek(0)
        return {
            "exit_status": program.returncode,
            "is_late": is_late,
            "stdout": printed.read().decode("utf-8", "replace"),
            "stderr": complained.read().decode("utf-8", "replace"),
        }


def _is_late(program: subprocess.Popen, seconds: float) -> bool:
    try:
        program.wait(seconds)
    except subprocess.TimeoutExpired:
        program.kill()
        return True
    return False


def _memory_bytes() -> int:
    """Returns the limit of address space: what the launcher was given, or ours."""
    given = resource.getrlimit(resource.RLIMIT_AS)[0]
    ours = kernel.MAX_MEMORY_BYTES
    return ours if given == resource.RLIM_INFINITY else min(given, ours)


def _next_request() -> dict[str, Any]:
    """Reads a line; empty where the input has ended."""
    # Unbuffered: what is read ahead here would be missed by the other reader.
    pieces = []
    while True:
        piece = os.read(0, 65536)
        pieces.append(piece)
        if not piece or piece.endswith(b"\n"):
            break
    line = b"".join(pieces)
    return json.loads(line) if line.endswith(b"\n") else {}


def _reply(answer: Mapping[str, Any]) -> None:
    line = memoryview(json.dumps(answer).encode() + b"\n")
    while line:
        line = line[os.write(1, line) :]


if __name__ == "__main__":
    main()
