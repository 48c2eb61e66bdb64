# SPDX-License-Identifier: Apache-2.0
"""Killed processes and full disks leave the committed checkpoints as they were."""

import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax.checkpoint.store import StorageError, Store

# Step n holds one megabyte of the number n.
WRITER = textwrap.dedent(
    """
    import resource, sys
    import jax.numpy as jnp
    from ring_jax.checkpoint.store import StorageError, Store

    def state(step):
        return {"x": jnp.full((512, 512), step, jnp.float32)}
    """
)
SAVES_UNTIL_KILLED = WRITER + textwrap.dedent(
    """
    store = Store(sys.argv[1], keep=2)
    for step in range((store.latest() or 0) + 1, 10_000):
        store.save(step, state(step), {"row": step}, {})
        print(step, flush=True)
    """
)
FILLS_THE_DISK = WRITER + textwrap.dedent(
    """
    store = Store(sys.argv[1], keep=1)
    store.save(1, state(1), {}, {})
    store.wait()
    # A write beyond this size fails as on a full disk, in Orbax's own threads.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        store.save(2, {"x": jnp.sin(state(1)["x"].cumsum())}, {}, {})
        store.close()
    except StorageError as error:
        print(error)
        sys.exit(4)
    """
)


def _restored_step(directory):
    store = Store(directory, keep=2)
    assert all(path.name.isdigit() for path in directory.iterdir())
    if (step := store.latest()) is None:
        return 0
    abstract = {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    restored = store.restore(abstract)
    store.close()
    assert step == store.latest()
    assert restored.data_state == {"row": step}
    assert np.all(np.asarray(restored.state["x"]) == step)
    return step


def test_a_kill_during_a_save_leaves_only_whole_steps(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    delays = random.Random(seed)
    last = 0
    for _ in range(2):
        command = [sys.executable, "-c", SAVES_UNTIL_KILLED, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            # Saves take some 30 ms each: a random moment hits any phase of one.
            first = int(process.stdout.readline())
            assert first == last + 1
            time.sleep(delays.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
            printed = [first, *map(int, process.stdout.read().split())]
        last = _restored_step(tmp_path)
        # A step is saved only after the one before it is committed.
        assert last >= printed[-1] - 1


def test_a_full_disk_during_a_save_is_one_line_and_spares_the_last_step(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 4, process.stderr
    assert "could not be written" in process.stdout
    assert process.stdout.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
    store = Store(tmp_path, keep=1)
    abstract = {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    assert np.all(np.asarray(store.restore(abstract).state["x"]) == 1)
    store.close()


def test_a_disk_without_room_is_refused_before_the_save(tmp_path, monkeypatch):
    store = Store(tmp_path, keep=1)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="takes 1 MB and the disk has 0 MB"):
        store.save(1, {"x": jnp.zeros((512, 512))}, {}, {})
    assert not list(tmp_path.iterdir())
    store.close()
