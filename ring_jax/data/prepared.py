# SPDX-License-Identifier: Apache-2.0
"""What a run reads, before its first step: rows, tokenizer, tokens, length indexes."""

import array
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ring_jax.config import ConfigError, RunConfig
from ring_jax.data import chat, length_index, sources
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import Rendered
from ring_jax.data.evaluation_sets import is_evaluation_set
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.long_rows import LengthPolicy, LengthReport
from ring_jax.data.rendered_rows import RenderedRows, render_in_turn
from ring_jax.data.schema import row_to_json
from ring_jax.data.sources import SourceRows
from ring_jax.data.sources.record_files import SUFFIX, write_records
from ring_jax.data.sources.split import prompt_of
from ring_jax.data.spooled_rows import SpooledRows
from ring_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedData:
    """What a run reads, checked and tokenized; sources in the order of the config."""

    tokenizer: Tokenizer
    sources: Mapping[str, SourceRows]
    rendered: Mapping[str, Sequence[Rendered]]
    """Training rows, and parts of them, that fit into a packed row."""
    origins: Mapping[str, np.ndarray]
    """i64[C], the training row that each of `rendered` was made of, ascending."""
    lengths: Mapping[str, LengthReport]
    """What became of rows longer than `train.seq_len`, by source."""
    indexes: Mapping[str, LengthIndex]
    """Tokens of every row of `rendered` by class."""
    row_digests: Mapping[str, str]
    """Hash of what every source's rows are, or follow from."""
    tokenizer_digest: str
    digest: str
    """Hash of everything that training reads: a resumed run must find the same."""

    def source_index(self, name: str) -> int:
        """Looks up the number that batches carry for a source."""
        return list(self.sources).index(name)


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """One source, tokenized."""

    rendered: Sequence[Rendered]
    origins: np.ndarray
    lengths: LengthReport
    index: LengthIndex
    digest: str


def read(
    config: RunConfig,
    workdir: str | os.PathLike[str] | None = None,
    *,
    spool_near: pathlib.Path | None = None,
) -> PreparedData:
    """Reads all sources, gets the tokenizer, renders every training row, counts tokens.

    Args:
      config: of the run.
      workdir: a run folder; what it, or the folder of packed rows, keeps of rows that
        lie in files is used as long as the files, the tokenizer and the settings are
        the same.
      spool_near: where all rows are wanted soon, a path on the disk that may hold the
        tokens of rows in files; None renders these again when they are asked for.

    Raises:
      ConfigError: a source or row is bad, no row of a source fits, or the tokenizer
        does not suit the model.
    """
    opened = open_sources(config)
    tokenizer = _tokenizer(config, opened)
    _check_tokenizer(config, tokenizer)
    digest = _hash(tokenizer.to_json())
    read_: dict[str, _Source] = {}
    for name, rows in opened.items():
        if rows.digest:
            key = _key(config, rows, name=name, tokenizer_digest=digest)
            kept = _kept((workdir, config.data.packed), name, key)
            read_[name] = (
                _from_files(config, rows, tokenizer, key, kept=kept)
                if kept is not None
                else _counted(config, rows, tokenizer, key, spool_near=spool_near)
            )
        else:
            read_[name] = _in_memory(config, rows, tokenizer)
        _check_fitting(config, name, read_[name].index)
    row_digests = {name: source.digest for name, source in read_.items()}
    return PreparedData(
        tokenizer=tokenizer,
        sources=opened,
        rendered={name: source.rendered for name, source in read_.items()},
        origins={name: source.origins for name, source in read_.items()},
        lengths={name: source.lengths for name, source in read_.items()},
        indexes={name: source.index for name, source in read_.items()},
        row_digests=row_digests,
        tokenizer_digest=digest,
        digest=_hash(json.dumps(row_digests)),
    )


def save(data: PreparedData, workdir: str | os.PathLike[str]) -> None:
    """Writes what a run folder keeps: tokenizer, length indexes, rows for a longer run.

    Raises:
      ConfigError: the folder has another tokenizer.
    """
    workdir = pathlib.Path(workdir)
    _save_tokenizer(data.tokenizer, workdir / "tokenizer" / "tokenizer.json")
    for name, index in data.indexes.items():
        index.save(length_index.folder_of(workdir, name, index.digest))
        if data.lengths[name].rows_moved:
            _move(workdir, name, data)
        if data.sources[name].digest:
            _keep(workdir, name, data)


def longer_path(workdir: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns where a run folder keeps rows of a source for a longer run."""
    return pathlib.Path(workdir) / "longer" / f"{name}{SUFFIX}"


def open_sources(config: RunConfig) -> dict[str, SourceRows]:
    """Reads the training and held-out rows of every declared source.

    Raises:
      ConfigError: as a source's reader does, or a source is an evaluation set.
    """
    for name, source in config.data.sources.items():
        if is_evaluation_set(source.kind):
            raise ConfigError(
                f"data.sources.{name}.kind={source.kind!r} is an evaluation set and is "
                "never trained on; leave it out."
            )
    return {
        name: sources.read(source, name=name, seed=config.seed)
        for name, source in config.data.sources.items()
    }


def _in_memory(config: RunConfig, rows: SourceRows, tokenizer: Tokenizer) -> _Source:
    policy = _policy(config, tokenizer)
    every = render_in_turn(rows.train, tokenizer, template=config.data.template)
    rendered, origins, difficulties, report = [], [], [], LengthReport()
    for number, (row, tokens) in enumerate(every):
        parts, report = policy.fit_counted(tokens, report)
        rendered += parts
        origins += [number] * len(parts)
        difficulties += [row.difficulty] * len(parts)
    index = length_index.build(
        zip(rendered, difficulties, strict=True), seq_len=config.train.seq_len
    )
    digest = _digest_of_tokens(rendered)
    return _Source(rendered, np.asarray(origins, np.int64), report, index, digest)


def _from_files(
    config: RunConfig,
    rows: SourceRows,
    tokenizer: Tokenizer,
    key: str,
    *,
    kept: tuple[np.ndarray, LengthReport, LengthIndex],
) -> _Source:
    """Takes rows that stay in their files, and whose lengths are known."""
    origins_C, report, index = kept
    rendered = RenderedRows(
        rows.train,
        origins_C,
        tokenizer,
        template=config.data.template,
        policy=_policy(config, tokenizer),
    )
    return _Source(rendered, origins_C, report, index, key)


def _counted(
    config: RunConfig,
    rows: SourceRows,
    tokenizer: Tokenizer,
    key: str,
    *,
    spool_near: pathlib.Path | None,
) -> _Source:
    """Renders each row in files once, to know its length."""
    policy, template = _policy(config, tokenizer), config.data.template
    # Eight bytes a row: a range may have ten million.
    origins, reports = array.array("q"), [LengthReport()]
    every = render_in_turn(rows.train, tokenizer, template=template)
    apart = {prompt_of(row) for row in rows.heldout}
    spooled = None if spool_near is None else SpooledRows(spool_near)

    def parts() -> Iterator[tuple[Rendered, float]]:
        for number, (row, tokens) in enumerate(every):
            if prompt_of(row) in apart:
                continue
            fitting, reports[0] = policy.fit_counted(tokens, reports[0])
            for part in fitting:
                origins.append(number)
                if spooled is not None:
                    spooled.append(part)
                yield part, row.difficulty

    index = length_index.build(parts(), seq_len=config.train.seq_len)
    kept = np.asarray(origins, np.int64), reports[0], index
    source = _from_files(config, rows, tokenizer, key, kept=kept)
    return source if spooled is None else dataclasses.replace(source, rendered=spooled)


def _policy(config: RunConfig, tokenizer: Tokenizer) -> LengthPolicy:
    return LengthPolicy(config.data.long_rows, tokenizer, seq_len=config.train.seq_len)


def _key(
    config: RunConfig, rows: SourceRows, *, name: str, tokenizer_digest: str
) -> str:
    """Hashes all that the tokens of rows in files follow from."""
    source = config.data.sources[name]
    long_rows = dataclasses.asdict(config.data.long_rows)
    del long_rows["max_loss"]
    parts: list[Any] = [
        length_index.VERSION,
        rows.digest,
        [source.num_rows, source.num_heldout],
        tokenizer_digest,
        config.data.template,
        config.train.seq_len,
        long_rows,
    ]
    return _hash(json.dumps(parts))


def _move(workdir: pathlib.Path, name: str, data: PreparedData) -> None:
    """Writes the rows that are in no packed row, and not held out, as a shard."""
    rows, path = data.sources[name], longer_path(workdir, name)
    if path.is_file() and _kept_path(workdir, name, data.row_digests[name]).is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    here = set(data.origins[name].tolist())
    apart = {prompt_of(row) for row in rows.heldout}
    write_records(
        path,
        (
            row_to_json(row).encode()
            for number, row in enumerate(rows.train)
            if number not in here and prompt_of(row) not in apart
        ),
    )


def _keep(workdir: pathlib.Path, name: str, data: PreparedData) -> None:
    """Writes, in moves, what the next start need not compute; its file comes last."""
    path = _kept_path(workdir, name, data.row_digests[name])
    if path.is_file():
        return
    np.save(path.with_suffix(".part.npy"), data.origins[name])
    path.with_suffix(".part.npy").replace(path.with_suffix(".npy"))
    head = {
        "index": data.indexes[name].digest,
        "lengths": dataclasses.asdict(data.lengths[name]),
    }
    path.with_suffix(".part").write_text(json.dumps(head) + "\n", encoding="utf-8")
    path.with_suffix(".part").replace(path)


def _kept(
    folders: Sequence[str | os.PathLike[str] | None], name: str, key: str
) -> tuple[np.ndarray, LengthReport, LengthIndex] | None:
    """Looks into a run folder, then into that of packed rows; None: count again."""
    paths = [(f, _kept_path(f, name, key)) for f in folders if f is not None]
    workdir, path = next(((f, p) for f, p in paths if p.is_file()), (None, None))
    if workdir is None or path is None:
        return None
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        folder = length_index.folder_of(workdir, name, head["index"])
        report = LengthReport(**head["lengths"])
        origins_C = np.load(path.with_suffix(".npy"), mmap_mode="r")
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise ConfigError(
            f"lengths of {name}: {path} cannot be read ({error!r}); delete it, and "
            "they are counted again."
        ) from None
    return origins_C, report, length_index.load(folder)


def _kept_path(workdir: str | os.PathLike[str], name: str, key: str) -> pathlib.Path:
    return pathlib.Path(workdir) / "lengths" / f"{name}-{key}.json"


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


def _check_fitting(config: RunConfig, name: str, index: LengthIndex) -> None:
    if not index.num_rows:
        raise ConfigError(
            f"data.sources.{name}: all rows are longer than train.seq_len="
            f"{config.train.seq_len} tokens; raise it."
        )


def _save_tokenizer(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    if not path.is_file():
        tokenizer.save(path)
    elif path.read_text(encoding="utf-8") != tokenizer.to_json():
        raise ConfigError(
            f"tokenizer: {path} differs from the one that the config gives now; "
            "sources, seed or packages changed. Undo the change or use a new workdir."
        )


def _digest_of_tokens(rows: Iterable[Rendered]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(len(row.ids).to_bytes(8))
        digest.update(row.ids.tobytes())
        digest.update(row.classes.tobytes())
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
