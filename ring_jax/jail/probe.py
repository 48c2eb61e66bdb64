# SPDX-License-Identifier: Apache-2.0
"""Proves the jail before it is used: a program that tries what none may do."""

import json
import os

from ring_jax.jail.client import Jail, JailError

PROBE = r"""
import ctypes, errno, json, os, pathlib, socket, sys, threading

own_file, home, python, outside_pid = json.load(sys.stdin)


def happens(act):
    try:
        act()
    except OSError:
        return False
    return True


def forks():
    if os.fork() == 0:
        os._exit(0)


def makes_namespace():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")


def capabilities():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, held)
    return any(held)


def many_threads():
    threading.stack_size(65536)
    done = threading.Event()
    try:
        for _ in range(500):
            threading.Thread(target=done.wait, daemon=True).start()
    except RuntimeError:
        return False
    finally:
        done.set()
    return True


breaches = {
    "reads files outside": os.path.exists(own_file),
    "reads the home folder": happens(lambda: os.listdir(home)) and home != "/tmp"
    and bool(set(os.listdir(home)) - set(pathlib.PurePath(python).parts)),
    "writes to the root": happens(lambda: os.mkdir("/made_by_probe")),
    "writes to the system": happens(lambda: os.mkdir("/usr/made_by_probe")),
    "writes to Python": happens(lambda: os.mkdir(python + "/made_by_probe")),
    "opens a socket": happens(socket.socket),
    "sees other processes": os.path.exists("/proc/1") or os.getpid() > 20
    or happens(lambda: os.kill(outside_pid, 0)),
    "starts a process": happens(forks),
    "makes a namespace": happens(makes_namespace),
    "has capabilities": capabilities(),
    "starts 500 threads": many_threads(),
}
print(json.dumps([name for name, is_so in breaches.items() if is_so]))
"""


def check_jail(jail: Jail) -> None:
    """Runs the probe once.

    Raises:
      JailError: something is possible in a cell that must not be, or no cell can be
        made; the message names it.
    """
    facts = [
        __file__,
        os.path.expanduser("~"),
        os.path.realpath(os.path.dirname(os.__file__)),
        os.getpid(),
    ]
    with jail.open_cell({"probe.py": PROBE}) as cell:
        found = cell.run(["/program/probe.py"], stdin=json.dumps(facts), seconds=60.0)
    if found.exit_status or found.is_late:
        raise JailError(f"the probe failed: {found.stderr.strip()[-300:]!r}")
    if breaches := json.loads(found.stdout):
        raise JailError(f"a program in it {', '.join(breaches)}")
