# SPDX-License-Identifier: Apache-2.0
"""A tokenizer folder with a chat template of its own: who refuses it, and who tells."""

import json
import time

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.data.chat import CHAT_TEMPLATES
from ring_jax.data.tokenizer import train

LOOPS = "{% for i in range(10**12) %}x{% endfor %}"
CHATML = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}"""


@pytest.fixture
def words(tiny_config, tmp_path):
    """Flags of the tiny run with a tokenizer folder that holds this template."""

    def make(template: str, *more: str) -> list[str]:
        folder = tmp_path / "tokenizer"
        train(["some text"], vocab_size=300).save(folder / "tokenizer.json")
        (folder / "chat_template.jinja").write_text(template)
        path = f"--config.data.tokenizer.path={folder}"
        return [f"--config={tiny_config}", path, *more]

    return make


@pytest.mark.parametrize(
    ("template", "parts"),
    {
        "a template that loops": (LOOPS, ["loops for too long", "MAX_RANGE"]),
        "another format": (
            CHATML,
            ["renders single_turn, multi_turn", "ours '<role>'"],
        ),
        "another rule": (
            CHAT_TEMPLATES["ring_keep_thinking"],
            ["earlier_thinking", "data.template='ring_keep_thinking' differs in none"],
        ),
    }.values(),
)
def test_training_refuses_it_within_seconds_and_writes_nothing(
    words, tmp_path, capsys, template, parts
):
    started = time.process_time()
    workdir = tmp_path / "run"
    assert main(["train", *words(template), f"--workdir={workdir}"]) == status.MISTAKE
    assert time.process_time() - started < 20
    line = capsys.readouterr().err
    assert line.startswith("ring: error: ")
    assert line.count("\n") == 1
    assert all(part in line for part in ["chat_template.jinja", *parts]), line
    assert not workdir.exists()


def doctor_of(capsys, *words: str) -> tuple[int, dict]:
    code = main(["doctor", *words, "--json"])
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    return code, {check["name"]: check for check in checks}["tokenizer"]


def test_the_doctor_fails_it_and_passes_what_gives_the_same(words, capsys):
    code, check = doctor_of(capsys, *words(CHATML))
    assert code == status.MISTAKE
    assert "data.template_differences=" in check["fix"]
    code, check = doctor_of(capsys, *words(CHAT_TEMPLATES["ring"]))
    assert (code, check["fix"]) == (status.DONE, "")
    assert check["found"].endswith("chat template: chat_template.jinja gives the same")


def test_inspect_shows_it_and_a_setting_goes_on(words, tmp_path, capsys):
    keeping = CHAT_TEMPLATES["ring_keep_thinking"]
    told = "the tokenizer's own: chat_template.jinja differs in earlier_thinking, "
    allowed = "--config.data.template_differences=earlier_thinking,tool_thinking"
    page = tmp_path / "data.html"
    for more, verdict in (
        ([], "the start gate refuses: "),
        ([allowed], "the start gate lets this run pass"),
    ):
        flags = [*words(keeping, *more), "--data=1", f"--html={page}"]
        assert main(["inspect", *flags]) == status.DONE
        out = capsys.readouterr().out
        assert told in out
        assert verdict in out
        assert "chat_template.jinja differs in earlier_thinking" in page.read_text()
    assert main(["inspect", *words(LOOPS), "--data=1"]) == status.DONE
    assert "the tokenizer's own: cannot be rendered" in capsys.readouterr().out
