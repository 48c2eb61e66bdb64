# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, and the folder that one command owns."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from ring_jax.config import ConfigError, flatten_settings

WORK = ".work"
"""Folder inside the output folder, until all is written: the lock, unfinished parts."""
PLAN = "plan.json"


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file under another name, to disk, and renames it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an empty folder that takes the name `path` when the block ends well."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    os.replace(unfinished, path)


@contextlib.contextmanager
def own_folder(folder: pathlib.Path, *, kind: str) -> Iterator[pathlib.Path]:
    """Makes the output folder, keeps others out while the block runs.

    Args:
      folder: to write to.
      kind: what it holds, for messages, such as "curation".

    Raises:
      ConfigError: another command is at work there, it is a file, or it holds other
        things than its kind.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the shards.")
    others = sorted(file.name for file in folder.glob("[!.]*"))
    if others and PLAN not in others:
        raise ConfigError(
            f"{folder} holds {others[0]!r} and is no {kind}; name an empty folder."
        )
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is in use by another {kind}; wait, or name another folder."
            ) from None
        yield work


def agree_on_plan(folder: pathlib.Path, plan: Mapping[str, Any]) -> None:
    """Writes what is made from what, or compares it with what was begun.

    Raises:
      ConfigError: the folder belongs to other settings or other files; names one.
    """
    path = folder / PLAN
    if not path.exists():
        write_whole(path, json.dumps(plan, indent=2) + "\n")
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it.") from None
    before, now = (
        flatten_settings(begun),
        flatten_settings(json.loads(json.dumps(plan))),
    )
    changed = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"{folder} was begun with {name}={before.get(name)!r}, now it is "
            f"{now.get(name)!r} ({len(changed)} differ); name another folder, or "
            "delete this one."
        )
