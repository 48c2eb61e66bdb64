# SPDX-License-Identifier: Apache-2.0
"""Writes a template of this package as one HTML file."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def write_page(
    template: str,
    out: Path,
    values: Mapping[str, Any],
    *,
    filters: Mapping[str, Callable[[Any], str]],
) -> Path:
    """Renders a page and puts it in its place in one move.

    Args:
      template: its name in the folder `template`.
      out: the file to write.
      values: by the names that the template uses.
      filters: how it writes numbers.

    Returns:
      The file that was written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
        # Prompts, outputs and rows are foreign text: all of it is escaped.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    text = environment.get_template(template).render(values)
    # A reader who has the page open never finds half of it.
    unfinished = out.with_name(f".{out.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, out)
    return out


def with_commas(count: int) -> str:
    """Returns a count as 1,234."""
    return f"{count:,}"
