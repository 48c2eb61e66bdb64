# SPDX-License-Identifier: Apache-2.0
"""A run's checkpoints: saved while training goes on, verified when they are read.

A step `N/` holds two parts: `state` (every array by its path, in Orbax's format) and
`record` (JSON: shapes, digests, the model's settings, where the data stands). A step
appears by one rename, so a killed process leaves whole steps and a temporary folder.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

from ring_jax import processes
from ring_jax.checkpoint.digests import digests
from ring_jax.checkpoint.tree import flatten, layout, unflatten
from ring_jax.config import ConfigError, ModelConfig, model_identity

_ADVICE = "Use the settings that wrote it, or another workdir."

# What Orbax 0.12.8 raises on damaged files; each file was damaged in four ways.
_DAMAGE = (ValueError, LookupError, OSError, TypeError)

# What it raises when a save in the background has failed.
_FAILURES = (OSError, ValueError, RuntimeError)


class StorageError(OSError):
    """The disk or its permissions failed; committed checkpoints are intact."""

    # The command line tells such failures from mistakes and bugs by this number.
    errno = errno.EIO


class Restored[T](NamedTuple):
    """What a checkpoint holds."""

    state: T
    data_state: dict[str, Any]
    meta: dict[str, Any]


class Store:
    """Writes and reads the checkpoints of one run; the only writer of their folder.

    With several processes each has a store of the one folder, which all see, and
    all call its methods in one order.
    """

    def __init__(
        self, directory: str | Path, *, keep: int, model: ModelConfig | None = None
    ):
        """Opens the folder, creates it if need be, and clears what a kill left behind.

        Args:
          directory: the run's `checkpoints/`.
          keep: how many of the newest steps stay on disk, at least 1.
          model: written into every step and compared on restore; None skips both.

        Raises:
          StorageError: when the folder cannot be made or written to.
        """
        assert keep >= 1, f"keep={keep} would delete the only checkpoint"
        self._directory = Path(directory).absolute()
        self._model = None if model is None else dataclasses.asdict(model)
        _probe(self._directory, num_bytes=0)
        self._clear_leftovers()
        # Orbax's policies and the class that takes them disagree on an annotation.
        policies: Any = ocp.training
        self._orbax = ocp.training.Checkpointer(
            str(self._directory),
            context=_context(),
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(keep),
        )

    def latest(self) -> int | None:
        """Returns the newest committed step, or None where there is none."""
        newest = processes.from_first(max(_steps(self._directory), default=-1))
        return None if newest < 0 else newest

    def save(
        self,
        step: int,
        state: Any,
        data_state: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> None:
        """Copies the state to the host and writes it in the background.

        A step that is already committed stays as it is. The state's buffers may be
        donated as soon as this returns.

        Args:
          step: number of finished optimizer steps.
          state: a pytree of arrays; PRNG keys as their uint32 data.
          data_state: where the data pipeline stands, JSON.
          meta: what else a resumed run must know, JSON.

        Raises:
          StorageError: when the disk has no room, or the save before this one failed.
        """
        self.wait()
        if processes.from_first(step in _steps(self._directory)):
            return
        arrays = flatten(state)
        _probe(self._directory, num_bytes=sum(x.nbytes for x in arrays.values()))
        record = {
            "step": step,
            "arrays": _describe(arrays, digests(arrays)),
            "model": self._model,
            "data_state": dict(data_state),
            "meta": dict(meta),
        }
        with self._reporting(OSError):
            self._orbax.save_checkpointables_async(
                step, {"state": arrays, "record": _seal(record)}, force=True
            )

    def wait(self) -> None:
        """Waits until what was saved is committed.

        Raises:
          StorageError: when the save has failed; earlier steps are intact.
        """
        with self._reporting(*_FAILURES):
            self._orbax.wait()

    def restore[T](self, abstract_state: T) -> Restored[T]:
        """Reads the newest step that verifies, and moves damaged ones to `N.corrupt`.

        Args:
          abstract_state: the state's tree with a `jax.ShapeDtypeStruct` per leaf. Its
            sharding says where the array goes and need not be that of the save; one
            that names no devices is placed on the mesh in force.

        Raises:
          ConfigError: when the step was written by another model, or there is none.
          StorageError: when no step verifies; then nothing is moved.
        """
        self.wait()
        abstract = flatten(abstract_state)

        def select(record: Mapping[str, Any]) -> Mapping[str, Any]:
            _refuse_other_model(record, self._model)
            _refuse_extra_arrays(record, abstract)
            return abstract

        good = _newest_good(self._directory, select, readers=None)
        for step in good.damaged:
            self._set_aside(step)
        return Restored(
            unflatten(abstract_state, good.arrays),
            good.record["data_state"],
            good.record["meta"],
        )

    def close(self) -> None:
        """Waits for the last save and frees the threads.

        Raises:
          StorageError: when the last save has failed.
        """
        with self._reporting(*_FAILURES):
            self._orbax.close()

    @contextlib.contextmanager
    def _reporting(self, *failures: type[Exception]) -> Iterator[None]:
        """Turns the writer's errors into one, and removes half-written steps."""
        try:
            yield
        except failures as error:
            self._clear_leftovers()
            raise StorageError(
                f"{self._directory}: the checkpoint could not be written "
                f"({_first_words(error)}). Earlier ones are intact; make room, then "
                "run the same command again."
            ) from error

    def _clear_leftovers(self) -> None:
        # Orbax's own option does this in the background, after the constructor.
        if processes.is_first():
            for leftover in self._directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        if processes.is_first():
            source = self._directory / str(step)
            target, number = source.with_suffix(".corrupt"), 1
            while target.exists():
                target, number = source.with_suffix(f".corrupt-{number}"), number + 1
            source.rename(target)
            absl_logging.warning(
                "checkpoint %d is damaged, moved to %s", step, target.name
            )
        processes.meet(f"set aside {step}")
        self._orbax.reload()


def read_newest(
    directory: str | Path, select: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads some arrays of the newest step that verifies, changing nothing on disk.

    For readers beside a live run, such as `ring export`, and of a part of the state.
    One of several processes may call it alone.

    Args:
      directory: a run's `checkpoints/`.
      select: a step's record (`step`, `model`, `data_state`, `meta`) -> the arrays to
        read: path -> `jax.ShapeDtypeStruct`.

    Returns:
      The step's record, and path -> array.

    Raises:
      ConfigError: when there is no checkpoint, or it lacks one of the arrays.
      StorageError: when no step verifies.
    """
    alone = frozenset({jax.process_index()})
    readers = alone if jax.process_count() > 1 else None
    good = _newest_good(Path(directory).absolute(), select, readers=readers)
    return good.record, good.arrays


def check_model(directory: str | Path, model: ModelConfig) -> None:
    """Refuses a folder whose newest checkpoint another model wrote; changes nothing.

    Raises:
      ConfigError: the models differ.
      StorageError: there are steps, and none verifies.
    """

    def select(record: Mapping[str, Any]) -> Mapping[str, Any]:
        _refuse_other_model(record, dataclasses.asdict(model))
        return {}

    if _steps(directory):
        read_newest(directory, select)


class _Good(NamedTuple):
    record: dict[str, Any]
    arrays: dict[str, Any]
    damaged: list[int]


def _newest_good(
    directory: Path,
    select: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    readers: frozenset[int] | None,
) -> _Good:
    """Reads the newest step that verifies.

    Args:
      directory: a run's `checkpoints/`.
      select: a step's record -> the arrays to read.
      readers: the processes that read together; None means all of the run's.
    """
    reasons: dict[int, str] = {}
    for step in reversed(_steps(directory)):
        found = _read_step(directory / str(step), select, readers)
        is_damaged = isinstance(found, str)
        if readers is None:
            # Digests are collective: none may begin unless all have read their part.
            is_damaged = processes.any_has(is_damaged)
        if isinstance(found, str):
            reasons[step] = found
        elif is_damaged:
            reasons[step] = "another process could not read it"
        elif wrong := _wrong_digest(*found):
            reasons[step] = wrong
        else:
            return _Good(*found, list(reasons))
    if not reasons:
        raise ConfigError(f"{directory}: no checkpoint here; train or import first.")
    damages = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
    raise StorageError(
        f"{directory}: no checkpoint verifies ({damages}). Bring one back from a copy, "
        "or delete the folder to start over."
    )


def _read_step(
    path: Path,
    select: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    readers: frozenset[int] | None,
) -> tuple[dict[str, Any], dict[str, Any]] | str:
    """Returns a step's record and arrays, or what is damaged."""
    try:
        record = _unseal(_load(path, {"record": None}, readers)["record"])
        abstract = select(record)
        _refuse_other_arrays(record, abstract)
        return record, _read_arrays(path, record, abstract, readers)
    except ConfigError:
        # The step is whole, and another model's.
        raise
    except _DAMAGE as error:
        return _first_words(error)


def _steps(directory: str | Path) -> list[int]:
    # Unfinished steps have a suffix, and so have those set aside.
    names = [path.name for path in Path(directory).glob("[0-9]*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def _read_arrays(
    path: Path,
    record: Mapping[str, Any],
    abstract: Mapping[str, Any],
    readers: frozenset[int] | None,
) -> dict[str, Any]:
    wanted = {key: ocp.PLACEHOLDER for key in record["arrays"]}
    wanted |= {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout(leaf))
        for key, leaf in abstract.items()
    }
    loaded = _load(path, {"state": wanted}, readers)["state"]
    return {key: loaded[key] for key in abstract}


def _wrong_digest(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    for key, digest in digests(arrays).items():
        if digest != record["arrays"][key]["digest"]:
            return f"`{key}` is not what was saved (its digest differs)"
    return ""


def _refuse_other_model(
    record: Mapping[str, Any], model: Mapping[str, Any] | None
) -> None:
    if model is None or record["model"] is None:
        return
    theirs, ours = model_identity(record["model"]), model_identity(model)
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise ConfigError(
                f"checkpoint: step {record['step']} has model.{name}="
                f"{theirs.get(name)}; this run has {ours.get(name)}. {_ADVICE}"
            )


def _refuse_extra_arrays(
    record: Mapping[str, Any], abstract: Mapping[str, Any]
) -> None:
    if extra := sorted(set(record["arrays"]) - set(abstract)):
        raise ConfigError(
            f"checkpoint: step {record['step']} has `{extra[0]}`, which this run lacks "
            f"({len(extra)} such arrays). {_ADVICE}"
        )


def _refuse_other_arrays(
    record: Mapping[str, Any], abstract: Mapping[str, Any]
) -> None:
    prefix = f"checkpoint: step {record['step']}"
    for path, leaf in abstract.items():
        stored = record["arrays"].get(path)
        if stored is None:
            raise ConfigError(f"{prefix} has no `{path}`. {_ADVICE}")
        there = _type(stored["dtype"], stored["shape"])
        here = _type(leaf.dtype, leaf.shape)
        if here != there:
            raise ConfigError(
                f"{prefix} has `{path}` as {there}; this run has {here}. {_ADVICE}"
            )


def _describe(arrays: Mapping[str, Any], digest: Mapping[str, str]) -> dict[str, Any]:
    return {
        path: {"dtype": x.dtype.name, "shape": list(x.shape), "digest": digest[path]}
        for path, x in arrays.items()
    }


def _type(dtype: Any, shape: Any) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _seal(record: dict[str, Any]) -> dict[str, Any]:
    # What JSON makes of the record, such as lists of tuples, is what will be read back.
    record = json.loads(json.dumps(record))
    return {"sha256": _sha256(record), "record": record}


def _unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    if sealed["sha256"] != _sha256(sealed["record"]):
        raise ValueError("its record is not what was saved (its digest differs)")
    return sealed["record"]


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="record")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _load(
    path: Path, abstract: dict[str, Any], readers: frozenset[int] | None
) -> dict[str, Any]:
    context = _context()
    if readers is not None:
        context.multiprocessing.active_processes = set(readers)
        context.multiprocessing.primary_host = min(readers)
    with context, _quiet():
        try:
            return ocp.load_checkpointables(str(path), abstract)
        except Exception as error:
            # Orbax reports an unreadable chunk with the bare class, which nothing else
            # here raises.
            if type(error) is not Exception:
                raise
            raise ValueError(str(error)) from error


def _first_words(error: Exception) -> str:
    # tensorstore appends its whole specification to the line.
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's own stack traces: what is wrong is said once, in one line."""
    loggers = [absl_logging.get_absl_logger(), logging.getLogger("asyncio")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _probe(directory: Path, *, num_bytes: int) -> None:
    """Checks that the folder takes a file and has room.

    Orbax 0.12.8 waits many minutes for a folder that it could not create.

    Raises:
      StorageError: naming the folder and what is wrong with it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        num_free = shutil.disk_usage(directory).free
    except OSError as error:
        raise StorageError(
            f"{directory}: cannot be written to ({error.strerror}). Make room or "
            "choose another workdir, then run the same command again."
        ) from error
    if num_free < num_bytes:
        raise StorageError(
            f"{directory}: a checkpoint takes {num_bytes / 1e6:,.0f} MB and the disk "
            f"has {num_free / 1e6:,.0f} MB left. Make room, then run the same command "
            "again."
        )
