# SPDX-License-Identifier: Apache-2.0
"""Foreign chat templates: rendered as transformers does, compared, in bounds."""

import json
import time

import pytest
import transformers

from ring_jax.config import (
    CONVERSATION_KINDS,
    ConfigError,
    DataConfig,
    TokenizerConfig,
)
from ring_jax.data import chat, chat_template, template_check, tokenizer
from ring_jax.data.chat_template import ChatTemplate, read_chat_template, render_texts
from ring_jax.data.schema import Message
from tests.untagged_tokenizer import without_tool_tags

LIKE_LING = """
{%- for m in messages -%}
  {{- '<role>' + ('HUMAN' if m['role'] == 'user' else m['role'] | upper) + '</role>' -}}
  {{- m['content'] -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"""
"""What the published template of Ling-lite writes: it knows no tools, no reasoning and
no end of a turn."""

WHOLE = """{%- if not messages %}{{ raise_exception('nothing to say') }}{% endif -%}
{{ bos_token }}
{%- for message in messages %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
    {%- set ns = namespace(text=message.content) %}
    {% generation %}{{ ns.text | trim }}{% endgeneration %}
    {{ message.tool_calls | default([]) | tojson(indent=2) }}
    {{ message.reasoning_content or message.thinking }}
    {{ dict(a=1) | tojson }} {{ strftime_now('%Y')[:2] }} {{ tools is none }}
    {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{{ eos_token if add_generation_prompt else pad_token | default('no pad') }}"""
"""Uses what transformers gives to templates beyond plain Jinja."""


@pytest.fixture(scope="module")
def trained() -> tokenizer.Tokenizer:
    texts = [
        message.content
        for several in template_check.CONVERSATIONS.values()
        for messages in several
        for message in messages
    ]
    return tokenizer.train(
        texts * 3 + list(chat.ROLE_NAMES.values()) * 30, vocab_size=340
    )


def of_text(text: str, **tokens: str) -> ChatTemplate:
    return ChatTemplate(text, "folder/chat_template.jinja", tokens)


@pytest.mark.parametrize("name", chat.TEMPLATES)
def test_the_exported_template_gives_our_tokens_in_every_kind(name, trained):
    exported = of_text(chat.CHAT_TEMPLATES[name])
    assert template_check.compare(exported, trained, name=name) == ()
    assert template_check.compare(exported, without_tool_tags(trained), name=name) == ()


def test_a_template_like_lings_differs_in_tools_alone(trained):
    for name in chat.TEMPLATES:
        found = template_check.compare(of_text(LIKE_LING), trained, name=name)
        kinds = [difference.kind for difference in found]
        assert kinds == ["tool_call", "tool_result", "tool_thinking"]


def test_the_rule_for_earlier_thinking_is_seen(trained):
    keeping = of_text(chat.CHAT_TEMPLATES["ring_keep_thinking"])
    found = template_check.compare(keeping, trained, name="ring")
    assert [difference.kind for difference in found] == [
        "earlier_thinking",
        "tool_thinking",
    ]
    assert (found[0].part, found[0].theirs, found[0].ours) == (
        "prompt",
        "<think>",
        "It",
    )
    assert found[0].before.endswith("<role>ASSISTANT</role>")


RING = chat.CHAT_TEMPLATES["ring"]


@pytest.mark.parametrize(
    ("old", "new", "kinds", "theirs"),
    [
        (
            "{{- content -}}",
            "{{- content | trim -}}",
            {"white_space", "thinking"},
            None,
        ),
        ("{{- content -}}", "{{- content | e -}}", {"single_turn"}, None),
        (
            "<role>ASSISTANT</role>' -}}",
            "<role>ASSISTANT</role><think>' -}}",
            {*()},
            "<think>",
        ),
        (
            "'tool': 'OBSERVATION'",
            "'tool': 'TOOL'",
            {"tool_result", "tool_thinking"},
            None,
        ),
        ("| tojson", "| tojson(ensure_ascii=true)", {"tool_call"}, None),
        ("'<|endoftext|>'", "'<|startoftext|>'", {"system"}, "<|startoftext|>"),
    ],
    ids=["trims", "escapes", "begins to think", "role", "ascii", "end token"],
)
def test_a_template_that_was_changed_is_told_by_its_first_token(
    trained, old, new, kinds, theirs
):
    assert old in RING
    found = template_check.compare(
        of_text(RING.replace(old, new)), trained, name="ring"
    )
    assert found
    assert kinds <= {difference.kind for difference in found}
    if theirs is not None:
        assert {difference.theirs for difference in found} == {theirs}
        assert len(found) == len(CONVERSATION_KINDS)


@pytest.mark.parametrize("text", [*chat.CHAT_TEMPLATES.values(), LIKE_LING, WHOLE])
def test_texts_and_ids_are_those_of_transformers(text, trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text(text)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    found = read_chat_template(tmp_path)
    assert found is not None
    asked = [
        {"messages": turns[:length], "add_generation_prompt": length is not None}
        for several in template_check.CONVERSATIONS.values()
        for messages in several
        for turns in [[chat_template.to_hugging_face(m) for m in messages]]
        for length in (-1, None)
    ]
    for variables, ours in zip(asked, render_texts(found, asked), strict=True):
        turns = variables["messages"]
        named = {"add_generation_prompt": variables["add_generation_prompt"]}
        assert ours == theirs.apply_chat_template(turns, tokenize=False, **named)
        ids = theirs.apply_chat_template(turns, return_dict=False, **named)
        assert trained.encode_rendered(ours) == ids


def test_a_conversation_that_a_template_refuses_is_a_difference(trained):
    one_turn = (
        "{% if messages | length > 2 %}{{ raise_exception('too\nlong') }}{% endif %}"
    )
    found = template_check.compare(of_text(one_turn + RING), trained, name="ring")
    by_kind = {difference.kind: difference for difference in found}
    assert set(CONVERSATION_KINDS) - set(by_kind) >= {"single_turn", "thinking"}
    assert by_kind["multi_turn"].theirs == "an error, TemplateError: too long"


LIMITS = {
    "a long range": ("{% for i in range(10**12) %}x{% endfor %}", "loops for too long"),
    "loops in loops": (
        "{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "is not done after 1 seconds",
    ),
    "text without end": (
        "{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}",
        "writes without end",
    ),
    "memory": ("{{ 'x' * 10**10 }}", "takes more than 536,870,912 bytes"),
    "no Jinja": ("{% for %}", "is no Jinja template"),
}


@pytest.mark.parametrize(("text", "message"), LIMITS.values(), ids=LIMITS)
def test_a_template_that_wants_too_much_ends_in_one_line(
    text, message, trained, monkeypatch
):
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    with pytest.raises(ConfigError, match=message) as error:
        template_check.compare(of_text(text), trained, name="ring")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("folder/chat_template.jinja: the chat template")


def test_a_process_that_hangs_is_killed(monkeypatch):
    # However little of a processor it gets: wall time counts, too.
    monkeypatch.setattr(chat_template, "WALL_SECONDS", 0.01)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="is not done after 0.01 seconds"):
        render_texts(of_text("x"), [{"messages": []}])
    assert time.monotonic() - started < 10


def test_a_template_sees_no_secret_and_no_file(trained, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    for text in ("{% include 'template_worker.py' %}", "{{ ''.__class__.__mro__ }}"):
        (found,) = render_texts(of_text(text), [{"messages": []}])
        assert isinstance(found, chat_template.Failure)
    assert "SECRET" not in chat_template._environment()


def test_templates_are_found_as_transformers_finds_them(tmp_path):
    assert read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    named = [
        {"name": "tool_use", "template": "t"},
        {"name": "default", "template": "d"},
    ]
    for value, text in (("one", "one"), (named, "d")):
        config.write_text(json.dumps({"chat_template": value, "eos_token": "</s>"}))
        found = read_chat_template(tmp_path)
        assert found == ChatTemplate(text, str(config), {"eos_token": "</s>"})
    config.write_text(json.dumps({"eos_token": {"content": "<e>"}, "bos_token": None}))
    assert read_chat_template(tmp_path) is None
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<b>"}))
    file = tmp_path / "chat_template.jinja"
    file.write_text("file")
    tokens = {"bos_token": "<b>", "eos_token": "<e>"}
    assert read_chat_template(tmp_path) == ChatTemplate("file", str(file), tokens)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"{", "is not JSON"),
        ("tokenizer_config.json", b"[]", "is not a JSON object"),
        ("chat_template.jinja", b"\xff", "is not UTF-8"),
        (
            "chat_template.jinja",
            b"x" * 500_001,
            "500,001 characters, more than 500,000",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_chat_template(tmp_path)


def test_a_field_for_reasoning_is_told_from_a_sentence():
    reads = {
        "{{ message.reasoning_content }}": True,
        "{{ message.thinking }}": True,
        "{{ message['thinking'] }}": True,
        "detailed thinking off {{ enable_thinking }}": False,
    }
    assert {text: of_text(text).reads_reasoning for text in reads} == reads


def data_config(folder, **changes) -> DataConfig:
    return DataConfig(tokenizer=TokenizerConfig(path=str(folder)), **changes)


def test_the_gate_names_kinds_token_and_remedy(trained, tmp_path):
    template_check.check_template(DataConfig(), trained)
    template_check.check_template(data_config(tmp_path), trained)
    (tmp_path / "chat_template.jinja").write_text(LIKE_LING)
    with pytest.raises(ConfigError) as error:
        template_check.check_template(data_config(tmp_path / "tokenizer.json"), trained)
    line = str(error.value)
    assert "\n" not in line
    for part in (
        f"{tmp_path / 'chat_template.jinja'}: renders tool_call, tool_result, tool_",
        "of the conversation of tool_call, behind ",
        "it has nothing, ours '<tool_call>'",
        'data.template_differences="tool_call,tool_result,tool_thinking"',
    ):
        assert part in line
    some = data_config(tmp_path, template_differences="tool_call, tool_result")
    with pytest.raises(ConfigError, match="renders tool_thinking otherwise"):
        template_check.check_template(some, trained)
    kinds = "tool_call,tool_result,tool_thinking"
    all_ = data_config(tmp_path, template_differences=kinds)
    report = template_check.check_template(all_, trained)
    assert report.summary() == (
        "chat_template.jinja differs in tool_call, tool_result, tool_thinking"
    )


def test_the_gate_names_the_template_that_fits(trained, tmp_path):
    keeping = chat.CHAT_TEMPLATES["ring_keep_thinking"]
    (tmp_path / "chat_template.jinja").write_text(keeping)
    with pytest.raises(
        ConfigError, match="'ring_keep_thinking' differs in none; or go"
    ):
        template_check.check_template(data_config(tmp_path), trained)


def test_unknown_kinds_are_refused():
    with pytest.raises(ConfigError, match=r"\['tools'\]; kinds are .*'tool_call'"):
        DataConfig(template_differences="tools,thinking")


def test_earlier_text_before_a_closing_tag_is_dropped_alike(trained):
    # Clients hand replies back as they were generated.
    messages = (
        Message("user", "1?"),
        Message("assistant", "<think>a</think>b"),
        Message("user", "2?"),
        Message("assistant", "c"),
    )
    for name in chat.TEMPLATES:
        turns = [chat_template.to_hugging_face(m) for m in messages[:-1]]
        variables = {"messages": turns, "add_generation_prompt": True}
        (text,) = render_texts(of_text(chat.CHAT_TEMPLATES[name]), [variables])
        ours = "".join(piece.text for piece in chat._prompt_pieces(messages[:-1], name))
        assert text == ours
