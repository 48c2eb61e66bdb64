# SPDX-License-Identifier: Apache-2.0
"""What `ring train` refuses: one line, exit status 2, and nothing written."""

import json

import pytest
import tokenizers

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.cli.settings import load_config_file
from ring_jax.config import RunConfig, from_config_dict, to_json


@pytest.fixture
def refused(tiny_config, tmp_path, capsys):
    """Trains, expects a refusal that leaves no trace, and returns its line."""
    workdir = tmp_path / "run"

    def run(*words: str) -> str:
        flags = [f"--config={tiny_config}", f"--workdir={workdir}"]
        assert main(["train", *flags, *words]) == status.MISTAKE
        line = capsys.readouterr().err
        assert line.startswith("ring: error: ")
        assert line.count("\n") == 1
        assert not workdir.exists()
        return line

    return run


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("config.train.sequence_len=8", ["sequence_len", "`seq_len`"]),
        ("config.train.seq_len=long", ["seq_len='long'", "int"]),
        ("config.stages.bas.num_steps=1", ["config.stages.bas", "`base`"]),
        (
            "config.model.moe.num_experts_per_token=5",
            ["num_experts_per_token=5", "num_experts=4"],
        ),
        ("config.mesh.expert=3", ["expert=3", "8 devices"]),
        ("config.mesh.fsdp=16", ["fsdp=16", "8 devices"]),
        ("config.model.eos_id=2", ["eos_id=2"]),
        ("config.model.vocab_size=280", ["vocab_size=280"]),
        ("config.data.class_weights.stop=0", ["stage base", "stop token"]),
        ("config.data.class_weights.prompt=1", ["source chat", "train_prompts=True"]),
        ("config.init_from=/no/such/folder", ["/no/such/folder"]),
    ],
)
def test_a_setting_that_cannot_work(refused, override, parts):
    line = refused(f"--{override}")
    assert all(part in line for part in parts), line


def test_a_tokenizer_without_the_chat_tokens(refused, tmp_path):
    plain = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(plain))
    line = refused(f"--config.data.tokenizer.path={plain}")
    assert "<role>" in line
    assert str(plain) in line


QUESTION = {"role": "user", "content": "1+1=?"}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"messages": [QUESTION]}, "no assistant turn"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "empty"),
        ({"messages": [QUESTION, {"role": "assistant", "content": 2}]}, "a string"),
        ({"messages": "1+1=2"}, "list"),
        ({"mesages": []}, "mesages"),
        ([], "object"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(refused, tmp_path, row, part):
    rows = tmp_path / "bad.jsonl"
    reply = {"role": "assistant", "content": "2"}
    good = {"messages": [QUESTION, reply]}
    rows.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    line = refused(f"--config.data.sources.chat.path={rows}")
    assert "bad.jsonl:2" in line
    assert part in line


def test_rows_whose_tokens_are_all_masked(refused):
    words = [f"--config.data.class_weights.{c}=0" for c in ("think", "answer")]
    assert "rows.jsonl:" in refused(*words)


def test_a_folder_that_holds_another_run(tiny_config, tmp_path, capsys):
    config = from_config_dict(RunConfig, load_config_file(str(tiny_config)).to_dict())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    words = [f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", *words, "--config.model.num_layers=3"]) == status.MISTAKE
    line = capsys.readouterr().err
    assert "config.model.num_layers=2, not 3" in line
    assert line.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
