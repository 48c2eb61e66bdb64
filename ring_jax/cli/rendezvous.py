# SPDX-License-Identifier: Apache-2.0
"""Where the processes of a run meet before they compute, and hear of each other's end.

Process 0 listens at the coordinator's address until all others have come, compares
their settings with its own, and lets all go on or none. The connections stay open: one
that closes without a word was a process that died, which JAX would notice only after
minutes or by aborting, and a collective never. Messages are JSON, one a line.
"""

import contextlib
import ctypes
import dataclasses
import functools
import ipaddress
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ring_jax.cli import status
from ring_jax.config import ConfigError

GRACE_SECONDS = 10.0
"""For a process to end by itself, and say why, after another has ended."""

MAX_MESSAGE_BYTES = 2**22
MAX_DIFFERENCES = 5
"""Settings that a refusal spells out."""


@dataclasses.dataclass(frozen=True)
class Spot:
    """Which process this is, and where all meet."""

    address: str
    """HOST:PORT of process 0."""
    num_processes: int
    process: int
    timeout_seconds: float
    local_device: int | None = None
    """The one device of its machine that is this process's; None: all are."""

    @property
    def host(self) -> str:
        """Name or address of process 0's machine."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Where it listens, first for us, then for JAX."""
        return int(self.address.rpartition(":")[2])

    @property
    def bind_address(self) -> str:
        """Every address of the machine, but where all processes are on this one."""
        return f"{self.host}:{self.port}" if self.is_local else f"[::]:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether all processes are on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.IPv4Address(self.host).is_loopback
        except ValueError:
            return False


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended, other than with all the others."""

    process: int
    code: int
    """Its exit status."""
    reason: str

    def __str__(self) -> str:
        return f"process {self.process} {self.reason}"


def meet(spot: Spot, settings: Mapping[str, Any]) -> "Group":
    """Waits for all processes, and compares what they were started with.

    Args:
      spot: this process's.
      settings: name -> value, JSON; must be the same in all processes.

    Returns:
      The group, which watches the others from now on.

    Raises:
      ConfigError: a process did not come in time, or has other settings. The others
        raise the same.
    """
    # What JSON makes of tuples, so that they equal what comes over the wire.
    ours = json.loads(json.dumps(settings))
    peers = _host(spot, ours) if spot.process == 0 else _join(spot, ours)
    return Group(spot.process, peers)


class _Peer:
    """A connection that speaks in lines."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._buffer = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A machine that lost its power closes nothing: it is asked after half a minute.
        for name, value in (("IDLE", 30), ("INTVL", 10), ("CNT", 3)):
            if option := getattr(socket, f"TCP_KEEP{name}", None):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def fileno(self) -> int:
        return self._connection.fileno()

    def settle(self, seconds: float | None) -> None:
        """Sets how long to wait for a message; None waits for ever."""
        self._connection.settimeout(None if seconds is None else max(seconds, 0.01))

    def say(self, message: Mapping[str, Any]) -> None:
        """Sends a message; to one who has gone, nothing."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have come by now, waiting for some bytes.

        Raises:
          EOFError: the other side has gone, or speaks another language.
          TimeoutError: nothing came.
        """
        try:
            data = self._connection.recv(2**16)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        if not data or len(self._buffer) > MAX_MESSAGE_BYTES:
            raise EOFError
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            raise EOFError from None
        if not all(isinstance(message, dict) for message in messages):
            raise EOFError
        return messages

    def hear(self) -> dict[str, Any]:
        """Waits for the first message; raises as `receive` does."""
        while not (messages := self.receive()):
            pass
        return messages[0]

    def close(self) -> None:
        self._connection.close()


def _host(spot: Spot, ours: Mapping[str, Any]) -> dict[int, _Peer]:
    """Gathers all other processes at process 0."""
    deadline = time.monotonic() + spot.timeout_seconds
    peers: dict[int, _Peer] = {}
    refusal = ""
    with _listen(spot) as listener:
        while not refusal and len(peers) < spot.num_processes - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = _Peer(listener.accept()[0])
            except TimeoutError:
                refusal = _absent(spot, peers)
                break
            refusal = _admit(peer, spot, peers, ours)
    for peer in peers.values():
        peer.say({"refusal": refusal})
        peer.settle(None)
    if refusal:
        raise ConfigError(refusal)
    return peers


def _listen(spot: Spot) -> socket.socket:
    try:
        if spot.is_local or not socket.has_dualstack_ipv6():
            return socket.create_server((spot.host if spot.is_local else "", spot.port))
        return socket.create_server(
            ("", spot.port), family=socket.AF_INET6, dualstack_ipv6=True
        )
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at {spot.address} ({error.strerror}); choose "
            "another port."
        ) from None


def _admit(
    peer: _Peer, spot: Spot, peers: dict[int, _Peer], ours: Mapping[str, Any]
) -> str:
    """Adds a process that has come; returns why all are refused, if they are."""
    peer.settle(GRACE_SECONDS)
    try:
        hello = peer.hear()
        process, count = int(hello["process"]), hello["num_processes"]
        theirs = dict(hello["settings"])
    except (EOFError, LookupError, TimeoutError, TypeError, ValueError):
        # Whoever it was, a scanner of ports perhaps, is none of ours.
        peer.close()
        return ""
    if process in {0, *peers}:
        refusal = f"there are two processes {process}; give each its own number."
        peer.say({"refusal": refusal})
        peer.close()
        return refusal
    peers[process] = peer
    if count != spot.num_processes:
        return (
            f"process {process} is one of {count}, process 0 one of "
            f"{spot.num_processes}; give all the same number."
        )
    return _differences(process, theirs, ours)


def _differences(
    process: int, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> str:
    names = [
        name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)
    ]
    if not names:
        return ""
    pairs = [
        f"{name}={theirs.get(name)!r}, not {ours.get(name)!r}"
        for name in names[:MAX_DIFFERENCES]
    ]
    num_more = len(names) - len(pairs)
    more = f" (and {num_more} more differ)" if num_more else ""
    return (
        f"process {process} was started with other settings than process 0: "
        f"{'; '.join(pairs)}{more}. Start all processes with the same command."
    )


def _absent(spot: Spot, peers: Mapping[int, _Peer]) -> str:
    missing = sorted(set(range(1, spot.num_processes)) - set(peers))
    noun = "process" if len(missing) == 1 else "processes"
    return (
        f"{noun} {', '.join(map(str, missing))} of {spot.num_processes} did not come "
        f"to {spot.address} within {spot.timeout_seconds:g} s; look at why, or raise "
        "RING_START_TIMEOUT."
    )


def _join(spot: Spot, ours: Mapping[str, Any]) -> dict[int, _Peer]:
    """Goes to process 0, and waits for its word."""
    deadline = time.monotonic() + spot.timeout_seconds
    peer = _Peer(_connect(spot, deadline))
    hello = {"process": spot.process, "num_processes": spot.num_processes}
    peer.say(hello | {"settings": ours})
    # Process 0 may have begun to wait a little later, and knows who else is missing.
    peer.settle(deadline - time.monotonic() + GRACE_SECONDS)
    try:
        refusal = peer.hear().get("refusal", "")
    except (EOFError, TimeoutError):
        refusal = f"process 0 at {spot.address} ended before all processes had come."
    if refusal:
        raise ConfigError(refusal)
    peer.settle(None)
    return {0: peer}


def _connect(spot: Spot, deadline: float) -> socket.socket:
    while (left := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection((spot.host, spot.port), timeout=left)
        except OSError:
            time.sleep(min(0.2, max(left, 0.0)))
    raise ConfigError(
        f"process {spot.process}: process 0 did not answer at {spot.address} within "
        f"{spot.timeout_seconds:g} s; look at why, or raise RING_START_TIMEOUT."
    )


class Group:
    """The other processes of a run, watched by a thread.

    When one ends before the rest, all others hear of it from process 0. A process that
    has not ended `GRACE_SECONDS` later, because it waits in a collective for one who is
    gone, is ended by the thread, with a line and the exit status of the first to end.
    """

    def __init__(self, process: int, peers: Mapping[int, _Peer]):
        """Starts to watch.

        Args:
          process: number of this one.
          peers: process 0 has all others, and each of those has process 0.
        """
        self._process = process
        self._peers = dict(peers)
        self._changed = threading.Condition()
        self._end: End | None = None
        self._present = set(peers)
        self._waiting: set[int] = set()
        self._code: int | None = None
        self._has_given_up = False
        self._abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._answer_abort)
        threading.Thread(target=self._watch, name="processes", daemon=True).start()

    def first_end(self, *, seconds: float) -> End | None:
        """Returns who ended first, waiting for the news at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, seconds)
            return self._end

    def leave(self, code: int) -> int:
        """Waits until all have come to their end, and returns process 0's exit status.

        If one ends otherwise, so does this one.

        Args:
          code: this process's exit status.
        """
        with self._changed:
            if self._process:
                self._tell({"code": code})
            else:
                self._changed.wait_for(lambda: self._end or self._all_wait())
                if self._end is None:
                    self._code = code
                    self._tell({"code": code})
            self._changed.wait_for(lambda: self._end or self._code is not None)
            agreed = self._code
        if agreed is None:
            self.give_up()
        return agreed

    def break_off(self, code: int, reason: str) -> None:
        """Tells the others that this process ends alone; `exit_at_once` must follow."""
        end = End(self._process, code, reason)
        with self._changed:
            self._end = self._end or end
            self._tell({"end": dataclasses.asdict(end)})
        # Threads that wait for the others would keep Python from its end.
        _after_grace(functools.partial(self.exit_at_once, code))

    def exit_at_once(self, code: int) -> NoReturn:
        """Ends the process without JAX's own farewell, which waits for those gone.

        Process 0 goes last: JAX aborts a process whose coordinator has gone.
        """
        with self._changed:
            if self._process == 0:
                self._changed.wait_for(lambda: not self._present, 2 * GRACE_SECONDS)
        _exit(code)

    def answer_aborts(self) -> None:
        """Gives a line and a status of ours to the aborts of a JAX that lost process 0.

        Its client aborts from a thread in C++, in the instant in which process 0 dies,
        and jaxlib 0.12 calls nobody before. The abort of a bug stays one.
        """
        # Python's own handlers run in the main thread, later, and abort() is over by
        # then. C's runs at once, in the thread that aborts, which may call Python.
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._abort_handler)

    def _answer_abort(self, signum: int) -> None:
        del signum
        if self.first_end(seconds=GRACE_SECONDS) is not None:
            self.give_up()

    def give_up(self) -> NoReturn:
        """Ends this process for the reason for which the first one ended."""
        with self._changed:
            assert self._end is not None
            if not self._has_given_up:
                self._has_given_up = True
                print(f"ring: error: {self._end}.", file=sys.stderr, flush=True)
        self.exit_at_once(self._end.code)

    def _all_wait(self) -> bool:
        return self._waiting == set(self._peers)

    def _tell(self, message: Mapping[str, Any]) -> None:
        for peer in self._peers.values():
            peer.say(message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, process)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = self._peers[key.data]
                    try:
                        messages = peer.receive()
                    except (EOFError, TimeoutError):
                        selector.unregister(peer)
                        self._lose(key.data)
                        continue
                    for message in messages:
                        self._take(key.data, message)

    def _take(self, process: int, message: Mapping[str, Any]) -> None:
        with self._changed:
            if "end" in message:
                self._learn(End(**message["end"]))
            elif self._process == 0:
                self._waiting.add(process)
            else:
                self._code = message["code"]
            self._changed.notify_all()

    def _lose(self, process: int) -> None:
        with self._changed:
            self._present.discard(process)
            if self._code is None:
                reason = "was lost: its connection closed without a word"
                self._learn(End(process, status.ENVIRONMENT, reason))
            self._changed.notify_all()

    def _learn(self, end: End) -> None:
        """Takes the first end for the reason of all that follow."""
        if self._end is not None:
            return
        self._end = end
        if self._process == 0:
            self._tell({"end": dataclasses.asdict(end)})
        _after_grace(self.give_up)


def _after_grace(action: Callable[[], None]) -> None:
    timer = threading.Timer(GRACE_SECONDS, action)
    timer.daemon = True
    timer.start()


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
