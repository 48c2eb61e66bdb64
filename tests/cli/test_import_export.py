# SPDX-License-Identifier: Apache-2.0
"""`ring import` and `ring export`: from a folder to a run and back."""

import dataclasses
import json
import shutil

import pytest

from ring_jax.checkpoint.model_folder import export_folder, read_config
from ring_jax.checkpoint.store import Store
from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.cli.settings import load_config_file
from ring_jax.config import (
    ModelConfig,
    MoeConfig,
    RunConfig,
    from_config_dict,
    to_json,
)
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import CHAT_TEMPLATES
from tests.bailing_reference import random_parameters

CONFIG = ModelConfig(
    vocab_size=300,
    model_dim=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=8,
    moe=MoeConfig(
        num_experts=4, num_experts_per_token=2, num_shared_experts=1, expert_dim=8
    ),
    eos_id=1,
    pad_id=1,
)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.train(["some text"], vocab_size=270).save(path)
    return path


@pytest.fixture
def folder(tmp_path, tokenizer):
    return export_folder(
        random_parameters(CONFIG),
        CONFIG,
        tmp_path / "hf",
        tokenizer=tokenizer,
        chat_template="{{ of_the_folder }}",
        dtype="float32",
    )


def _contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_import_and_export_give_the_folder_back_byte_for_byte(folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    words = [f"--workdir={workdir}", "--json"]
    assert main(["import", f"--folder={folder}", *words]) == status.DONE
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["num_parameters"] == sum(
        x.size for x in random_parameters(CONFIG).values()
    )
    assert main(["export", "--dtype=float32", *words]) == status.DONE
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out == {"status": 0, "step": 0, "folder": str(workdir / "export")}
    assert _contents(workdir / "export") == _contents(folder)


def test_export_reads_the_newest_good_checkpoint_of_a_training_run(
    tiny_config, tmp_path, tokenizer, capsys
):
    tree = load_config_file(str(tiny_config)).to_dict()
    config = dataclasses.replace(from_config_dict(RunConfig, tree), model=CONFIG)
    workdir = tmp_path / "run"
    (workdir / "tokenizer").mkdir(parents=True)
    tokenizer.rename(workdir / "tokenizer" / "tokenizer.json")
    (workdir / "config.json").write_text(to_json(config))
    store = Store(workdir / "checkpoints", keep=3, model=CONFIG)
    for step in (3, 4, 5):
        params = random_parameters(CONFIG, seed=step)
        state = {"model": params, "opt_state": {"mu": params}}
        store.save(step, state, {}, {})
    store.close()
    (workdir / "checkpoints" / "5" / "record" / "data.json").write_text("{}")
    before = sorted((workdir / "checkpoints").iterdir())
    out = tmp_path / "elsewhere"
    words = [f"--workdir={workdir}", f"--out={out}", "--dtype=float32"]
    assert main(["export", *words]) == status.DONE
    assert capsys.readouterr().out.startswith("step 4: ")
    assert sorted((workdir / "checkpoints").iterdir()) == before
    template = (out / "chat_template.jinja").read_text()
    assert template == CHAT_TEMPLATES[config.data.template]
    assert main(["import", f"--folder={out}", f"--workdir={tmp_path / 'b'}"]) == 0


DENSE = dataclasses.replace(
    CONFIG, num_dense_layers=2, norm_head=False, tie_embeddings=True, moe=MoeConfig()
)
UPCYCLE = "--config=configs/upcycle/eight_experts.py"


def test_a_dense_folder_becomes_a_mixture_of_experts(tmp_path, tokenizer, capsys):
    dense = export_folder(
        random_parameters(DENSE),
        DENSE,
        tmp_path / "dense",
        tokenizer=tokenizer,
        chat_template="{{ of_the_folder }}",
        dtype="float32",
    )
    plain, routed = tmp_path / "plain", tmp_path / "routed"
    assert main(["import", f"--folder={dense}", f"--workdir={plain}"]) == 0
    assert main(["export", "--dtype=float32", f"--workdir={plain}"]) == 0
    assert _contents(plain / "export") == _contents(dense)
    words = [UPCYCLE, "--config.num_experts=4", f"--workdir={routed}"]
    assert main(["import", f"--folder={dense}", *words]) == status.DONE
    assert main(["export", f"--workdir={routed}"]) == status.DONE
    config = read_config(routed / "export")
    assert (config.num_dense_layers, config.moe.num_experts) == (0, 4)
    capsys.readouterr()
    words = [UPCYCLE, f"--workdir={tmp_path / 'again'}"]
    assert main(["import", f"--folder={routed / 'export'}", *words]) == 2
    assert "is routed already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "--workdir=W", "--folder=HF", "--gguf=HF"], "not allowed with"),
        (["import", "--workdir=W", "--gguf=nowhere"], "is no file"),
        (["import", "--workdir=W", "--folder=HF", "--config.seed=1"], "--config"),
        (
            ["import", "--workdir=W", "--folder=HF", "--config=configs/models/tiny.py"],
            "holds no upcycling",
        ),
        (["import", "--workdir=W", "--folder=nowhere"], "config.json is missing"),
        (["import", "--workdir=W"], "--folder"),
        (["import", "--folder=HF"], "--workdir=DIR"),
        (["import", "--folder=HF", "--workdir=USED"], "is in use"),
        (["import", "--folder=BARE", "--workdir=W"], "tokenizer.json is missing"),
        (["export"], "--workdir=DIR"),
        (["export", "--workdir=W"], "no checkpoint here"),
        (["export", "--workdir=W", "--dtype=int8"], "int8"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    folder, tmp_path, capsys, words, message
):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    paths = {"HF": folder, "USED": folder, "BARE": bare, "W": tmp_path / "run"}
    words = [
        "=".join([*word.split("=")[:-1], str(paths[word.split("=")[-1]])])
        if word.split("=")[-1] in paths
        else word
        for word in words
    ]
    before = _contents(folder)
    assert main(words) == status.MISTAKE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert _contents(folder) == before


def test_a_folder_with_a_missing_tensor_is_named_on_the_command_line(
    folder, tmp_path, capsys
):
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"num_hidden_layers": 3}))
    words = [f"--folder={folder}", f"--workdir={tmp_path / 'run'}"]
    assert main(["import", *words]) == status.MISTAKE
    assert (
        "`model.layers.2.attention.dense.weight` is missing" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
