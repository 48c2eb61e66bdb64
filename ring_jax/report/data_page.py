# SPDX-License-Identifier: Apache-2.0
"""The page of `ring inspect --data`: rows coloured by class and weight, and shares."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ring_jax.config import TOKEN_CLASSES, ConfigError
from ring_jax.report.page_file import with_commas, write_page


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
    values = {
        "view": view,
        "classes": TOKEN_CLASSES[1:],
        "rows": {
            name: [row for row in view["rows"] if row["source"] == name]
            for name in view["sources"]
        },
        "losses": {
            name: source["tokens_left_out"] / max(1, source["tokens"])
            for name, source in view["sources"].items()
        },
    }
    filters = {"count": with_commas, "percent": _percent}
    return write_page("data.html.jinja", out, values, filters=filters)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
