# SPDX-License-Identifier: Apache-2.0
"""The loop: stages in order, batches onto the mesh, metrics, checkpoints, scores.

Running it again on the same folder continues where the newest checkpoint stands.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from ring_jax import processes, sharding
from ring_jax.batch import Batch
from ring_jax.checkpoint.store import Store, check_model
from ring_jax.config import (
    ConfigError,
    RunConfig,
    StageConfig,
    flatten_settings,
    to_json,
)
from ring_jax.model.flops import count_parameters
from ring_jax.model.transformer import Transformer
from ring_jax.train.metrics import Meter, describe, peak_flops_of, readable
from ring_jax.train.optimizer import learning_rate, make_optimizer
from ring_jax.train.progress import StageProgress, log_to_file
from ring_jax.train.run_log import RunLog
from ring_jax.train.state import TrainState, init_state, state_of
from ring_jax.train.step import (
    RoutingWarmup,
    StepMetrics,
    TrainStep,
    check_routed,
    make_train_step,
)
from ring_jax.train.stop import StopRequest, stop_request

# Settings that may change between a run and its continuation: they move work about, or
# say how often to speak, and leave what is computed alone (but for rounding). A change
# of the mixture is held against the steps that are done where the data are opened.
RESUMABLE_CHANGES = (
    "num_devices",
    "mesh",
    "data.evaluation_sets",
    "data.num_workers",
    "data.on_change",
    "data.packed",
    "data.packing.no_room",
    "data.template_differences",
    "model.attention_implementation",
    "model.moe.implementation",
    "model.moe.transport",
    "generate",
    "suites",
    "train.remat",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.tensorboard",
    "train.peak_flops_per_second",
)


class Batches(Protocol):
    """A stage's batches of host arrays, able to say and take back where they stand."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """Returns where the iterator stands, as JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from where `get_state` was called."""
        ...

    def close(self) -> None:
        """Ends the threads that make batches ahead."""
        ...


type Evaluate = Callable[[Transformer, str], Mapping[str, Any]]
"""Grades a model at the end of the named stage, once its checkpoint is committed."""


class TrainingStoppedError(RuntimeError):
    """A guard ended the run; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop works with, all of it made before the first step."""

    config: RunConfig
    workdir: pathlib.Path
    mesh: Mesh
    open_batches: Callable[[str], Batches]
    """Stage name -> its batches, from the beginning."""
    evaluate: Evaluate
    console: Console
    mirror: Callable[[Mapping[str, Any]], None] | None = None
    """Receives every record beside `metrics.jsonl`."""


def train(run: Run, *, start: Callable[[], Transformer] | None = None) -> TrainState:
    """Trains all stages, from the newest checkpoint where there is one.

    Args:
      run: settings, mesh and collaborators.
      start: gives the initial parameters; None draws them from the seed.

    Returns:
      The final state; the last step is checkpointed and every stage has its scores.

    Raises:
      ConfigError: the folder holds a run with other settings.
      StorageError: a checkpoint could not be written.
      TrainingStoppedError: the loss is not finite.
      KeyboardInterrupt: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    config = run.config
    check_run(config, run.workdir, run.mesh)
    _write_config(config, run.workdir)
    log = RunLog(run.workdir, mirror=run.mirror)
    with jax.set_mesh(run.mesh), contextlib.ExitStack() as stack:
        store = Store(
            run.workdir / "checkpoints",
            keep=config.train.keep_checkpoints,
            model=config.model,
        )
        stack.callback(store.close)
        stop = stack.enter_context(stop_request(run.mesh))
        loop = _Loop(run, log, store, stop)
        state, data_state = loop.restore(start)
        for stage in _stages(config):
            if int(state.step) < stage.last_step:
                state = loop.run_stage(stage, state, data_state)
                data_state = None
            if int(state.step) == stage.last_step:
                loop.finish_stage(stage, state)
        log.write("event", event="end", step=int(state.step))
    return state


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A stage and where it lies among the global steps."""

    name: str
    config: StageConfig
    first_step: int
    """Steps finished before it begins."""

    @property
    def last_step(self) -> int:
        return self.first_step + self.config.num_steps


def _stages(config: RunConfig) -> list[_Stage]:
    stages, first_step = [], 0
    for name, stage in config.stages.items():
        stages.append(_Stage(name, stage, first_step))
        first_step = stages[-1].last_step
    return stages


@dataclasses.dataclass
class _Loop:
    """The parts that every stage shares."""

    run: Run
    log: RunLog
    store: Store
    stop: StopRequest

    def __post_init__(self):
        config = self.run.config
        self.optimizer = make_optimizer(config.train.optimizer, config.stages)
        self.shared_step = make_train_step(config, self.optimizer)
        self.file = log_to_file(self.run.workdir / "log.txt")
        self.peak_flops = peak_flops_of(config, jax.local_devices()[0])

    def restore(
        self, start: Callable[[], Transformer] | None
    ) -> tuple[TrainState, dict[str, Any] | None]:
        """Returns the state to go on from, and where its stage's data stand."""
        config = self.run.config
        create = jax.jit(lambda: init_state(config, self.optimizer))
        if self.store.latest() is None:
            self._begin()
            if start is None:
                return create(), None
            wrap = jax.jit(lambda model: state_of(model, config, self.optimizer))
            return wrap(start()), None
        state, data_state, _ = self.store.restore(jax.eval_shape(create))
        step = int(state.step)
        self.log.rewind(step)
        self._event("resume", step)
        self.run.console.print(f"continuing from the checkpoint of step {step}")
        return state, data_state or None

    def run_stage(
        self, stage: _Stage, state: TrainState, data_state: dict[str, Any] | None
    ) -> TrainState:
        """Steps to the end of a stage, and commits it."""
        done = int(state.step) - stage.first_step
        batches = self.run.open_batches(stage.name)
        if data_state is not None and done:
            batches.set_state(data_state)
        if not done:
            self._event("stage_start", stage.first_step, stage=stage.name)
        progress = StageProgress(
            stage.name,
            console=self.run.console,
            first_step=done,
            num_steps=stage.config.num_steps,
        )
        with contextlib.closing(batches), progress:
            state = self._steps(stage, state, batches, progress)
        self._save(state, {})
        return state

    def _steps(
        self,
        stage: _Stage,
        state: TrainState,
        batches: Batches,
        progress: StageProgress,
    ) -> TrainState:
        settings, step = self.run.config.train, self._step_of(stage)
        devices = self.run.mesh.devices.size
        meter = Meter(self.run.config, self.peak_flops, num_devices=devices)
        report = functools.partial(self._report, stage, progress, meter)
        first, pending = int(state.step) + 1, None
        for number in range(first, stage.last_step + 1):
            with meter.waiting():
                batch = place(next(batches), self.run.mesh)
            state, metrics = step(state, batch)
            # Step n is on its way; only now wait for an earlier one, so that the device
            # never waits for Python.
            if pending is not None:
                report(*pending)
            if number == first:
                # It compiles; throughput is counted from its end.
                jax.block_until_ready(metrics)
                meter.restart()
            else:
                meter.add(batch)
            is_logged = number % settings.log_every_steps == 0
            is_last = number == stage.last_step
            pending = (number, metrics) if is_logged or is_last else None
            progress.advance(number - stage.first_step)
            if self.stop.is_due():
                self._stop(state, batches, report, pending)
            if number % settings.checkpoint_every_steps == 0 and not is_last:
                self._save(state, batches.get_state())
        assert pending is not None, "the last step always reports"
        report(*pending)
        return state

    def _step_of(self, stage: _Stage) -> TrainStep:
        num_steps = stage.config.routing_warmup_steps
        if not num_steps:
            return self.shared_step
        warmup = RoutingWarmup(stage.first_step, num_steps)
        return make_train_step(self.run.config, self.optimizer, warmup=warmup)

    def _stop(
        self,
        state: TrainState,
        batches: Batches,
        report: Callable[[int, StepMetrics], None],
        pending: tuple[int, StepMetrics] | None,
    ) -> NoReturn:
        """Commits where the run stands, then lets the interruption through."""
        if pending is not None:
            report(*pending)
        self._save(state, batches.get_state())
        self.store.wait()
        self._event("interrupted", int(state.step))
        # The first process to leave ends the others, who may still be committing.
        processes.meet("interrupted")
        raise KeyboardInterrupt

    def _report(
        self,
        stage: _Stage,
        progress: StageProgress,
        meter: Meter,
        number: int,
        metrics: StepMetrics,
    ) -> None:
        config = self.run.config
        named, load_LE = readable(metrics, list(config.data.sources))
        rate = learning_rate(config.stages, jnp.asarray(number - 1))
        record = {
            "stage": stage.name,
            "step": number,
            "stage_step": number - stage.first_step,
            "train/learning_rate": float(rate),
            **named,
            **meter.read(),
        }
        if not np.isfinite(named["train/loss"]):
            self.store.wait()
            processes.meet("stopped")
            raise TrainingStoppedError(
                f"loss is {named['train/loss']} at step {number} of {stage.name}; "
                f"the last checkpoint is step {self.store.latest()}. Lower the stage's "
                "learning_rate or look at its data, then run the same command again."
            )
        self.log.write("train", **record)
        self.log.write("router", stage=stage.name, step=number, load_LE=load_LE)
        num_steps = stage.last_step - stage.first_step
        self.file.info(describe(record, num_steps=num_steps))
        progress.show(record)

    def finish_stage(self, stage: _Stage, state: TrainState) -> None:
        """Grades the end of a stage, unless an earlier run of the command has."""
        graded = {record["stage"] for record in self.log.records("evaluation")}
        if not processes.from_first(stage.name in graded):
            self.store.wait()
            self.run.console.print(f"{stage.name}: asking and grading")
            whole_rows = sharding.without_context(self.run.mesh)
            with jax.set_mesh(whole_rows):
                model = sharding.onto(state.model, whole_rows)
                found = self.run.evaluate(model, stage.name)
            step = stage.last_step
            self.log.write("evaluation", stage=stage.name, step=step, **found)

    def _begin(self) -> None:
        self.log.rewind(-1)
        count = count_parameters(self.run.config.model)
        device = self.run.mesh.devices.flat[0]
        self.log.write(
            "start",
            step=0,
            versions={"jax": jax.__version__, "numpy": np.__version__},
            devices=f"{self.run.mesh.devices.size} x {device.device_kind}",
            num_parameters=count.total,
            num_active_parameters=count.activated,
            peak_flops_per_second=self.peak_flops,
        )

    def _save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        step = int(state.step)
        self.store.save(step, state, data_state, {"config": to_json(self.run.config)})
        self._event("checkpoint", step)

    def _event(self, event: str, step: int, **fields: Any) -> None:
        self.log.write("event", event=event, step=step, **fields)
        self.file.info("%s at step %d", event, step)


def place(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's rows of a batch on the mesh, each device with its own."""
    layout = sharding.on_mesh(sharding.whole_rows(), mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(layout, x), batch
    )


def check_run(config: RunConfig, workdir: pathlib.Path, mesh: Mesh) -> None:
    """Checks, before anything is read or written, that the run can start or continue.

    Raises:
      ConfigError: the model has no routed layer, the batch does not split over the
        devices, or the folder holds a run with other settings.
    """
    check_routed(config.model)
    batch_size = config.train.global_batch_size
    num_parts = sharding.num_batch_shards(mesh) * config.train.num_microbatches
    if batch_size % num_parts:
        raise ConfigError(
            f"train.global_batch_size={batch_size} does not divide over {num_parts} "
            "parts (devices that split rows x microbatches); make it a multiple."
        )
    sharding.check_model(config.model, mesh)
    # Two chunks a device: see pallas_kernels/attention/context.py.
    num_chunks = 2 * mesh.shape[sharding.CONTEXT_AXIS]
    if num_chunks > 2 and config.train.seq_len % num_chunks:
        raise ConfigError(
            f"config.mesh: context={num_chunks // 2} does not divide train.seq_len="
            f"{config.train.seq_len} into two chunks a device; make it a multiple of "
            f"{num_chunks}."
        )
    path = workdir / "config.json"
    if not path.exists():
        # Checkpoints may have been copied here without the rest of their run.
        check_model(workdir / "checkpoints", config.model)
        return
    before = flatten_settings(json.loads(path.read_text("utf-8")))
    now = flatten_settings(dataclasses.asdict(config))
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not _may_change(key, config)
    )
    if changed:
        key, *others = changed
        more = f" (and {len(others)} more settings differ)" if others else ""
        raise ConfigError(
            f"{workdir} holds a run with config.{key}={before.get(key)!r}, not "
            f"{now.get(key)!r}{more}. Use its settings or another --workdir."
        )


def _may_change(key: str, config: RunConfig) -> bool:
    is_of_data = key.startswith(("seed", "data.")) or any(
        section in key for section in (".mixture.", ".curriculum.")
    )
    is_allowed = config.data.on_change == "allow" and is_of_data
    return is_allowed or ".mixture_changes." in key or key.startswith(RESUMABLE_CHANGES)


def _write_config(config: RunConfig, workdir: pathlib.Path) -> None:
    if not processes.is_first():
        return
    path = workdir / "config.json"
    workdir.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(to_json(config) + "\n", "utf-8")
    draft.replace(path)
