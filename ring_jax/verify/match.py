# SPDX-License-Identifier: Apache-2.0
"""Short answers: equal up to case, accents, punctuation and articles."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any


def is_match(reply: str, answer: str, metadata: Mapping[str, Any]) -> bool:
    """Compares with the gold answer and with `metadata["accepted"]`, where given."""
    known = {normalize(text) for text in [answer, *metadata.get("accepted", ())]}
    return normalize(reply) in known - {""}


def normalize(text: str) -> str:
    """Writes text in lower case, without accents, punctuation and leading articles.

    A sign stays: -5 is not 5, and C++ is not C.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    spaced = re.sub(r"[^\w\s+-]|(?<=\w)-(?=\w)", " ", plain)
    return re.sub(r"^(the|a|an) ", "", " ".join(spaced.split()))
