# SPDX-License-Identifier: Apache-2.0
"""What an evaluation keeps on the disk, the moment it is known, to go on from.

<workdir>/evaluation/<label>/
  settings.json     what each suite was begun with
  NAME.jsonl        a record for each item and sample; the last one of a pair counts
  scores.json       a summary of each suite
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from ring_jax.config import ConfigError, flatten_settings
from ring_jax.data.schema import row_to_json
from ring_jax.evaluate.items import AskedSuite
from ring_jax.evaluate.votes import Key

SETTINGS, SCORES = "settings.json", "scores.json"
LM_EVAL = "lm_eval.json"
"""What lm-eval reported of its tasks, in its own words."""


class Records:
    """The records of one suite."""

    def __init__(self, path: pathlib.Path):
        """Reads what is there; a line that a kill cut is left out.

        Raises:
          ConfigError: another line is no record.
        """
        self._path = path
        self.by_key: dict[Key, dict[str, Any]] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        whole = b""
        for number, line in enumerate(self._path.read_bytes().splitlines(True), 1):
            if not line.endswith(b"\n"):
                logging.warning("%s: line %d was cut, left out", self._path, number)
                break
            try:
                record = json.loads(line)
                self.by_key[record["id"], record["sample"]] = record
            except (ValueError, LookupError, TypeError) as error:
                raise ConfigError(
                    f"{self._path}: line {number} is no record ({error!r}); remove it, "
                    "and it is asked again."
                ) from None
            whole += line
        if len(whole) < self._path.stat().st_size:
            self._path.write_bytes(whole)

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record, which takes the place of an earlier one of its key."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
        with self._path.open("ab") as file:
            file.write(line + b"\n")
        self.by_key[record["id"], record["sample"]] = record


def begin(
    folder: pathlib.Path, suites: Mapping[str, AskedSuite], *, model: Mapping[str, Any]
) -> None:
    """Notes what suites are begun with; see `note`."""
    note(folder, {name: _beginning(suite, model) for name, suite in suites.items()})


def note(folder: pathlib.Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Notes what suites are begun with, or holds them against what they were.

    Raises:
      ConfigError: a suite was begun with other settings, items or another model; names
        each difference.
    """
    path = folder / SETTINGS
    known = read_json(path)
    for name, now in settings.items():
        before = known.setdefault(name, now)
        if differences := _differences(before, now):
            raise ConfigError(
                f"suite {name}: {folder} was begun with other settings: {differences}. "
                f"Give another --label, or remove {name}.jsonl and {name!r} in "
                f"{SETTINGS}."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, known)


def forget_others(
    folder: pathlib.Path, suites: Mapping[str, AskedSuite], *, model: Mapping[str, Any]
) -> None:
    """Removes what a training run makes untrue that goes back, or changes its suites.

    These are all suites of a model with another digest, and those of `suites` that were
    begun with other settings or items.
    """
    known = read_json(folder / SETTINGS)
    of_other = [
        name
        for name, before in known.items()
        if before["model"].get("digest") != model["digest"]
    ]
    if of_other:
        (folder / LM_EVAL).unlink(missing_ok=True)
    changed = [
        name
        for name in suites.keys() & known.keys()
        if _differences(known[name], _beginning(suites[name], model))
    ]
    untrue = sorted({*of_other, *changed})
    if not untrue:
        return
    logging.warning("%s: asked again: %s", folder, ", ".join(untrue))
    scores = read_json(folder / SCORES)
    for name in untrue:
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
        scores.get("suites", {}).pop(name, None)
        del known[name]
    if scores.get("suites"):
        write_json(folder / SCORES, scores)
    else:
        (folder / SCORES).unlink(missing_ok=True)
    write_json(folder / SETTINGS, known)


def _beginning(suite: AskedSuite, model: Mapping[str, Any]) -> dict[str, Any]:
    settings = dataclasses.asdict(suite.config)
    items = digest_of(map(row_to_json, suite.rows))
    return {"model": dict(model), **settings, "items": items}


def digest_of(lines: Iterable[str]) -> str:
    """Returns a hash of the items of a suite, a line each."""
    total = hashlib.blake2b(digest_size=16)
    for line in lines:
        total.update(line.encode("utf-8", "replace") + b"\n")
    return total.hexdigest()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = flatten_settings(before), flatten_settings(now)
    return "; ".join(
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads an object; an absent file is an empty one.

    Raises:
      ConfigError: the file holds no object.
    """
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no object; restore it.")
    return tree


def write_json(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes an object in one move: a reader never sees half of it."""
    draft = path.with_suffix(".unfinished")
    draft.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
