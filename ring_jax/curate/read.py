# SPDX-License-Identifier: Apache-2.0
"""Raw records of one source, streamed: files of three kinds, or a package.

Each record is either given or turned away with a reason; none is passed over. A file
that cannot be read at all (cut in half, not of its kind) is refused in one line.
"""

import dataclasses
import gzip
import hashlib
import itertools
import json
import pathlib
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

from ring_jax.config import ConfigError, RawSourceConfig, SourceConfig
from ring_jax.curate.columns import columns_of
from ring_jax.curate.rows import RawRecord, Rejection, excerpt
from ring_jax.data import sources as packages
from ring_jax.data.evaluation_sets import is_evaluation_set
from ring_jax.data.schema import Row
from ring_jax.data.sources.record_files import (
    BATCH,
    SUFFIX,
    RecordFiles,
    count_records,
    find_files,
)
from ring_jax.data.words import digest64

STEP = "read"
MAX_DEPTH = 100
"""Lists and objects inside each other in one record. Python reads some hundred more;
how many depends on who asks, and what becomes of a record may not."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file as the manifest names it."""

    name: str
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OpenSource:
    """A source that was found, hashed, and can be read from any record on."""

    name: str
    config: RawSourceConfig
    files: tuple[SourceFile, ...]
    read: Callable[[int], Iterator[RawRecord | Rejection | Row]]
    """Records from the given one on, in an order that never changes."""


def open_source(
    config: RawSourceConfig, *, name: str, seed: int, max_row_bytes: int
) -> OpenSource:
    """Finds and hashes the files of a source, and looks whether they can be read.

    Raises:
      ConfigError: no file, a wrong kind, no licence, or a file that is damaged.
    """
    if is_package(config):
        rows = read_package(config, name=name, seed=seed).train

        def read_rows(first: int) -> Iterator[Row]:
            return iter(rows[first:])

        return OpenSource(name=name, config=config, files=(), read=read_rows)
    if is_evaluation_set(config.kind):
        raise ConfigError(
            f"sources.{name}.kind={config.kind!r} is an evaluation set and is never "
            "trained on; put it into evaluation_sets."
        )
    if config.kind not in READERS:
        known = [*READERS, *(k for k in packages.READERS if k not in READERS)]
        raise ConfigError(f"sources.{name}.kind={config.kind!r} must be one of {known}")
    if not config.licence:
        raise ConfigError(
            f"sources.{name}.licence is empty; name its SPDX identifier, or "
            "NOASSERTION where nobody knows."
        )
    paths = _find(config, name)
    reader, columns = READERS[config.kind], columns_of(config)
    for path in paths:
        reader.check(path, f"sources.{name}")

    def read_files(first: int) -> Iterator[RawRecord | Rejection]:
        every = itertools.chain.from_iterable(
            reader.read(path, name, max_row_bytes, columns) for path in paths
        )
        drawn = every if config.share == 1.0 else _draw(every, name, config.share)
        return itertools.islice(drawn, first, None)

    files = tuple(describe(path) for path in paths)
    return OpenSource(name=name, config=config, files=files, read=read_files)


def _draw(
    records: Iterable[RawRecord | Rejection], name: str, share: float
) -> Iterator[RawRecord | Rejection]:
    """Keeps a share of the records, the same ones in every run."""
    for number, record in enumerate(records):
        if digest64(f"{name}/{number}".encode()) < share * (1 << 64):
            yield record


def is_package(config: RawSourceConfig) -> bool:
    """Tells whether a source is a package's rows, which were made well."""
    # `jsonl` of ring_jax.data reads a run's own rows strictly; here it is a file kind.
    return config.kind in packages.READERS and config.kind not in READERS


def read_package(
    config: RawSourceConfig, *, name: str, seed: int
) -> packages.SourceRows:
    """Reads a package's rows, training and held-out.

    Raises:
      ConfigError: as the package's reader does.
    """
    settings = SourceConfig(
        kind=config.kind,
        num_rows=config.num_rows,
        task=config.task,
        level=config.level,
        first_row=config.first_row,
        generator_seed=config.generator_seed,
        parameters=config.parameters,
    )
    return packages.read(settings, name=name, seed=seed)


def _find(config: RawSourceConfig, name: str) -> list[pathlib.Path]:
    if not config.path:
        raise ConfigError(f"sources.{name}.path is empty; name files of {config.kind}.")
    suffix = SUFFIX if config.kind == "array_record" else ""
    found = find_files(config.path, suffix=suffix)
    if not found:
        of_whom = f" of {config.origin}" if config.origin else ""
        raise ConfigError(
            f"sources.{name}.path={config.path!r} names no file. Put the {config.kind} "
            f"files{of_whom} at {pathlib.Path(config.path).absolute()}."
        )
    return found


def describe(path: pathlib.Path) -> SourceFile:
    """Hashes a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceFile(name=path.name, num_bytes=path.stat().st_size, sha256=sha256)


def _refuse(path: pathlib.Path, where: str, error: Exception | str) -> NoReturn:
    text = " ".join(str(error).split())[:200]
    raise ConfigError(
        f"{where}: {path.name} cannot be read ({text}); fetch it again or leave it out."
    ) from None


# JSON lines


def _check_jsonl(path: pathlib.Path, where: str) -> None:
    if not path.stat().st_size:
        _refuse(path, where, "it is empty")
    if path.suffix == ".gz":
        # Its checksum stands at its end: what was read before would be believed.
        try:
            with gzip.open(path) as file:
                while file.read(1 << 20):
                    pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            _refuse(path, where, error)


def _read_jsonl(
    path: pathlib.Path, source: str, max_row_bytes: int, columns: Sequence[str]
) -> Iterator[RawRecord | Rejection]:
    del columns  # a line is parsed whole
    with _open(path) as file:
        number = 0
        while True:
            number += 1
            where = f"{path.name}:{number}"
            line = file.readline(max_row_bytes + 1)
            if not line:
                return
            if len(line) > max_row_bytes and not line.endswith(b"\n"):
                _skip_line(file, max_row_bytes)
                detail = f"the line is longer than max_row_bytes={max_row_bytes}"
                yield _turn_away(where, source, "giant", detail, line)
            elif line.strip():
                yield _parse(line, where, source)


def _open(path: pathlib.Path) -> BinaryIO:
    if path.suffix == ".gz":
        return typing.cast(BinaryIO, gzip.open(path))  # noqa: SIM115  (the caller closes)
    return path.open("rb")


def _skip_line(file: BinaryIO, size: int) -> None:
    while (part := file.readline(size)) and not part.endswith(b"\n"):
        pass


def _parse(line: bytes, where: str, source: str) -> RawRecord | Rejection:
    try:
        text = line.decode("utf-8-sig" if line.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte {error.start} of the line is no UTF-8 ({error.reason})"
        return _turn_away(where, source, "invalid_utf8", detail, line)
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        # Only the last line of a file can lack its end.
        reason = "not_json" if line.endswith(b"\n") else "cut_off"
        detail = f"{error.msg} at character {error.pos + 1} of the line"
        return _turn_away(where, source, reason, detail, line)
    except (ValueError, RecursionError) as error:
        return _turn_away(where, source, "not_json", str(error), line)
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_too_deep(fields):
        detail = f"lists and objects lie more than {MAX_DEPTH} deep"
        return _turn_away(where, source, "too_deep", detail, line)
    return _record(fields, where, source, line)


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(item, dict | list) for item in level)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _record(fields: Any, where: str, source: str, raw: bytes) -> RawRecord | Rejection:
    if not isinstance(fields, dict):
        detail = f"the record is {type(fields).__name__}; it must be an object"
        return _turn_away(where, source, "not_an_object", detail, raw)
    return RawRecord(where=where, fields=fields)


def _turn_away(
    where: str, source: str, reason: str, detail: str, raw: bytes
) -> Rejection:
    return Rejection(
        step=STEP,
        reason=reason,
        id=where,
        source=source,
        detail=" ".join(detail.split()),
        excerpt=excerpt(raw[:4000].decode("utf-8", "backslashreplace").rstrip("\n")),
    )


# Parquet


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(
            "curate: pyarrow is missing; run pip install 'ring-jax[curate]'."
        ) from None
    return pyarrow


def _check_parquet(path: pathlib.Path, where: str) -> None:
    arrow = _pyarrow()
    try:
        arrow.parquet.ParquetFile(path).close()
    except (arrow.ArrowException, OSError) as error:
        _refuse(path, where, error)


def _read_parquet(
    path: pathlib.Path, source: str, max_row_bytes: int, columns: Sequence[str]
) -> Iterator[RawRecord | Rejection]:
    arrow, number = _pyarrow(), 0
    try:
        with arrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=list(columns) or None):
                for index in range(batch.num_rows):
                    number += 1
                    record = batch.slice(index, 1)
                    where = f"{path.name}:{number}"
                    yield _parquet_record(record, where, source, max_row_bytes)
    except (arrow.ArrowException, OSError) as error:
        _refuse(path, f"sources.{source}, behind record {number}", error)


def _parquet_record(
    record: Any, where: str, source: str, max_row_bytes: int
) -> RawRecord | Rejection:
    if record.nbytes > max_row_bytes:
        detail = f"{record.nbytes} bytes, max_row_bytes={max_row_bytes}"
        return _turn_away(where, source, "giant", detail, b"")
    try:
        (fields,) = record.to_pylist()
    except UnicodeDecodeError as error:
        return _turn_away(where, source, "invalid_utf8", str(error), b"")
    # A column that a row does not fill is null: for that row it is not there.
    present = {name: value for name, value in fields.items() if value is not None}
    return RawRecord(where=where, fields=present)


# ArrayRecord


def _check_array_record(path: pathlib.Path, where: str) -> None:
    try:
        count_records(path)
    except RuntimeError as error:
        _refuse(path, where, error)


def _read_array_record(
    path: pathlib.Path, source: str, max_row_bytes: int, columns: Sequence[str]
) -> Iterator[RawRecord | Rejection]:
    del columns  # a record is parsed whole
    try:
        for number, line in enumerate(RecordFiles([path]), 1):
            where = f"{path.name}:{number}"
            if len(line) > max_row_bytes:
                detail = f"{len(line)} bytes, max_row_bytes={max_row_bytes}"
                yield _turn_away(where, source, "giant", detail, line)
            else:
                yield _parse(line + b"\n", where, source)
    except (RuntimeError, IndexError) as error:
        _refuse(path, f"sources.{source}", error)


@dataclasses.dataclass(frozen=True, slots=True)
class _Reader:
    check: Callable[[pathlib.Path, str], None]
    read: Callable[
        [pathlib.Path, str, int, Sequence[str]], Iterator[RawRecord | Rejection]
    ]
    """File, source, most bytes of a row, columns that are needed (none: all)."""


READERS: Mapping[str, _Reader] = {
    "jsonl": _Reader(_check_jsonl, _read_jsonl),
    "parquet": _Reader(_check_parquet, _read_parquet),
    "array_record": _Reader(_check_array_record, _read_array_record),
}
"""Kind of file -> how it is checked and read."""
