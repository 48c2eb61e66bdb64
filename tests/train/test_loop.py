# SPDX-License-Identifier: Apache-2.0
"""The loop: stages, records, resumes after real kills, refusals."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import ConfigError, MeshConfig, MixtureChangeConfig, to_json
from ring_jax.train import Run, TrainingStoppedError, check_run, train

ROOT = pathlib.Path(__file__).parents[2]
CHILD = "tests.train.train_in_a_process"


def run_of(config, workdir, open_batches, *, evaluate=None) -> Run:
    return Run(
        config=config,
        workdir=workdir,
        mesh=sharding.make_mesh(config.mesh, jax.devices()[:1]),
        open_batches=open_batches,
        evaluate=evaluate or (lambda model, stage: {"scores": {stage: 0.5}}),
        console=Console(quiet=True),
    )


def records(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def losses(workdir) -> list[tuple[int, float]]:
    return [(r["step"], r["train/loss"]) for r in records(workdir, "train")]


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory, open_counted):
    """A run that nobody interrupted: its folder, to be read, and its last state."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(run_of(tiny_run, folder, open_counted))


@pytest.fixture
def finished(whole, tmp_path) -> pathlib.Path:
    """A folder of one's own, with that run in it."""
    return shutil.copytree(whole[0], tmp_path / "finished")


def test_a_run_trains_every_stage_and_grades_its_end(whole, tiny_run):
    folder, state = whole
    assert int(state.step) == 12
    assert [step for step, _ in losses(folder)] == list(range(1, 13))
    graded = records(folder, "evaluation")
    assert [(r["stage"], r["step"]) for r in graded] == [("first", 6), ("second", 12)]
    assert [r["scores"] for r in graded] == [{"first": 0.5}, {"second": 0.5}]
    assert (folder / "config.json").read_text("utf-8").strip() == to_json(tiny_run)
    (load_LE,) = {len(r["load_LE"]) for r in records(folder, "router")}
    assert load_LE == 2
    for record in records(folder, "router"):
        np.testing.assert_allclose(np.sum(record["load_LE"], axis=1), 1.0, atol=1e-5)
    last = records(folder, "train")[-1]
    assert {"loss/source/a", "loss/class/think", "throughput/mfu"} <= last.keys()
    # After the last step of a stage nothing is waited for.
    waits = [r.get("throughput/data_wait_share", 0) for r in records(folder, "train")]
    assert 0 < max(waits) < 1


def test_running_a_finished_run_again_changes_nothing(
    whole, finished, tiny_run, open_counted
):
    _, first = whole
    before = losses(finished), records(finished, "evaluation")

    def never(model, stage):
        raise AssertionError("graded twice")

    again = train(run_of(tiny_run, finished, open_counted, evaluate=never))
    assert (losses(finished), records(finished, "evaluation")) == before
    same = jax.tree.map(np.array_equal, first, again)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    "name", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_where_the_run_stands_and_the_rest_is_bit_exact(
    whole, tiny_run, tmp_path, open_counted, name
):
    parts = tmp_path / "parts"

    class Interrupting:
        def __init__(self, stage):
            self.inner = open_counted(stage)

        def __next__(self) -> Batch:
            if self.inner.next == 2:
                os.kill(os.getpid(), name)
            return next(self.inner)

        def __getattr__(self, attribute):
            return getattr(self.inner, attribute)

    with pytest.raises(KeyboardInterrupt):
        train(run_of(tiny_run, parts, Interrupting))
    assert losses(parts)[-1][0] == 3
    train(run_of(tiny_run, parts, open_counted))
    assert losses(parts) == losses(whole[0])


def test_kills_at_random_moments_leave_the_losses_bit_exact(tiny_run, tmp_path):
    # A real process, killed as by a lost machine: at start, in a step, in a save.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (tmp_path / "run.json").write_text(to_json(tiny_run), "utf-8")
    command = [sys.executable, "-m", CHILD, str(tmp_path / "run.json")]
    # Programs are kept, as `ring train` keeps them: the first process compiles for all.
    kept = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run([*command, str(tmp_path / "first")], check=True, env=kept, cwd=ROOT)
    started = time.monotonic()
    subprocess.run([*command, str(whole)], check=True, env=kept, cwd=ROOT)
    seconds = time.monotonic() - started
    assert losses(whole) == losses(tmp_path / "first")
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill seed {seed}")
    moments = random.Random(seed)
    for _ in range(3):
        # A process works in the second half of its life; the first half is imports.
        process = subprocess.Popen([*command, str(parts)], env=kept, cwd=ROOT)
        time.sleep(moments.uniform(0.5, 1.0) * seconds)
        process.kill()
        process.wait()
    subprocess.run([*command, str(parts)], check=True, env=kept, cwd=ROOT)
    assert losses(parts) == losses(whole)
    assert len(losses(whole)) == 12


def test_other_settings_are_refused_in_a_used_folder(finished, tiny_run, open_counted):
    other = dataclasses.replace(tiny_run, seed=5)
    with pytest.raises(ConfigError, match=r"config\.seed=0, not 5"):
        train(run_of(other, finished, open_counted))


def test_settings_that_only_move_work_may_change(finished, tiny_run, open_counted):
    settings = dataclasses.replace(tiny_run.train, log_every_steps=3)
    train(run_of(dataclasses.replace(tiny_run, train=settings), finished, open_counted))


def test_the_mixture_may_change_where_its_data_say_so(tiny_run, tmp_path):
    (tmp_path / "config.json").write_text(to_json(tiny_run))
    mesh = sharding.make_mesh(tiny_run.mesh, jax.devices()[:1])

    def changed(*, on_change="refuse", **stage):
        stages = dict(tiny_run.stages)
        stages["first"] = dataclasses.replace(stages["first"], **stage)
        data = dataclasses.replace(tiny_run.data, on_change=on_change)
        return dataclasses.replace(tiny_run, stages=stages, data=data)

    later = MixtureChangeConfig(step=3, mixture={"b": 1.0})
    check_run(changed(mixture_changes={"later": later}), tmp_path, mesh)
    mixture = {"a": 2.0}
    with pytest.raises(ConfigError, match=r"mixture\.a=1\.0, not 2\.0"):
        check_run(changed(mixture=mixture), tmp_path, mesh)
    check_run(changed(mixture=mixture, on_change="allow"), tmp_path, mesh)


def test_a_batch_that_does_not_split_over_the_devices_is_refused(tiny_run, tmp_path):
    config = dataclasses.replace(
        tiny_run, train=dataclasses.replace(tiny_run.train, global_batch_size=6)
    )
    run = dataclasses.replace(
        run_of(config, tmp_path / "new", None), mesh=sharding.make_mesh(MeshConfig())
    )
    with pytest.raises(ConfigError, match="global_batch_size=6 does not divide over 8"):
        train(run)
    assert not (tmp_path / "new").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tiny_run, tmp_path, open_counted):
    def poisoned(stage):
        batches = open_counted(stage)
        make = batches.__next__

        class Poisoned:
            def __next__(self) -> Batch:
                batch = make()
                weights_BT = batch.weights_BT * np.float32("nan")
                return dataclasses.replace(batch, weights_BT=weights_BT)

            def close(self) -> None:
                pass

        return Poisoned()

    with pytest.raises(TrainingStoppedError, match="loss is nan at step 1 of first"):
        train(run_of(tiny_run, tmp_path, poisoned))
