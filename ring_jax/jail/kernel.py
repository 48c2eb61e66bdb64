# SPDX-License-Identifier: Apache-2.0
"""The system calls that make a jail: mounts, identities, limits.

Source: Linux, man pages user_namespaces(7), mount_namespaces(7), open_tree(2),
mount_setattr(2) and pivot_root(2). Needs Linux 5.14: mount_setattr (5.12),
and a limit of threads that counts those of the namespace only.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct

from ring_jax.jail import seccomp

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
ALL_NAMESPACES = (
    CLONE_NEWUSER
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWNET
    | CLONE_NEWIPC
    | CLONE_NEWUTS
    | CLONE_NEWCGROUP
)

MAX_FILE_BYTES = 16 * 2**20
"""Of one file, and of what a program prints."""
SCRATCH_BYTES = 64 * 2**20
"""Of all files in the scratch folder; they are in memory."""
MAX_MEMORY_BYTES = 4_000_000_000
MAX_THREADS = 64
MAX_OPEN_FILES = 64
NOBODY = 65534
"""Who a jail of root is outside: root itself is exempt from the limit of threads."""
INSIDE_ID = 1000
"""Not 0, so that executing a program gives up every capability."""

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_FROM_FD = 1, 4
_ATTR_READ_ONLY, _ATTR_NO_SUID, _ATTR_NO_DEVICES = 1, 2, 4
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 1, 2, 4, 32
_MS_RECURSIVE, _MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

LIBC = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that forked it ends."""
    _call("prctl", LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def hide_memory() -> None:
    """Closes this process to debuggers of the same user."""
    _call("prctl", LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def write_identity(pid: int) -> None:
    """Gives a process in a new user namespace its one user, from outside."""
    outside = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE_ID} {outside[0]} 1"),
        ("gid_map", f"{INSIDE_ID} {outside[1]} 1"),
    ):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)


def take_identity() -> None:
    """Becomes the user that `write_identity` gave; capabilities inside stay."""
    os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)


def open_read_only(path: str) -> int:
    """Opens a copy of a folder's mount that nobody can write through."""
    tree = _open_tree(path)
    flags = _ATTR_READ_ONLY | _ATTR_NO_SUID | _ATTR_NO_DEVICES
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)
    result = LIBC.syscall(
        _MOUNT_SETATTR,
        tree,
        b"",
        _AT_EMPTY_PATH | _AT_RECURSIVE,
        attributes,
        len(attributes),
    )
    _call(f"mount_setattr {path}", result)
    return tree


def open_device(path: str) -> int:
    """Opens a copy of a device file's mount."""
    return _open_tree(path)


def _open_tree(path: str) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    result = LIBC.syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), flags)
    return _call(f"open_tree {path}", result)


def place(tree: int, path: str) -> None:
    """Attaches an opened mount at a path."""
    result = LIBC.syscall(
        _MOVE_MOUNT, tree, b"", _AT_FDCWD, path.encode(), _MOVE_FROM_FD
    )
    _call(f"move_mount {path}", result)
    os.close(tree)


def keep_mounts_private() -> None:
    """Cuts the new namespace's mounts off from those of everyone else."""
    flags = _MS_RECURSIVE | _MS_PRIVATE
    _call("mount /", LIBC.mount(b"none", b"/", None, flags, None))


def mount_memory(path: str, *, num_bytes: int, num_files: int) -> None:
    """Mounts an empty file system that lives in memory."""
    options = f"size={num_bytes},nr_inodes={num_files},mode=0755".encode()
    flags = _MS_NOSUID | _MS_NODEV
    result = LIBC.mount(b"tmpfs", path.encode(), b"tmpfs", flags, options)
    _call(f"mount {path}", result)


def freeze(path: str) -> None:
    """Makes a file system of `mount_memory` read-only."""
    flags = _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    result = LIBC.mount(b"tmpfs", path.encode(), b"tmpfs", flags, None)
    _call(f"remount {path}", result)


def change_root(path: str) -> None:
    """Makes `path` the root, and the old root unreachable."""
    os.chdir(path)
    number = _PIVOT_ROOT[platform.machine()]
    _call("pivot_root", LIBC.syscall(number, b".", b"."))
    # Both lie at "." now, the old one on top: man page pivot_root(2).
    _call("umount2", LIBC.umount2(b".", _MNT_DETACH))
    os.chdir("/")


def confine_program(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Limits this process and closes it in; what follows is the execution."""
    die_with_parent()
    for kind, size in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NPROC, MAX_THREADS),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _limit(kind, size)
    seccomp.install_filter(LIBC)


def _limit(kind: int, size: int) -> None:
    already = resource.getrlimit(kind)[1]
    least = size if already == resource.RLIM_INFINITY else min(size, already)
    resource.setrlimit(kind, (least, least))


def drop_groups() -> None:
    """Leaves the groups of root; others may not, and reach no file through them."""
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            os.setgroups([])
