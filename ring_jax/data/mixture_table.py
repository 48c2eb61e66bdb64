# SPDX-License-Identifier: Apache-2.0
"""The table of a mixture: what was asked of it, and what follows for each walk."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ring_jax.config import CurriculumConfig, ShareSchedule, from_config_dict
from ring_jax.data import packing
from ring_jax.data.walk import Place


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a person, or a guard, asks of the mixture."""

    start_step: int
    """Step of the stage at which it begins."""
    mixture: Mapping[str, float]
    """Source -> share of trained tokens; shares need not sum to 1."""
    schedule: ShareSchedule = "step"
    over_steps: int = 0
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    reason: str = ""
    origin: Literal["config", "run"] = "config"
    """Whether the config says it, or it was decided while the run went on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LaneStart:
    """Where the walk of a lane stands when an entry begins."""

    source: str
    first_band: int
    last_band: int
    began: int
    """Number of the entry with which the walk began, and in whose order it goes on."""
    rows: int
    trained: int
    packed: int

    @property
    def place(self) -> Place:
        """Returns where the walk stands."""
        return Place(self.rows, self.trained, self.packed)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the table."""

    change: Change
    start_window: int
    before: Mapping[str, float]
    """Share of each source at the moment of the change."""
    lanes: tuple[LaneStart, ...]
    over_tokens: int
    """Trained tokens that `over_steps` are expected to have."""
    paced_tokens: int
    """The same for the curriculum's steps."""
    fill: float

    def to_json(self) -> dict[str, Any]:
        """Writes the entry as plain values."""
        lanes = [dataclasses.asdict(lane) for lane in self.lanes]
        return {**dataclasses.asdict(self), "lanes": lanes}


def entry_from_json(tree: Mapping[str, Any]) -> Entry:
    """Reads what `Entry.to_json` wrote."""
    lanes = tuple(from_config_dict(LaneStart, lane, "lane") for lane in tree["lanes"])
    change = from_config_dict(Change, tree["change"], "change")
    return Entry(**{**tree, "change": change, "lanes": lanes})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What is packed: the shape of windows, and which tokens count as trained."""

    batch_size: int
    seq_len: int
    window_steps: int
    algorithm: packing.Algorithm
    fill: float | None
    trained_classes: tuple[bool, ...]
    seed: str
    """Of the orders of rows; names run and stage."""
    no_room: Literal["drop", "refuse"] = "drop"
    """What becomes of a row that finds no room for too long."""

    @property
    def num_bins(self) -> int:
        """Packed rows of a window."""
        return self.batch_size * self.window_steps


def normalized(shares: Mapping[str, float]) -> dict[str, float]:
    """Scales shares to a sum of 1."""
    total = sum(shares.values())
    # Rounded, so that machines whose last bits differ agree.
    return {name: round(share / total, 9) for name, share in shares.items()}
