# SPDX-License-Identifier: Apache-2.0
"""`ring inspect` on configs and run folders."""

import html
import json
import pathlib
import re

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.cli.settings import load_config_file, override
from ring_jax.config import RunConfig, from_config_dict, to_json
from ring_jax.data import mixture_file, pipeline
from ring_jax.data.tokenizer import train
from tests.planted_evaluations import suite, write_scores

MODELS = pathlib.Path(__file__).parent.parent.parent / "configs/models"


def test_parameters_add_up_to_the_total(tiny_config, capsys):
    assert main(["inspect", f"--config={tiny_config}", "--json"]) == status.DONE
    *lines, last = capsys.readouterr().out.splitlines()
    after = next(i for i, line in enumerate(lines) if line.split()[:1] == ["parameter"])
    rows = [line.split() for line in lines[after + 2 :] if line.strip()]
    counts = {row[0]: int(row[-1].replace(",", "")) for row in rows}
    total, activated = counts.pop("total"), counts.pop("activated")
    assert sum(counts.values()) == total
    # 2 of 4 experts of 2 layers do not see a token; each has 3 matrices of 16 x 8.
    assert total - activated == 2 * 2 * 3 * 16 * 8
    assert json.loads(last)["parameters"] == {"total": total, "activated": activated}


def test_a_models_file_is_enough_and_takes_overrides(capsys):
    words = [f"--config={MODELS / 'ling_lite.py'}", "--config.vocab_size=126465"]
    assert main(["inspect", *words, "--json"]) == status.DONE
    parameters = json.loads(capsys.readouterr().out.splitlines()[-1])["parameters"]
    # One row of the embedding and one column of the head more than Ling-lite has.
    assert parameters["total"] == 16_801_974_272 + 2 * 2048


def test_an_imported_folder_has_a_model_and_no_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model": {"num_layers": 3}}))
    assert main(["inspect", f"--workdir={tmp_path}"]) == status.DONE
    words = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["moe_layers.moe.router_DE", "3x2048x64"] in words


def test_settings_are_shown_resolved(tiny_config, capsys):
    words = [f"--config={tiny_config}", "--config.train.seq_len=64"]
    assert main(["inspect", *words]) == status.DONE
    shown = dict(
        line.split(maxsplit=1)
        for line in capsys.readouterr().out.splitlines()
        if line.strip().startswith("config.")
    )
    assert shown["config.train.seq_len"].strip() == "64"
    assert shown["config.stages.base.mixture.chat"].strip() == "1.0"


def test_a_run_folder_shows_its_step_checkpoints_and_scores(
    tiny_config, tmp_path, capsys
):
    config = from_config_dict(RunConfig, load_config_file(str(tiny_config)).to_dict())
    (tmp_path / "config.json").write_text(to_json(config))
    found = {"quiz": suite(0.25, group="reasoning", chance=0.125)}
    write_scores(tmp_path / "evaluation" / "base", found, label="base")
    step = {"kind": "train", "stage": "base", "step": 20, "train/loss": 2.5, "time": 1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    for step in ("9", "20"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "data").write_bytes(bytes(2_000_000))
    assert main(["inspect", f"--workdir={tmp_path}", "--json"]) == status.DONE
    out = capsys.readouterr().out
    words = [line.split() for line in out.splitlines()]
    assert ["train/loss", "2.5"] in words
    assert [line[:2] for line in words if line[1:2] == ["2.0"]] == [
        ["9", "2.0"],
        ["20", "2.0"],
    ]
    (reasoning,) = [" ".join(line) for line in words if line[:1] == ["reasoning"]]
    assert "10 12.5 25.0" in reasoning
    summary = json.loads(out.splitlines()[-1])
    assert summary["checkpoints"] == [9, 20]
    assert summary["last"]["step"] == 20


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path, capsys):
    assert main(["inspect", f"--workdir={tmp_path}"]) == status.MISTAKE
    assert "config.json" in capsys.readouterr().err


def test_rows_are_shown_whole_with_weights_by_class(tiny_config, capsys):
    words = [
        f"--config={tiny_config}",
        "--data=2",
        "--config.data.class_weights.stop=2",
    ]
    assert main(["inspect", *words]) == status.DONE
    lines = capsys.readouterr().out.splitlines()
    assert "prompt 0" in lines[0]
    assert "stop 2" in lines[0]
    rows = [line for line in lines if line.startswith("<role>")]
    assert len(rows) == 2
    for row in rows:
        number = int(row.partition("What follows ")[2].partition("?")[0])
        reply = f"<think>One more.</think>{number + 1}<|endoftext|>"
        assert row.endswith(f"<role>ASSISTANT</role>{reply}")


def test_a_run_is_shown_with_the_tokenizer_that_it_trained(
    tiny_config, tmp_path, capsys
):
    folder = tmp_path / "run" / "tokenizer"
    train(["One more. What follows?"], vocab_size=270).save(folder / "tokenizer.json")
    words = [f"--config={tiny_config}", f"--workdir={folder.parent}", "--data=1"]
    assert main(["inspect", *words]) == status.DONE
    few = capsys.readouterr().out
    assert main(["inspect", words[0], words[2]]) == status.DONE
    # 270 entries have four merges at most, 300 many more: the same row is longer.
    assert num_tokens(few) > num_tokens(capsys.readouterr().out)


def inspect_json(capsys, *words: str) -> dict:
    assert main(["inspect", *words, "--json"]) == status.DONE
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_shares_and_losses_are_those_of_the_whole_run(tiny_config, tmp_path, capsys):
    rows = tmp_path / "long.jsonl"
    with rows.open("w") as file:
        for number in range(40):
            think = f"Count to {number}. " * (40 if number % 8 == 0 else 1)
            turns = [
                {"role": "user", "content": f"How far is {number}?"},
                {"role": "assistant", "content": "Far.", "think": think},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    words = [
        f"--config={tiny_config}",
        "--data=1",
        "--config.train.seq_len=96",
        f"--config.data.sources.chat.path={rows}",
        "--config.data.sources.chat.num_heldout=0",
    ]
    summary = inspect_json(capsys, *words)
    chat = summary["sources"]["chat"]
    assert (chat["rows"], chat["rows_left_out"], chat["trainable_rows"]) == (40, 5, 35)
    assert re.fullmatch(r"data\.sources\.chat: 5 of 40 rows, .*", summary["gate"])
    words.append("--config.data.long_rows.policy=split")
    summary = inspect_json(capsys, *words)
    chat = summary["sources"]["chat"]
    assert summary["gate"] == ""
    assert (chat["rows_left_out"], chat["rows_split"]) == (0, 5)
    assert chat["trainable_rows"] == 35 + chat["parts"]
    base = summary["stages"]["base"]["chat"]
    assert base["share"] == base["planned_share"] == 1.0
    assert base["rows"] == round(base["epochs"] * chat["trainable_rows"])


def test_what_the_start_gate_would_refuse_is_shown(tiny_config, capsys):
    words = [f"--config={tiny_config}", "--data=1"]
    assert main(["inspect", *words, "--config.data.class_weights.stop=0"]) == 0
    out = capsys.readouterr().out
    assert "the start gate refuses: stage base does not train the stop token" in out
    assert "<|endoftext|>" in out
    assert main(["inspect", *words]) == 0
    assert "the start gate lets this run pass" in capsys.readouterr().out


def test_the_page_shows_each_token_by_class_and_weight(tiny_config, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    lines = rows.read_text().splitlines()
    turns = [
        {"role": "user", "content": "Say <script>alert(1)</script>."},
        {"role": "assistant", "content": "<b>No.</b>", "think": "Why?"},
    ]
    rows.write_text("\n".join([json.dumps({"messages": turns}), *lines]) + "\n")
    page = tmp_path / "data.html"
    words = [
        f"--config={tiny_config}",
        "--config.data.sources.chat.num_heldout=0",
        "--config.data.class_weights.think=0.5",
        "--data=1",
        f"--html={page}",
    ]
    assert main(["inspect", *words]) == status.DONE
    assert f"page: {page}" in capsys.readouterr().out
    text = page.read_text()
    shown = r'<span class="(slot[^"]*)" style="[^"]*" title="([^"]*)">(.*?)</span>'
    spans = re.findall(shown, text)
    assert [(label, html.unescape(body)) for _, label, body in spans] == [
        (
            "prompt, weight 0",
            "<role>HUMAN</role>Say <script>alert(1)</script>.<role>ASSISTANT</role>",
        ),
        ("think, weight 0.5", "<think>Why?</think>"),
        ("answer, weight 1", "<b>No.</b>"),
        ("stop, weight 1", "<|endoftext|>"),
    ]
    assert ["untrained" in classes for classes, _, _ in spans] == [True] + 3 * [False]
    # Foreign text stays text, and the page needs nothing from elsewhere.
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_page_that_cannot_be_written_is_the_users_mistake(tiny_config, capsys):
    words = [f"--config={tiny_config}", "--data=1", "--html=/no/such/folder/page.html"]
    assert main(["inspect", *words]) == status.MISTAKE
    assert "/no/such/folder/page.html" in capsys.readouterr().err


def num_tokens(out: str) -> int:
    return int(re.findall(r"(\d+) +tokens", " ".join(out.split()))[0])


def test_the_mixture_of_a_step_is_told_with_and_without_a_run_folder(
    tiny_config, tmp_path, capsys
):
    words = [
        f"--config={tiny_config}",
        "--config.stages.base.num_steps=50",
        "--mixture",
        "--step=40",
        "--json",
    ]
    assert main(["inspect", *words]) == status.DONE
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    source = summary["sources"]["chat"]
    assert "step 40 is step 40 of stage base" in out
    assert source["planned_share"] == 1.0
    assert source["trained_tokens"] == summary["trained_tokens"] > 0
    assert sum(source["tokens_by_class"].values()) == source["tokens"] - source["rows"]

    config = override(
        RunConfig,
        load_config_file(str(tiny_config)).to_dict(),
        [("config.stages.base.num_steps", "50")],
    )
    workdir = tmp_path / "run"
    mixture_file.write(config, pipeline.prepare(config, workdir), workdir)
    (tmp_path / "rows.jsonl").unlink()
    assert main(["inspect", f"--workdir={workdir}", *words]) == status.DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary


def test_a_step_that_the_run_lacks_is_the_users_mistake(tiny_config, capsys):
    words = [f"--config={tiny_config}", "--mixture", "--step=100"]
    assert main(["inspect", *words]) == status.MISTAKE
    assert "--step=100: the run has steps 0 to 99." in capsys.readouterr().err
