# SPDX-License-Identifier: Apache-2.0
"""From a run's config to batches: read, tokenize, check, mix, pack, prefetch."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from ring_jax.batch import Batch
from ring_jax.config import (
    TOKEN_CLASSES,
    ConfigError,
    RunConfig,
    StageConfig,
    flatten_settings,
)
from ring_jax.data import chat, length_index, packing, sources
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import Rendered
from ring_jax.data.ledger import Change, Entry, Geometry, Ledger, entry_from_json
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.schema import Row
from ring_jax.data.sources import SourceRows
from ring_jax.data.tokenizer import Tokenizer
from ring_jax.data.windows import Windows

NUM_PREFETCHED = 4
"""Batches made ahead by a thread while a step runs."""


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedData:
    """What a run reads, checked and tokenized; sources in the order of the config."""

    tokenizer: Tokenizer
    sources: Mapping[str, SourceRows]
    rendered: Mapping[str, list[Rendered]]
    """Training rows that fit into a packed row."""
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


def prepare(config: RunConfig, workdir: str | os.PathLike[str]) -> PreparedData:
    """Reads all sources, gets the tokenizer, renders and checks every training row.

    Writes `<workdir>/tokenizer/tokenizer.json` and `<workdir>/lengths/`, the length
    index of each source, last, when all checks have passed.

    Raises:
      ConfigError: a source or row is bad; the tokenizer does not suit the model or the
        run folder; a row of a stage has no trained token or an untrained stop token; a
        source has no row that fits.
    """
    opened = open_sources(config)
    tokenizer = _tokenizer(config, opened)
    _check_tokenizer(config, tokenizer)
    rendered, num_dropped, indexes = {}, {}, {}
    for name, source_rows in opened.items():
        rows = chat.render_rows(
            source_rows.train, tokenizer, template=config.data.template
        )
        for stage_name, stage in config.stages.items():
            if name in stage.mixture:
                weights = class_weights_table(config, stage=stage)
                _check_trained(source_rows.train, rows, weights, stage=stage_name)
        fits = [len(row.ids) <= config.train.seq_len for row in rows]
        rendered[name] = list(itertools.compress(rows, fits))
        num_dropped[name] = len(rows) - len(rendered[name])
        _check_fitting(config, name, rendered[name], num_dropped=num_dropped[name])
        graded = (row.difficulty for row in itertools.compress(source_rows.train, fits))
        indexes[name] = length_index.build(
            zip(rendered[name], graded, strict=True), seq_len=config.train.seq_len
        )
    _save_tokenizer(tokenizer, pathlib.Path(workdir) / "tokenizer" / "tokenizer.json")
    for name, index in indexes.items():
        index.save(pathlib.Path(workdir) / "lengths" / f"{name}-{index.digest}")
    return PreparedData(
        tokenizer=tokenizer,
        sources=opened,
        rendered=rendered,
        num_dropped=num_dropped,
        indexes=indexes,
        row_digests={name: _digest({name: rows}) for name, rows in rendered.items()},
        tokenizer_digest=hashlib.blake2b(
            tokenizer.to_json().encode(), digest_size=8
        ).hexdigest(),
        digest=_digest(rendered),
    )


def open_sources(config: RunConfig) -> dict[str, SourceRows]:
    """Reads the training and held-out rows of every declared source."""
    return {
        name: sources.read(source, name=name, seed=config.seed)
        for name, source in config.data.sources.items()
    }


def class_weights_table(config: RunConfig, *, stage: StageConfig) -> np.ndarray:
    """Computes the loss weight of each token class in a stage: f32[6]."""
    weights = dict(config.data.class_weights)
    if missing := sorted(set(TOKEN_CLASSES[1:]) - set(weights)):
        raise ConfigError(f"data.class_weights lacks {missing}; give each a weight.")
    if stage.train_prompts:
        weights["prompt"] = max(1.0, weights["prompt"])
    return packing.weights_table(weights)


def heldout_batches(
    config: RunConfig, prepared: PreparedData, *, source: str
) -> list[Batch]:
    """Packs the held-out rows of a source, with the class weights of the config."""
    rows = chat.render_rows(
        prepared.sources[source].heldout,
        prepared.tokenizer,
        template=config.data.template,
    )
    return packing.pack_all(
        rows,
        source=prepared.source_index(source),
        batch_size=config.train.global_batch_size,
        seq_len=config.train.seq_len,
        weights_by_class=packing.weights_table(config.data.class_weights),
        pad_id=config.model.pad_id,
    )


def stage_identity(
    config: RunConfig, prepared: PreparedData, *, stage: str
) -> dict[str, Any]:
    """Lists, by dotted name, all that the batches of a stage follow from but its table.

    A run that continues must find the same; what differs is told by name.
    """
    packing_settings = {
        "algorithm": config.data.packing.algorithm,
        "window_rows": config.data.packing.window_rows,
        "fill": config.data.packing.fill,
        "batch_size": config.train.global_batch_size,
        "seq_len": config.train.seq_len,
    }
    weights = class_weights_table(config, stage=config.stages[stage]).tolist()
    return flatten_settings(
        {
            "stage": stage,
            "seed": config.seed,
            "tokenizer": prepared.tokenizer_digest,
            "template": config.data.template,
            "class_weights": dict(zip(TOKEN_CLASSES[1:], weights[1:], strict=True)),
            "packing": packing_settings,
            "sources": {
                name: {
                    "rows": len(prepared.rendered[name]),
                    "tokens": prepared.row_digests[name],
                    "lengths": index.digest,
                }
                for name, index in prepared.indexes.items()
            },
        }
    )


def open_ledger(
    config: RunConfig, indexes: Mapping[str, LengthIndex], *, stage: str
) -> Ledger:
    """Makes the ledger of a stage as the config says it, without changes of a run.

    Args:
      config: of the run.
      indexes: of all its sources, in the order of the config.
      stage: name of the stage.
    """
    settings = config.stages[stage]
    weights = class_weights_table(config, stage=settings)
    batch_size = config.train.global_batch_size
    geometry = Geometry(
        batch_size=batch_size,
        seq_len=config.train.seq_len,
        window_steps=-(-config.data.packing.window_rows // batch_size),
        algorithm=config.data.packing.algorithm,
        fill=config.data.packing.fill,
        trained_classes=tuple((weights[1:] > 0).tolist()),
        seed=f"{config.seed}/{stage}",
    )
    opened = Ledger(indexes, geometry, [])
    for change in _changes(settings):
        opened = opened.extended(change)
    return opened


def mixture_table(config: RunConfig, prepared: PreparedData) -> list[dict[str, Any]]:
    """Writes what `mixture.json` holds: of each stage its table, and of which data."""
    stages = []
    for name, stage in config.stages.items():
        opened = open_ledger(config, prepared.indexes, stage=name)
        stages.append(
            {
                "stage": name,
                "num_steps": stage.num_steps,
                "window_steps": opened.geometry.window_steps,
                "identity": stage_identity(config, prepared, stage=name),
                "table": [entry.to_json() for entry in opened.table],
            }
        )
    return stages


def saved_ledger(
    config: RunConfig, workdir: str | os.PathLike[str], *, stage: str
) -> Ledger | None:
    """Opens the ledger of a stage from what a run folder keeps, reading no row.

    Returns:
      The ledger with the changes that `mixture.json` and the config tell; None where
      the folder has no such file, or it tells of other sources.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "mixture.json"
    if not path.is_file():
        return None
    stages = {saved["stage"]: saved for saved in json.loads(path.read_text("utf-8"))}
    identity = stages.get(stage, {}).get("identity", {})
    digests = {
        name: identity.get(f"sources.{name}.lengths") for name in config.data.sources
    }
    folders = {
        name: workdir / "lengths" / f"{name}-{digest}"
        for name, digest in digests.items()
    }
    if not all(folder.is_dir() for folder in folders.values()):
        return None
    indexes = {name: length_index.load(folder) for name, folder in folders.items()}
    table = [entry_from_json(entry) for entry in stages[stage]["table"]]
    return _continued(open_ledger(config, indexes, stage=stage), table, position=0)


def _changes(stage: StageConfig) -> list[Change]:
    first = Change(
        start_step=0,
        mixture=stage.mixture,
        curriculum=stage.curriculum,
        reason="the stage begins",
    )
    return [
        first,
        *(
            Change(
                start_step=change.step,
                mixture=change.mixture,
                schedule=change.schedule,
                over_steps=change.over_steps,
                curriculum=change.curriculum,
                reason=change.reason or name,
            )
            for name, change in stage.mixture_changes.items()
        ),
    ]


class TrainBatches(Iterator[Batch]):
    """The batches of one stage, without end; numpy arrays, made ahead.

    A batch is a function of the ledger's table and of its step. So the state is the
    number of batches that were handed out, and the table; it does not depend on how
    many processes share a batch, nor on how many workers make them.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedData,
        *,
        stage: str,
        rows: Sequence[int] | None = None,
    ):
        """Opens a stage at its beginning.

        Args:
          config: of the run.
          prepared: its data, the same in every process.
          stage: name of the stage.
          rows: which rows of each batch to hand out, ascending; None means all.
        """
        if rows is None:
            rows = range(config.train.global_batch_size)
        self._config, self._prepared, self._rows = config, prepared, tuple(rows)
        self._identity = stage_identity(config, prepared, stage=stage)
        self._ledger = open_ledger(config, prepared.indexes, stage=stage)
        weights = class_weights_table(config, stage=config.stages[stage])
        self._to_batch = _ToBatch(weights, config.model.pad_id)
        self._position = 0
        self._iterator: grain.DatasetIterator[Batch] | None = None

    @property
    def ledger(self) -> Ledger:
        """What the batches follow."""
        return self._ledger

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._open(self._position)
        batch = next(self._iterator)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Tells where the next batch begins."""
        return {
            "position": self._position,
            "table": [entry.to_json() for entry in self._ledger.table],
            "identity": self._identity,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `get_state` was asked.

        Changes that the config adds behind that place are taken over.

        Raises:
          ConfigError: the state is of another stage or of other data, or the config
            changes the mixture of steps that are done; names what differs.
        """
        differences = _differences(state["identity"], self._identity)
        is_allowed = self._config.data.on_change == "allow"
        if differences and not is_allowed:
            raise ConfigError(
                f"data: changed since the checkpoint: {'; '.join(differences)}. Undo "
                "the change, use a new workdir, or set data.on_change=allow."
            )
        position = state["position"]
        if differences:
            logging.warning("data changed, as allowed: %s", "; ".join(differences))
        else:
            table = [entry_from_json(entry) for entry in state["table"]]
            self._ledger = _continued(self._ledger, table, position=position)
        self._restart(position)

    def change_mixture(self, change: Change) -> int:
        """Changes the mixture while the run goes on; every process must ask the same.

        Args:
          change: begins at `start_step`, or as soon as it can if that has passed.

        Returns:
          The step of the stage at which it begins.
        """
        window_steps = self._ledger.geometry.window_steps
        last_window = self._ledger.table[-1].start_window
        soonest = max(self._position, (last_window + 1) * window_steps)
        start_step = max(change.start_step, soonest)
        change = dataclasses.replace(change, start_step=start_step, origin="run")
        self._ledger = self._ledger.extended(change)
        self._restart(self._position)
        return self._ledger.table[-1].start_window * window_steps

    def close(self) -> None:
        """Stops what makes batches ahead; `next` would start it again."""
        if self._iterator is not None:
            self._iterator.close()
        # Its destructor closes again, which fails once Python has begun to shut down.
        self._iterator = None

    def _restart(self, position: int) -> None:
        self.close()
        self._position = position

    def _open(self, position: int) -> grain.DatasetIterator:
        steps = _Steps(
            Windows(self._ledger), self._prepared.rendered, self._rows, position
        )
        # One thread prefetches whole batches below; more would only make single ones.
        dataset = grain.MapDataset.source(steps).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        if num_workers := self._config.data.num_workers:
            if not flags.FLAGS.is_parsed():
                # Worker processes get the flags of absl, which no command of ours has.
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=num_workers)
            )
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset.map(self._to_batch), prefetch_buffer_size=NUM_PREFETCHED
        )
        return iter(dataset)


class _Steps:
    """Packed arrays of the steps from `first` on, as a random-access source."""

    def __init__(
        self,
        windows: Windows,
        rendered: Mapping[str, Sequence[Rendered]],
        rows: Sequence[int],
        first: int,
    ):
        self._windows, self._rows, self._first = windows, rows, first
        self._rendered = list(rendered.values())

    def __len__(self) -> int:
        # Sources repeat, so a stage has no end of its own.
        return sys.maxsize - self._first

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        bins = self._windows.bins(self._first + index)
        chosen = [
            [
                (source, self._rendered[source][row])
                for source, row in zip(
                    bins[line].sources_C.tolist(),
                    bins[line].rows_C.tolist(),
                    strict=True,
                )
            ]
            for line in self._rows
        ]
        return packing.stack(chosen, seq_len=self._windows.ledger.geometry.seq_len)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in [*now, *(key for key in before if key not in now)]
        if before.get(key) != now.get(key)
    ]


def _continued(config: Ledger, table: Sequence[Entry], *, position: int) -> Ledger:
    """Returns a saved table with the config's changes behind a position.

    Raises:
      ConfigError: the config differs in what has begun.
    """
    window_steps = config.geometry.window_steps
    next_window = -(-position // window_steps)

    def is_past(entry: Entry) -> bool:
        return entry.start_window < max(1, next_window)

    past = [entry for entry in table if is_past(entry)]
    before = [entry.change for entry in past if entry.change.origin == "config"]
    now = [entry.change for entry in config.table if is_past(entry)]
    if before != now:
        raise ConfigError(
            f"data: the mixture of steps before {next_window * window_steps} is done "
            f"and cannot change: it was {_told(before)}, the config says {_told(now)}; "
            "put a change behind it in mixture_changes, or use a new workdir."
        )
    future = [e.change for e in config.table if not is_past(e)]
    future += [e.change for e in table if not is_past(e) and e.change.origin == "run"]
    continued = Ledger(config.indexes, config.geometry, past)
    for change in sorted(future, key=lambda change: change.start_step):
        continued = continued.extended(change)
    return continued


def _told(changes: Sequence[Change]) -> str:
    return "; ".join(
        f"{dict(change.mixture)} ({change.schedule}) from step {change.start_step}"
        for change in changes
    )


class _ToBatch(grain.transforms.Map):
    def __init__(self, weights_by_class: np.ndarray, pad_id: int):
        self._weights_by_class = weights_by_class
        self._pad_id = pad_id

    def map(self, packed: Mapping[str, np.ndarray]) -> Batch:
        return packing.to_batch(
            packed, weights_by_class=self._weights_by_class, pad_id=self._pad_id
        )


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


def _check_trained(
    rows: list[Row], rendered: list[Rendered], weights: np.ndarray, *, stage: str
) -> None:
    stop = TOKEN_CLASSES.index("stop")
    for row, tokens in zip(rows, rendered, strict=True):
        weights_T = weights[tokens.classes[1:]]
        if not weights_T[tokens.classes[1:] != stop].any():
            raise ConfigError(
                f"row {row.id}: stage {stage} trains none of its tokens; raise "
                "data.class_weights of its classes or drop the row."
            )
        if not weights_T[-1]:
            raise ConfigError(
                f"row {row.id}: stage {stage} does not train its stop token, so the "
                "model would never end a turn; raise data.class_weights.stop above 0."
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
