# SPDX-License-Identifier: Apache-2.0
"""`mixture.json` in a run folder: each stage's table of changes, and of which data.

Whoever reads the folder (a person, `ring inspect`, a script) finds there what the run
follows, with what was decided on its way. The run itself goes on from its checkpoint.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from ring_jax.config import ConfigError, RunConfig
from ring_jax.data import length_index
from ring_jax.data.ledger import Ledger
from ring_jax.data.mixture_table import entry_from_json
from ring_jax.data.prepared import PreparedData
from ring_jax.data.stage_ledger import continued, open_ledger, stage_identity

FILE = "mixture.json"


def write(
    config: RunConfig, prepared: PreparedData, workdir: str | os.PathLike[str]
) -> None:
    """Writes the tables of all stages, when a run begins or goes on.

    What was decided while the run went on stays, as long as the data and the changes
    of the config are those of that time.
    """
    before = _read(pathlib.Path(workdir))
    stages = []
    for name, stage in config.stages.items():
        opened = open_ledger(config, prepared.indexes, stage=name)
        fields = {
            "stage": name,
            "num_steps": stage.num_steps,
            "window_steps": opened.geometry.window_steps,
            "identity": stage_identity(config, prepared, stage=name),
        }
        table = [entry.to_json() for entry in opened.table]
        if _is_same(before.get(name, {}), fields, table):
            table = before[name]["table"]
        stages.append(fields | {"table": table})
    _write(pathlib.Path(workdir), stages)


def record(opened: Ledger, workdir: str | os.PathLike[str], *, stage: str) -> None:
    """Puts the table that a stage follows from now on into the file.

    A run does not end because somebody took the file away: then it is told, and the
    next start writes it again.
    """
    try:
        stages = _read(pathlib.Path(workdir))
    except ConfigError as error:
        logging.warning("the mixture of stage %s is not recorded: %s", stage, error)
        return
    if stage not in stages:
        logging.warning(
            "the mixture of stage %s is not recorded: %s does not tell of it",
            stage,
            pathlib.Path(workdir, FILE),
        )
        return
    table = [entry.to_json() for entry in opened.table]
    if stages[stage]["table"] != json.loads(json.dumps(table)):
        stages[stage]["table"] = table
        _write(pathlib.Path(workdir), list(stages.values()))


def saved_ledger(
    config: RunConfig, workdir: str | os.PathLike[str], *, stage: str
) -> Ledger | None:
    """Opens the ledger of a stage from what a run folder keeps, reading no row.

    Returns:
      The ledger with the changes that `mixture.json` and the config tell; None where
      the folder has no such file, or it tells of other sources.
    """
    saved = _read(pathlib.Path(workdir)).get(stage)
    if saved is None:
        return None
    folders = {
        name: length_index.folder_of(
            workdir, name, str(saved["identity"].get(f"sources.{name}.lengths"))
        )
        for name in config.data.sources
    }
    if not all(folder.is_dir() for folder in folders.values()):
        return None
    indexes = {name: length_index.load(folder) for name, folder in folders.items()}
    table = [entry_from_json(entry) for entry in saved["table"]]
    return continued(open_ledger(config, indexes, stage=stage), table, position=0)


def _is_same(
    before: Mapping[str, Any], fields: Mapping[str, Any], table: list[dict[str, Any]]
) -> bool:
    from_config = [
        entry
        for entry in before.get("table", ())
        if entry["change"]["origin"] == "config"
    ]
    changes = [entry["change"] for entry in from_config]
    now = json.loads(json.dumps([entry["change"] for entry in table]))
    return before.get("identity") == fields["identity"] and changes == now


def _read(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    path = workdir / FILE
    if not path.is_file():
        return {}
    try:
        return {saved["stage"]: saved for saved in json.loads(path.read_text("utf-8"))}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"mixture: {path} cannot be read ({error!r}); delete it, and the same "
            "command writes it again."
        ) from None


def _write(workdir: pathlib.Path, stages: list[dict[str, Any]]) -> None:
    part = workdir / f".{FILE}.part"
    part.write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    part.replace(workdir / FILE)
