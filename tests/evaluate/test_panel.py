# SPDX-License-Identifier: Apache-2.0
"""The panel: free-running, graded by verifiers, the same each time it is asked."""

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
    MoeConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from ring_jax.data import chat, pipeline
from ring_jax.data.prepared import PreparedData
from ring_jax.data.schema import Message
from ring_jax.data.sources import SourceRows
from ring_jax.evaluate import Panel, panel_table
from ring_jax.evaluate.heldout_loss import HeldoutLoss
from ring_jax.evaluate.panel import grade_completions
from ring_jax.generate import Completion
from ring_jax.model import Transformer, init_transformer

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
    model=ModelConfig(
        vocab_size=512,
        model_dim=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        moe=MoeConfig(
            num_experts=4, num_experts_per_token=2, num_shared_experts=1, expert_dim=8
        ),
        init_std=0.5,
        max_positions=512,
        eos_id=1,
        pad_id=1,
    ),
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
KEYS = [
    *("source", "domain", "task", "level", "num_items", "accuracy", "most_frequent"),
    *("well_formed", "mean_tokens", "heldout_loss"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return pipeline.prepare(CONFIG, tmp_path_factory.mktemp("run"))


@functools.partial(jax.jit, static_argnums=0)
def create(config: ModelConfig, seed: int) -> Transformer:
    return init_transformer(config, jax.random.key(seed))


def read_samples(workdir, stage: str) -> list[dict]:
    lines = (workdir / "samples" / f"{stage}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_rows_and_samples_keep_their_contract_and_agree(mesh, data, tmp_path):
    rows = Panel(CONFIG, data, tmp_path)(create(CONFIG.model, 0), "base")
    samples = read_samples(tmp_path, "base")
    assert [row["source"] for row in rows] == ["sums", "orders", "tools", "prose"]
    for row in rows:
        assert list(row) == KEYS
        assert json.loads(json.dumps(row)) == row
        ours = [sample for sample in samples if sample["source"] == row["source"]]
        if row["source"] == "prose":
            assert not ours and row["accuracy"] is None and row["num_items"] == 5
            continue
        assert row["num_items"] == len(ours) == 6
        right = sum(sample["correct"] for sample in ours)
        assert row["accuracy"] == right / 6
        assert row["mean_tokens"] == sum(sample["num_tokens"] for sample in ours) / 6
        assert row["most_frequent"] >= 1 / 6
        assert row["heldout_loss"] > 0
    by_source = {row["source"]: row for row in rows}
    assert by_source["sums"]["task"] == "chain_sum"
    assert by_source["sums"]["level"] == "easy"


def test_gold_replies_are_right_and_well_formed(data):
    for rows in data.sources.values():
        for row in rows.heldout[:8]:
            if not row.verifier:
                continue
            rendered = chat.render(row, data.tokenizer, template="ring")
            prompt = chat.render_prompt(row, data.tokenizer, template="ring")
            ids = rendered.ids[len(prompt) :].tolist()
            said = Completion(ids, data.tokenizer.decode(ids), "stop")
            (sample,) = grade_completions([row], [said])
            assert sample["correct"] and sample["well_formed"], row.id
            # Without its end token it may be right, but was not brought to its end.
            cut = Completion(ids[:-1], data.tokenizer.decode(ids[:-1]), "length")
            assert not grade_completions([row], [cut])[0]["well_formed"]


def test_an_answer_that_could_take_for_ever_is_graded_elsewhere(data):
    (row, *_) = data.sources["sums"].heldout
    rows = [
        dataclasses.replace(row, verifier="math", answer=answer)
        for answer in ("1/2", "1/3")
    ]
    said = Completion([1], "<think>x</think>\\boxed{0.5}", "stop")
    samples = grade_completions([row, *rows], [said] * 3)
    assert [sample["correct"] for sample in samples] == [False, True, False]


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
    Panel(CONFIG, data, tmp_path)(model, "shown")
    Panel(CONFIG, dataclasses.replace(data, sources=hidden), tmp_path)(model, "hidden")
    shown, hidden = read_samples(tmp_path, "shown"), read_samples(tmp_path, "hidden")
    assert [s["output"] for s in shown] == [s["output"] for s in hidden]
    assert [s["prompt"] for s in shown] == [s["prompt"] for s in hidden]
    assert {s["answer"] for s in hidden} == {"?"}


def test_the_same_model_gets_the_same_panel_and_another_does_not(mesh, data, tmp_path):
    panel = Panel(CONFIG, data, tmp_path)
    first = panel(create(CONFIG.model, 0), "one")
    assert panel(create(CONFIG.model, 0), "two") == first
    assert read_samples(tmp_path, "one") == read_samples(tmp_path, "two")
    panel(create(CONFIG.model, 1), "two")
    assert read_samples(tmp_path, "one") != read_samples(tmp_path, "two")


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
        Panel(config, data, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_table_shows_each_stage_beside_the_most_frequent_answer():
    def row(domain, level, accuracy, num_items=10):
        scores = {"accuracy": accuracy, "most_frequent": 0.1, "well_formed": 0.9}
        return {"domain": domain, "level": level, "num_items": num_items, **scores}

    prose = {"domain": "text", "num_items": 5, "accuracy": None, "heldout_loss": 2.0}
    hard = row("reasoning", "hard", 0.0, num_items=30)
    before = [row("reasoning", "easy", 0.0), hard, row("knowledge", "", 0.7), prose]
    after = [row("reasoning", "easy", 0.92), hard, row("knowledge", "", 0.64), prose]
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(
        panel_table(
            [{"stage": "base", "rows": before}, {"stage": "late", "rows": after}]
        )
    )
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "domain items guess base late formed" in lines
    assert "reasoning 40 10.0 0.0 23.0 90.0" in lines
    assert "easy 10 10.0 0.0 92.0 90.0" in lines
    assert "knowledge 10 10.0 70.0 64.0 90.0" in lines
    assert not [line for line in lines if line.startswith("text")]
