# SPDX-License-Identifier: Apache-2.0
"""Texts as hashed words and n-grams: what duplicates and contamination are found by.

A word is a run of letters and digits, in lower case and without accents' variants
(NFKC), or one operator: 3 + 4 is not 3 - 4. Scripts without blanks give one word per
character; LaTeX that only says how a formula looks gives none. Hashes are the same on
every machine and in every process, so that chunks made by several workers agree.
"""

import functools
import hashlib
import re
import unicodedata

import numpy as np

# Han, kana and Hangul have no blanks between words, or none that matter here.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+|[-+*/=^<>%]")
# What LaTeX says about looks alone: \left( and ( are the same, and so are an equation
# between dollars and one in an environment.
_LAYOUT = re.compile(
    r"\\(?:begin|end)\{(?:equation|align|aligned|gather|displaymath|math)\*?\}"
    r"|\\(?:left|right|bigg?[lr]?|displaystyle|textstyle|limits|q?quad)(?![a-z])"
)
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd: multiplication by it is a permutation
_NUM_REMEMBERED = 1 << 18


def words(text: str) -> list[str]:
    """Splits a text into normalised words."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    if "\\" in plain:
        plain = _FRACTION.sub(r"\\frac", _LAYOUT.sub(" ", plain))
    return _WORD.findall(plain)


def hash_words(text: str) -> np.ndarray:
    """Hashes the words of a text: u64[number of words]."""
    found = words(text)
    return np.fromiter(map(_hash_word, found), np.uint64, len(found))


@functools.lru_cache(_NUM_REMEMBERED)
def _hash_word(word: str) -> int:
    return digest64(word.encode())


def digest64(data: bytes) -> int:
    """Hashes bytes to 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hash_ngrams(hashes: np.ndarray, size: int) -> np.ndarray:
    """Hashes each run of `size` words: u64[len(hashes) - size + 1], or none.

    h(w_0 ... w_n-1) = mix(sum_j w_j * p^j mod 2^64); a run's hash does not depend on
    where it stands.
    """
    count = len(hashes) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for offset in range(size):
        power = pow(_MULTIPLIER, offset + 1, 1 << 64)
        total += hashes[offset : offset + count] * np.uint64(power)
    total ^= total >> np.uint64(31)
    total *= np.uint64(0xBF58476D1CE4E5B9)
    return total ^ (total >> np.uint64(29))
