# SPDX-License-Identifier: Apache-2.0
"""Writing safetensors files one tensor at a time, so that memory holds one tensor.

The reference library writes whole files from memory, and its version 0.8.0 stores a
transposed view in the wrong order. The format is a length in 8 bytes, a JSON header,
and the tensors' bytes without a gap.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from ring_jax.config import ConfigError

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""The element types that are read and written, by the format's names."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """What a header says of a tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.dtype.itemsize * math.prod(self.shape)


def write(
    path: Path, specs: Mapping[str, Spec], arrays: Iterable[np.ndarray]
) -> dict[str, int]:
    """Writes one file and syncs it to the disk.

    Args:
      path: the file, which must not exist.
      specs: each tensor by name, in the order of the file.
      arrays: the tensors themselves, in the same order, made as they are needed.

    Returns:
      CRC-32 of each tensor's bytes, for `verify`.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.num_bytes
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksums = {}
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, spec), array in zip(specs.items(), arrays, strict=True):
            assert (array.dtype, array.shape) == spec, f"{name} is not as announced"
            data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            checksums[name] = zlib.crc32(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return checksums


def verify(path: Path, specs: Mapping[str, Spec], checksums: Mapping[str, int]) -> None:
    """Re-opens a file with the reference reader and compares every tensor.

    Raises:
      OSError: the disk does not hold what was written.
    """
    with reader(path) as file:
        if set(file.specs) != set(specs):
            raise OSError(f"{path}: holds other tensors than were written.")
        for name, spec in specs.items():
            data = memoryview(file.read(name).reshape(-1).view(np.uint8))
            if file.specs[name] != spec or zlib.crc32(data) != checksums[name]:
                raise OSError(f"{path}: `{name}` is not what was written.")


class Reader:
    """An open file: its header, and its tensors one by one."""

    def __init__(self, path: Path, file: safetensors.safe_open):
        self._path, self._file = path, file
        self.specs = {name: self._spec(name) for name in file.keys()}  # noqa: SIM118  (no dict)

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor."""
        return self._file.get_tensor(name)

    def _spec(self, name: str) -> Spec:
        view = self._file.get_slice(name)
        if view.get_dtype() not in DTYPES:
            raise ConfigError(
                f"{self._path}: `{name}` has dtype {view.get_dtype()}; it must be one "
                f"of {list(DTYPES)}. Convert the folder first."
            )
        return Spec(DTYPES[view.get_dtype()], tuple(view.get_shape()))


@contextlib.contextmanager
def reader(path: Path) -> Iterator[Reader]:
    """Opens a file with the reference library, which checks its header.

    Raises:
      ConfigError: it is absent or damaged, or has a tensor of another element type.
    """
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}). Copy the folder again."
        ) from None
    with file:
        yield Reader(path, file)
