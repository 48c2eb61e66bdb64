# SPDX-License-Identifier: Apache-2.0
"""The page of `ring inspect --data`: rows coloured by class and weight, and shares."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ring_jax.config import TOKEN_CLASSES, ConfigError


def write_data_page(view: Mapping[str, Any], out: Path) -> Path:
    """Writes what a run will train on as one HTML file.

    Args:
      view: the fields of `ring_jax.cli.data_view.DataView`, as plain values.
      out: the file to write.

    Returns:
      The file that was written.

    Raises:
      ConfigError: `out` is no place for a file.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--html={out} must name a file in a folder that exists.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
        # Rows are foreign text: all of it is escaped.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=_with_commas, percent=_percent)
    text = environment.get_template("data.html.jinja").render(
        view=view,
        classes=TOKEN_CLASSES[1:],
        rows={
            name: [row for row in view["rows"] if row["source"] == name]
            for name in view["sources"]
        },
        losses={
            name: source["tokens_left_out"] / max(1, source["tokens"])
            for name, source in view["sources"].items()
        },
    )
    unfinished = out.with_name(f".{out.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, out)
    return out


def _with_commas(count: int) -> str:
    return f"{count:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
