# SPDX-License-Identifier: Apache-2.0
"""A tokenizer like Ling's first, to which a tool tag is text."""

import json

import tokenizers

from ring_jax.data.tokenizer import TOOL_TOKENS, Tokenizer


def without_tool_tags(trained: Tokenizer) -> Tokenizer:
    """Makes the same tokenizer without the tokens of tools; ids stay as they are."""
    tree = json.loads(trained.to_json())
    tree["added_tokens"] = [
        token for token in tree["added_tokens"] if token["content"] not in TOOL_TOKENS
    ]
    vocab = tree["model"]["vocab"]
    for tag in TOOL_TOKENS:
        place = vocab.pop(tag)
        vocab[f"unused {place}"] = place
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tree)))
