# SPDX-License-Identifier: Apache-2.0
"""Jobs on the workers of a Ray cluster: one of this machine, or one that is there.

A worker is an actor with a workbench of its own. It gets one job at a time, so that a
worker that dies costs that job a second attempt. Retries are counted here and not by
Ray, which would repeat without end what runs out of memory.
"""

import atexit
import collections
import contextlib
import dataclasses
import os
import pathlib
import secrets
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging

import ring_jax
from ring_jax.config import ConfigError, ScaleConfig
from ring_jax.curate.workbench import Job, Workbench

MAX_ATTEMPTS = 3
"""Of one job; then the curation ends."""
_PATIENCE_SECONDS = 60.0
"""Until a cluster that has no room for a worker is mentioned again."""
_MAX_WAITS = 5
"""Of that length for a cluster of our own, which has room: its workers do not start."""

# Sent home, overridden, printed: none of it is asked for here.
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class WorkersFailedError(OSError):
    """The cluster is lost, or a job failed as often as it may."""


@contextlib.contextmanager
def open_ray(
    config: ScaleConfig, make_workbench: Callable[[], Workbench]
) -> Iterator["RayEngine"]:
    """Connects to a cluster, or starts one and ends it with the block.

    Raises:
      ConfigError: Ray is not installed.
      WorkersFailedError: the cluster does not start, or cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        # A socket's path may have 107 characters, and Ray's own part takes most: the
        # folder lies neither in the output nor where TMPDIR points.
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(
                prefix="ring-", dir="/tmp", ignore_cleanup_errors=True
            )
        )
        ray = _connect(config, folder, stack)
        engine = RayEngine(ray, make_workbench, config)
        stack.callback(engine.close)
        yield engine


def _connect(config: ScaleConfig, folder: str, stack: contextlib.ExitStack) -> Any:
    os.environ |= QUIET
    # A cluster that is there has this package installed on its machines.
    where: dict[str, Any] = {"address": config.address}
    if config.address:
        _knock(config.address)
    else:
        where = {
            "address": "local",
            "num_cpus": config.num_workers,
            "include_dashboard": False,
            "_temp_dir": folder,
            "runtime_env": {
                "env_vars": {"PYTHONPATH": _import_path()},
                # Ray starts it by a shell, without quotes of its own.
                "py_executable": shlex.quote(sys.executable),
            },
        }
        # Its ports are open to the network: only who has the secret may send work.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = _import_ray()
    stack.callback(ray.shutdown)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**where, configure_logging=False, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        place = f"the cluster at {config.address}" if config.address else "Ray here"
        raise WorkersFailedError(
            f"scale: {place} cannot be used ({_first_line(error)})."
        ) from None
    finally:
        # Ray's own would end the command with status 15.
        signal.signal(signal.SIGTERM, handler)
    return ray


def _import_path() -> str:
    """A checkout that is not installed is found from wherever a command was started."""
    ours = str(pathlib.Path(ring_jax.__file__).parents[1])
    return os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH", "")]))


def _knock(address: str) -> None:
    """Looks whether anybody listens there; Ray would ask for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise WorkersFailedError(
            f"scale.address={address!r} does not answer ({error}); is the cluster up?"
        ) from None


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        raise ConfigError(
            "scale.engine=ray: ray is missing; run pip install 'ring-jax[scale]'."
        ) from None
    return ray


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class _Worker:
    """What lives in a worker's process."""

    def __init__(self, make_workbench: Callable[[], Workbench]):
        self._workbench = make_workbench()
        atexit.register(self.close)

    def run(self, job: Job[Any]) -> Any:
        return job.run(self._workbench)

    def close(self) -> None:
        self._workbench.close()


@dataclasses.dataclass(slots=True)
class _Attempt:
    number: int
    job: Any
    """Its reference in the cluster: the records are sent once."""
    name: str
    num_failures: int = 0


class RayEngine:
    """Workers of a cluster that `ray` is connected to."""

    def __init__(
        self, ray: Any, make_workbench: Callable[[], Workbench], config: ScaleConfig
    ):
        self._ray = ray
        self._make_workbench = ray.put(make_workbench)
        self._worker = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(
            _Worker
        )
        self._num_workers = config.num_workers
        self._is_own = not config.address
        self._num_failed_starts = self._num_waits = 0
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, _Attempt | None]] = {}
        """Reference of a result -> the worker and the job, or None while it starts."""
        for _ in range(config.num_workers):
            self._start()

    def run[Result](self, jobs: Iterable[Job[Result]]) -> Iterator[Result]:
        """Yields results in the order of the jobs.

        Raises:
          WorkersFailedError: a job failed three times.
        """
        numbered = enumerate(jobs)
        waiting: collections.deque[_Attempt] = collections.deque()
        done: dict[int, Result] = {}
        following = 0
        while True:
            self._draw(numbered, waiting)
            while waiting and self._idle:
                self._send(self._idle.pop(), waiting.popleft())
            if not waiting and not self._num_running():
                return
            for attempt, result in self._wait(waiting):
                done[attempt.number] = result
            while following in done:
                yield done.pop(following)
                following += 1

    def close(self) -> None:
        """Lets idle workers end their verifiers; the others end with the cluster."""
        closing = [worker.close.remote() for worker in self._idle]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=10.0)
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            self._ray.kill(worker)

    def _draw(
        self,
        numbered: Iterator[tuple[int, Job[Any]]],
        waiting: collections.deque[_Attempt],
    ) -> None:
        """Keeps a job ready for each worker: records are read while others work."""
        while len(waiting) < self._num_workers:
            number, job = next(numbered, (-1, None))
            if job is None:
                return
            waiting.append(_Attempt(number, self._ray.put(job), str(job)))

    def _start(self) -> None:
        worker = self._worker.remote(self._make_workbench)
        # A worker that finds no room in the cluster gets no job.
        self._busy[worker.__ray_ready__.remote()] = worker, None

    def _send(self, worker: Any, attempt: _Attempt) -> None:
        self._busy[worker.run.remote(attempt.job)] = worker, attempt

    def _num_running(self) -> int:
        return sum(attempt is not None for _, attempt in self._busy.values())

    def _wait(
        self, waiting: collections.deque[_Attempt]
    ) -> Iterator[tuple[_Attempt, Any]]:
        ready, _ = self._ray.wait(list(self._busy), timeout=_PATIENCE_SECONDS)
        if not ready and not self._num_running():
            self._say_that_none_starts()
        for reference in ready:
            worker, attempt = self._busy.pop(reference)
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                self._idle.append(worker)
                if attempt is None or not isinstance(error.cause, OSError):
                    raise error.cause from error
                self._try_again(attempt, error.cause, waiting)
            except self._ray.exceptions.RayError as error:
                self._replace(worker, attempt, error)
                if attempt:
                    self._try_again(attempt, error, waiting)
            else:
                self._idle.append(worker)
                if attempt:
                    yield attempt, result

    def _say_that_none_starts(self) -> None:
        self._num_waits += 1
        if self._is_own and self._num_waits == _MAX_WAITS:
            raise WorkersFailedError(
                f"scale: no Ray worker started in {_MAX_WAITS * _PATIENCE_SECONDS:g} "
                "seconds; try again, or with scale.engine=process."
            )
        logging.info("curate: waiting for a free CPU in the Ray cluster")

    def _replace(self, worker: Any, attempt: _Attempt | None, error: Exception) -> None:
        self._ray.kill(worker)
        if attempt is None:
            self._num_failed_starts += 1
            if self._num_failed_starts == MAX_ATTEMPTS:
                raise WorkersFailedError(
                    f"scale: Ray workers do not start ({_first_line(error)})."
                )
        self._start()

    def _try_again(
        self,
        attempt: _Attempt,
        error: Exception,
        waiting: collections.deque[_Attempt],
    ) -> None:
        attempt.num_failures += 1
        told = f"{attempt.name} failed ({type(error).__name__}: {_first_line(error)})"
        if attempt.num_failures == MAX_ATTEMPTS:
            raise WorkersFailedError(f"curate: {told} {MAX_ATTEMPTS} times.") from error
        logging.warning("curate: %s; it is tried again", told)
        waiting.appendleft(attempt)
