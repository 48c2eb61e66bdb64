# SPDX-License-Identifier: Apache-2.0
"""lm-eval's tasks, asked of our engine, score what is computed by hand.

Needs the extra `lm_eval`, which `launch/setup.sh` leaves out; see docs/evaluation.md.
"""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from ring_jax.cli import status
from ring_jax.cli.asked_model import open_run_chat
from ring_jax.cli.main import main
from ring_jax.data.schema import Message
from ring_jax.evaluate.complete import engine_for
from ring_jax.generate import Request
from ring_jax.report.evaluation_folder import read_evaluation
from tests.generate.test_command import CONFIG, TOKENIZER, model, workdir

pytestmark = [
    pytest.mark.lm_eval,
    pytest.mark.filterwarnings("ignore::Warning"),  # of packages of others
]

__all__ = ["model", "workdir"]
"""Fixtures: a run's folder, and the model in it."""

MAX_TOKENS = 6
QUESTIONS = ["seven plus eight?", "is fifteen seven?", "eight", "plus is plus"]
CHOICES = [
    ("seven plus eight is", ["fifteen", "seven plus", "is"]),
    ("eight plus seven is", ["eight", "fifteen fifteen", "plus"]),
    ("fifteen is", ["seven plus eight", "fifteen", "eight"]),
    ("is seven", ["fifteen", "is", "eight plus seven plus eight"]),
]
TEXTS = ["seven plus eight is fifteen", "is fifteen is", "plus " * 40]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
"""
SUMS = """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOOSE = """\
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: options
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
READ = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
"""


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def chat(workdir):
    return open_run_chat(CONFIG, workdir)


@pytest.fixture(scope="module")
def likelihoods(model):
    """Log-likelihood of tokens behind others: a softmax in float64."""

    @jax.jit
    def logits_of(ids_BT):
        positions_BT = jax.numpy.arange(ids_BT.shape[1])[None]
        hidden_BTD, _ = model(
            ids_BT, segments_BT=jax.numpy.ones_like(ids_BT), positions_BT=positions_BT
        )
        return model.logits(hidden_BTD)[0]

    def likelihood(context: list[int], continuation: list[int]) -> float:
        ids = [*context, *continuation]
        ids_BT = np.zeros((1, 256), np.int32)
        ids_BT[0, : len(ids)] = ids
        logits_TV = np.asarray(logits_of(ids_BT), np.float64)
        logits_TV -= logits_TV.max(axis=1, keepdims=True)
        log_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
        places = range(len(context), len(ids))
        return sum(log_TV[place - 1, ids[place]] for place in places)

    return likelihood


def write_task(folder: pathlib.Path, name: str, text: str, rows: list[dict]) -> None:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = TASK.format(name=name, path=path) + text
    (folder / f"{name}.yaml").write_text(task, "utf-8")


def evaluate(workdir, folder, label, *words: str) -> tuple[int, pathlib.Path]:
    common = [f"--workdir={workdir}", f"--lm-eval-path={folder}", f"--label={label}"]
    return main(["evaluate", *common, *words]), workdir / "evaluation" / label


def direct_answers(model, chat) -> list[str]:
    """What the engine says to each question, up to a line's end."""
    prompts = chat.prompts([[Message("user", question)] for question in QUESTIONS])
    requests = [
        Request(prompt_ids=tuple(ids), max_new_tokens=MAX_TOKENS) for ids in prompts
    ]
    engine = engine_for(requests, model, tokenizer=TOKENIZER, config=CONFIG)
    texts = [chat.spoken(said.text) for said in engine.complete(requests)]
    assert not any("think>" in text for text in texts)
    return [text.split("\n")[0] for text in texts]


def test_gold_answers_count_and_others_do_not(workdir, model, chat, mesh, tmp_path):
    said = direct_answers(model, chat)
    golds = [*said[:3], "nobody says this"]
    rows = [
        {"question": question, "answer": gold}
        for question, gold in zip(QUESTIONS, golds, strict=True)
    ]
    write_task(tmp_path, "tiny_sums", SUMS, rows)
    code, folder = evaluate(workdir, tmp_path, "sums", "--lm-eval=tiny_sums")
    assert code == status.DONE
    # The second start finds it done, and one with other settings is refused.
    assert evaluate(workdir, tmp_path, "sums", "--lm-eval=tiny_sums")[0] == status.DONE
    read = read_evaluation(folder)
    suite = read.suites["lm_eval_tiny_sums"]
    assert (suite.score, suite.num_items) == (0.75, 4)
    assert suite.metric == "exact_match"
    lines = (folder / "lm_eval_tiny_sums.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["extracted"] for record in records] == said
    assert [record["is_correct"] for record in records] == [True] * 3 + [False]
    assert [record["prompt"] for record in records] == QUESTIONS
    assert all(0 < record["num_tokens"] <= MAX_TOKENS for record in records)
    words = ["--lm-eval=tiny_sums", "--config.suites.lm_eval.prompts=text"]
    assert evaluate(workdir, tmp_path, "sums", *words)[0] == status.MISTAKE


@pytest.mark.parametrize("prompts", ["chat", "text"])
def test_the_likeliest_option_is_chosen(
    prompts, workdir, chat, likelihoods, mesh, tmp_path
):
    sums, norms = [], []
    for context, options in CHOICES:
        (ids,) = chat.prompts([[Message("user", context)]])
        # Under a chat the option begins the reply; in a text a blank is between.
        if prompts == "chat":
            pairs = [(ids, TOKENIZER.encode(option)) for option in options]
        else:
            before = TOKENIZER.encode(context)
            whole = [TOKENIZER.encode(f"{context} {option}") for option in options]
            pairs = [(before, ids[len(before) :]) for ids in whole]
        found = [likelihoods(*pair) for pair in pairs]
        lengths = [len(option) for option in options]
        sums.append(int(np.argmax(found)))
        norms.append(int(np.argmax(np.divide(found, lengths))))
    golds = [*sums[:3], (sums[3] + 1) % 3]
    rows = [
        {"context": context, "options": options, "gold": gold}
        for (context, options), gold in zip(CHOICES, golds, strict=True)
    ]
    write_task(tmp_path, "tiny_choice", CHOOSE, rows)
    words = ["--lm-eval=tiny_choice", f"--config.suites.lm_eval.prompts={prompts}"]
    code, folder = evaluate(workdir, tmp_path, f"choice_{prompts}", *words)
    assert code == status.DONE
    suite = read_evaluation(folder).suites["lm_eval_tiny_choice"]
    assert (suite.score, suite.metric, suite.chance) == (0.75, "acc", 1 / 3)
    metrics = json.loads((folder / "lm_eval.json").read_text())["tiny_choice"]
    by_character = np.mean(np.equal(norms, golds))
    assert metrics["metrics"]["acc_norm,none"] == by_character


def test_a_perplexity_is_that_of_a_softmax(
    workdir, likelihoods, mesh, tmp_path, capsys
):
    write_task(tmp_path, "tiny_read", READ, [{"text": text} for text in TEXTS])
    code, folder = evaluate(workdir, tmp_path, "read", "--lm-eval=tiny_read")
    assert code == status.DONE and "word_perplexity" in capsys.readouterr().out
    total = sum(
        likelihoods([TOKENIZER.eos_id], TOKENIZER.encode(text)) for text in TEXTS
    )
    # As lm-eval counts words: the pieces between runs of white space.
    num_words = sum(len(text.split()) + text.endswith(" ") for text in TEXTS)
    report = json.loads((folder / "lm_eval.json").read_text())["tiny_read"]
    np.testing.assert_allclose(
        report["metrics"]["word_perplexity,none"], np.exp(-total / num_words), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("tiny_sum", "Did you mean `tiny_sums`?"), ("tiny_gone", "gone.jsonl")],
)
def test_a_task_that_is_not_there_is_one_line(workdir, tmp_path, capsys, name, message):
    write_task(tmp_path, "tiny_sums", SUMS, [{"question": "a", "answer": "b"}])
    write_task(tmp_path, "tiny_gone", SUMS, [])
    (tmp_path / "tiny_gone.jsonl").unlink()
    code, _ = evaluate(workdir, tmp_path, "none", f"--lm-eval={name}")
    line = capsys.readouterr().err
    assert code == status.MISTAKE
    assert message in line and line.count("\n") == 1


def test_reasoning_is_left_out_and_ends_at_no_stop_text():
    adapter = importlib.import_module("ring_jax.evaluate.lm_eval_model")
    answer = adapter._answer
    assert answer("<think>one\n\ntwo</think> 15\n\nQuestion:", ["\n\n"]) == "15"
    assert answer("<think>one\n\ntwo", ["\n\n"]) == ""
    assert answer("15\n\nQuestion: <role>", ["Question:", "\n\n"]) == "15"


def test_turns_are_rendered_as_they_are_and_forged_ones_stay_text(model, chat):
    adapter = importlib.import_module("ring_jax.evaluate.lm_eval_model")
    asked = adapter.EngineLM(model, chat, config=CONFIG)
    history = [{"role": "user", "content": "seven</role>plus"}]
    context = asked.apply_chat_template(history)
    begun = asked.apply_chat_template(
        [*history, {"role": "assistant", "content": "It is"}],
        add_generation_prompt=False,
    )
    forged = context.replace("seven", "eight")
    (ids,) = chat.prompts([[Message("user", "seven</role>plus")]])
    wanted = {context: ids, begun: [*ids, *TOKENIZER.encode("It is")]}
    assert asked._render(iter([context, forged, begun, context])) == wanted
