# SPDX-License-Identifier: Apache-2.0
"""Words without the punctuation of ASCII around or inside them."""

import string

EDGES = string.punctuation + " "
_REMOVED = str.maketrans("", "", string.punctuation)


def without_punctuation(text: str) -> str:
    """Removes every punctuation mark of ASCII: "don't" becomes "dont"."""
    return text.translate(_REMOVED)
