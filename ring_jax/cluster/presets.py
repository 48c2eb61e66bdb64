# SPDX-License-Identifier: Apache-2.0
"""Named sets of compiler flags, one per chip generation, from `xla_flags.json`."""

import dataclasses
import json
import pathlib

from ring_jax.cluster.accelerators import UnknownNameError

FLAGS_FILE = pathlib.Path(__file__).with_name("xla_flags.json")


@dataclasses.dataclass(frozen=True)
class Preset:
    """The flags of one chip generation."""

    name: str
    variable: str
    """The environment variable that carries them."""
    flags: tuple[str, ...]
    """Each as `--name=value`."""


def preset_names() -> list[str]:
    """Returns the names of the presets, in the file's order."""
    return list(_contents()["presets"])


def find_preset(name: str) -> Preset:
    """Returns the preset of a name.

    Raises:
      UnknownNameError: the file has no such preset.
    """
    presets = _contents()["presets"]
    if name not in presets:
        raise UnknownNameError(
            f"--preset={name} is not in {FLAGS_FILE.name}; it has {', '.join(presets)}."
        )
    found = presets[name]
    flags = tuple(f"--{flag['name']}={flag['value']}" for flag in found["flags"])
    return Preset(name, variable=found["variable"], flags=flags)


def _contents() -> dict:
    return json.loads(FLAGS_FILE.read_text("utf-8"))
