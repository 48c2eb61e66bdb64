# SPDX-License-Identifier: Apache-2.0
"""Batches: nothing lost, nothing mixed up, resumed to the bit, refused when bad."""

import collections
import contextlib
import dataclasses
import functools
import json

import numpy as np
import pytest

from ring_jax.batch import Batch
from ring_jax.config import (
    TOKEN_CLASSES,
    ConfigError,
    DataConfig,
    LongRowsConfig,
    MixtureChangeConfig,
    ModelConfig,
    PackingConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from ring_jax.data import chat, mixture_file, packing, pipeline
from ring_jax.data.mixture_table import Change
from ring_jax.data.prepared import PreparedData
from ring_jax.data.stage_ledger import open_ledger
from ring_jax.data.windows import Windows

SOURCES = {
    "sums": SourceConfig(
        kind="reasoning_gym", task="chain_sum", level="easy", num_rows=150
    ),
    "orders": SourceConfig(kind="instructions", num_rows=90, num_heldout=20),
    "prose": SourceConfig(kind="text", num_rows=40, num_heldout=5),
}
MIXTURE = {"sums": 2.0, "prose": 1.0, "orders": 1.0}
FIELDS = [field.name for field in dataclasses.fields(Batch)]


def run_config(*, mixture=None, train=None, stage=None, **data) -> RunConfig:
    data = {
        "sources": SOURCES,
        "tokenizer": TokenizerConfig(vocab_size=400, num_training_rows=200),
        # Two files of the prose are long, and how many tokens depends on the seed.
        "long_rows": LongRowsConfig(max_loss=0.2),
        **data,
    }
    return RunConfig(
        model=ModelConfig(vocab_size=512, eos_id=1, pad_id=1),
        data=DataConfig(**data),
        train=TrainConfig(**{"global_batch_size": 4, "seq_len": 192, **(train or {})}),
        stages={"base": StageConfig(mixture=mixture or MIXTURE, **(stage or {}))},
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedData:
    return pipeline.prepare(run_config(), tmp_path_factory.mktemp("run"))


def take(batches, count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def assert_same(left: Batch, right: Batch) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def documents(batch: Batch) -> list[tuple[int, tuple, tuple]]:
    """Unpacks a batch: source, ids and classes of each document, checked on the way."""
    found = []
    for row in range(len(batch.ids_BT)):
        segments_T = np.asarray(batch.segments_BT[row])
        for segment in range(1, segments_T.max() + 1):
            (places,) = np.nonzero(segments_T == segment)
            assert (np.diff(places) == 1).all(), "a segment is one stretch"
            here = np.index_exp[row, places]
            positions = np.asarray(batch.positions_BT)[here]
            np.testing.assert_array_equal(positions, np.arange(len(places)))
            (source,) = set(np.asarray(batch.sources_BT)[here].tolist())
            ids = tuple(np.asarray(batch.ids_BT)[here].tolist())
            classes = tuple(np.asarray(batch.classes_BT)[here].tolist())
            found.append((source, ids, classes))
    return found


def closing(config, prepared, stage="base"):
    return contextlib.closing(pipeline.TrainBatches(config, prepared, stage=stage))


def as_documents(rows, source: int) -> list[tuple[int, tuple, tuple]]:
    return [(source, tuple(r.ids.tolist()), tuple(r.classes.tolist())) for r in rows]


@pytest.mark.parametrize("name", SOURCES)
def test_every_epoch_keeps_every_row_once(name, prepared):
    with closing(run_config(mixture={name: 1.0}), prepared) as batches:
        seen = [d for batch in take(batches, 64) for d in documents(batch)]
        num_read = Windows(batches.ledger).totals(64)[name].rows
    rows = as_documents(prepared.rendered[name], prepared.source_index(name))
    assert len(seen) == num_read > 2 * len(rows)
    counts, per_epoch = collections.Counter(seen), collections.Counter(rows)
    num_epochs = num_read // len(rows)
    assert set(counts) == set(per_epoch)
    # 64 steps are eight whole windows: no row that came before the last is missing.
    for document, count in counts.items():
        once = per_epoch[document]
        assert num_epochs * once <= count <= (num_epochs + 1) * once


def test_the_rows_of_all_processes_make_up_the_batch_of_one(prepared):
    config, split = run_config(), ([0, 2], [1, 3])
    with closing(config, prepared) as batches:
        whole = take(batches, 4)
    parts, states = [], []
    for rows in split:
        batches = pipeline.TrainBatches(config, prepared, stage="base", rows=rows)
        with contextlib.closing(batches):
            parts.append(take(batches, 2))
            states.append(batches.get_state())
            parts[-1] += take(batches, 2)
    for number, batch in enumerate(whole):
        for rows, part in zip(split, parts, strict=True):
            mine = {name: getattr(batch, name)[rows] for name in FIELDS}
            assert_same(part[number], Batch(**mine))
    # Where the data stand is said alike by all, and by any other number of processes.
    assert states[0] == states[1]
    with closing(config, prepared) as batches:
        batches.set_state(states[0])
        assert_same(next(batches), whole[2])


def test_epochs_are_shuffled_differently(prepared):
    with closing(run_config(mixture={"prose": 1.0}), prepared) as batches:
        seen = [d for batch in take(batches, 60) for d in documents(batch)]
    num_rows = len(prepared.rendered["prose"])
    assert seen[:num_rows] != seen[num_rows : 2 * num_rows]


def test_documents_of_a_batch_are_whole_rows_of_their_source(prepared):
    known = {
        (
            prepared.source_index(name),
            tuple(row.ids.tolist()),
            tuple(row.classes.tolist()),
        )
        for name, rows in prepared.rendered.items()
        for row in rows
    }
    with closing(run_config(), prepared) as batches:
        seen = [d for batch in take(batches, 20) for d in documents(batch)]
    assert set(seen) <= known


def test_weights_follow_classes_and_never_the_id(prepared):
    weights = {"prompt": 0.0, "think": 0.5, "answer": 1.0, "tool": 2.0, "stop": 3.0}
    config = run_config(class_weights=weights)
    with closing(config, prepared) as batches:
        batch = next(batches)
    table = np.asarray([0.0, *weights.values()])
    is_document = np.asarray(batch.segments_BT) > 0
    is_predicted = is_document & (np.asarray(batch.positions_BT) > 0)
    expected = np.where(is_predicted, table[np.asarray(batch.classes_BT)], 0.0)
    np.testing.assert_array_equal(batch.weights_BT, expected)
    # The pad id is the end token's id: one is trained, the other is not.
    is_end = np.asarray(batch.ids_BT) == config.model.eos_id
    is_padding = ~is_document
    assert (np.asarray(batch.ids_BT)[is_padding] == config.model.pad_id).all()
    assert is_padding.any()
    assert (np.asarray(batch.weights_BT)[is_end & is_document] == 3.0).all()
    assert (np.asarray(batch.classes_BT)[is_padding] == 0).all()


def test_prompts_are_trained_on_request(prepared):
    config = run_config(stage={"train_prompts": True})
    with closing(config, prepared) as batches:
        batch = next(batches)
    is_prompt = np.asarray(batch.classes_BT) == TOKEN_CLASSES.index("prompt")
    is_first = np.asarray(batch.positions_BT) == 0
    assert (np.asarray(batch.weights_BT)[is_prompt & ~is_first] == 1.0).all()
    assert (np.asarray(batch.weights_BT)[is_first] == 0.0).all()


@pytest.mark.parametrize("num_done", [0, 1, 5, 13])
def test_resuming_continues_to_the_bit(num_done, prepared):
    with closing(run_config(), prepared) as batches:
        take(batches, num_done)
        # The state goes through JSON, as it does through a checkpoint.
        state = json.loads(json.dumps(batches.get_state()))
        expected = take(batches, 7)
    with closing(run_config(), prepared) as again:
        take(again, 2)
        again.set_state(state)
        assert again.get_state() == state
        for left, right in zip(take(again, 7), expected, strict=True):
            assert_same(left, right)


def test_state_does_not_run_ahead_with_the_prefetch(prepared):
    with closing(run_config(), prepared) as batches:
        states = [batches.get_state()]
        for _ in range(4):
            next(batches)
            states.append(batches.get_state())
        expected = next(batches)
    with closing(run_config(), prepared) as again:
        again.set_state(states[4])
        assert_same(next(again), expected)
    assert len({json.dumps(state) for state in states}) == 5


def test_preparing_again_gives_the_same_batches(prepared, tmp_path):
    again = pipeline.prepare(run_config(), tmp_path)
    assert again.digest == prepared.digest
    assert again.tokenizer.to_json() == prepared.tokenizer.to_json()
    with closing(run_config(), prepared) as left, closing(run_config(), again) as right:
        for one, other in zip(take(left, 3), take(right, 3), strict=True):
            assert_same(one, other)


def test_stages_walk_in_orders_of_their_own(prepared):
    config = run_config()
    stages = {"base": config.stages["base"], "again": config.stages["base"]}
    config = dataclasses.replace(config, stages=stages)
    with (
        closing(config, prepared) as left,
        closing(config, prepared, "again") as right,
    ):
        assert not np.array_equal(next(left).ids_BT, next(right).ids_BT)


def test_rows_without_room_are_counted_alike_wherever_one_begins(prepared):
    config = run_config(packing=PackingConfig(window_rows=8, fill=1.0))
    windows = Windows(open_ledger(config, prepared.indexes, stage="base"))
    counts = [len(windows.left_out(window).places_C) for window in range(21)]
    assert sum(counts) > 0, "else this test shows nothing"
    with closing(config, prepared) as batches:
        # Into the window of 41: its first step has counted, the next window has not.
        take(batches, 41)
        state = json.loads(json.dumps(batches.get_state()))
    assert state["left_out"] == sum(counts)
    with closing(config, prepared) as again:
        again.set_state(state)
        take(again, 1)
        assert again.get_state()["left_out"] == sum(counts)


CHANGES = {
    "later": MixtureChangeConfig(step=70, mixture={"orders": 1.0, "sums": 1.0}),
}


def changing(**data) -> RunConfig:
    """Windows of 8 steps, and another mixture from step 72 on."""
    data = {"packing": PackingConfig(window_rows=32), **data}
    return run_config(stage={"mixture_changes": CHANGES}, **data)


@pytest.fixture(scope="module")
def uninterrupted(prepared) -> list[Batch]:
    with closing(changing(), prepared) as batches:
        return take(batches, 84)


# Into a window, at its border, one step before the mixture changes, and behind it.
@pytest.mark.parametrize("position", [3, 8, 71, 77])
@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_any_number_of_hosts_resumes_to_the_same_bytes(
    num_hosts, position, prepared, uninterrupted
):
    with closing(changing(), prepared) as batches:
        take(batches, position)
        state = json.loads(json.dumps(batches.get_state()))
    parts = []
    for host in range(num_hosts):
        rows = range(host, 4, num_hosts)
        batches = pipeline.TrainBatches(changing(), prepared, stage="base", rows=rows)
        with contextlib.closing(batches):
            batches.set_state(state)
            parts.append(take(batches, 3))
    for number, expected in enumerate(uninterrupted[position : position + 3]):
        for host in range(num_hosts):
            rows = list(range(host, 4, num_hosts))
            mine = {name: getattr(expected, name)[rows] for name in FIELDS}
            assert_same(parts[host][number], Batch(**mine))


def test_workers_resume_to_the_same_bytes(prepared, uninterrupted):
    with closing(changing(num_workers=2), prepared) as batches:
        for expected in uninterrupted[:2]:
            assert_same(next(batches), expected)
        # From one thread to two processes, across the change of the mixture.
        with closing(changing(), prepared) as before:
            take(before, 69)
            batches.set_state(before.get_state())
        for expected in uninterrupted[69:75]:
            assert_same(next(batches), expected)
        state = batches.get_state()
    with closing(changing(), prepared) as after:
        after.set_state(state)
        assert_same(next(after), uninterrupted[75])


def test_the_composition_is_what_the_batches_hold(prepared, uninterrupted):
    ledger = open_ledger(changing(), prepared.indexes, stage="base")
    windows = Windows(ledger)
    trained = dict.fromkeys(prepared.sources, 0)
    for step, batch in enumerate(uninterrupted):
        totals = windows.totals(step)
        assert {name: place.trained for name, place in totals.items()} == trained
        for name, share in windows.composition(step).items():
            is_here = np.asarray(batch.sources_BT) == prepared.source_index(name)
            is_here &= np.asarray(batch.segments_BT) > 0
            assert share.tokens == is_here.sum()
            assert share.rows == (is_here & (batch.positions_BT == 0)).sum()
            is_predicted = is_here & (np.asarray(batch.positions_BT) > 0)
            for number, class_name in enumerate(TOKEN_CLASSES[1:], 1):
                is_class = is_predicted & (np.asarray(batch.classes_BT) == number)
                assert share.by_class[class_name] == is_class.sum()
            is_trained = is_here & (np.asarray(batch.weights_BT) > 0)
            assert share.trained == is_trained.sum()
            trained[name] += share.trained
    # The stage's own mixture holds to step 72, in trained tokens.
    fed = windows.totals(72)
    total = sum(place.trained for place in fed.values())
    for name, weight in MIXTURE.items():
        # 72 steps hold 900 rows of up to 190 tokens: one row is 0.5 % of a share.
        assert abs(fed[name].trained / total - weight / 4) < 0.01


def test_a_change_during_the_run_is_kept_by_the_checkpoint(prepared):
    config = run_config(packing=PackingConfig(window_rows=32))
    change = Change(start_step=0, mixture={"prose": 1.0}, reason="general loss rose")
    with closing(config, prepared) as batches:
        before = take(batches, 10)
        assert batches.change_mixture(change) == 16
        middle = take(batches, 8)
        state = json.loads(json.dumps(batches.get_state()))
        expected = take(batches, 3)
    with closing(config, prepared) as again:
        for batch in before:
            assert_same(next(again), batch)
        again.set_state(state)
        for batch in expected:
            assert_same(next(again), batch)
        assert again.ledger.table[1].change.reason == "general loss rose"
    prose = prepared.source_index("prose")
    sources = [{source for source, _, _ in documents(batch)} for batch in middle]
    assert set().union(*sources[:6]) == {0, 1, 2}
    # From step 16 on; a row that found no room before may still come.
    assert sources[6:] == [{prose}, {prose}]


def test_the_config_may_change_the_mixture_of_steps_to_come_only(prepared):
    def with_change(step):
        changes = {"later": MixtureChangeConfig(step=step, mixture={"prose": 1.0})}
        packing_config = PackingConfig(window_rows=32)
        return run_config(stage={"mixture_changes": changes}, packing=packing_config)

    with closing(run_config(packing=PackingConfig(window_rows=32)), prepared) as first:
        take(first, 20)
        state = first.get_state()
        expected = take(first, 4)
    with closing(with_change(24), prepared) as changed:
        changed.set_state(state)
        for batch in expected:
            assert_same(next(changed), batch)
        (source,) = {source for source, _, _ in documents(next(changed))}
        assert source == prepared.source_index("prose")
    with (
        closing(with_change(9), prepared) as changed,
        pytest.raises(ConfigError, match="is done and cannot change"),
    ):
        changed.set_state(state)


CHANGED = {
    "packing": ({"packing": PackingConfig(algorithm="best_fit")}, "packing.algorithm"),
    "length": ({"train": {"seq_len": 160}}, "packing.seq_len: 192 -> 160"),
    "batch": ({"train": {"global_batch_size": 2}}, "packing.batch_size: 4 -> 2"),
    "template": ({"template": "ling"}, "template: 'ring' -> 'ling'"),
    "weights": (
        {"class_weights": dict.fromkeys(TOKEN_CLASSES[1:], 0.5)},
        r"class_weights\.think: 1.0 -> 0.5",
    ),
    "mixture": ({"mixture": {"sums": 1.0}}, "is done and cannot change"),
}


@pytest.mark.parametrize(("changed", "message"), CHANGED.values(), ids=CHANGED)
def test_a_state_of_other_data_is_refused_with_what_differs(changed, message, prepared):
    with closing(run_config(), prepared) as batches:
        take(batches, 2)
        state = batches.get_state()
    with (
        closing(run_config(**changed), prepared) as other,
        pytest.raises(ConfigError, match=f"{message}.*use a new workdir") as error,
    ):
        other.set_state(state)
    assert "\n" not in str(error.value)


def test_changed_rows_seed_and_tokenizer_are_refused_unless_allowed(prepared, tmp_path):
    with closing(run_config(), prepared) as batches:
        take(batches, 5)
        state = batches.get_state()
    config = dataclasses.replace(run_config(on_change="allow"), seed=1)
    other = pipeline.prepare(config, tmp_path)
    data = dataclasses.replace(config.data, on_change="refuse")
    strict = dataclasses.replace(config, data=data)
    with (
        closing(strict, other) as batches,
        pytest.raises(ConfigError, match=r"seed: 0 -> 1; tokenizer: .*sources\.sums"),
    ):
        batches.set_state(state)
    with closing(config, other) as batches:
        expected = take(batches, 6)[5]
        batches.set_state(state)
        assert_same(next(batches), expected)


def test_a_run_folder_tells_its_mixture_without_reading_rows(tmp_path):
    config = changing()
    prepared = pipeline.prepare(config, tmp_path)
    assert mixture_file.saved_ledger(config, tmp_path, stage="base") is None
    mixture_file.write(config, prepared, tmp_path)
    saved = mixture_file.saved_ledger(config, tmp_path, stage="base")
    assert saved is not None
    opened = open_ledger(config, prepared.indexes, stage="base")
    assert saved.table == opened.table
    assert Windows(saved).composition(73) == (Windows(opened).composition(73))


def test_a_run_folder_tells_what_was_decided_on_the_way(prepared, tmp_path):
    config = run_config(packing=PackingConfig(window_rows=32))
    record = functools.partial(mixture_file.record, workdir=tmp_path, stage="base")
    change = Change(start_step=0, mixture={"prose": 1.0}, reason="general loss rose")

    def told():
        (stage,) = json.loads((tmp_path / "mixture.json").read_text())
        return [entry["change"]["reason"] for entry in stage["table"]]

    mixture_file.write(config, prepared, tmp_path)
    batches = pipeline.TrainBatches(config, prepared, stage="base", record=record)
    with contextlib.closing(batches):
        take(batches, 2)
        early = batches.get_state()
        take(batches, 8)
        batches.change_mixture(change)
        assert told() == ["the stage begins", "general loss rose"]
        # The run goes on, first as it was, then from a checkpoint before the change.
        mixture_file.write(config, prepared, tmp_path)
        assert told() == ["the stage begins", "general loss rose"]
        batches.set_state(early)
        next(batches)
        assert told() == ["the stage begins"]
    assert [file.name for file in tmp_path.iterdir()] == ["mixture.json"]


def test_a_mixture_file_of_other_data_is_written_anew(prepared, tmp_path):
    config = run_config(packing=PackingConfig(window_rows=32))
    record = functools.partial(mixture_file.record, workdir=tmp_path, stage="base")
    mixture_file.write(config, prepared, tmp_path)
    batches = pipeline.TrainBatches(config, prepared, stage="base", record=record)
    with contextlib.closing(batches):
        batches.change_mixture(Change(start_step=0, mixture={"prose": 1.0}))
    other = run_config(packing=PackingConfig(window_rows=64))
    mixture_file.write(other, prepared, tmp_path)
    (stage,) = json.loads((tmp_path / "mixture.json").read_text())
    assert len(stage["table"]) == 1
    assert stage["identity"]["packing.window_rows"] == 64


def test_a_damaged_mixture_file_is_told_and_ends_no_run(prepared, tmp_path, caplog):
    record = functools.partial(mixture_file.record, workdir=tmp_path, stage="base")
    batches = pipeline.TrainBatches(run_config(), prepared, stage="base", record=record)
    with contextlib.closing(batches):
        next(batches)
    assert "does not tell of it" in caplog.text
    (tmp_path / "mixture.json").write_text('[{"stage": "ba')
    record(batches.ledger)
    assert "delete it, and the same command writes it again" in caplog.text
    # A start can be told to do something about it.
    with pytest.raises(ConfigError, match=r"mixture\.json cannot be read.*delete it"):
        mixture_file.write(run_config(), prepared, tmp_path)


def test_heldout_batches_hold_each_heldout_row_once(prepared):
    config = run_config()
    for name, source in prepared.sources.items():
        batches = pipeline.heldout_batches(config, prepared, source=name)
        seen = [document for batch in batches for document in documents(batch)]
        rendered = chat.render_rows(
            source.heldout, prepared.tokenizer, template=config.data.template
        )
        fitting = [row for row in rendered if len(row.ids) <= config.train.seq_len]
        expected = as_documents(fitting, prepared.source_index(name))
        assert collections.Counter(seen) == collections.Counter(expected)
        assert {batch.ids_BT.shape for batch in batches} == {(4, 192)}


def test_no_heldout_rows_give_no_batches():
    table = packing.weights_table({"answer": 1.0})
    options = {"batch_size": 2, "seq_len": 8, "weights_by_class": table, "pad_id": 0}
    assert packing.pack_all([], source=0, **options) == []


def test_long_rows_are_dropped_and_counted(tmp_path):
    allowed = LongRowsConfig(max_loss=1.0)
    config = run_config(train={"seq_len": 60}, long_rows=allowed)
    prepared = pipeline.prepare(config, tmp_path)
    for name, rows in prepared.rendered.items():
        assert max(len(row.ids) for row in rows) <= 60
        num_read = len(prepared.sources[name].train)
        report = prepared.lengths[name]
        assert report.rows_left_out == num_read - len(rows)
        kept = sum(len(row.ids) for row in rows)
        assert report.tokens - report.tokens_left_out == kept
    assert prepared.lengths["prose"].rows_left_out > 0


BAD = {
    "stop": (
        {"class_weights": {"prompt": 1, "think": 1, "answer": 1, "tool": 1, "stop": 0}},
        r"stage base does not train the stop token \(data\.class_weights\.stop=0\)",
    ),
    "masked": (
        {"class_weights": {"prompt": 0, "think": 1, "answer": 0, "tool": 1, "stop": 1}},
        r"row prose/.*: stage base trains none of its tokens \(39 of 39 rows",
    ),
    "classes": ({"class_weights": {"answer": 1.0}}, "class_weights lacks"),
    "lossy": (
        {"train": {"seq_len": 60}},
        r"data\.sources\.prose: \d+ of 40 rows, with .* % of its tokens, are longer",
    ),
    "short": ({"train": {"seq_len": 8}}, "rows are longer than train.seq_len=8"),
    "ids": (
        {"tokenizer": TokenizerConfig(vocab_size=600, num_training_rows=900)},
        "do not fit into model.vocab_size=512",
    ),
    "path": ({"tokenizer": TokenizerConfig(path="/nowhere")}, "does not exist"),
}


@pytest.mark.parametrize(("changed", "message"), BAD.values(), ids=BAD)
def test_untrainable_data_is_refused_and_nothing_is_written(changed, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        pipeline.prepare(run_config(**changed), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_another_end_token_than_the_models_is_refused(tmp_path):
    config = run_config()
    model = dataclasses.replace(config.model, eos_id=5)
    with pytest.raises(ConfigError, match=r"model\.eos_id=5"):
        pipeline.prepare(dataclasses.replace(config, model=model), tmp_path)


def test_a_run_folder_keeps_its_tokenizer(tmp_path):
    pipeline.prepare(run_config(), tmp_path)
    changed = run_config(tokenizer=TokenizerConfig(vocab_size=390))
    with pytest.raises(ConfigError, match="use a new workdir"):
        pipeline.prepare(changed, tmp_path)


def test_a_cached_tokenizer_is_the_trained_one(prepared, tmp_path):
    config = run_config(cache_dir=str(tmp_path / "cache"))
    for folder in ("first", "second"):
        again = pipeline.prepare(config, tmp_path / folder)
        assert again.tokenizer.to_json() == prepared.tokenizer.to_json()
    assert len(list((tmp_path / "cache").iterdir())) == 1
