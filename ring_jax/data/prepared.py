# SPDX-License-Identifier: Apache-2.0
"""What a run reads, before its first step: rows, tokenizer, tokens, length indexes."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from ring_jax.config import ConfigError, RunConfig
from ring_jax.data import chat, length_index, sources
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import Rendered
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.sources import SourceRows
from ring_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedData:
    """What a run reads, checked and tokenized; sources in the order of the config."""

    tokenizer: Tokenizer
    sources: Mapping[str, SourceRows]
    rendered: Mapping[str, list[Rendered]]
    """Training rows that fit into a packed row."""
    origins: Mapping[str, np.ndarray]
    """i64[C], the training row that each of `rendered` was made of."""
    num_dropped: Mapping[str, int]
    """Training rows longer than `train.seq_len`, by source."""
    indexes: Mapping[str, LengthIndex]
    """Tokens of every row of `rendered` by class."""
    row_digests: Mapping[str, str]
    """Hash of the tokens and classes of every source's rows."""
    tokenizer_digest: str
    digest: str
    """Hash of everything that training reads: a resumed run must find the same."""

    def source_index(self, name: str) -> int:
        """Looks up the number that batches carry for a source."""
        return list(self.sources).index(name)


def read(config: RunConfig) -> PreparedData:
    """Reads all sources, gets the tokenizer, renders every training row, counts tokens.

    Raises:
      ConfigError: a source or row is bad, no row of a source fits, or the tokenizer
        does not suit the model.
    """
    opened = open_sources(config)
    tokenizer = _tokenizer(config, opened)
    _check_tokenizer(config, tokenizer)
    rendered, origins, num_dropped, indexes = {}, {}, {}, {}
    for name, source_rows in opened.items():
        rows = chat.render_rows(
            source_rows.train, tokenizer, template=config.data.template
        )
        fits = [len(row.ids) <= config.train.seq_len for row in rows]
        rendered[name] = list(itertools.compress(rows, fits))
        origins[name] = np.flatnonzero(fits)
        num_dropped[name] = len(rows) - len(rendered[name])
        _check_fitting(config, name, rendered[name], num_dropped=num_dropped[name])
        graded = (row.difficulty for row in itertools.compress(source_rows.train, fits))
        indexes[name] = length_index.build(
            zip(rendered[name], graded, strict=True), seq_len=config.train.seq_len
        )
    return PreparedData(
        tokenizer=tokenizer,
        sources=opened,
        rendered=rendered,
        origins=origins,
        num_dropped=num_dropped,
        indexes=indexes,
        row_digests={name: _digest({name: rows}) for name, rows in rendered.items()},
        tokenizer_digest=hashlib.blake2b(
            tokenizer.to_json().encode(), digest_size=8
        ).hexdigest(),
        digest=_digest(rendered),
    )


def save(data: PreparedData, workdir: str | os.PathLike[str]) -> None:
    """Writes what a run folder keeps: the tokenizer, and a length index per source.

    Raises:
      ConfigError: the folder has another tokenizer.
    """
    workdir = pathlib.Path(workdir)
    _save_tokenizer(data.tokenizer, workdir / "tokenizer" / "tokenizer.json")
    for name, index in data.indexes.items():
        index.save(length_index.folder_of(workdir, name, index.digest))


def open_sources(config: RunConfig) -> dict[str, SourceRows]:
    """Reads the training and held-out rows of every declared source."""
    return {
        name: sources.read(source, name=name, seed=config.seed)
        for name, source in config.data.sources.items()
    }


def _tokenizer(config: RunConfig, opened: Mapping[str, SourceRows]) -> Tokenizer:
    settings = config.data.tokenizer
    if settings.path is not None:
        return tokenizers.load(settings.path)
    # A row from each source in turn, so that a large one does not crowd out others.
    rows = itertools.chain.from_iterable(
        itertools.zip_longest(*(source_rows.train for source_rows in opened.values()))
    )
    chosen = itertools.islice(filter(None, rows), settings.num_training_rows)
    template = config.data.template
    texts = [text for row in chosen for text in chat.texts(row, template=template)]
    if config.data.cache_dir is None:
        return tokenizers.train(texts, vocab_size=settings.vocab_size)
    return tokenizers.train_cached(
        texts, vocab_size=settings.vocab_size, cache_dir=config.data.cache_dir
    )


def _check_tokenizer(config: RunConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"tokenizer: its {tokenizer.vocab_size} ids do not fit into "
            f"model.vocab_size={config.model.vocab_size}; raise that."
        )
    if tokenizer.eos_id != config.model.eos_id:
        raise ConfigError(
            f"model.eos_id={config.model.eos_id}, but <|endoftext|> is "
            f"{tokenizer.eos_id} in the tokenizer; set model.eos_id to it."
        )


def _check_fitting(
    config: RunConfig, name: str, fitting: list[Rendered], *, num_dropped: int
) -> None:
    if not fitting:
        raise ConfigError(
            f"data.sources.{name}: all {num_dropped} rows are longer than "
            f"train.seq_len={config.train.seq_len} tokens; raise it."
        )
    if num_dropped:
        logging.info(
            "source %s: dropped %d rows longer than %d tokens, kept %d",
            name,
            num_dropped,
            config.train.seq_len,
            len(fitting),
        )


def _save_tokenizer(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    if not path.is_file():
        tokenizer.save(path)
    elif path.read_text(encoding="utf-8") != tokenizer.to_json():
        raise ConfigError(
            f"tokenizer: {path} differs from the one that the config gives now; "
            "sources, seed or packages changed. Undo the change or use a new workdir."
        )


def _digest(rendered: Mapping[str, list[Rendered]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, rows in rendered.items():
        digest.update(f"{name}:{len(rows)}".encode())
        for row in rows:
            digest.update(row.ids.tobytes())
            digest.update(row.classes.tobytes())
    return digest.hexdigest()
