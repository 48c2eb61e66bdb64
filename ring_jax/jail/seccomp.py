# SPDX-License-Identifier: Apache-2.0
"""A filter of system calls: no second process, no socket, no way to more rights.

It answers with an error instead of a death, so that a program can go on. One process
with threads is what makes the limit of address space a limit of memory.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst; numbers from
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import platform
import struct

# Name -> number on x86_64 and on aarch64; None where the call does not exist.
_DENIED = {
    # Processes: threads come through clone, which is looked at below.
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # Its keeper has the same user: these would slow it down.
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # Namespaces and mounts: a new user namespace would give capabilities back.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # AF_VSOCK reaches the host of a virtual machine from any network namespace.
    "socket": (41, 198),
    # Memory that the limit of address space does not count.
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # Parts of the kernel that were broken often, and that no program here needs.
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
}
_CLONE = (56, 220)
_PRLIMIT = (302, 261)
_CLONE3 = (435, 435)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> its column above, and its name in the kernel (AUDIT_ARCH)."""

_CLONE_THREAD = 0x00010000
_X32_CALLS = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2


def is_supported() -> bool:
    """Says whether the numbers of this machine's system calls are known."""
    return platform.machine() in _MACHINES


def install_filter(libc: ctypes.CDLL) -> None:
    """Puts the filter over this process and all that it becomes.

    Raises:
      OSError: the kernel was built without seccomp.
    """
    code = _program(*_MACHINES[platform.machine()])
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    for request in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0),
    ):
        if libc.prctl(*request):
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {errno.errorcode.get(number, number)}")


def _program(column: int, machine: int) -> bytes:
    lines = [
        _line(_LOAD, _MACHINE_AT),
        _line(_EQUAL, machine, if_true=1),
        _line(_RETURN, _KILL),
        _line(_LOAD, _NUMBER_AT),
        _line(_AT_LEAST, _X32_CALLS, if_false=1),
        _line(_RETURN, _ERROR | errno.EPERM),
    ]
    numbers = [(call[column], errno.EPERM) for call in _DENIED.values()]
    # Its flags lie behind a pointer that a filter cannot follow; glibc then uses clone.
    numbers.append((_CLONE3[column], errno.ENOSYS))
    for number, error in numbers:
        if number is not None:
            lines.append(_line(_EQUAL, number, if_false=1))
            lines.append(_line(_RETURN, _ERROR | error))
    lines += [
        # Limits: its own only, which is process 0 in this call.
        _line(_EQUAL, _PRLIMIT[column], if_false=4),
        _line(_LOAD, _FIRST_ARGUMENT_AT),
        _line(_EQUAL, 0, if_true=1),
        _line(_RETURN, _ERROR | errno.EPERM),
        _line(_RETURN, _ALLOW),
        _line(_EQUAL, _CLONE[column], if_false=3),
        _line(_LOAD, _FIRST_ARGUMENT_AT),
        _line(_ANY_BIT, _CLONE_THREAD, if_true=1),
        _line(_RETURN, _ERROR | errno.EPERM),
        _line(_RETURN, _ALLOW),
    ]
    return b"".join(lines)


def _line(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Packs an instruction; both jumps count the instructions that they skip."""
    return struct.pack("HBBI", code, if_true, if_false, value)
