# SPDX-License-Identifier: Apache-2.0
"""Hostile programs in a cell: each comes to an end, and nothing outside notices."""

import os
import pathlib
import platform
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid

import pytest

from ring_jax.jail import Finished, Jail, JailError, JailLostError, check_jail
from ring_jax.jail.kernel import MAX_FILE_BYTES, MAX_THREADS, SCRATCH_BYTES
from tests.without_namespaces import REFUSING


def run(jail: Jail, program: str, *, stdin: str = "", seconds: float = 20) -> Finished:
    files = {"program.py": textwrap.dedent(program)}
    with jail.open_cell(files) as cell:
        return cell.run(["/program/program.py"], stdin=stdin, seconds=seconds)


def ended_with(found: Finished, error: str) -> bool:
    return found.exit_status == 1 and error in found.stderr.splitlines()[-1]


def test_a_program_reads_its_input_and_prints(jail):
    found = run(jail, "print(input()[::-1])", stdin="hello\n")
    assert found == Finished(exit_status=0, is_late=False, stdout="olleh\n", stderr="")


def test_what_solutions_need_is_there(jail):
    found = run(
        jail,
        """
        import asyncio, collections, decimal, heapq, math, random, re, sys, tempfile
        import threading
        sys.setrecursionlimit(10**6)
        threading.stack_size(2**27)
        answers = []
        def deep(n): return n and 1 + deep(n - 1)
        thread = threading.Thread(target=lambda: answers.append(deep(50000)))
        thread.start(); thread.join()
        answers.append(asyncio.run(asyncio.sleep(0, "slept")))
        with tempfile.TemporaryFile() as file:
            answers.append(file.write(b"abc"))
        print(*answers, random.SystemRandom().random() < 1)
        """,
    )
    assert (found.stdout, found.stderr) == ("50000 slept 3 True\n", "")


@pytest.mark.parametrize(
    "program",
    {
        "fork bomb": "import os\nwhile True: os.fork()",
        "grandchild": "import subprocess\nsubprocess.Popen(['/bin/sleep', '600'])",
        "spawned": "import os\nos.posix_spawn('/bin/sleep', ['sleep', '600'], {})",
        "network": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
        "host of the machine": "import socket\nsocket.socket(socket.AF_VSOCK)",
        "hidden file": "import os\nos.memfd_create('x')",
        "limit of its keeper": "import resource as r\n"
        "r.prlimit(1, r.RLIMIT_NOFILE, (0, 0))",
        "priority of its keeper": "import os\nos.setpriority(os.PRIO_PROCESS, 1, 19)",
        "namespace": "import os\nos.unshare(os.CLONE_NEWUSER)",
    }.values(),
)
def test_what_is_not_allowed_is_an_error_of_the_program(jail, program):
    assert ended_with(run(jail, program), "PermissionError")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize("number", [56, 57, 58, 101, 272, 310, 319, 321, 425, 435])
def test_raw_system_calls_are_refused_as_well(jail, number):
    found = run(
        jail,
        f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.syscall({number}, 0, 0, 0, 0, 0), ctypes.get_errno())
        """,
    )
    assert found.stdout in ("-1 1\n", "-1 38\n")


def test_files_outside_are_neither_seen_nor_written(jail, tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("token")
    monkeypatch.setenv("SECRET", "token")
    found = run(
        jail,
        f"""
        import os
        def outcome(act):
            try: return act()
            except OSError as error: return type(error).__name__
        print(outcome(lambda: open({str(secret)!r}).read()))
        print(outcome(lambda: open({__file__!r}).read()))
        print(outcome(lambda: open("/etc/passwd").read()))
        for path in ("/x", "/usr/x", "/program/x", "/dev/x", os.__file__):
            print(outcome(lambda: open(path, "w")))
        print(outcome(lambda: os.listdir("/proc")), os.listdir("/tmp"))
        print(os.environ.get("SECRET"), sorted(os.listdir("/dev")))
        """,
    )
    assert found.stdout.split("\n") == [
        *["FileNotFoundError"] * 3,
        *["OSError"] * 4,
        "OSError",
        "FileNotFoundError []",
        "None ['null', 'random', 'urandom', 'zero']",
        "",
    ]


def test_the_home_folder_of_the_user_is_not_there(jail):
    home = pathlib.Path.home()
    found = run(jail, f"import os; print(*os.listdir({str(home)!r}), sep='\\n')")
    shown = set(found.stdout.split())
    assert shown <= set(pathlib.Path(os.path.realpath(sys.base_prefix)).parts)


def test_a_cell_has_every_namespace_for_itself(jail):
    mark = uuid.uuid4().hex
    program = f"import time; {mark!r}\ntime.sleep(20)"

    def sleep() -> None:
        with jail.open_cell({mark: program}) as cell:
            cell.run([f"/program/{mark}"], seconds=3.0)

    thread = threading.Thread(target=sleep)
    thread.start()
    (pid,) = wait_for(lambda: processes(mark))
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        theirs = os.readlink(f"/proc/{pid}/ns/{kind}")
        assert theirs != os.readlink(f"/proc/self/ns/{kind}"), kind
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert "CapPrm:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    if os.geteuid() == 0:
        assert "Uid:\t65534" in status
    thread.join()
    assert not processes(mark)


def test_an_endless_loop_ends_in_time(jail):
    start = time.monotonic()
    found = run(jail, "while True: pass", seconds=0.5)
    assert found.is_late
    assert time.monotonic() - start < 20


def test_ten_gigabytes_are_refused(jail):
    assert ended_with(run(jail, "bytearray(10 * 10**9)"), "MemoryError")
    many = "import mmap\nkept = [mmap.mmap(-1, 2**30) for _ in range(10)]"
    assert run(jail, many).exit_status == 1


def test_output_without_end_is_cut_off(jail):
    found = run(jail, "while True: print('x' * 99999)")
    assert ended_with(found, "File too large")
    assert len(found.stdout) == MAX_FILE_BYTES


def test_the_scratch_folder_is_small_and_goes_with_its_cell(jail):
    found = run(
        jail,
        """
        count = 0
        while True:
            with open(f"/tmp/{count}", "wb") as file:
                file.write(bytes(2**20))
            count += 1
            print(count, flush=True)
        """,
    )
    assert ended_with(found, "No space left")
    assert int(found.stdout.split()[-1]) <= SCRATCH_BYTES / 2**20
    assert run(jail, "import os; print(os.listdir('/tmp'))").stdout == "[]\n"


def test_threads_are_few(jail):
    found = run(
        jail,
        """
        import threading, time
        threading.stack_size(65536)
        while True:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            print(threading.active_count(), flush=True)
        """,
    )
    assert ended_with(found, "can't start new thread")
    assert int(found.stdout.split()[-1]) <= MAX_THREADS


def test_no_signal_reaches_its_keeper_or_anyone_else(jail):
    program = f"""
    import os, sys
    for signal in range(1, 65):
        for pid in (1, {os.getpid()}, os.getppid() or 1):
            try: os.kill(pid, signal)
            except OSError: pass
    print("done", flush=True)
    os.kill(-1, 9)
    """
    with jail.open_cell({"a.py": textwrap.dedent(program)}) as cell:
        for _ in range(2):
            assert cell.run(["/program/a.py"], seconds=20).stdout == "done\n"


def test_a_listener_outside_is_not_heard(jail):
    # The refusal of sockets is one wall; the empty network is the other, and is
    # looked at from outside in the test of namespaces.
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        run(jail, f"import socket\nsocket.create_connection(('127.0.0.1', {port}))")
        with pytest.raises(TimeoutError):
            server.accept()


def test_text_that_is_no_unicode_is_no_trouble(jail):
    found = run(jail, "print(ascii(input()))  # \ud800", stdin="\ud800\n")
    assert (found.exit_status, found.stdout) == (0, "'?'\n")


def test_what_runs_ends_with_the_jail_that_runs_it():
    mark = uuid.uuid4().hex
    code = f"""
from ring_jax.jail import Jail
with Jail().open_cell({{"{mark}": "while True: pass"}}) as cell:
    cell.run(["/program/{mark}"], seconds=600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(lambda: processes(mark))
    launcher = pathlib.Path(f"/proc/{owner.pid}/task/{owner.pid}/children")
    os.kill(int(launcher.read_text().split()[0]), 9)
    assert owner.wait(30) == 1
    wait_for(lambda: not processes(mark))


def test_a_jail_that_was_killed_says_so():
    with Jail() as jail:
        jail._launcher.kill()
        with pytest.raises(JailLostError):
            run(jail, "print(1)")


@pytest.mark.parametrize(
    "act",
    ["with jail.open_cell({}) as c: c.run(['-c', 'print(1)'], seconds=9)",
     "check_jail(jail)"],
)  # fmt: skip
def test_without_namespaces_nothing_is_run(act):
    main = f"from ring_jax.jail import *\nwith Jail() as jail:\n    {act}"
    found = subprocess.run(
        [sys.executable, "-c", REFUSING, "-c", main], capture_output=True, text=True
    )
    assert found.returncode == 1
    assert "JailError" in found.stderr.splitlines()[-1]
    assert not found.stdout


def test_a_breach_that_the_probe_finds_is_named(monkeypatch, jail):
    monkeypatch.setattr("ring_jax.jail.probe.PROBE", "print('[\"flies\"]')")
    with pytest.raises(JailError, match="a program in it flies"):
        check_jail(jail)


def processes(mark: str) -> list[int]:
    """Lists processes of the whole machine whose command line holds a mark."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        # The owner itself has the mark inside its code, behind a line feed.
        if f"/program/{mark}".encode() in line and b"\n" not in line:
            found.append(int(folder.name))
    return found


def wait_for(condition, seconds: float = 30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError("it did not come to be in time")
