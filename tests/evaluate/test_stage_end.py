# SPDX-License-Identifier: Apache-2.0
"""The end of a stage: free-running, graded, kept, the same each time it is asked."""

import dataclasses
import functools
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from ring_jax.config import (
    ConfigError,
    DataConfig,
    EvaluateConfig,
    LongRowsConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from ring_jax.data import chat, pipeline
from ring_jax.data.chat_format import OurChat
from ring_jax.data.prepared import PreparedData
from ring_jax.data.schema import Message
from ring_jax.data.sources import SourceRows
from ring_jax.evaluate import StageEnd, score_table
from ring_jax.evaluate.heldout import choose_heldout, with_heldout
from ring_jax.evaluate.heldout_loss import HeldoutLoss
from ring_jax.model import Transformer, init_transformer
from ring_jax.report import compare
from tests.planted_evaluations import suite, write_scores
from tests.small_model import small_model

SOURCES = {
    "sums": SourceConfig(
        kind="reasoning_gym", task="chain_sum", level="easy", num_rows=80
    ),
    "orders": SourceConfig(kind="instructions", num_rows=60, num_heldout=20),
    "tools": SourceConfig(kind="tool_calls", num_rows=40, num_heldout=8),
    "prose": SourceConfig(kind="text", num_rows=30, num_heldout=5),
    "unasked": SourceConfig(kind="elements", num_rows=20, num_heldout=0),
}
CONFIG = RunConfig(
    model=small_model(vocab_size=512, max_positions=512),
    data=DataConfig(
        sources=SOURCES,
        tokenizer=TokenizerConfig(vocab_size=400, num_training_rows=100),
        # Two files of the prose are long.
        long_rows=LongRowsConfig(max_loss=0.2),
    ),
    train=TrainConfig(global_batch_size=4, seq_len=192, compute_dtype="float32"),
    evaluate=EvaluateConfig(
        items_per_source=6, max_prompt_tokens=140, max_new_tokens=12, batch_size=8
    ),
    stages={"base": StageConfig(mixture=dict.fromkeys(SOURCES, 1.0))},
)
ASKED = ["heldout_chain_sum", "heldout_orders", "heldout_tools"]
"""Suites of the sources that a verifier grades."""
MODEL = {"name": "run", "step": 7, "digest": "one"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return pipeline.prepare(CONFIG, tmp_path_factory.mktemp("run"))


@functools.partial(jax.jit, static_argnums=0)
def create(config: ModelConfig, seed: int) -> Transformer:
    return init_transformer(config, jax.random.key(seed))


def at_end(config: RunConfig, data: PreparedData, workdir, digest="one") -> StageEnd:
    identity = MODEL | {"digest": digest}
    return StageEnd(config, data, workdir, identify=lambda: identity)


def records(workdir, stage: str, name: str) -> list[dict]:
    path = workdir / "evaluation" / stage / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def by_id(workdir, stage: str) -> dict[str, dict]:
    return {r["id"]: r for name in ASKED for r in records(workdir, stage, name)}


def test_scores_and_records_agree_and_every_source_has_its_loss(mesh, data, tmp_path):
    found = at_end(CONFIG, data, tmp_path)(create(CONFIG.model, 0), "base")
    assert json.loads(json.dumps(found)) == found
    assert list(found["scores"]) == ASKED
    assert list(found["heldout_loss"]) == list(SOURCES)
    assert found["heldout_loss"].pop("unasked") is None
    assert all(loss > 0 for loss in found["heldout_loss"].values())
    scores = json.loads((tmp_path / "evaluation/base/scores.json").read_text())
    groups = {name: s["group"] for name, s in scores["suites"].items()}
    assert groups == dict(zip(ASKED, ("reasoning", "general", "general"), strict=True))
    for name, summary in scores["suites"].items():
        ours = records(tmp_path, "base", name)
        assert summary["status"] == "done"
        assert summary["num_items"] == len(ours) == 6
        right = sum(record["is_correct"] for record in ours)
        assert found["scores"][name] == summary["score"] == right / 6
        assert summary["mean_tokens"] == sum(r["num_tokens"] for r in ours) / 6
        # Always one answer is right once at least.
        assert summary["chance"] >= 1 / 6
    levels = scores["suites"]["heldout_chain_sum"]["by_difficulty"]
    assert levels["easy"]["num_items"] == 6


def test_levels_of_one_task_are_one_suite_and_its_items_are_as_in_the_config(data):
    levels = {"sums": SOURCES["sums"], "more": SOURCES["sums"], **SOURCES}
    config = dataclasses.replace(
        CONFIG, data=dataclasses.replace(CONFIG.data, sources=levels)
    )
    rows = {name: rows.heldout for name, rows in data.sources.items()}
    chat_format = OurChat(data.tokenizer, "ring")
    heldout = choose_heldout(config, rows | {"more": rows["sums"]}, chat_format)
    suites = with_heldout(config, heldout).own
    assert list(suites) == ASKED
    assert suites["heldout_chain_sum"].sources == "sums,more"
    assert suites["heldout_chain_sum"].max_new_tokens == 12
    assert heldout["sums"] == rows["sums"][:6]


def test_items_of_one_id_are_told_apart(data):
    (row, *_) = data.sources["sums"].heldout
    rows = {"sums": [row, row, row]}
    chosen = choose_heldout(CONFIG, rows, OurChat(data.tokenizer, "ring"))
    ids = [item.id for item in chosen["sums"]]
    assert ids == [row.id, f"{row.id}#2", f"{row.id}#3"]


def test_nothing_of_the_gold_reply_reaches_the_model(mesh, data, tmp_path):
    def without_gold(rows: SourceRows) -> SourceRows:
        hidden = Message("assistant", "nothing to see", think="at all")
        heldout = [
            dataclasses.replace(row, messages=(*row.messages[:-1], hidden), answer="?")
            if row.verifier
            else row
            for row in rows.heldout
        ]
        return SourceRows(rows.train, heldout)

    hidden = {name: without_gold(rows) for name, rows in data.sources.items()}
    model = create(CONFIG.model, 0)
    at_end(CONFIG, data, tmp_path)(model, "shown")
    blind = dataclasses.replace(data, sources=hidden)
    at_end(CONFIG, blind, tmp_path)(model, "hidden")
    shown, hidden = by_id(tmp_path, "shown"), by_id(tmp_path, "hidden")
    assert {i: r["output"] for i, r in shown.items()} == {
        i: r["output"] for i, r in hidden.items()
    }
    assert {r["answer"] for r in hidden.values()} == {"?"}


def test_the_same_model_says_the_same_and_another_does_not(mesh, data, tmp_path):
    end = at_end(CONFIG, data, tmp_path)
    first = end(create(CONFIG.model, 0), "one")
    assert end(create(CONFIG.model, 0), "two") == first
    assert by_id(tmp_path, "one") == by_id(tmp_path, "two")
    end(create(CONFIG.model, 1), "three")
    assert by_id(tmp_path, "one") != by_id(tmp_path, "three")


def test_what_an_interrupted_start_has_asked_is_not_asked_again(mesh, data, tmp_path):
    end = at_end(CONFIG, data, tmp_path)
    whole = end(create(CONFIG.model, 0), "base")
    before = by_id(tmp_path, "base")
    folder = tmp_path / "evaluation" / "base"
    (folder / "scores.json").unlink()
    (folder / "heldout_tools.jsonl").unlink()
    path = folder / "heldout_orders.jsonl"
    kept = path.read_text().splitlines(keepends=True)[:4]
    path.write_text("".join(kept))
    assert end(create(CONFIG.model, 0), "base") == whole
    assert path.read_text().startswith("".join(kept))
    assert by_id(tmp_path, "base") == before


def test_a_stage_that_ends_with_another_model_is_asked_anew(mesh, data, tmp_path):
    at_end(CONFIG, data, tmp_path)(create(CONFIG.model, 0), "base")
    folder = tmp_path / "evaluation" / "base"
    settings = json.loads((folder / "settings.json").read_text())
    # A suite that the user had asked of the first model.
    settings["aime24"] = settings["heldout_tools"]
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "aime24.jsonl").write_text("")
    (folder / "lm_eval.json").write_text("{}")
    at_end(CONFIG, data, tmp_path, digest="two")(create(CONFIG.model, 1), "base")
    at_end(CONFIG, data, tmp_path)(create(CONFIG.model, 1), "other")
    assert by_id(tmp_path, "base") == by_id(tmp_path, "other")
    assert not (folder / "aime24.jsonl").exists()
    assert not (folder / "lm_eval.json").exists()
    assert "aime24" not in json.loads((folder / "settings.json").read_text())


def test_a_run_that_asks_nothing_has_its_losses_alone(mesh, data, tmp_path):
    silent = dataclasses.replace(
        CONFIG, suites=dataclasses.replace(CONFIG.suites, at_stage_end="")
    )
    found = at_end(silent, data, tmp_path)(create(CONFIG.model, 0), "base")
    assert found["scores"] == {} and found["heldout_loss"]["prose"] > 0
    assert not (tmp_path / "evaluation").exists()


@jax.jit
def log_probabilities(model: Transformer, ids_BT: jax.Array) -> jax.Array:
    positions_BT = jnp.arange(ids_BT.shape[1])[None]
    hidden_BTD, _ = model(
        ids_BT, segments_BT=jnp.ones_like(ids_BT), positions_BT=positions_BT
    )
    return jax.nn.log_softmax(model.logits(hidden_BTD))[0]


def test_heldout_loss_is_the_mean_over_unpacked_rows(mesh, data):
    model = create(CONFIG.model, 0)
    losses = HeldoutLoss(CONFIG, data)(model)
    assert losses["unasked"] is None
    prompt = 1  # index of the class that has no weight
    for source, rows in data.sources.items():
        total, weight = 0.0, 0
        for rendered in chat.render_rows(rows.heldout, data.tokenizer, template="ring"):
            if len(rendered.ids) > CONFIG.train.seq_len:
                continue
            # One shape for all rows, so that the definition compiles once.
            ids_BT = np.zeros((1, CONFIG.train.seq_len), np.int32)
            ids_BT[0, : len(rendered.ids)] = rendered.ids
            logs_TV = np.asarray(log_probabilities(model, ids_BT))
            for place in range(1, len(rendered.ids)):
                if rendered.classes[place] != prompt:
                    total -= logs_TV[place - 1, rendered.ids[place]]
                    weight += 1
        if weight:
            # Sums of some thousand float32 terms in another order.
            assert losses[source] == pytest.approx(total / weight, rel=1e-4)


def test_a_model_that_knows_nothing_has_the_loss_of_an_even_guess(mesh, data):
    model = create(CONFIG.model, 0)
    assert model.head_DV is not None
    model.head_DV[...] = jnp.zeros_like(model.head_DV[...])
    for loss in HeldoutLoss(CONFIG, data)(model).values():
        if loss is not None:
            # float32 of a mean over equal terms.
            assert loss == pytest.approx(math.log(512), rel=1e-5)


def test_prompts_that_are_all_too_long_are_refused_before_training(data, tmp_path):
    short = dataclasses.replace(CONFIG.evaluate, max_prompt_tokens=3)
    config = dataclasses.replace(CONFIG, evaluate=short)
    with pytest.raises(
        ConfigError, match="sources.sums.*max_prompt_tokens=3"
    ) as caught:
        at_end(config, data, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_table_has_groups_levels_and_capabilities_by_stage(tmp_path):
    def scores(index: int) -> dict[str, dict]:
        share = (0.0, 0.9)[index]
        levels = {
            "easy": {"score": share, "num_items": 5},
            "hard": {"score": 0.0, "num_items": 5},
        }
        sums = suite(
            share / 2, group="reasoning", capability="reasoning", by_difficulty=levels
        )
        quiz = suite((0.7, 0.6)[index], chance=0.1, malformed_share=0.1)
        tools = suite(0.5, capability="tool use", chance=0.3, malformed_share=0.3)
        return {"sums": sums, "quiz": quiz, "tools": tools}

    folders = [
        write_scores(tmp_path / label, scores(index), label=label)
        for index, label in enumerate(("base", "late"))
    ]
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(score_table(compare(folders)))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "group items guess base late formed" in lines
    assert "reasoning 10 – 0.0 45.0 –" in lines
    assert "easy 5 – 0.0 90.0 –" in lines
    assert "general 20 20.0 60.0 55.0 80.0" in lines
    assert "knowledge 10 10.0 70.0 60.0 90.0" in lines
    assert "Retained fraction of general skills: none, because" in " ".join(lines)
