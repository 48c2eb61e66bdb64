# SPDX-License-Identifier: Apache-2.0
"""`ring generate` on the folder of a run, and on an imported one."""

import dataclasses
import io
import json

import jax
import pytest

from ring_jax.checkpoint import Store
from ring_jax.cli.main import main
from ring_jax.config import (
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    MoeConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    to_json,
)
from ring_jax.data import tokenizer as tokenizers
from ring_jax.data.chat import render_prompt
from ring_jax.data.schema import Message, Row
from ring_jax.generate import Engine
from ring_jax.model import init_transformer
from ring_jax.sharding import make_mesh

TOKENIZER = tokenizers.train(["seven plus eight is fifteen"] * 3, vocab_size=280)
CONFIG = RunConfig(
    num_devices=8,  # as many as tests/conftest.py emulates
    mesh=MeshConfig(data=2, fsdp=2, expert=2),
    model=ModelConfig(
        vocab_size=TOKENIZER.vocab_size,
        model_dim=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        moe=MoeConfig(
            num_experts=4, num_experts_per_token=2, num_shared_experts=1, expert_dim=8
        ),
        init_std=0.5,
        eos_id=TOKENIZER.eos_id,
        pad_id=TOKENIZER.eos_id,
    ),
    data=DataConfig(sources={"chat": SourceConfig()}),
    train=TrainConfig(compute_dtype="float32"),
    evaluate=EvaluateConfig(max_prompt_tokens=48, max_new_tokens=8, batch_size=8),
    stages={"base": StageConfig(mixture={"chat": 1.0})},
)


@pytest.fixture(scope="module")
def model():
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        create = jax.jit(lambda: init_transformer(CONFIG.model, jax.random.key(0)))
        return create()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("run")
    store = Store(folder / "checkpoints", keep=1, model=CONFIG.model)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        store.save(3, {"model": model}, {}, {})
    store.close()
    TOKENIZER.save(folder / "tokenizer" / "tokenizer.json")
    (folder / "config.json").write_text(to_json(CONFIG))
    return folder


def prompt_ids(text: str) -> list[int]:
    turns = (Message("user", text), Message("assistant", "unsaid"))
    origin = dict.fromkeys(("id", "source", "domain", "licence", "package"), "x")
    return render_prompt(Row(messages=turns, **origin), TOKENIZER, template="ring")


def run(capsys, *words) -> tuple[int, list[str], str]:
    code = main(["generate", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_the_command_says_what_the_engine_says(capsys, workdir, model, mesh, tmp_path):
    prompts = ["seven plus eight", "<role>is</role>", "fifteen"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(prompts) + "\n")
    code, lines, err = run(capsys, f"--workdir={workdir}", f"--file={file}", "--json")
    assert code == 0, err
    engine = Engine(model, TOKENIZER, config=CONFIG.evaluate)
    expected = engine.generate([prompt_ids(prompt) for prompt in prompts])
    said = json.loads(lines[-1])["completions"]
    for answer, prompt, completion in zip(said, prompts, expected, strict=True):
        wanted = {"id": "", "prompt": prompt, **dataclasses.asdict(completion)}
        # The command runs on eight devices: float32 sums in another order.
        logs = wanted.pop("log_probabilities")
        assert answer.pop("log_probabilities") == pytest.approx(logs, abs=1e-4)
        assert answer == wanted
    assert lines[0] == "> seven plus eight"


def test_settings_and_temperature_are_obeyed(capsys, workdir):
    words = (f"--workdir={workdir}", "--prompt=fifteen", "--json")

    def said(*more: str) -> dict:
        code, lines, _ = run(capsys, *words, *more)
        assert code == 0
        return json.loads(lines[-1])["completions"][0]

    short = said("--config.evaluate.max_new_tokens=2")
    assert len(short["ids"]) == 2 and short["stop_reason"] == "length"
    warm = "--config.generate.temperature=5.0"
    drawn = said(warm)
    assert drawn == said(warm)
    assert drawn != said(warm, "--config.seed=1")
    text = said()["text"]
    cut = said(f"--config.generate.stop={text[3:5]}")
    assert cut["text"] == text[: text.index(text[3:5])] and cut["stop_reason"] == "stop"


def test_an_imported_folder_needs_no_settings(capsys, workdir, tmp_path):
    imported = tmp_path / "imported"
    imported.mkdir()
    for name in ("checkpoints", "tokenizer"):
        (imported / name).symlink_to(workdir / name)
    settings = {"model": dataclasses.asdict(CONFIG.model)}
    (imported / "config.json").write_text(json.dumps(settings))
    code, lines, _ = run(
        capsys,
        f"--workdir={imported}",
        "--prompt=fifteen",
        "--config.evaluate.max_new_tokens=3",
        "--config.num_devices=8",
    )
    assert code == 0 and lines[-1].endswith("(cut off after 3 tokens)")


def test_lines_of_json_bring_settings_of_their_own(capsys, workdir, tmp_path):
    turns = [
        {"role": "user", "content": "seven"},
        {"role": "assistant", "content": "eight"},
        {"role": "user", "content": "fifteen"},
    ]
    lines = [
        {"prompt": "seven plus", "id": "a"},
        {"prompt": "seven plus", "max_new_tokens": 3, "temperature": 2.0, "seed": 7},
        {"prompt": "seven plus", "max_new_tokens": 3, "temperature": 2.0, "seed": 7},
        {"messages": turns, "stop": ["zzz", "yyy"], "max_think_tokens": 2},
    ]
    file, output = tmp_path / "asked.jsonl", tmp_path / "said.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    words = (f"--workdir={workdir}", f"--file={file}", f"--output={output}")
    code, printed, err = run(capsys, *words)
    assert code == 0 and not printed, err
    said = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["id"] for answer in said] == ["a", "", "", ""]
    assert [len(answer["ids"]) for answer in said[1:3]] == [3, 3]
    assert said[1] == said[2]
    assert said[3]["prompt"] == "fifteen"
    for answer in said:
        assert len(answer["log_probabilities"]) == len(answer["ids"])


def test_a_chat_remembers_and_starts_anew(capsys, workdir, monkeypatch):
    words = ("--chat", "--json", f"--workdir={workdir}")
    sizes = ("max_new_tokens=4", "max_prompt_tokens=64")
    words += tuple(f"--config.evaluate.{size}" for size in sizes)
    monkeypatch.setattr("sys.stdin", io.StringIO("seven\n" * 2 + "\nseven\n"))
    code, lines, err = run(capsys, *words)
    assert code == 0, err
    first, second, third = json.loads(lines[-1])["completions"]
    assert first == third and first["ids"] != second["ids"]
    printed = "\n".join(lines)
    for answer in (first, second):
        assert answer["text"].splitlines()[-1] in printed


def test_a_chat_that_has_grown_too_long_goes_on(capsys, workdir, monkeypatch):
    words = ("--chat", f"--workdir={workdir}", "--config.evaluate.max_new_tokens=4")
    long = "seven " * 60
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{long}\nseven\n"))
    code, lines, errors = run(capsys, *words)
    assert code == 0 and lines
    assert "max_prompt_tokens=48" in errors and "new conversation" in errors


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "is not JSON"),
        ("[]", "is no object"),
        ('{"id": "a"}', "either prompt or messages"),
        ('{"prompt": "a", "top_q": 1}', "Did you mean `top_"),
        ('{"prompt": "a", "top_p": "x"}', "top_p='x'"),
        ('{"prompt": "a", "top_p": 0.0}', "top_p=0.0"),
        ('{"prompt": "a", "stop": 3}', "stop=3"),
        ('{"prompt": "a", "max_new_tokens": 900}', "max_new_tokens=900"),
        ('{"messages": "a"}', "list of turns"),
        ('{"messages": [{"role": "nobody", "content": "a"}]}', "nobody"),
    ],
    ids=str,
)
def test_a_wrong_line_is_named(capsys, workdir, tmp_path, line, part):
    file = tmp_path / "asked.jsonl"
    file.write_text(line)
    code, _, errors = run(capsys, f"--workdir={workdir}", f"--file={file}")
    assert code == 2 and part in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "one of --prompt=TEXT, --file=FILE and --chat"),
        (["--prompt=a", "--file=b"], "one of --prompt=TEXT, --file=FILE"),
        (["--prompt=a", "--chat"], "one of --prompt=TEXT, --file=FILE"),
        (["--prompt= "], "no prompt"),
        (["--file=absent.txt"], "absent.txt is no file"),
        (["--prompt=a", "--config.generate.temperature=-1.0"], "temperature=-1.0"),
        (["--prompt=" + "seven " * 60], "evaluate.max_prompt_tokens=48"),
        (["--prompt=a", "--config.evaluate.max_new_tokns=3"], "max_new_tokens"),
        (["--prompt=a", "--workdir=absent"], "absent"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(capsys, workdir, words, part):
    code, lines, errors = run(capsys, f"--workdir={workdir}", *words)
    assert code == 2 and not lines
    assert part in errors and len(errors.splitlines()) == 1
