# SPDX-License-Identifier: Apache-2.0
"""The container of a GGUF file: metadata, and tensors by name.

A file is a stranger's input: every length is held against what is left of the file
before anything is read by it. Source: `docs/gguf.md` of ggml-org/ggml, versions 2 and
3, little endian.
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ring_jax.config import ConfigError

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_DIMS = 4

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies, and how it is stored."""

    shape: tuple[int, ...]
    """Slowest dimension first, as in numpy; the file has them the other way round."""
    type_id: int
    """ggml's number of the quantisation."""
    offset: int
    """Bytes from the beginning of the file."""


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An open file. Tensors are dequantised as they are read."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    content: mmap.mmap

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as float32.

        Raises:
          ConfigError: its type is unknown, or the file ends before it does.
        """
        info = self.tensors[name]
        gguf = _import_gguf()
        try:
            kind = gguf.GGMLQuantizationType(info.type_id)
        except ValueError:
            raise self._mistake(
                f"`{name}` has the unknown quantisation {info.type_id}"
            ) from None
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if not info.shape or info.shape[-1] % block_size:
            raise self._mistake(
                f"`{name}` has shape {info.shape}; {kind.name} needs rows of a "
                f"multiple of {block_size}"
            )
        row_bytes = info.shape[-1] // block_size * block_bytes
        num_bytes = math.prod(info.shape[:-1]) * row_bytes
        if info.offset + num_bytes > len(self.content):
            raise self._mistake(
                f"`{name}` ends at byte {info.offset + num_bytes}, the file at "
                f"{len(self.content)}: it is truncated"
            )
        # A copy: a view would keep the file open behind an error.
        stored = self.content[info.offset : info.offset + num_bytes]
        data = np.frombuffer(stored, np.uint8)
        try:
            values = gguf.quants.dequantize(data.reshape(-1, row_bytes), kind)
        except NotImplementedError:
            raise self._mistake(
                f"`{name}` has the quantisation {kind.name}, which cannot be read"
            ) from None
        return values.astype(np.float32).reshape(info.shape)

    def _mistake(self, what: str) -> ConfigError:
        return ConfigError(f"{self.path}: {what}; give another file.")


@contextmanager
def open_gguf(path: str | Path) -> Iterator[GgufFile]:
    """Opens a file, having read all but its tensors.

    Raises:
      ConfigError: it is no GGUF file, is truncated, or has a part elsewhere.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{path}: is no file; give a .gguf file.") from None
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ConfigError(f"{path}: is no GGUF file; give a .gguf file.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield _read_header(path, content)


def _read_header(path: Path, content: mmap.mmap) -> GgufFile:
    cursor = _Cursor(path, content, len(MAGIC))
    version = cursor.scalar("<I")
    if version not in _VERSIONS:
        raise ConfigError(
            f"{path}: GGUF version {version} cannot be read; versions are {_VERSIONS}, "
            "little endian."
        )
    num_tensors, num_keys = cursor.count(24), cursor.count(13)
    metadata = {cursor.string(): cursor.value() for _ in range(num_keys)}
    if (num_parts := metadata.get("split.count", 1)) not in (0, 1):
        raise ConfigError(
            f"{path}: is one of {num_parts} parts; merge them with llama-gguf-split."
        )
    infos = [(cursor.string(), cursor.tensor_info()) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ConfigError(f"{path}: general.alignment={alignment!r} is no size.")
    start = -(-cursor.offset // alignment) * alignment
    tensors = {
        name: dataclasses.replace(info, offset=start + info.offset)
        for name, info in infos
    }
    return GgufFile(path, metadata, tensors, content)


@dataclasses.dataclass
class _Cursor:
    """Reads a header from the front, and never beyond the end."""

    path: Path
    content: mmap.mmap
    offset: int

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def count(self, item_bytes: int) -> int:
        """Reads how many items follow, of at least so many bytes each."""
        count = self.scalar("<Q")
        if count * item_bytes > len(self.content) - self.offset:
            raise self._truncated()
        return count

    def string(self) -> str:
        data = self._take(self.count(1))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(
                f"{self.path}: a text before byte {self.offset} is no UTF-8; the file "
                "is damaged."
            ) from None

    def value(self) -> Any:
        kind = self.scalar("<I")
        if kind != _ARRAY:
            return self._item(kind)
        kind = self.scalar("<I")
        if kind in _SCALARS:
            layout = np.dtype(_SCALARS[kind])
            count = self.count(layout.itemsize)
            return np.frombuffer(self._take(count * layout.itemsize), layout).tolist()
        return [self._item(kind) for _ in range(self.count(8))]

    def tensor_info(self) -> TensorInfo:
        num_dims = self.scalar("<I")
        if num_dims > _MAX_DIMS:
            raise ConfigError(
                f"{self.path}: a tensor has {num_dims} dimensions; the file is damaged."
            )
        shape = tuple(self.scalar("<Q") for _ in range(num_dims))[::-1]
        return TensorInfo(shape, self.scalar("<I"), self.scalar("<Q"))

    def _item(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind not in _SCALARS:
            raise ConfigError(
                f"{self.path}: a setting before byte {self.offset} is of the unknown "
                f"type {kind}; the file is damaged."
            )
        return self.scalar(_SCALARS[kind])

    def _take(self, num_bytes: int) -> bytes:
        end = self.offset + num_bytes
        if end > len(self.content):
            raise self._truncated()
        data = self.content[self.offset : end]
        self.offset = end
        return data

    def _truncated(self) -> ConfigError:
        return ConfigError(
            f"{self.path}: ends at byte {len(self.content)}, before its header does: "
            "it is truncated; fetch it again."
        )


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "reading a GGUF file needs gguf: pip install 'ring_jax[gguf]'."
        ) from None
    return gguf
