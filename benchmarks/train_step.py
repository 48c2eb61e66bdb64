# SPDX-License-Identifier: Apache-2.0
"""A whole training step against transformers + torch on the same shape and cores.

    python -m benchmarks.train_step --setup-peer   # once: the peer's own environment
    python -m benchmarks.train_step

The shape: 4 layers of width 256, 4 query heads and 1 kv head of 64, 64 experts of width
176 with 6 a token and 2 shared, 8,192 vocabulary rows; 4 rows of 512 tokens, AdamW,
gradients clipped, 2 cores. The peer is transformers' GraniteMoeShared, eager and
compiled, of which the faster counts; in bfloat16 under autocast. Both keep large arrays
on large pages. Turns of a few steps are interleaved, so that a slow moment of the
machine hits both, and medians are compared. Without the peer's environment its figures
are null.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarks.conditions import conditions
from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoeConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from ring_jax.train.optimizer import make_optimizer
from ring_jax.train.state import init_state
from ring_jax.train.step import make_train_step

NUM_CORES = 2
WARMUP_STEPS = 3
STEPS_PER_TURN = 2
DTYPES = ("float32", "bfloat16")
MODEL = ModelConfig(
    vocab_size=8192,
    model_dim=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=1,
    head_dim=64,
    moe=MoeConfig(
        num_experts=64, num_experts_per_token=6, num_shared_experts=2, expert_dim=176
    ),
    eos_id=0,
    pad_id=0,
)
BATCH_SIZE, SEQ_LEN = 4, 512
PEER_FOLDER = pathlib.Path("~/.cache/ring_jax/torch-peer").expanduser()
PEER_PYTHON = "3.11"
PEER_PACKAGES = ("torch==2.13.0", "transformers==5.23.0")

type Step = Callable[[], float]
"""Runs one training step; returns its seconds."""


def main() -> None:
    """Times both sides, prints a table and last one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="of two timed steps each")
    parser.add_argument("--peer-folder", type=pathlib.Path, default=PEER_FOLDER)
    parser.add_argument("--setup-peer", action="store_true", help="makes --peer-folder")
    flags = parser.parse_args()
    if flags.setup_peer:
        setup_peer(flags.peer_folder)
        return
    if "GLIBC_TUNABLES" not in os.environ:
        # As launch/quickstart.sh does; read once, when a process starts.
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, sys.orig_argv, environment)
    # Before JAX starts its threads; the peer inherits it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"The load average is {load:.1f}: timings of a busy machine mean little.")
    with open_peer(flags.peer_folder) as peer_steps:
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
        steps = {
            f"ours {dtype}": timed_step(run_config(dtype), mesh) for dtype in DTYPES
        }
        steps |= peer_steps
        seconds = medians(steps, repeats=flags.turns)
    speeds = {name: BATCH_SIZE * SEQ_LEN / value for name, value in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name:26}{1e3 * seconds[name]:8.0f} ms{speed:8.0f} tokens/s")
    print(json.dumps(summary(speeds)))


def run_config(dtype: str) -> RunConfig:
    """Returns the benchmark's run in one compute dtype; nothing is recomputed."""
    return RunConfig(
        model=MODEL,
        data=DataConfig(sources={"random": SourceConfig()}),
        train=TrainConfig(
            global_batch_size=BATCH_SIZE,
            seq_len=SEQ_LEN,
            compute_dtype="float32" if dtype == "float32" else "bfloat16",
            remat="none",
        ),
        stages={"only": StageConfig(mixture={"random": 1.0}, num_steps=1000)},
    )


def timed_step(config: RunConfig, mesh: jax.sharding.Mesh) -> Step:
    """Compiles and warms up a run's step on random tokens."""
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.train.optimizer, config.stages)
        state = jax.jit(lambda: init_state(config, optimizer))()
        layout = sharding.on_mesh(sharding.whole_rows(), mesh)
        batch = jax.device_put(random_batch(config), layout)
        train_step = make_train_step(config, optimizer)

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        with jax.set_mesh(mesh):
            state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    for _ in range(WARMUP_STEPS):
        step()
    return step


def random_batch(config: RunConfig) -> Batch:
    """Returns full rows of one document each, every token trained."""
    shape = (config.train.global_batch_size, config.train.seq_len)
    ones_BT = jnp.ones(shape, jnp.int32)
    return Batch(
        ids_BT=jax.random.randint(jax.random.key(0), shape, 0, config.model.vocab_size),
        segments_BT=ones_BT,
        positions_BT=jnp.cumsum(ones_BT, axis=1) - 1,
        classes_BT=ones_BT,
        sources_BT=ones_BT - 1,
        weights_BT=ones_BT.astype(jnp.float32),
    )


@contextlib.contextmanager
def open_peer(folder: pathlib.Path) -> Iterator[dict[str, Step]]:
    """Starts the peer and yields its steps by name; none where it is not set up."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"{folder} has no peer; --setup-peer makes it. Ours alone:")
        yield {}
        return
    script = pathlib.Path(__file__).with_name("torch_peer.py")
    process = subprocess.Popen(
        [python, script, json.dumps(peer_shape())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        to_peer, from_peer = process.stdin, process.stdout
        if not (hello := from_peer.readline()):
            sys.exit(f"{python} {script.name} failed to start; --setup-peer renews it.")

        def make_step(name: str) -> Step:
            def step() -> float:
                to_peer.write(f"{name}\n")
                to_peer.flush()
                return float(from_peer.readline())

            return step

        yield {f"torch {name}": make_step(name) for name in json.loads(hello)}
        to_peer.write("\n")
        to_peer.flush()


def peer_shape() -> dict[str, int]:
    """Returns what the peer must know, by our names."""
    fields = dataclasses.asdict(MODEL)
    fields |= fields.pop("moe")
    numbers = {key: value for key, value in fields.items() if type(value) is int}
    return numbers | {
        "batch_size": BATCH_SIZE,
        "seq_len": SEQ_LEN,
        "num_cores": NUM_CORES,
    }


def setup_peer(folder: pathlib.Path) -> None:
    """Makes the peer's environment with Python 3.11 and pinned packages."""
    python = find_python(PEER_PYTHON)
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", *PEER_PACKAGES], check=True)
    print(f"The peer is in {folder}.")


def find_python(version: str) -> str:
    """Returns an interpreter of a version from PATH or from pyenv's versions."""
    candidates = [shutil.which(f"python{version}")]
    versions = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    pattern = f"versions/{version}.*/bin/python"
    candidates += [str(path) for path in sorted(versions.glob(pattern))]
    for candidate in filter(None, candidates):
        # pyenv's shims are on PATH even for versions that are switched off.
        probe = subprocess.run([candidate, "--version"], capture_output=True, text=True)
        if f"Python {version}." in probe.stdout:
            return candidate
    sys.exit(f"The peer needs Python {version}: put python{version} on PATH.")


def medians(steps: dict[str, Step], *, repeats: int) -> dict[str, float]:
    """Runs all steps in turn, `repeats` times; returns median seconds by name.

    The first step of a turn is not counted: the caches still hold another's data, which
    a training run never sees.
    """
    seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            step()
            seconds[name] += [step() for _ in range(STEPS_PER_TURN)]
    return {name: statistics.median(times) for name, times in seconds.items()}


def summary(speeds: dict[str, float]) -> dict:
    """Returns the JSON line; each ratio is to the faster of torch's modes."""

    def ratio(dtype: str) -> float | None:
        peers = [v for k, v in speeds.items() if k.startswith(f"torch {dtype}")]
        return round(speeds[f"ours {dtype}"] / max(peers), 3) if peers else None

    return {
        "benchmark": "train_step",
        "tokens_per_second": round(speeds["ours float32"]),
        "tokens_per_second_bf16": round(speeds["ours bfloat16"]),
        "ratio_to_torch": ratio("float32"),
        "ratio_to_torch_bf16": ratio("bfloat16"),
        "torch_tokens_per_second": {
            name.removeprefix("torch "): round(speed)
            for name, speed in speeds.items()
            if name.startswith("torch")
        },
        "peer": PEER_PACKAGES,
        **conditions(),
    }


if __name__ == "__main__":
    main()
