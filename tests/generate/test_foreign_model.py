# SPDX-License-Identifier: Apache-2.0
"""`ring generate` with models whose tokenizer and chat template are not ours."""

import dataclasses
import json

import jax
import pytest

from benchmarks import smollm2
from ring_jax.checkpoint import Store
from ring_jax.cli.main import main
from ring_jax.config import EvaluateConfig, MeshConfig, ModelConfig
from ring_jax.data.chat_format import open_chat
from ring_jax.data.schema import Message
from ring_jax.generate import Engine
from ring_jax.model import init_transformer
from ring_jax.sharding import make_mesh
from tests.foreign_tokenizer import END_ID, write_foreign

MODEL = ModelConfig(
    vocab_size=300,
    model_dim=16,
    num_layers=1,
    num_dense_layers=1,
    mlp_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    norm_head=False,
    init_std=0.5,
    eos_id=END_ID,
    pad_id=END_ID,
)
SIZES = ("max_new_tokens=4", "max_prompt_tokens=80")
WORDS = ["--config.num_devices=8", *(f"--config.evaluate.{size}" for size in SIZES)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        model = jax.jit(lambda: init_transformer(MODEL, jax.random.key(0)))()
        store = Store(folder / "checkpoints", keep=1, model=MODEL)
        store.save(0, {"model": model}, {}, {})
        store.close()
    write_foreign(folder / "tokenizer")
    settings = {"model": dataclasses.asdict(MODEL)}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_a_foreign_model_answers_what_its_own_template_asks(workdir, capsys):
    words = [f"--workdir={workdir}", "--prompt=seven plus", "--json", *WORDS]
    assert main(["generate", *words]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["completions"][0]
    chat = open_chat(workdir / "tokenizer", template="ling", eos_id=END_ID)
    (ids,) = chat.prompts([[Message("user", "seven plus")]])
    assert isinstance(ids, list)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        model = jax.jit(lambda: init_transformer(MODEL, jax.random.key(0)))()
        sizes = EvaluateConfig(max_prompt_tokens=80, max_new_tokens=4, batch_size=1)
        engine = Engine(model, chat.tokenizer, config=sizes)
        (expected,) = engine.generate([ids])
    assert said["ids"] == expected.ids and said["text"] == expected.text


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ({"prompt": "a", "max_think_tokens": 3}, "this model does not think"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "chat template refuses prompt 1: TemplateError: no tools here",
        ),
    ],
)
def test_what_a_foreign_model_cannot_do_is_one_line(
    workdir, capsys, tmp_path, line, part
):
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps(line))
    words = [f"--workdir={workdir}", f"--file={file}", *WORDS]
    assert main(["generate", *words]) == 2
    errors = capsys.readouterr().err
    assert part in errors and len(errors.splitlines()) == 1


def test_traces_of_a_run_go_on_and_mark_what_does_not_fit(workdir, capsys, tmp_path):
    file, output = tmp_path / "rows.jsonl", tmp_path / "traces.jsonl"
    tool = [{"role": "tool", "content": "a"}]
    lines = [{"prompt": "seven"}, {"prompt": "x" * 90}, {"messages": tool}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # A character that the model soon says, so that its answers end.
    said = [f"--workdir={workdir}", f"--file={file}", f"--output={output}", "--n=3"]
    words = [*said, "--json", *WORDS, "--config.generate.stop=e"]
    code = main(["generate", *words])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rejected"].pop("prompt_too_long") == 1
    assert found["rejected"].pop("prompt_refused") == 1
    assert found["num_rows"] + sum(found["rejected"].values()) == 1
    assert code == (0 if found["num_rows"] else 3)
    journal = (tmp_path / "traces.journal" / "journal.jsonl").read_bytes()
    entries = [json.loads(line) for line in journal.splitlines()]
    assert len(entries) == 3 and len({entry["answer"] for entry in entries}) > 1
    before = output.read_bytes(), output.with_suffix(".rejected.jsonl").read_bytes()
    output.unlink()
    assert main(["generate", *words]) == code
    assert (tmp_path / "traces.journal" / "journal.jsonl").read_bytes() == journal
    again = output.read_bytes(), output.with_suffix(".rejected.jsonl").read_bytes()
    assert again == before
    capsys.readouterr()
    assert main(["generate", *words, "--config.traces.sampling.temperature=2"]) == 2
    assert "temperature=0.6, now it is 2.0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.hf
def test_smollm2_knows_the_capital_of_france(tmp_path, capsys):
    workdir = f"--workdir={tmp_path / 'smollm2'}"
    assert main(["import", f"--gguf={smollm2.fetch()}", workdir]) == 0
    words = [workdir, f"--prompt={smollm2.QUESTION}", "--config.num_devices=8"]
    capsys.readouterr()
    assert main(["generate", *words, "--config.evaluate.max_new_tokens=32"]) == 0
    assert capsys.readouterr().out == "The capital of France is Paris.\n"
