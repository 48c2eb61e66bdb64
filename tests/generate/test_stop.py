# SPDX-License-Identifier: Apache-2.0
"""A transcript ends before its first stop text, however tokens cut it."""

import hypothesis
import pytest
from hypothesis import strategies as st

from ring_jax.data import tokenizer as tokenizers
from ring_jax.generate.prefix import PrefixCache
from ring_jax.generate.stop import Transcript

TOKENIZER = tokenizers.train(["abab aab bba é 家"] * 3, vocab_size=270)
TEXTS = st.text(st.sampled_from("ab é家"), min_size=0, max_size=12)


def spell(text: str, cuts: list[bool]) -> list[int]:
    """Encodes a text byte by byte, or by words, as `cuts` says for each character."""
    pieces = [""]
    for character, is_cut in zip(text, cuts, strict=False):
        pieces[-1] += character
        if is_cut:
            pieces.append("")
    return [token for piece in pieces if piece for token in TOKENIZER.encode(piece)]


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    text=TEXTS,
    cuts=st.lists(st.booleans(), min_size=12, max_size=12),
    stop=st.lists(st.text(st.sampled_from("ab é"), min_size=1, max_size=4), max_size=3),
)
def test_a_stop_text_is_found_wherever_tokens_cut_it(text, cuts, stop):
    transcript, told = Transcript(TOKENIZER, stop), ""
    for token in spell(text, cuts):
        if transcript.is_stopped:
            break
        transcript.add(token)
        told += transcript.tell()
    whole = transcript.finish()
    # The first stop text that is complete ends the text.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert whole == text and not transcript.is_stopped
    else:
        assert transcript.is_stopped
        assert text.startswith(whole) and not any(s in whole for s in stop)
        assert any(text.startswith(s, len(whole)) for s in stop)
    assert whole.startswith(told)


def test_half_a_character_is_held_back():
    transcript = Transcript(TOKENIZER, [])
    ids = TOKENIZER.encode("家é")
    told = []
    for token in ids:
        transcript.add(token)
        told.append(transcript.tell())
    assert len(ids) > 2 and "".join(told) == "家é"
    assert all("\ufffd" not in text for text in told)


def test_a_text_that_ends_in_half_a_character_says_so():
    transcript = Transcript(TOKENIZER, [])
    ids = TOKENIZER.encode("家")
    assert len(ids) > 1
    transcript.add(ids[0])
    assert transcript.tell() == "" and transcript.finish() == "\ufffd"


@pytest.mark.parametrize("max_tokens", [0, 4, 8, 100])
def test_kept_prefixes_stay_within_their_room(max_tokens):
    cache = PrefixCache(max_tokens)
    for number in range(6):
        cache.put([1, number], f"chunk {number}", num_tokens=4)
    kept = [cache.get([1, number]) for number in range(6)]
    room = min(max_tokens // 4, 6)
    assert kept == [None] * (6 - room) + [f"chunk {n}" for n in range(6 - room, 6)]


def test_the_prefix_used_longest_ago_is_dropped():
    cache = PrefixCache(8)
    cache.put([1], "one", num_tokens=4)
    cache.put([2], "two", num_tokens=4)
    assert cache.get([1]) == "one"
    cache.put([3], "three", num_tokens=4)
    assert cache.get([2]) is None and cache.get([1]) == "one"
