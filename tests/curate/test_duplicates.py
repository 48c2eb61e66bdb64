# SPDX-License-Identifier: Apache-2.0
"""Duplicates against their definition: the set of n-grams, compared pair by pair."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_jax.config import DuplicatesConfig
from ring_jax.curate.duplicates import (
    Keys,
    band_size,
    compute_keys,
    find_duplicates,
)
from ring_jax.data import words
from ring_jax.data.schema import Row

CONFIG = DuplicatesConfig()


def make_row(text: str, number: int) -> Row:
    return Row(
        id=str(number), text=text, source="s", domain="d", licence="MIT", package="p==1"
    )


def rows_of(texts: list[str]) -> list[Row]:
    return [make_row(text, number) for number, text in enumerate(texts)]


def sentence(seed: int, num_words: int = 80) -> list[str]:
    order = random.Random(seed)
    return [f"w{order.randrange(5000)}" for _ in range(num_words)]


def find(texts: list[str], config: DuplicatesConfig = CONFIG):
    return find_duplicates(compute_keys(rows_of(texts), config=config), config=config)


def test_copies_go_and_the_first_stays():
    text = " ".join(sentence(1))
    removed = find([text, " ".join(sentence(2)), text + "\n", "  " + text])
    assert {n: (d.reason, d.kept) for n, d in removed.items()} == {
        2: ("exact", 0),
        3: ("exact", 0),
    }


def test_near_copies_go_and_different_texts_stay():
    texts = []
    for seed in range(30):
        plain = sentence(seed)
        texts.append(" ".join(plain))
        texts.append(" ".join([*plain[:79], "other"]).upper())
    removed = find(texts)
    assert {n: d.kept for n, d in removed.items()} == {
        n: n - 1 for n in range(1, 60, 2)
    }
    assert {d.reason for d in removed.values()} == {"near"}


def test_numbers_and_signs_make_another_problem():
    story = " ".join(sentence(1, 20))
    texts = [f"{story} {a} {sign} {b}" for a in (3, 4) for b in (5, 6) for sign in "+-"]
    assert not find(texts, DuplicatesConfig(threshold=0.95))


def test_a_chain_of_near_copies_keeps_its_first_whatever_the_order_of_pairs():
    plain = sentence(5, 100)
    chain = []
    for step in range(4):
        changed = list(plain)
        changed[: 3 * step] = [f"x{place}" for place in range(3 * step)]
        chain.append(" ".join(changed))
    removed = find([*chain, *reversed(chain)])
    assert {d.kept for n, d in removed.items() if n < 4} == {0}


def test_one_reply_to_many_prompts_is_removed_whole():
    texts = [" ".join(sentence(seed)) for seed in range(12)]
    keys = compute_keys(rows_of(texts), config=CONFIG)
    keys.keys["reply"][3:10] = 77
    few = DuplicatesConfig(max_same_reply=6)
    removed = find_duplicates(keys, config=few)
    assert sorted(removed) == list(range(3, 10))
    assert {d.reason for d in removed.values()} == {"repeated_reply"}
    assert not find_duplicates(keys, config=DuplicatesConfig(max_same_reply=7))


def test_signatures_estimate_the_jaccard_similarity():
    # Standard error sqrt(J (1 - J) / 128) <= 0.045; the mean of 60 pairs has a tenth
    # of it, and 4 of those are allowed.
    errors = []
    for seed in range(60):
        a, b = sentence(seed, 200), sentence(seed, 200)
        b[: 2 * seed] = sentence(1000 + seed, 2 * seed)
        sets = [
            set(words.hash_ngrams(words.hash_words(" ".join(t)), 5).tolist())
            for t in (a, b)
        ]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        keys = compute_keys(rows_of([" ".join(a), " ".join(b)]), config=CONFIG)
        errors.append(np.mean(keys.signatures[0] == keys.signatures[1]) - exact)
    assert abs(np.mean(errors)) < 4 * 0.045 / 60**0.5
    assert np.std(errors) < 0.06


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99])
def test_bands_find_pairs_at_the_threshold(threshold):
    size = band_size(128, threshold=threshold)
    assert 1 - (1 - threshold**size) ** (128 // size) >= 0.98


@given(
    st.lists(st.integers(0, 6), max_size=40),
    st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_exact_copies_follow_the_definition(texts, ids):
    rows = [
        Row(
            id=str(name), text=f"t{t}", source="s", domain="d", licence="M", package="p"
        )
        for t, name in zip(texts, ids, strict=False)
    ]
    config = DuplicatesConfig(near="keep")
    removed = find_duplicates(compute_keys(rows, config=config), config=config)
    seen_text, seen_id, expected = {}, {}, {}
    for number, row in enumerate(rows):
        if row.text in seen_text:
            expected[number] = ("exact", seen_text[row.text])
        else:
            seen_text[row.text] = number
            if row.id in seen_id:
                expected[number] = ("duplicate_id", seen_id[row.id])
            else:
                seen_id[row.id] = number
    assert {n: (d.reason, d.kept) for n, d in removed.items()} == expected


@given(st.lists(st.integers(0, 25), max_size=25), st.integers(1, 24))
def test_keys_of_a_row_do_not_depend_on_its_neighbours(seeds, cut):
    rows = [
        make_row(" ".join(sentence(s, 4 * s)) or "x", n) for n, s in enumerate(seeds)
    ]
    whole = compute_keys(rows, config=CONFIG)
    parts = [compute_keys(part, config=CONFIG) for part in (rows[:cut], rows[cut:])]
    joined = Keys(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.signatures for part in parts]),
    )
    assert (joined.keys == whole.keys).all()
    assert (joined.signatures == whole.signatures).all()


@given(st.lists(st.text("ab1+ ", max_size=6), max_size=12), st.integers(1, 5))
def test_ngrams_are_equal_where_their_words_are(texts, size):
    seen: dict[int, tuple[str, ...]] = {}
    for text in texts:
        found = words.words(text)
        hashes = words.hash_ngrams(words.hash_words(text), size)
        runs = [tuple(found[n : n + size]) for n in range(len(found) - size + 1)]
        assert len(hashes) == max(0, len(runs))
        for run, value in zip(runs, hashes.tolist(), strict=True):
            assert seen.setdefault(value, run) == run
    assert len(set(seen.values())) == len(seen)
