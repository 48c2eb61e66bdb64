# SPDX-License-Identifier: Apache-2.0
"""Vectors are found again or not at all, and compared as their definition says."""

import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ring_jax.config import ConfigError
from ring_jax.curate import vectors
from ring_jax.curate.vectors import VectorStore, count_near, nearest

TEXTS = [f"text {number}" for number in range(20)]


def random_vectors(seed: int, num: int, dim: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, dim)) * 10.0


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The definition, in 64 bits."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    return one @ other.T / lengths


def stored(folder: pathlib.Path, texts=TEXTS) -> tuple[np.ndarray, np.ndarray]:
    with VectorStore(folder) as store:
        return store.find(texts)


def test_vectors_are_found_again_with_length_one_and_sixteen_bits(tmp_path):
    made = random_vectors(0, 20)
    with VectorStore(tmp_path) as store:
        assert not store.find(TEXTS)[0].any()
        store.add(TEXTS[:5], made[:5])
        is_known, found = store.find(TEXTS)
        assert is_known.tolist() == [True] * 5 + [False] * 15
        store.add(TEXTS[5:15], made[5:15])
    with VectorStore(tmp_path) as store:
        store.add(TEXTS[15:], made[15:])
        is_known, found = store.find(TEXTS[::-1])
    assert is_known.all() and found.dtype == np.float32
    assert np.diag(cosines(found[::-1], made)) == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-6)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.vectors"))
    assert size == 20 * 24 * 2


def test_processes_share_a_folder_and_a_later_one_finds_all(tmp_path):
    made = random_vectors(1, 20)
    with VectorStore(tmp_path) as one, VectorStore(tmp_path) as other:
        one.add(TEXTS[:10], made[:10])
        other.add(TEXTS[10:], made[10:])
        assert one.find(TEXTS)[0].sum() == other.find(TEXTS)[0].sum() == 10
    is_known, found = stored(tmp_path)
    assert is_known.all()
    assert (cosines(found, made).argmax(axis=1) == np.arange(20)).all()


@hypothesis.given(st.sampled_from(["keys", "vectors"]), st.floats(0, 1), st.booleans())
def test_a_cut_or_damaged_file_never_gives_another_vector(kind, where, is_cut):
    made = random_vectors(2, 20)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with VectorStore(folder) as store:
            store.add(TEXTS, made)
        (path,) = folder.glob(f"*.{kind}")
        data = bytearray(path.read_bytes())
        place = min(int(where * len(data)), len(data) - 1)
        data = data[:place] if is_cut else data
        if not is_cut:
            data[place] ^= 0x10
        path.write_bytes(data)
        with VectorStore(folder) as store:
            is_known, found = store.find(TEXTS)
            kept = np.flatnonzero(is_known)
            if not is_cut:
                assert len(kept) == 19
            for number, vector in zip(kept, found, strict=True):
                assert cosines(vector[None], made)[0].argmax() == number
            lost = np.flatnonzero(~is_known)
            if len(lost):
                store.add([TEXTS[n] for n in lost], made[lost])
            assert store.find(TEXTS)[0].all()


def test_a_write_that_failed_half_way_is_written_over(tmp_path):
    made = random_vectors(3, 20)
    with VectorStore(tmp_path) as store:
        store.add(TEXTS[:3], made[:3])
        for path in tmp_path.iterdir():
            with path.open("ab") as file:
                file.write(b"half a")
        store.add(TEXTS[3:], made[3:])
        assert store.find(TEXTS)[0].all()
    is_known, found = stored(tmp_path)
    assert is_known.all()
    assert np.diag(cosines(found, made)) == pytest.approx(1.0, abs=1e-5)


def test_vectors_of_another_width_are_refused_in_one_line(tmp_path):
    with VectorStore(tmp_path) as store:
        store.add(TEXTS[:1], random_vectors(0, 1, dim=8))
        with pytest.raises(ConfigError, match="of 8 numbers.*of 9.*another model"):
            store.add(TEXTS[1:2], random_vectors(0, 1, dim=9))
    with VectorStore(tmp_path / "other") as store:
        store.add(TEXTS[:1], random_vectors(0, 1, dim=9))
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(ConfigError, match="embeddings.folder"):
        VectorStore(tmp_path).__enter__()


def test_what_comes_after_the_end_is_dropped(tmp_path):
    with VectorStore(tmp_path) as store:
        store.add(TEXTS[:1], random_vectors(0, 1))
    store.add(TEXTS[1:2], random_vectors(0, 1))
    assert stored(tmp_path)[0].sum() == 1


@hypothesis.given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99)
)
def test_the_nearest_is_that_of_the_definition(num, num_known, block, seed):
    ours, known = random_vectors(seed, num, 6), random_vectors(seed + 1, num_known, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", block)
        found, which = nearest(ours, known)
    expected = cosines(ours, known)
    assert found == pytest.approx(expected.max(axis=1), abs=1e-5)
    assert expected[np.arange(num), which] == pytest.approx(found, abs=1e-5)


@hypothesis.given(st.integers(0, 30), st.integers(1, 9), st.floats(-0.9, 0.99))
def test_neighbours_are_counted_as_the_definition_does(num, block, threshold):
    ours = random_vectors(num, num, 4)
    expected = cosines(ours, ours)
    np.fill_diagonal(expected, -2.0)
    hypothesis.assume((np.abs(expected - threshold) > 1e-5).all())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", block)
        found = count_near(ours, threshold=threshold)
    assert found.tolist() == (expected >= threshold).sum(axis=1).tolist()
