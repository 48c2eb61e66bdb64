# SPDX-License-Identifier: Apache-2.0
"""Models that bring a chat template of their own, held against transformers."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest
import transformers

from ring_jax.config import ConfigError
from ring_jax.data import chat, tokenizer
from ring_jax.data.chat_format import MAX_CHARACTERS, OurChat, open_chat
from ring_jax.data.chat_template import Failure, to_hugging_face
from ring_jax.data.schema import Message
from tests.foreign_tokenizer import END_ID, SPECIAL, write_foreign

TALK = (
    Message("user", " seven plus eight? "),
    Message("assistant", "fifteen"),
    Message("user", "día 東京 is"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    write_foreign(folder, "<think>", "</think>")
    return folder


@pytest.fixture(scope="module")
def foreign(folder):
    return open_chat(folder, template="ling", eos_id=END_ID)


@pytest.mark.parametrize("turns", [TALK, TALK[:1], (Message("system", "x"), *TALK)])
def test_prompts_are_those_of_transformers(folder, foreign, turns):
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ids = theirs.apply_chat_template(
        [to_hugging_face(turn) for turn in turns],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert foreign.prompts([turns]) == [ids]


PIECES = st.sampled_from([*SPECIAL, "<think>", "\U000f0000", "0", "a", " ", "\n", "|"])


@hypothesis.given(st.lists(PIECES, max_size=8))
@hypothesis.settings(max_examples=8, deadline=None, database=None)
def test_a_special_token_in_a_turn_stays_text(foreign, pieces):
    text = "".join(["x", *pieces, "x"])
    (plain,), (spelled,) = (
        foreign.prompts([[Message("user", said)]]) for said in ("x", text)
    )
    for name in foreign.tokenizer.special_tokens:
        token = foreign.tokenizer.special_id(name)
        assert spelled.count(token) == plain.count(token)
    assert text in foreign.tokenizer.decode(spelled)


def test_a_conversation_that_is_refused_leaves_the_others(foreign):
    refused = (Message("user", "x"), Message("tool", "x"))
    long = (Message("user", "x" * MAX_CHARACTERS),)
    first, second, third = foreign.prompts([refused, long, TALK])
    assert isinstance(first, Failure) and "no tools here" in first.reason
    assert isinstance(second, Failure) and "characters" in second.reason
    assert isinstance(third, list)


@pytest.mark.parametrize(
    ("said", "think", "answer"),
    [
        ("fifteen<|im_end|>", "", "fifteen"),
        ("<think>\n7+8\n</think>\n\n15<|im_end|>", "7+8", "15"),
        ("7+8</think>15", "7+8", "15"),  # the template opened the reasoning
        ("<think>7+", "7+", ""),
    ],
)
def test_a_reply_is_taken_apart(foreign, said, think, answer):
    assert foreign.reply(said) == Message("assistant", answer, think)


def test_end_tokens_come_from_the_model_and_from_the_folder(tmp_path):
    write_foreign(tmp_path)
    found = open_chat(tmp_path, template="ling", eos_id=0)
    assert found.tokenizer.eos_id == 0 and found.stop_ids == (END_ID,)
    ends = {"eos_token_id": [0, 1]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    assert open_chat(tmp_path, template="ling", eos_id=0).stop_ids == (1, END_ID)


def test_a_tokenizer_with_our_tokens_is_rendered_by_our_template(tmp_path):
    trained = tokenizer.train(["seven"], vocab_size=280)
    trained.save(tmp_path / "tokenizer.json")
    ours = open_chat(tmp_path, template="ring", eos_id=trained.eos_id)
    assert isinstance(ours, OurChat)
    (ids,) = ours.prompts([TALK[:1]])
    assert isinstance(ids, list)
    expected = "<role>HUMAN</role> seven plus eight? <role>ASSISTANT</role>"
    assert trained.decode(ids) == expected
    assert ours.spoken("15<|endoftext|>") == "15"


def test_a_folder_that_cannot_be_spoken_to_is_refused_in_one_line(tmp_path):
    write_foreign(tmp_path)
    with pytest.raises(ConfigError, match="no token of id 999"):
        open_chat(tmp_path, template="ling", eos_id=999)
    for template in (None, chat.CHAT_TEMPLATES["ling"]):
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(ConfigError, match=r"<role>.*no chat template of its own"):
            open_chat(tmp_path, template="ling", eos_id=END_ID)
