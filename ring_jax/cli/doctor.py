# SPDX-License-Identifier: Apache-2.0
"""`ring doctor`: everything that can stop a run, checked before it starts."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Iterator

import jax
import rich.box
import rich.table
import rich.text
from packaging.requirements import Requirement

from ring_jax import sharding
from ring_jax.cli import status
from ring_jax.cli.console import Console
from ring_jax.cli.devices import use_devices
from ring_jax.cli.initial_model import check_initial_model
from ring_jax.cli.sample import prepare_sample
from ring_jax.cli.settings import load_run_config
from ring_jax.config import ConfigError, RunConfig, SourceConfig
from ring_jax.data import sources, template_report
from ring_jax.model.flops import count_parameters
from ring_jax.train import check_run

SUMMARY = "checks versions, devices, disk, config, tokenizer and data; names each fix"

BYTES_WITHOUT_CONFIG = 10**9
"""What the laptop run takes, checkpoints, export and report together."""


ROWS_PER_SOURCE = 64
"""Read of each source; enough that some are short enough to be trained."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    fix: str = ""
    """What to do; empty when nothing is wrong."""
    failure: int = status.MISTAKE
    """The exit status when something is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: `--config` and `--workdir` say what is checked."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Prints the table; the status is that of the first failure."""
    checks = [*_check_versions(), *_check_run(args)]
    failures = [check for check in checks if check.fix]
    code = failures[0].failure if failures else status.DONE
    _print(checks)
    if args.json:
        table = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"status": code, "checks": table}))
    return code


def _check_versions() -> Iterator[Check]:
    yield Check("python", f"{platform.python_version()} (needs >=3.12)")
    try:
        lines = importlib.metadata.requires("ring_jax") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("ring_jax", "not installed", "run launch/setup.sh")
        return
    missing: dict[str, list[str]] = {}
    for requirement in map(Requirement, lines):
        extra = _extra(requirement)
        problem, found = _compare(requirement)
        if extra in ("gpu", "tpu"):
            continue  # the row of devices shows what jax found
        if extra is None:
            fix = "run launch/setup.sh" if problem else ""
            yield Check(requirement.name, found, fix)
        elif problem:
            missing.setdefault(extra, []).append(requirement.name)
        else:
            missing.setdefault(extra, [])
    for extra, names in missing.items():
        found = (
            f"lacks {', '.join(names)}: launch/setup.sh {extra}" if names else "whole"
        )
        yield Check(f"[{extra}]", found)


def _extra(requirement: Requirement) -> str | None:
    """Returns the extra that asks for a requirement; None for the core."""
    if requirement.marker is None:
        return None
    return str(requirement.marker).rpartition("extra == ")[2].strip('"') or None


def _compare(requirement: Requirement) -> tuple[bool, str]:
    """Returns whether something is wrong, and what is installed."""
    wanted = str(requirement.specifier)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return True, f"absent (needs {wanted})"
    return version not in requirement.specifier, f"{version} (needs {wanted})"


def _check_run(args: argparse.Namespace) -> Iterator[Check]:
    if args.config is None and args.workdir is None:
        yield _check_devices()
        yield _check_disk(pathlib.Path.cwd(), BYTES_WITHOUT_CONFIG)
        yield Check("config", "not given: add --config=FILE.py to check a run")
        return
    try:
        config = load_run_config(args)
    except ConfigError as error:
        yield _check_devices()
        yield Check("config", "refused", str(error))
        return
    use_devices(config)
    yield _check_devices()
    yield _check_disk(args.workdir or pathlib.Path.cwd(), _bytes_of_run(config))
    yield Check("config", f"{len(config.stages)} stages: {', '.join(config.stages)}")
    yield _check_mesh(config, args.workdir)
    if config.init_from is not None:
        yield _check_initial_model(config)
    checks = [
        _check_source(name, source, config.seed)
        for name, source in config.data.sources.items()
    ]
    yield from checks
    if not any(check.fix for check in checks):
        yield _check_tokens(config, args.workdir)


def _check_devices() -> Check:
    devices = jax.devices()
    cores = f", {os.cpu_count()} cores" if devices[0].platform == "cpu" else ""
    return Check("devices", f"{len(devices)} x {devices[0].device_kind}{cores}")


def _bytes_of_run(config: RunConfig) -> int:
    """Returns the bytes of checkpoints (weights and two moments) and of one export."""
    total = 4 * count_parameters(config.model).total
    # One more than is kept: the oldest goes only after the newest is committed.
    return total * (3 * (config.train.keep_checkpoints + 1) + 1)


def _check_disk(folder: pathlib.Path, needed: int) -> Check:
    existing = next(
        path for path in [folder, *folder.absolute().parents] if path.exists()
    )
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.1f} GB free at {existing}, {needed / 1e9:.1f} GB needed"
    fix = ""
    if not os.access(existing, os.W_OK):
        fix = f"{existing} cannot be written to; choose another --workdir"
    elif free < needed:
        fix = "make room, or choose a --workdir on another disk"
    return Check("disk", found, fix, status.ENVIRONMENT)


def _check_mesh(config: RunConfig, workdir: pathlib.Path | None) -> Check:
    try:
        mesh = sharding.make_mesh(config.mesh)
        with tempfile.TemporaryDirectory() as empty:
            check_run(config, workdir or pathlib.Path(empty), mesh)
    except ConfigError as error:
        return Check("mesh", "does not fit", str(error))
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return Check("mesh", shape)


def _check_initial_model(config: RunConfig) -> Check:
    try:
        check_initial_model(config)
    except ConfigError as error:
        return Check("init_from", "refused", str(error))
    return Check("init_from", str(config.init_from))


def _check_source(name: str, source: SourceConfig, seed: int) -> Check:
    sample = dataclasses.replace(
        source,
        num_rows=min(source.num_rows, ROWS_PER_SOURCE),
        num_heldout=min(source.num_heldout, 1),
    )
    try:
        row = sources.read(sample, name=name, seed=seed).train[0]
    except ConfigError as error:
        return Check(f"source {name}", source.kind, str(error))
    return Check(f"source {name}", f"{source.kind} from {row.package} ({row.licence})")


def _check_tokens(config: RunConfig, workdir: pathlib.Path | None) -> Check:
    """Tokenizes a few rows as training will: chat tokens, ids, end token, weights."""
    wanted = config.data.tokenizer
    try:
        sample = prepare_sample(config, num_rows=ROWS_PER_SOURCE, workdir=workdir)
    except ConfigError as error:
        return Check("tokenizer", wanted.path or "trained here", str(error))
    template = template_report(config.data, sample.tokenizer).summary()
    size, room = sample.tokenizer.vocab_size, config.model.vocab_size
    found = f"ids below {size}, end of turn is {sample.tokenizer.eos_id}"
    if wanted.path is None:
        # Trained on all rows it may use all the entries that it is given.
        size, found = wanted.vocab_size, f"trained here, {wanted.vocab_size} entries"
    found += f"; chat template: {template}"
    fix = f"set config.model.vocab_size={room} to {size} or more" if size > room else ""
    return Check("tokenizer", found, fix)


def _print(checks: list[Check]) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for header in ("", "check", "found"):
        table.add_column(header, overflow="fold")
    for check in checks:
        mark, style = ("FAIL", "bold red") if check.fix else ("ok", "green")
        found = rich.text.Text(check.found)
        if check.fix:
            found.append(f"\nfix: {check.fix}", style="bold")
        table.add_row(rich.text.Text(mark, style), rich.text.Text(check.name), found)
    Console().print(table)
