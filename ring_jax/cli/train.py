# SPDX-License-Identifier: Apache-2.0
"""`ring train`: the stages of a config, each graded, then export, check and report.

Running the same command again continues the run, and does only what is missing.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ring_jax import __version__, processes, sharding
from ring_jax.checkpoint import max_logit_difference_to_mlx
from ring_jax.checkpoint.trained_model import newest_identity
from ring_jax.cli import status
from ring_jax.cli.asked_model import identity_of
from ring_jax.cli.console import Console
from ring_jax.cli.devices import use_devices
from ring_jax.cli.export import export_newest
from ring_jax.cli.initial_model import read_initial_model
from ring_jax.cli.settings import load_run_config, require_workdir
from ring_jax.cli.together import run_together
from ring_jax.cluster import find_preset, preset_names
from ring_jax.config import ConfigError, RunConfig, flatten_settings
from ring_jax.data import mixture_file
from ring_jax.data.pipeline import TrainBatches, prepare
from ring_jax.data.prepared import PreparedData
from ring_jax.evaluate import StageEnd, score_table
from ring_jax.model import Transformer
from ring_jax.report import compare_stages, figures, write_report
from ring_jax.train import Run, TrainingStoppedError, check_run, train
from ring_jax.train.run_folder_lock import only_run_in
from ring_jax.train.tensorboard import tensorboard_mirror

SUMMARY = "trains the stages of a config; run it again to continue"

PRESET_VARIABLE = "RING_XLA_PRESET"
"""How `launch/train.sh` says which flags it set."""

MAX_LOGIT_DIFFERENCE = 2e-4
"""Of an export opened by mlx-lm: five times the worst honest difference seen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no operands: everything is a setting."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Trains, or continues, and leaves a run folder with export and report.

    One of several processes does its part: the first one writes what is not an array.
    """
    config, workdir = load_run_config(args), require_workdir(args)
    settings = {
        "ring_jax": __version__,
        "jax": jax.__version__,
        "workdir": str(workdir.absolute()),
        **flatten_settings({"config": dataclasses.asdict(config)}),
    }
    return run_together(settings, functools.partial(_run, args, config, workdir))


def _run(args: argparse.Namespace, config: RunConfig, workdir: pathlib.Path) -> int:
    use_devices(config)
    mesh = sharding.make_mesh(config.mesh)
    check_run(config, workdir, mesh)
    start = read_initial_model(config)
    console = Console(quiet=not processes.is_first())
    with console.waiting("reading and tokenizing"):
        data = _prepare(config, workdir)
    alone = only_run_in(workdir) if processes.is_first() else contextlib.nullcontext()
    with alone:
        return _train(config, workdir, mesh, data, start=start, is_json=args.json)


def _train(
    config: RunConfig,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    data: PreparedData,
    *,
    start: Callable[[], Transformer] | None,
    is_json: bool,
) -> int:
    console = Console(quiet=not processes.is_first())
    rows = sharding.rows_of_process(mesh, config.train.global_batch_size).tolist()
    for line in (_summary(data), _hardware(mesh), *_compiler_flags(os.environ)):
        console.print(line, highlight=False)

    def open_batches(stage: str) -> TrainBatches:
        record = functools.partial(mixture_file.record, workdir=workdir, stage=stage)
        told = record if processes.is_first() else None
        return TrainBatches(config, data, stage=stage, rows=rows, record=told)

    def identify() -> dict[str, Any]:
        return identity_of(workdir, newest_identity(workdir / "checkpoints"))

    settings = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        open_batches=open_batches,
        evaluate=StageEnd(config, data, workdir, identify=identify),
        console=console,
        mirror=tensorboard_mirror(workdir) if config.train.tensorboard else None,
    )
    try:
        state = train(settings, start=start)
    except TrainingStoppedError as error:
        print(f"ring: stopped: {error}", file=sys.stderr)
        return status.STOPPED
    whole_rows = sharding.without_context(mesh)
    with jax.set_mesh(whole_rows):
        logits = _checked_logits(data, sharding.onto(state.model, whole_rows))
    if not processes.is_first():
        return status.DONE
    comparison = compare_stages(workdir)
    if comparison is not None:
        console.print(score_table(comparison))
    difference = _export(workdir, logits)
    report = write_report(workdir)
    print(f"report: {report}")
    if is_json:
        out = {
            "status": status.DONE,
            **(figures(comparison) if comparison else {}),
            "max_logit_difference_to_mlx": difference,
            "report": str(report),
        }
        print(json.dumps(out))
    is_same = difference is None or difference <= MAX_LOGIT_DIFFERENCE
    return status.DONE if is_same else status.STOPPED


def _summary(data: PreparedData) -> str:
    num_rows = sum(index.num_rows for index in data.indexes.values())
    num_tokens = sum(index.num_tokens for index in data.indexes.values())
    counts = {
        "left out": sum(report.rows_left_out for report in data.lengths.values()),
        "kept in longer/": sum(report.rows_moved for report in data.lengths.values()),
        "split": sum(report.rows_split for report in data.lengths.values()),
    }
    told = [f"{count:,} {name}" for name, count in counts.items() if count]
    dropped = f"; too long: {', '.join(told)}" if told else ""
    return (
        f"{num_rows:,} rows of {len(data.rendered)} sources, {num_tokens:,} tokens "
        f"of a {data.tokenizer.vocab_size}-entry tokenizer{dropped}"
    )


def _hardware(mesh: jax.sharding.Mesh) -> str:
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    shape = " * ".join(f"{axis}={size}" for axis, size in sizes.items())
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind}{f', mesh {shape}' if shape else ''}"


def _compiler_flags(environment: Mapping[str, str]) -> list[str]:
    """Returns a line for each variable of compiler flags, the launcher's preset named.

    The user's own flags come after the preset's, and win.
    """
    lines = []
    name = environment.get(PRESET_VARIABLE)
    preset = find_preset(name) if name in preset_names() else None
    for variable in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
        flags = environment.get(variable, "").split()
        if preset is not None and preset.variable == variable and preset.flags:
            own = [flag for flag in flags if flag not in preset.flags]
            named = f"preset {preset.name}: {' '.join(preset.flags)}"
            lines.append(f"{variable}: {named}{' and ' if own else ''}{' '.join(own)}")
        elif flags:
            lines.append(f"{variable}: {' '.join(flags)}")
    return lines


def _prepare(config: RunConfig, workdir: pathlib.Path) -> PreparedData:
    """Reads and tokenizes in every process; the first writes what a run folder keeps.

    Raises:
      ConfigError: as `prepare` does; or the processes have read different data.
    """
    with contextlib.ExitStack() as stack:
        folder = workdir
        if not processes.is_first():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        data = prepare(config, folder, kept_in=workdir)
    if not processes.have_same(bytes.fromhex(data.digest)):
        raise ConfigError(
            f"the processes read different data (here {data.digest}); give all "
            "machines the same files and packages."
        )
    if processes.is_first():
        mixture_file.write(config, data, workdir)
    return data


@dataclasses.dataclass(frozen=True)
class _Logits:
    """What the trained model says of some text, to be compared with its export."""

    ids_BT: np.ndarray
    logits_BTV: np.ndarray


def _checked_logits(data: PreparedData, model: Transformer) -> _Logits | None:
    """Computes in all processes what the first will check; None: mlx-lm is absent."""
    if not processes.from_first(importlib.util.find_spec("mlx_lm") is not None):
        return None
    rows = [row.ids for rows in data.rendered.values() for row in rows[:8]]
    stream = np.concatenate(rows)
    num_rows = sharding.num_batch_shards(jax.sharding.get_mesh())
    # Every device gathers all logits: long rows for a few, short ones for a pod.
    length = min(64, max(8, 512 // num_rows))
    stream = np.resize(stream, num_rows * length)
    ids_BT = stream.reshape(num_rows, length).astype(np.int32)
    return _Logits(ids_BT, jax.device_get(_logits(model, ids_BT)))


def _export(workdir: pathlib.Path, logits: _Logits | None) -> float | None:
    """Exports in float32, opens the folder with mlx-lm, and returns the difference."""
    folder = workdir / "export"
    export_newest(workdir, folder, dtype="float32")
    if logits is None:
        print("not opened by mlx-lm: pip install 'ring_jax[parity]' for that check")
        return None
    difference = max_logit_difference_to_mlx(
        folder, lambda ids_BT: logits.logits_BTV, logits.ids_BT
    )
    print(f"opened by mlx-lm: max logit difference {difference:.1e}")
    return difference


@jax.jit
def _logits(model: Transformer, ids_BT: jax.Array) -> jax.Array:
    ids_BT = jax.reshard(ids_BT, sharding.activation("BT"))
    positions_BT = jnp.broadcast_to(
        jnp.arange(ids_BT.shape[1])[None],
        ids_BT.shape,
        out_sharding=sharding.activation("BT"),
    )
    hidden_BTD, _ = model(
        ids_BT, segments_BT=jnp.ones_like(ids_BT), positions_BT=positions_BT
    )
    return sharding.replicated(model.logits(hidden_BTD))
