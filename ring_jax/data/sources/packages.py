# SPDX-License-Identifier: Apache-2.0
"""Installed packages as data: version, licence and files, without importing them."""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import sys
from collections.abc import Sequence

from ring_jax.config import ConfigError

DATA_ONLY = pathlib.Path(sys.prefix, "data_only")
"""Packages that are never imported: one brings a folder `benchmarks`, as we do."""
EXTRA = "pip install 'ring-jax[data]'"
# What the extra cannot bring: its pins contradict ours, and only its files are read.
WITHOUT_DEPENDENCIES = {"bfcl-eval": "pip install --no-deps bfcl-eval"}


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """Where rows come from, in the names of `Row`'s fields."""

    package: str
    """`name==version`."""
    licence: str
    """SPDX identifier, from reading the package's own licence file or metadata."""


def installed(name: str, *, licence: str) -> Package:
    """Looks up an installed distribution.

    Raises:
      ConfigError: it is absent; names the extra that brings it.
    """
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        remedy = WITHOUT_DEPENDENCIES.get(name, EXTRA)
        raise ConfigError(f"data: package {name} is missing; run {remedy}.") from None
    return Package(f"{name}=={version}", licence)


def data_folder(module: str, *parts: str) -> pathlib.Path:
    """Finds a folder of files inside a top-level module, which is not imported.

    Raises:
      ConfigError: the module or the folder is absent.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"data: the module {module} is missing; run {EXTRA}.")
    folder = pathlib.Path(spec.submodule_search_locations[0], *parts)
    if not folder.is_dir():
        raise ConfigError(f"data: {module} has no {'/'.join(parts)}; run {EXTRA}.")
    return folder


def find_distribution(name: str) -> importlib.metadata.Distribution | None:
    """Finds a package among those installed, or among those that are data only."""
    places = [*sys.path, str(DATA_ONLY)]
    found = importlib.metadata.distributions(name=name, path=places)
    return next(iter(found), None)


def data_files(
    name: str, patterns: Sequence[str], *, version: str
) -> list[pathlib.Path]:
    """Finds files of a package by path or pattern, in the order of their names.

    Raises:
      ConfigError: the package is absent, or a pattern names none of its files.
    """
    remedy = f"pip install --no-deps --target {DATA_ONLY} {name}=={version}"
    if (distribution := find_distribution(name)) is None:
        raise ConfigError(
            f"data: package {name} is missing; run launch/setup.sh, or {remedy}."
        )
    root, paths = pathlib.Path(str(distribution.locate_file(""))), []
    for pattern in patterns:
        if not (found := sorted(root.glob(pattern))):
            raise ConfigError(
                f"data: {name} {distribution.version} has no {pattern}; run {remedy}."
            )
        paths += found
    return paths
