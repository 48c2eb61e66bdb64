# SPDX-License-Identifier: Apache-2.0
"""Tokenizers trained on the spot and read from files."""

import json
import random

import pytest
import tokenizers

from ring_jax.config import ConfigError
from ring_jax.data import tokenizer

TEXTS = [
    f"Sum {a} and {b}: it's {a + b}, isn't it?\n" for a in range(9) for b in range(9)
]


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train(TEXTS, vocab_size=320)


def test_training_depends_on_the_texts_and_not_on_their_order(trained):
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    again = tokenizer.train(shuffled, vocab_size=320)
    assert again.to_json() == trained.to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        " two  spaces\n\n",
        "día 東京 🎉",
        "<role>|\x00\x7f",
        "1234.5\t\r\nx",
    ],
)
def test_decoding_undoes_encoding(text, trained):
    assert trained.decode(trained.encode(text)) == text
    assert trained.encode_batch([text, "x"])[0].tolist() == trained.encode(text)


def test_digits_are_single_tokens(trained):
    many = tokenizer.train(["2025 2025 2025"] * 50, vocab_size=320)
    digits = [many.decode([i]) for i in many.encode("2025")]
    assert digits == ["2", "0", "2", "5"]


def test_special_tokens_take_the_first_ids(trained):
    ids = [trained.special_id(name) for name in tokenizer.SPECIAL_TOKENS]
    assert ids == list(range(len(tokenizer.SPECIAL_TOKENS)))
    assert trained.eos_id == 1
    assert trained.vocab_size <= 320


@pytest.mark.parametrize("is_special", [True, False], ids=["special", "only_added"])
def test_text_never_becomes_a_special_token(is_special, trained, tmp_path):
    tree = json.loads(trained.to_json())
    for token in tree["added_tokens"]:
        token["special"] = is_special
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tree))
    loaded = tokenizer.load(path)
    specials = {loaded.special_id(name) for name in tokenizer.SPECIAL_TOKENS}
    text = " ".join(tokenizer.SPECIAL_TOKENS)
    assert not specials & set(loaded.encode(text))
    assert loaded.decode(loaded.encode(text)) == text


def test_a_saved_tokenizer_reads_back_the_same(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert tokenizer.load(tmp_path).to_json() == trained.to_json()


def test_cache_is_keyed_by_content(tmp_path):
    options = {"vocab_size": 300, "cache_dir": tmp_path}
    first = tokenizer.train_cached(TEXTS, **options)
    again = tokenizer.train_cached(reversed(TEXTS), **options)
    assert first.to_json() == again.to_json()
    assert len(list(tmp_path.iterdir())) == 1
    tokenizer.train_cached([*TEXTS, "more"], **options)
    tokenizer.train_cached([*TEXTS[:-1], TEXTS[-1] + "m", "ore"], **options)
    assert len(list(tmp_path.iterdir())) == 3


def test_missing_chat_tokens_are_named(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.add_special_tokens(["<|endoftext|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"\['<role>', '</role>'\]"):
        tokenizer.load(tmp_path)


def test_missing_think_tokens_are_named():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.add_special_tokens(list(tokenizer.CHAT_TOKENS))
    with pytest.raises(ConfigError, match="<think>"):
        tokenizer.Tokenizer(backend).special_id("<think>")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": 1}', "no json"])
def test_a_malformed_file_is_one_line_of_error(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="malformed") as error:
        tokenizer.load(path)
    assert "\n" not in str(error.value)


def test_an_absent_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        tokenizer.load(tmp_path / "absent")


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ConfigError, match="below 266"):
        tokenizer.train(TEXTS, vocab_size=200)
