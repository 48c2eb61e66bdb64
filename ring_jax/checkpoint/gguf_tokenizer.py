# SPDX-License-Identifier: Apache-2.0
"""The tokenizer in a GGUF file's metadata, as the text of a `tokenizer.json`.

Sources: `docs/gguf.md` of ggml-org/ggml for the keys; `src/llama-vocab.cpp` of
ggml-org/llama.cpp for what each name of a pre-tokenizer splits.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
# `tokenizer.ggml.pre` -> what cuts a text into words.
PRE_TOKENIZERS = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}

# `tokenizer.ggml.token_type`: what comes from code only, and what a text may spell.
_SPECIAL_TYPES = (2, 3)
_USER_DEFINED = 4


def tokenizer_json(metadata: Mapping[str, Any], *, vocab_size: int) -> str:
    """Returns the content of `tokenizer.json`.

    Args:
      metadata: of the file.
      vocab_size: rows of the model's embedding, at least as many as tokens.

    Raises:
      ConfigError: the metadata hold no byte-level BPE, or one that is cut otherwise.
    """
    model, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ConfigError(
            f"tokenizer.ggml: model={model!r} with pre={pre!r} cannot be read; it must "
            f"be 'gpt2' with one of {list(PRE_TOKENIZERS)}."
        )
    tokens, merges = _texts(metadata, "tokens"), _texts(metadata, "merges")
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if not len(vocab) == len(tokens) == len(types) <= vocab_size:
        raise ConfigError(
            f"tokenizer.ggml: {len(tokens)} tokens, {len(vocab)} different ones, with "
            f"{len(types)} types, for {vocab_size} embeddings; the file is damaged."
        )
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(token_id, tokens[token_id], is_special=kind in _SPECIAL_TYPES)
            for token_id, kind in enumerate(types)
            if kind in (*_SPECIAL_TYPES, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [_pair(merge, vocab) for merge in merges],
        },
    }
    return json.dumps(tree, ensure_ascii=False, indent=2) + "\n"


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of `bos_token` and `eos_token`, where the file has them."""
    tokens = _texts(metadata, "tokens")
    found = {}
    for kind in ("bos", "eos"):
        token_id = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < len(tokens):
            found[f"{kind}_token"] = tokens[token_id]
    return found


def _texts(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    texts = metadata.get(f"tokenizer.ggml.{key}")
    is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    if not is_list or not texts:
        raise ConfigError(f"tokenizer.ggml.{key} is missing or holds no texts.")
    return texts


def _added(token_id: int, content: str, *, is_special: bool) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": is_special,
    }


def _pair(merge: str, vocab: Mapping[str, int]) -> list[str]:
    # Looked at here, because the library's own errors have no type to catch.
    pair = merge.split(" ")
    if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
        raise ConfigError(f"tokenizer.ggml.merges has {merge!r}; the file is damaged.")
    return pair
