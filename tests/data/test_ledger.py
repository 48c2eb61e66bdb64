# SPDX-License-Identifier: Apache-2.0
"""The ledger keeps shares of trained tokens, at any position, through any change."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.billion_rows import billion_rows
from ring_jax.config import ConfigError, CurriculumConfig
from ring_jax.data.ledger import Ledger
from ring_jax.data.length_index import NUM_BANDS, LengthIndex
from ring_jax.data.mixture_table import Change, entry_from_json
from ring_jax.data.windows import Windows

MIXTURE = {"long": 3.0, "short": 2.0, "mid": 1.0}


@pytest.fixture(scope="module")
def indexes(lengths):
    make = lengths.make_index
    return {
        "short": make(900, mean=12, seq_len=1024, seed=1),
        "mid": make(300, mean=60, sigma=0.5, seq_len=1024, seed=2),
        "long": make(500, mean=300, sigma=0.8, seq_len=1024, seed=3),
        "other": make(100, mean=40, seq_len=1024, seed=4),
    }


def dealt(ledger, windows) -> list[tuple[int, int]]:
    """(source, place) of all rows that are dealt to some windows, in order."""
    parts = [ledger.rows(window) for window in windows]
    return [
        pair
        for rows in parts
        for pair in zip(rows.sources_C.tolist(), rows.places_C.tolist(), strict=True)
    ]


def trained(ledger, pairs) -> dict[str, int]:
    sums = dict.fromkeys(ledger.indexes, 0)
    for source, place in pairs:
        name = list(ledger.indexes)[source]
        sums[name] += int(ledger.indexes[name].counts_CU[place][1:].sum())
    return sums


def test_shares_of_trained_tokens_are_kept_to_one_percent(indexes, lengths):
    ledger = lengths.open_ledger(indexes, MIXTURE, seq_len=1024)
    pairs, window = [], 0
    while len(pairs) < 2000:
        pairs += dealt(ledger, [window])
        window += 1
    sums = trained(ledger, pairs)
    total = sum(sums.values())
    # Rows are between 4 and 1024 tokens: the shares of rows are far from these.
    for name, weight in MIXTURE.items():
        assert abs(sums[name] / total - weight / 6) < 0.01
    assert sum(source == 0 for source, _ in pairs) > 1500


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    weights=st.lists(st.floats(0.05, 20), min_size=3, max_size=3),
    means=st.lists(st.integers(5, 200), min_size=3, max_size=3),
    window=st.integers(1, 12),
)
def test_every_prefix_is_within_a_row_of_its_shares(lengths, weights, means, window):
    indexes = {
        f"s{i}": lengths.make_index(150, mean=mean, seq_len=256, seed=i)
        for i, mean in enumerate(means)
    }
    mixture = {f"s{i}": weight for i, weight in enumerate(weights)}
    ledger = lengths.open_ledger(indexes, mixture, fill=0.9)
    sums = trained(ledger, dealt(ledger, range(window)))
    places = ledger.places(window)
    assert sums == {name: place.trained for name, place in places.items()}
    total = sum(sums.values())
    longest = 256
    for name, weight in mixture.items():
        expected = total * weight / sum(weights)
        # One row of each source can be ahead or behind, and so can their sum.
        assert abs(sums[name] - expected) <= longest * (1 + len(mixture))


def test_windows_follow_each_other_without_a_gap_or_a_repeat(indexes, lengths):
    ledger = lengths.open_ledger(indexes, MIXTURE, seq_len=1024)
    pairs = dealt(ledger, range(60))
    for number, (name, index) in enumerate(indexes.items()):
        walked = [place for source, place in pairs if source == number]
        size = index.num_rows
        if name not in MIXTURE:
            assert not walked
            continue
        # Windows reorder rows by time; each epoch is still there exactly once.
        num_epochs = len(walked) // size
        counts = np.bincount(walked, minlength=size)
        assert counts.min() >= num_epochs
        assert counts.max() <= num_epochs + 1
        assert counts.sum() == len(walked)


def test_a_window_is_the_same_wherever_one_begins(indexes, lengths):
    ledger = lengths.open_ledger(indexes, MIXTURE, seq_len=1024)
    in_order = [dealt(ledger, [window]) for window in range(30)]
    for window in (29, 3, 17, 0):
        again = Ledger(indexes, ledger.geometry, ledger.table)
        assert dealt(again, [window]) == in_order[window]


def test_windows_hold_what_was_planned(indexes, lengths):
    ledger = lengths.open_ledger(indexes, MIXTURE, seq_len=1024, fill=0.9)
    budget = 16 * 1024 * 0.9
    packed = np.cumsum([ledger.rows(w).lengths_C.sum() for w in range(40)])
    behind = budget * np.arange(1, 41) - packed
    # Not more than planned, and at most the rows that come at one moment less.
    assert behind.min() >= 0
    assert behind.max() <= 2 * 1024


@pytest.mark.parametrize("schedule", ["step", "linear", "cosine"])
def test_a_change_moves_shares_as_its_schedule_says(schedule, indexes, lengths):
    before = {"short": 1.0, "mid": 1.0}
    after = {"mid": 1.0, "long": 3.0}
    over = 0 if schedule == "step" else 80
    ledger = lengths.open_ledger(indexes, before, seq_len=1024).extended(
        Change(start_step=40, mixture=after, schedule=schedule, over_steps=over)
    )
    assert ledger.shares(9) == pytest.approx({"short": 0.5, "mid": 0.5})
    # Steps are turned into tokens by the indexes' means, hence the tolerance.
    half = ledger.shares(10 + over // 8)
    if over:
        expected = {"short": 0.25, "mid": 0.375, "long": 0.375}
        assert half == pytest.approx(expected, abs=0.03)
        quarter = ledger.shares(10 + over // 16)["short"]
        slope = {"linear": 0.375, "cosine": 0.4268}[schedule]
        assert quarter == pytest.approx(slope, abs=0.02)
    assert ledger.shares(10 + over // 4 + 4) == pytest.approx(
        {"mid": 0.25, "long": 0.75}
    )
    late = trained(ledger, dealt(ledger, range(40, 60)))
    assert late["long"] / sum(late.values()) == pytest.approx(0.75, abs=0.01)
    assert not late["short"]


def test_walks_go_on_through_a_change(indexes, lengths):
    ledger = lengths.open_ledger(indexes, MIXTURE, seq_len=1024)
    changed = ledger.extended(Change(start_step=80, mixture={"short": 5.0, "mid": 1.0}))
    assert dealt(changed, range(20)) == dealt(ledger, range(20))
    for number in (0, 1):
        walked = [p for s, p in dealt(changed, range(40)) if s == number]
        size = indexes[list(indexes)[number]].num_rows
        counts = np.bincount(walked, minlength=size)
        assert counts.max() - counts.min() <= 1


def test_a_table_goes_through_json_to_the_same_rows(indexes, lengths):
    ledger = lengths.open_ledger(
        indexes, MIXTURE, curriculum=CurriculumConfig(start=0.25, over_steps=60)
    ).extended(
        Change(
            start_step=30,
            mixture={"mid": 1.0, "other": 1.0},
            schedule="cosine",
            over_steps=20,
            reason="the guard asked",
            origin="run",
        )
    )
    written = json.loads(json.dumps([entry.to_json() for entry in ledger.table]))
    table = [entry_from_json(entry) for entry in written]
    assert table == list(ledger.table)
    again = Ledger(indexes, ledger.geometry, table)
    assert dealt(again, range(12)) == dealt(ledger, range(12))


def rank_of(index: LengthIndex, places) -> np.ndarray:
    """The band of difficulty of each place."""
    limits = index.starts_J[index.bands]
    return np.searchsorted(limits, places, side="right") - 1


def test_competence_opens_the_easiest_rows_first(indexes, lengths):
    pace = CurriculumConfig(start=0.25, over_steps=160)
    ledger = lengths.open_ledger(
        {"long": indexes["long"]}, {"long": 1.0}, curriculum=pace, seq_len=1024
    )
    bands = [
        rank_of(indexes["long"], [p for _, p in dealt(ledger, [window])])
        for window in range(60)
    ]
    assert bands[0].max() <= 2
    for window in (10, 20, 30):
        # Equation 7 of arXiv:1903.09848, at the end of the window.
        competence = np.sqrt((window + 1) / 40 * (1 - 0.25**2) + 0.25**2)
        assert bands[window].max() <= np.ceil(NUM_BANDS * competence + 0.1)
    assert set(bands[50]) == set(range(NUM_BANDS))


def test_bands_keep_to_their_ranks(indexes, lengths):
    hard = CurriculumConfig(lowest=0.75, highest=1.0)
    ledger = lengths.open_ledger(indexes, {"long": 1.0, "mid": 1.0}, curriculum=hard)
    for source, place in dealt(ledger, range(10)):
        assert rank_of(indexes[list(indexes)[source]], [place])[0] >= 6


def test_ungraded_sources_are_read_whole_under_a_curriculum(lengths):
    indexes = {"plain": lengths.index_of([10] * 64)}
    pace = CurriculumConfig(start=0.125, over_steps=100)
    ledger = lengths.open_ledger(indexes, {"plain": 1.0}, curriculum=pace)
    assert len({place for _, place in dealt(ledger, range(2))}) == 64


BAD = {
    "unknown": (Change(start_step=8, mixture={"nobody": 1.0}), "does not read"),
    "past": (Change(start_step=0, mixture={"mid": 1.0}), "choose a later step"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_bad_change_is_refused(change, message, indexes, lengths):
    ledger = lengths.open_ledger(indexes, MIXTURE)
    with pytest.raises(ConfigError, match=message) as error:
        ledger.extended(change)
    assert "\n" not in str(error.value)


def test_a_source_without_trained_tokens_is_refused(indexes, lengths):
    with pytest.raises(ConfigError, match="source short has no trained token"):
        lengths.open_ledger(indexes, {"short": 1.0}, trained_classes=(False,) * 5)


def test_any_step_of_a_billion_rows_is_found_at_once(lengths):
    indexes = {"a": billion_rows(mean=400), "b": billion_rows(mean=2000)}
    shape = {"batch_size": 64, "window_steps": 4, "seq_len": 16384}
    ledger = lengths.open_ledger(indexes, {"a": 1.0, "b": 2.0}, **shape)
    seconds = []
    for step in (0, 1_500_000, 77_777):
        begin = time.perf_counter()
        windows = Windows(Ledger(indexes, ledger.geometry, ledger.table))
        windows.composition(step)
        seconds.append(time.perf_counter() - begin)
    fed = windows.totals(1_500_000)
    assert fed["a"].rows + fed["b"].rows > 10**9
    # 0.2 s where nothing else runs; the limit is the requirement.
    assert min(seconds) < 1.0
    assert fed["b"].trained / fed["a"].trained == pytest.approx(2.0, abs=1e-4)
