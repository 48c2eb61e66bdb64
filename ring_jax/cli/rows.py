# SPDX-License-Identifier: Apache-2.0
"""Rows as the model will meet them: text by token class, and what each class weighs."""

import itertools
import operator
import pathlib

import rich.console
import rich.text

from ring_jax.cli.sample import prepare_sample
from ring_jax.config import TOKEN_CLASSES, ConfigError, RunConfig
from ring_jax.data import chat
from ring_jax.data.chat import Rendered
from ring_jax.data.schema import Row
from ring_jax.data.tokenizer import Tokenizer

STYLES = {
    "prompt": "dim",
    "think": "yellow",
    "answer": "green",
    "tool": "cyan",
    "stop": "bold magenta",
}


def print_rows(
    config: RunConfig,
    workdir: pathlib.Path | None,
    *,
    num_rows: int,
    console: rich.console.Console,
) -> None:
    """Prints the first training rows of each source, as tokenized for training.

    Args:
      config: of the run.
      workdir: a run folder, whose tokenizer is used if it has one.
      num_rows: how many of each source.
      console: where to.

    Raises:
      ConfigError: `num_rows` is below 1, or the data are refused.
    """
    if num_rows < 1:
        raise ConfigError(f"--data={num_rows} must be at least 1.")
    # A tokenizer trained here needs more text than what is shown.
    sample = prepare_sample(config, num_rows=max(num_rows, 64), workdir=workdir)
    console.print(_legend(config))
    for source in sample.sources.values():
        rows = source.train[:num_rows]
        rendered = chat.render_rows(
            rows, sample.tokenizer, template=config.data.template
        )
        for row, tokens in zip(rows, rendered, strict=True):
            # Soft: a pipe gets the lines of the text, not of a terminal's width.
            header = _description(row, num_tokens=len(tokens.ids))
            console.print(header, soft_wrap=True)
            text = _coloured(tokens, sample.tokenizer)
            console.print(text, soft_wrap=True, end="\n\n")


def _legend(config: RunConfig) -> rich.text.Text:
    legend = rich.text.Text("classes and their loss weights:")
    for name, weight in config.data.class_weights.items():
        legend.append(f"  {name} {weight:g}", STYLES[name])
    legend.append("\n")
    return legend


def _description(row: Row, *, num_tokens: int) -> rich.text.Text:
    parts = [row.source, row.domain, row.task, row.level, row.package, row.licence]
    if row.verifier:
        parts.append(f"{row.verifier} expects {row.answer!r}")
    parts.append(f"{num_tokens} tokens")
    return rich.text.Text(" | ".join(filter(None, parts)), "bold")


def _coloured(tokens: Rendered, tokenizer: Tokenizer) -> rich.text.Text:
    text = rich.text.Text()
    pairs = zip(tokens.classes.tolist(), tokens.ids.tolist(), strict=True)
    # Neighbours are decoded together: one character may be several byte-level tokens.
    for token_class, group in itertools.groupby(pairs, key=operator.itemgetter(0)):
        ids = [token_id for _, token_id in group]
        text.append(tokenizer.decode(ids), STYLES[TOKEN_CLASSES[token_class]])
    return text
