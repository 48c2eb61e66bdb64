# SPDX-License-Identifier: Apache-2.0
"""A user's own rows: one JSON object of the row schema per line."""

import collections
import pathlib

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import row_from_json
from ring_jax.data.sources.split import SourceRows, digest, prompt_of


def read_jsonl(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Reads `config.path`; the rows of some prompts are held out, whole.

    Which prompts are held out depends on their text alone, not on order or seed.

    Raises:
      ConfigError: the file is absent or holds no row, or a row is bad (named by file
        and line).
    """
    del seed  # nothing is drawn
    if not config.path or not pathlib.Path(config.path).is_file():
        raise ConfigError(
            f"data.sources.{name}.path={config.path!r} is not a file; give one of rows."
        )
    path = pathlib.Path(config.path)
    defaults = {
        "source": name,
        "domain": name,
        "licence": "NOASSERTION",
        "package": f"{path.name}==local",
    }
    by_prompt = collections.defaultdict(list)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path.name}:{number}"
            row = row_from_json(line, where=where, defaults=defaults)
            by_prompt[prompt_of(row)].append(row)
    if not by_prompt:
        raise ConfigError(f"data.sources.{name}.path={config.path!r} holds no row.")
    prompts = sorted(by_prompt, key=digest)
    is_heldout = set(prompts[: config.num_heldout])
    train = [r for p, rows in by_prompt.items() if p not in is_heldout for r in rows]
    heldout = [by_prompt[prompt][0] for prompt in prompts[: config.num_heldout]]
    return SourceRows(train[: config.num_rows], heldout)
