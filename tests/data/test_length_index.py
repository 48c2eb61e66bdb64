# SPDX-License-Identifier: Apache-2.0
"""The length index counts what is trained, keeps it whole, and notices damage."""

import numpy as np
import pytest

from ring_jax.config import TOKEN_CLASSES, ConfigError
from ring_jax.data import length_index
from ring_jax.data.chat import Rendered
from ring_jax.data.length_index import NUM_BANDS

ARRAYS = ("rows_C", "counts_CU", "starts_J", "sums_JU", "used_J", "bands", "kinds")


def rendered(seed: int) -> tuple[Rendered, float]:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 40))
    ids = rng.integers(0, 99, length).astype(np.int32)
    classes = rng.integers(1, len(TOKEN_CLASSES), length).astype(np.int32)
    return Rendered(ids, classes), float(rng.random())


@pytest.fixture(params=[0, 1, 7, 300], ids=lambda n: f"{n} rows")
def rows(request):
    return [rendered(seed) for seed in range(request.param)]


def test_counts_are_those_of_each_row_without_its_first_token(rows):
    index = length_index.build(rows, seq_len=30)
    assert sorted(index.rows_C.tolist()) == list(range(len(rows)))
    for place, row in enumerate(index.rows_C.tolist()):
        tokens, _ = rows[row]
        expected = [
            int((tokens.classes[1:] == number).sum())
            for number in range(1, len(TOKEN_CLASSES))
        ]
        if len(tokens.ids) > 30:
            expected = [0] * len(expected)
        assert index.counts_CU[place].tolist() == expected
    assert index.num_rows == sum(len(tokens.ids) <= 30 for tokens, _ in rows)


@pytest.mark.parametrize("max_blocks", [1 << 16, 64], ids=["single", "blocks"])
def test_block_sums_add_up(rows, max_blocks, monkeypatch):
    monkeypatch.setattr(length_index, "MAX_BLOCKS", max_blocks)
    monkeypatch.setattr(length_index, "MIN_BLOCK_ROWS", 8)
    index = length_index.build(rows, seq_len=40)
    blocks = zip(index.starts_J, index.starts_J[1:], strict=False)
    for block, (first, last) in enumerate(blocks):
        here = index.counts_CU[first:last]
        assert index.sums_JU[block].tolist() == here.sum(axis=0).tolist()
        assert index.used_J[block] == here.any(axis=1).sum()
    assert index.starts_J[-1] == len(rows)
    if len(rows) == 300:
        assert (len(index.used_J) < len(rows)) == (max_blocks == 64)


def test_kinds_tell_how_many_rows_have_which_classes(rows):
    index = length_index.build(rows, seq_len=30)
    seen = {}
    for place, counts_U in enumerate(np.asarray(index.counts_CU)):
        if counts_U.any():
            bits = sum(1 << u for u, count in enumerate(counts_U) if count)
            seen.setdefault(bits, []).append(place)
    assert index.kinds[:, 0].sum() == index.num_rows
    for bits, (number, first) in enumerate(index.kinds.tolist()):
        places = seen.get(bits, [-1])
        assert (number, first) == (len(seen.get(bits, ())), places[0])


def test_bands_split_rows_by_rank_of_difficulty():
    rows = [rendered(seed) for seed in range(400)]
    index = length_index.build(rows, seq_len=40)
    limits = index.starts_J[index.bands]
    ranks = np.argsort(np.argsort([difficulty for _, difficulty in rows]))
    for band in range(NUM_BANDS):
        members = index.rows_C[limits[band] : limits[band + 1]]
        assert sorted(ranks[members]) == list(range(50 * band, 50 * band + 50))


def test_a_saved_index_is_mapped_back_whole(rows, tmp_path):
    index = length_index.build(rows, seq_len=40)
    for _ in range(2):  # saving an equal index again changes nothing
        index.save(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    loaded = length_index.load(tmp_path / "index")
    assert loaded.digest == index.digest
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(index, name))
    length_index.verify(loaded, name="a")
    assert isinstance(loaded.counts_CU, np.memmap) or not rows


def test_the_digest_sees_every_array(rows):
    rows = rows or [rendered(0)]
    index = length_index.build(rows, seq_len=40)
    tokens, difficulty = rows[0]
    changed = Rendered(tokens.ids, np.roll(tokens.classes, 1))
    other = length_index.build([(changed, difficulty), *rows[1:]], seq_len=40)
    is_same = (changed.classes[1:] == tokens.classes[1:]).all()
    assert (other.digest == index.digest) == is_same


def test_damage_is_told_in_one_line(tmp_path):
    index = length_index.build([rendered(seed) for seed in range(50)], seq_len=40)
    index.save(tmp_path / "index")
    path = tmp_path / "index" / "counts_CU.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes([*whole[-4:-1], whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match="hash to"):
        length_index.verify(length_index.load(tmp_path / "index"), name="a")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        length_index.load(tmp_path / "index")
    with pytest.raises(ConfigError, match="cannot be read"):
        length_index.load(tmp_path / "nowhere")


def test_a_large_source_that_nobody_graded_is_one_band():
    num_rows = length_index.MAX_BLOCKS + 1
    counts_CU = np.ones((num_rows, 5), np.int32)
    index = length_index.from_counts(counts_CU, np.zeros(num_rows, np.float32))
    assert index.num_rows == num_rows
    assert np.diff(index.bands)[1:].tolist() == [0] * (length_index.NUM_BANDS - 1)
    assert index.sums_JU.sum() == 5 * num_rows
    assert sorted(np.asarray(index.rows_C).tolist()) == list(range(num_rows))
