# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE tokenizers: any `tokenizer.json`, or one trained on the run's text."""

import array
import functools
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ring_jax.config import ConfigError

END_TOKEN = "<|endoftext|>"
CHAT_TOKENS = ("<role>", "</role>", END_TOKEN)
THINK_TOKENS = ("<think>", "</think>")
TOOL_TOKENS = ("<tool_call>", "</tool_call>")
SPECIAL_TOKENS = (
    "<|startoftext|>",
    END_TOKEN,
    "[CLS]",
    "[gMASK]",
    "<role>",
    "</role>",
    *THINK_TOKENS,
    *TOOL_TOKENS,
)
"""Special tokens of a tokenizer trained here, in the order of their ids from 0."""

# Ling's pre-tokenizer, as llama.cpp quotes it from the shipped tokenizer.json
# (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_BAILINGMOE): contractions, words with one
# leading sign, single digits, punctuation runs, line ends, other white space.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{N}]?+\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text to ids, where a special token only ever comes from code, never from text."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        end_token: str = END_TOKEN,
        needed: Sequence[str] = CHAT_TOKENS,
    ):
        """Wraps a Hugging Face tokenizer.

        Args:
          backend: any byte-level BPE.
          end_token: what ends a turn.
          needed: tokens that it must have; those of our chat templates.

        Raises:
          ConfigError: names the chat tokens that it lacks.
        """
        missing = [name for name in needed if backend.token_to_id(name) is None]
        if missing:
            raise ConfigError(
                f"tokenizer: lacks the chat tokens {missing}; use the tokenizer of a "
                "Ling model, or leave data.tokenizer.path empty to train one."
            )
        self._backend = backend
        self._plain = _without_special_tokens(backend)
        self.end_token = end_token

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id in use."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a turn."""
        return self.special_id(self.end_token)

    @functools.cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """What only comes from code: texts that `encode` never makes a token of."""
        added = self._backend.get_added_tokens_decoder().values()
        return tuple(
            token.content
            for token in added
            if token.special or token.content in SPECIAL_TOKENS
        )

    def has_special(self, name: str) -> bool:
        """Tells whether `name` is one token."""
        return self._backend.token_to_id(name) is not None

    def special_id(self, name: str) -> int:
        """Looks up a special token.

        Raises:
          ConfigError: the tokenizer has no such token.
        """
        if (token_id := self._backend.token_to_id(name)) is None:
            raise ConfigError(
                f"tokenizer: has no token {name!r}, which the chat template needs; "
                'add it to tokenizer.json or use data.template="ling".'
            )
        return token_id

    def encode(self, text: str) -> list[int]:
        """Encodes text; a special token spelled out in it stays plain text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes many texts at once, on all cores: i32[T] of each."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        # Through array.array, which reads a list of integers twice as fast as numpy.
        return [
            np.frombuffer(array.array("i", encoding.ids), np.int32)
            for encoding in encodings
        ]

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Encodes text; returns ids, and the place of each token's first character."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def encode_rendered(self, text: str) -> list[int]:
        """Encodes what a chat template wrote: special tokens spelled out are tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Turns ids back into text, special tokens spelled out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def to_json(self) -> str:
        """Writes the content of `tokenizer.json`."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        # A third of a second for a large vocabulary, and asked for at every start.
        return self._backend.to_str(pretty=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json` in one move: a reader never sees half of it."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Host and process keep those that share a cache from writing one part file.
        writer = f"{socket.gethostname()}.{os.getpid()}"
        part = path.with_name(f"{path.name}.{writer}.part")
        part.write_text(self.to_json(), encoding="utf-8")
        part.replace(path)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a `tokenizer.json`, or a folder that holds one.

    Raises:
      ConfigError: the file is absent, unreadable, or lacks the chat tokens.
    """
    backend = read_backend(path)
    try:
        return Tokenizer(backend)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_backend(path: str | os.PathLike[str]) -> tokenizers.Tokenizer:
    """Reads any byte-level BPE, whatever its special tokens.

    Raises:
      ConfigError: the file is absent or unreadable.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"tokenizer: {path} does not exist; give a tokenizer.json.")
    text = path.read_text(encoding="utf-8")
    try:
        # Looked at first, because the library's own errors have no type to catch.
        kind = json.loads(text)["model"]["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"tokenizer: {path} is malformed ({error!r}).") from None
    if kind != "BPE":
        raise ConfigError(f"tokenizer: {path} is a {kind}; give a byte-level BPE.")
    return tokenizers.Tokenizer.from_str(text)


def train(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE with Ling's special tokens and pre-tokenizer.

    The result depends on the bag of texts only: not on their order, not on threads.

    Args:
      texts: what it is trained on.
      vocab_size: entries, special tokens included; small corpora may give fewer.

    Raises:
      ConfigError: vocab_size has no room for the bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ConfigError(
            f"data.tokenizer.vocab_size={vocab_size} is below {smallest}: every byte "
            "and special token needs an entry."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]  # stub lacks the setter
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  # stub lacks the setter
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sorted(texts), trainer=trainer)
    return Tokenizer(backend)


def train_cached(
    texts: Iterable[str], *, vocab_size: int, cache_dir: str | os.PathLike[str]
) -> Tokenizer:
    """Trains as `train` does, or reads what an earlier run trained on the same texts.

    Args:
      texts: what it is trained on.
      vocab_size: entries, special tokens included.
      cache_dir: folder of files named by the hash of texts, size and recipe.
    """
    texts = sorted(texts)
    recipe = (tokenizers.__version__, SPLIT_PATTERN, SPECIAL_TOKENS, vocab_size)
    digest = hashlib.blake2b(repr(recipe).encode(), digest_size=16)
    for text in texts:
        encoded = text.encode()
        # The length keeps two texts from hashing as one text with another border.
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    path = pathlib.Path(cache_dir) / f"tokenizer-{digest.hexdigest()}.json"
    if path.is_file():
        return load(path)
    tokenizer = train(texts, vocab_size=vocab_size)
    tokenizer.save(path)
    return tokenizer


def _without_special_tokens(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    # Added tokens are matched before anything else, so `<role>` inside a user's text
    # would become the token and could forge a turn. Some files declare chat tokens as
    # added but not special, hence also the names; other added tokens stay.
    tree = json.loads(backend.to_str())
    tree["added_tokens"] = [
        token
        for token in tree["added_tokens"]
        if not token["special"] and token["content"] not in SPECIAL_TOKENS
    ]
    tree["post_processor"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(tree))
