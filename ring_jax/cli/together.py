# SPDX-License-Identifier: Apache-2.0
"""A command in several processes: they find their places, begin and end together."""

import atexit
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster
from jax._src.clusters.slurm_cluster import SlurmCluster

from ring_jax.cli import status
from ring_jax.cli.rendezvous import GRACE_SECONDS, Group, Spot, meet
from ring_jax.config import ConfigError

COORDINATOR_ADDRESS = "RING_COORDINATOR_ADDRESS"
NUM_PROCESSES = "RING_NUM_PROCESSES"
PROCESS_ID = "RING_PROCESS_ID"
START_TIMEOUT = "RING_START_TIMEOUT"
DEFAULT_START_TIMEOUT_SECONDS = 300.0

# Where JAX knows a process's place by itself. Its public entry aborts when a process is
# absent, and would ask Kubernetes for what a pod without TPUs need not have.
_CLUSTERS = (SlurmCluster, GkeTpuCluster, GceTpuCluster)


def run_together(settings: Mapping[str, Any], work: Callable[[], int]) -> int:
    """Runs `work`, with `jax.distributed` if this process is one of several.

    Args:
      settings: what must be the same in all processes: name -> value, JSON.
      work: what to do; returns an exit status, of which process 0's counts.

    Raises:
      ConfigError: the environment names half a place, a process is absent, or the
        settings differ.

    A process without which this one cannot go on ends it, with a line and its status.
    """
    spot = find_spot(os.environ)
    if spot is None:
        return work()
    group = meet(spot, settings)
    try:
        _initialize(spot)
        group.answer_aborts()
        return group.leave(work())
    except BaseException as error:
        # A collective fails when a member dies, perhaps before the group hears of it.
        is_collective = isinstance(error, jax.errors.JaxRuntimeError)
        end = group.first_end(seconds=GRACE_SECONDS if is_collective else 0.0)
        if end is not None and status.status_of(error) is None:
            group.give_up()
        _break_off(group, error)
        raise


def find_spot(environment: Mapping[str, str]) -> Spot | None:
    """Returns this process's place among several; None: it is the only one.

    Raises:
      ConfigError: the variables contradict each other or cannot be read.
    """
    seconds = _start_timeout(environment)
    names = (COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID)
    absent = [name for name in names if not environment.get(name)]
    if len(absent) == len(names):
        return _detect(seconds)
    if absent:
        raise ConfigError(
            f"{' and '.join(absent)} must be set, too: all of {', '.join(names)}, or "
            "none."
        )
    address = environment[COORDINATOR_ADDRESS]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{COORDINATOR_ADDRESS}={address} is not HOST:PORT.")
    count, number = environment[NUM_PROCESSES], environment[PROCESS_ID]
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise ConfigError(
            f"{PROCESS_ID}={number} must be from 0 to below {NUM_PROCESSES}={count}."
        )
    return Spot(address, int(count), int(number), seconds) if int(count) > 1 else None


def _start_timeout(environment: Mapping[str, str]) -> float:
    text = environment.get(START_TIMEOUT) or str(DEFAULT_START_TIMEOUT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{START_TIMEOUT}={text} must be seconds, above 0.")
    return seconds


def _detect(seconds: float) -> Spot | None:
    """Asks Slurm and TPU pods for this process's place."""
    cluster = next((found for found in _CLUSTERS if found.is_env_present()), None)
    if cluster is None or cluster.get_process_count() == 1:
        return None
    try:
        address = cluster.get_coordinator_address(
            timeout_secs=int(seconds) + 1, override_coordinator_port=None
        )
    except RuntimeError as error:
        raise ConfigError(
            f"this looks like one process of several ({cluster.name}), but: {error}. "
            f"Set {COORDINATOR_ADDRESS}, {NUM_PROCESSES} and {PROCESS_ID}."
        ) from None
    return Spot(
        address,
        num_processes=cluster.get_process_count(),
        process=cluster.get_process_id(),
        timeout_seconds=seconds,
        local_device=_local_device(os.environ),
    )


def _local_device(environment: Mapping[str, str]) -> int | None:
    """Returns which device Slurm means for this process, where a node has several."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    # Such as 8(x2): eight on each of two nodes.
    is_alone = tasks.partition("(")[0] == "1"
    return None if is_alone else int(environment["SLURM_LOCALID"])


def _initialize(spot: Spot) -> None:
    # It would take SIGTERM for itself, which the training loop answers.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        spot.address,
        spot.num_processes,
        spot.process,
        local_device_ids=spot.local_device,
        initialization_timeout=int(spot.timeout_seconds) + 1,
        coordinator_bind_address=spot.bind_address,
        cluster_detection_method="deactivate",
    )


def _break_off(group: Group, error: BaseException) -> None:
    """Tells the others, and leaves when the error has been shown."""
    code = status.status_of(error) or 1
    words = " ".join(str(error).split())[:300]
    kind = "was interrupted" if isinstance(error, KeyboardInterrupt) else "ended"
    group.break_off(code, f"{kind}: {words}" if words else kind)
    atexit.register(group.exit_at_once, code)
