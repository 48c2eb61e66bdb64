# SPDX-License-Identifier: Apache-2.0
"""From a run's config to batches: read, tokenize, check, mix, pack, prefetch."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from ring_jax.batch import Batch
from ring_jax.config import TOKEN_CLASSES, ConfigError, RunConfig, StageConfig
from ring_jax.data import chat, mixture, packing, sources
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import Rendered
from ring_jax.data.schema import Row
from ring_jax.data.sources import SourceRows
from ring_jax.data.tokenizer import Tokenizer

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
    digest: str
    """Hash of everything that training reads: a resumed run must find the same."""

    def source_index(self, name: str) -> int:
        """Looks up the number that batches carry for a source."""
        return list(self.sources).index(name)


def prepare(config: RunConfig, workdir: str | os.PathLike[str]) -> PreparedData:
    """Reads all sources, gets the tokenizer, renders and checks every training row.

    Writes `<workdir>/tokenizer/tokenizer.json`, last, when all checks have passed.

    Raises:
      ConfigError: a source or row is bad; the tokenizer does not suit the model or the
        run folder; a row of a stage has no trained token or an untrained stop token; a
        source has no row that fits.
    """
    opened = open_sources(config)
    tokenizer = _tokenizer(config, opened)
    _check_tokenizer(config, tokenizer)
    rendered, num_dropped = {}, {}
    for name, source_rows in opened.items():
        rows = chat.render_rows(
            source_rows.train, tokenizer, template=config.data.template
        )
        for stage_name, stage in config.stages.items():
            if name in stage.mixture:
                weights = class_weights_table(config, stage=stage)
                _check_trained(source_rows.train, rows, weights, stage=stage_name)
        fitting = [row for row in rows if len(row.ids) <= config.train.seq_len]
        num_dropped[name] = len(rows) - len(fitting)
        _check_fitting(config, name, fitting, num_dropped=num_dropped[name])
        rendered[name] = fitting
    _save_tokenizer(tokenizer, pathlib.Path(workdir) / "tokenizer" / "tokenizer.json")
    return PreparedData(
        tokenizer=tokenizer,
        sources=opened,
        rendered=rendered,
        num_dropped=num_dropped,
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


class TrainBatches(Iterator[Batch]):
    """The batches of one stage, without end; numpy arrays, made ahead by a thread.

    The state is a small JSON tree: the place in the mixture and in the open batch. It
    speaks of the batches that were handed out, never of those made ahead.

    Which rows fill a batch depends on the lengths of all of them, so every process
    packs the whole batch, and makes arrays of its own rows alone. Batch and state are
    the same whatever the number of processes.
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
        self._stage = stage
        self._digest = _stage_digest(config, prepared, stage)
        if rows is None:
            rows = range(config.train.global_batch_size)
        self._iterator = iter(_stage_dataset(config, prepared, stage, rows=rows))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Tells where the next batch begins."""
        place = self._iterator.get_state()
        return {"stage": self._stage, "data": self._digest, "place": place}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `get_state` was asked.

        Raises:
          ConfigError: the state is of another stage or of other data.
        """
        if state["stage"] != self._stage or state["data"] != self._digest:
            raise ConfigError(
                f"data: the checkpoint is of stage {state['stage']!r} with data "
                f"{state['data']}, but this run reads stage {self._stage!r} with data "
                f"{self._digest}; sources, seed, sizes or installed packages changed. "
                "Undo the change or use a new workdir."
            )
        self._iterator.set_state(state["place"])

    def close(self) -> None:
        """Stops the thread that makes batches ahead; the object is of no use after."""
        self._iterator.close()
        # Its destructor closes again, which fails once Python has begun to shut down.
        del self._iterator


def _stage_dataset(
    config: RunConfig, prepared: PreparedData, stage_name: str, *, rows: Sequence[int]
) -> grain.IterDataset:
    stage = config.stages[stage_name]
    components = [
        _source_dataset(config, prepared, name, stage=stage_name)
        for name in stage.mixture
    ]
    selection = mixture.MixtureMap(mixture.interleave(stage.mixture))
    mixed = grain.MapDataset.select_from_datasets(components, selection)
    # One thread prefetches whole batches below; more would only make single rows.
    examples = mixed.to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    packed = packing.pack(
        examples,
        batch_size=config.train.global_batch_size,
        seq_len=config.train.seq_len,
        rows=rows,
    )
    weights = class_weights_table(config, stage=stage)
    to_batch = _ToBatch(weights, config.model.pad_id)
    return grain.experimental.ThreadPrefetchIterDataset(
        packed.map(to_batch), prefetch_buffer_size=NUM_PREFETCHED
    )


def _source_dataset(
    config: RunConfig, prepared: PreparedData, name: str, *, stage: str
) -> grain.MapDataset:
    source = prepared.source_index(name)
    examples = [
        packing.to_example(row, source=source) for row in prepared.rendered[name]
    ]
    # Each stage walks through a source in an order of its own, and so does each epoch.
    text = f"{config.seed}/{stage}/{name}"
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
    return grain.MapDataset.source(examples).shuffle(seed=seed).repeat()


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


def _stage_digest(config: RunConfig, prepared: PreparedData, stage: str) -> str:
    mixture_slots = mixture.interleave(config.stages[stage].mixture)
    sizes = (config.seed, config.train.global_batch_size, config.train.seq_len)
    text = repr((prepared.digest, list(config.stages[stage].mixture), mixture_slots))
    return hashlib.blake2b(f"{text}{sizes}".encode(), digest_size=8).hexdigest()
