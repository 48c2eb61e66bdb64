# SPDX-License-Identifier: Apache-2.0
"""Our writer against the reference reader."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from ring_jax.checkpoint.safetensors_stream import Spec, reader, verify, write
from ring_jax.config import ConfigError


def _arrays(dtype):
    random = np.random.default_rng(0)
    shapes = {"b": (3, 5), "a": (7,), "scalar": (), "empty": (0, 4), "ü \"'": (2, 3, 4)}
    return {
        name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }


def _specs(arrays):
    return {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_reference_reader_reads_what_we_write(tmp_path, dtype):
    arrays = _arrays(dtype)
    checksums = write(tmp_path / "x", _specs(arrays), iter(arrays.values()))
    verify(tmp_path / "x", _specs(arrays), checksums)
    read = safetensors.numpy.load_file(tmp_path / "x")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def test_a_transposed_view_is_stored_in_its_own_order(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write(tmp_path / "x", {"x": Spec(x.dtype, x.shape)}, [x])
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x")["x"], x)


def test_data_begin_at_a_multiple_of_eight_bytes(tmp_path):
    for length in range(1, 9):
        path = tmp_path / str(length)
        arrays = {"n" * length: np.zeros(3, np.float32)}
        write(path, _specs(arrays), arrays.values())
        content = path.read_bytes()
        assert int.from_bytes(content[:8], "little") % 8 == 0
        assert len(content) % 4 == 0


@pytest.mark.parametrize("offset", [-1, -20, -59])
def test_a_bit_that_flips_on_the_disk_is_noticed(tmp_path, offset):
    arrays = {"a": np.ones(7, np.float32), "b": np.ones(8, np.float32)}
    checksums = write(tmp_path / "x", _specs(arrays), arrays.values())
    content = bytearray((tmp_path / "x").read_bytes())
    content[offset] ^= 1
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(OSError, match="is not what was written"):
        verify(tmp_path / "x", _specs(arrays), checksums)


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "x").write_text("precious")
    with pytest.raises(FileExistsError):
        write(tmp_path / "x", {}, [])
    assert (tmp_path / "x").read_text() == "precious"


def test_other_element_types_are_refused_by_name(tmp_path):
    safetensors.numpy.save_file({"x": np.zeros(3, np.int64)}, tmp_path / "x")
    with (
        pytest.raises(ConfigError, match="`x` has dtype I64"),
        reader(tmp_path / "x"),
    ):
        pass
