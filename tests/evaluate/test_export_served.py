# SPDX-License-Identifier: Apache-2.0
"""An export that another implementation serves says what our engine says."""

import contextlib
import dataclasses
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import pytest

from ring_jax.checkpoint import Store
from ring_jax.cli import status
from ring_jax.cli.asked_model import open_run_chat
from ring_jax.cli.main import main
from ring_jax.config import MeshConfig, TeacherConfig, to_json
from ring_jax.evaluate.complete import Ask, Said, engine_for
from ring_jax.evaluate.items import read_items
from ring_jax.evaluate.server import ServerCompleter
from ring_jax.evaluate.suites import SUITES
from ring_jax.generate import Request
from ring_jax.model import Transformer, init_transformer
from ring_jax.sharding import make_mesh
from tests.generate.test_command import CONFIG, TOKENIZER

pytestmark = pytest.mark.slow

TIE = 2e-4
"""Logits closer than this may be told apart differently; float32 sums in another order
differ by as much (`tests/model/test_mlx_parity.py`)."""
NUM_PROMPTS = 50


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Random weights that say text: other bytes have no logit above 0.

    mlx-lm 0.32.2 leaves bytes out that are no character at the end of a reply, and
    writes the byte 0 as another sign. No trained model says either.
    """
    names = [TOKENIZER.decode([number]) for number in range(CONFIG.model.vocab_size)]
    is_text_V = np.array([name.isascii() and name.isprintable() for name in names])
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        model = jax.jit(lambda: init_transformer(CONFIG.model, jax.random.key(0)))()
        assert model.head_DV is not None
        model.head_DV[...] = model.head_DV[...] * is_text_V[None]
        return model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, model) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    store = Store(folder / "checkpoints", keep=1, model=CONFIG.model)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        store.save(3, {"model": model}, {}, {})
    store.close()
    TOKENIZER.save(folder / "tokenizer" / "tokenizer.json")
    (folder / "config.json").write_text(to_json(CONFIG))
    return folder


@pytest.fixture(scope="module")
def url(workdir) -> Iterator[str]:
    """The address of mlx-lm's server of the run's export, in a process of its own."""
    assert main(["export", f"--workdir={workdir}", "--dtype=float32"]) == status.DONE
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", f"--port={port}"]
    server = subprocess.Popen(
        [*command, f"--model={workdir / 'export'}"], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, server: subprocess.Popen) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        assert server.poll() is None, "mlx_lm.server ended"
        with contextlib.suppress(OSError), direct.open(address, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError("mlx_lm.server does not answer")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def turn_of(text: str) -> tuple[str, str]:
    """Returns the reasoning of a reply and the rest.

    The protocol sends the two apart: what was said in front of `<think>`, which only a
    malformed reply has, comes back in front of the answer.
    """
    before, _, rest = text.rpartition("<think>")
    think, closed, after = rest.rpartition("</think>")
    think, after = (think, before + after) if closed else ("", text)
    return think.strip(), after.strip()


def margin(model: Transformer, prompt_ids: Sequence[int], said_ids: Sequence[int]):
    """Returns the smallest lead of a said token over the runner-up, in logits.

    Every token is the best one where the whole reply is read at once; a lead below
    `TIE` is a tie that rounding decides.
    """
    ids_BT = jax.numpy.array([[*prompt_ids, *said_ids]])
    positions_BT = jax.numpy.arange(ids_BT.shape[1])[None]
    hidden_BTD, _ = model(
        ids_BT, segments_BT=jax.numpy.ones_like(ids_BT), positions_BT=positions_BT
    )
    logits_TV = np.array(model.logits(hidden_BTD)[0])[len(prompt_ids) - 1 : -1]
    said = logits_TV[np.arange(len(said_ids)), said_ids]
    logits_TV[np.arange(len(said_ids)), said_ids] = -np.inf
    return float(np.min(said - logits_TV.max(axis=1)))


def test_fifty_prompts_are_answered_alike(workdir, url, model, mesh):
    suite = dataclasses.replace(SUITES["gym_chain_sum"], num_items=NUM_PROMPTS)
    rows = read_items("gym_chain_sum", suite)[:NUM_PROMPTS]
    greedy = {"sample": 0, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    asked = [Ask(row=row, max_new_tokens=24, **greedy) for row in rows]
    config = TeacherConfig(url=url, model="default_model", num_parallel=4)
    theirs = {s.ask.row.id: s for s in ServerCompleter(config).complete(asked)}
    chat = open_run_chat(CONFIG, workdir)
    prompts = chat.prompts([row.messages[:-1] for row in rows])
    requests = [
        Request(prompt_ids=tuple(ids), max_new_tokens=24)
        for ids in prompts
        if isinstance(ids, list)
    ]
    engine = engine_for(requests, model, tokenizer=chat.tokenizer, config=CONFIG)
    assert len(theirs) == len(requests) == NUM_PROMPTS
    lead = margin(model, requests[0].prompt_ids, engine.complete(requests[:1])[0].ids)
    assert lead > TIE
    for row, request, our in zip(
        rows, requests, engine.complete(requests), strict=True
    ):
        their = theirs[row.id]
        assert isinstance(their, Said), their
        ours = turn_of(chat.spoken(our.text)), our.stop_reason, len(our.ids)
        if ours != (turn_of(their.text), their.stop_reason, their.num_tokens):
            lead = margin(model, request.prompt_ids, our.ids)
            assert 0 <= lead < TIE, f"{row.id}: {ours} is not {their}, lead {lead}"


def test_a_suite_is_graded_by_the_server_as_by_the_engine(workdir, url, capsys):
    words = ["--suites=gym_gcd", "--config.suites.num_items=4", "--json"]
    words += [f"--workdir={workdir}", "--config.suites.max_new_tokens=24"]
    server = [f"--server={url}", "--model=default_model"]
    kept = ("is_correct", "outcome", "stop_reason", "num_tokens")
    graded = {}
    for label, more in (("engine", []), ("server", server)):
        assert main(["evaluate", *words, *more, f"--label={label}"]) == status.DONE
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])["suites"]
        assert summary["gym_gcd"]["num_items"] == 12
        path = workdir / "evaluation" / label / "gym_gcd.jsonl"
        records = map(json.loads, path.read_text("utf-8").splitlines())
        graded[label] = {
            record["id"]: [
                turn_of(record["output"]),
                *(record[name] for name in kept),
            ]
            for record in records
        }
    assert graded["engine"] == graded["server"]
