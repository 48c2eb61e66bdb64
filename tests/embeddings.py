# SPDX-License-Identifier: Apache-2.0
"""An embedding model for tests: a bag of words, hashed into 96 numbers."""

import hashlib
import re

import numpy as np

DIM = 96


def bag(text: str) -> np.ndarray:
    """The model: f64[DIM], not of length 1, never zero."""
    vector = np.zeros(DIM)
    for word in re.findall(r"\w+", text.lower()):
        place = int(hashlib.sha256(word.encode()).hexdigest(), 16)
        vector[place % DIM] += 1.0 if place // DIM % 2 else -1.0
    vector[0] += 0.01
    return vector * 3.0


def cosine(one: str, other: str) -> float:
    """The definition that everything is held against."""
    a, b = bag(one), bag(other)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def embeddings_reply(body: dict) -> tuple[int, dict]:
    """What a server with this model answers; the last text comes first."""
    data = [
        {"object": "embedding", "index": number, "embedding": bag(text).tolist()}
        for number, text in enumerate(body["input"])
    ]
    return 200, {"object": "list", "model": body["model"], "data": data[::-1]}
