# SPDX-License-Identifier: Apache-2.0
"""`ring doctor` finds what would stop a run, and names the fix."""

import collections
import importlib.metadata
import json
import shutil

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.data.tokenizer import train


@pytest.fixture
def examine(tiny_config, tmp_path, capsys):
    """Runs the doctor on the tiny config; returns the status and the checks by name."""

    def run(*words: str):
        flags = [f"--config={tiny_config}", f"--workdir={tmp_path}", "--json", *words]
        code = main(["doctor", *flags])
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["status"] == code
        return code, {check["name"]: check for check in result["checks"]}

    return run


def failed(checks) -> set[str]:
    return {name for name, check in checks.items() if check["fix"]}


def test_a_healthy_machine_and_config_pass(examine):
    code, checks = examine()
    assert (code, failed(checks)) == (status.DONE, set())
    assert {"python", "jax", "devices", "disk", "config", "mesh"} <= set(checks)
    assert checks["devices"]["found"].startswith("8 x cpu")


@pytest.mark.parametrize(
    ("override", "name", "part"),
    [
        ("--config.mesh.expert=3", "mesh", "expert=3"),
        ("--config.train.global_batch_size=12", "mesh", "global_batch_size=12"),
        ("--config.train.seq_length=8", "config", "seq_len"),
        ("--config.data.tokenizer.vocab_size=600", "tokenizer", "vocab_size=512"),
        ("--config.data.tokenizer.path=nowhere", "tokenizer", "does not exist"),
        ("--config.model.eos_id=2", "tokenizer", "eos_id=2"),
        ("--config.data.class_weights.stop=0", "tokenizer", "stop token"),
        ("--config.data.sources.chat.path=nowhere", "source chat", "not a file"),
        ("--config.init_from=nowhere", "init_from", "nowhere"),
        ("--config.data.sources.chat.kind=jsonll", "source chat", "must be one of"),
    ],
)
def test_a_setting_that_would_stop_the_run_fails_its_check(
    examine, override, name, part
):
    code, checks = examine(override)
    assert (code, failed(checks)) == (status.MISTAKE, {name})
    assert part in checks[name]["fix"]


def test_a_tokenizer_whose_ids_do_not_fit_the_model_fails(examine, tmp_path):
    train(["some text, and more text"], vocab_size=300).save(
        tmp_path / "tokenizer.json"
    )
    words = (
        f"--config.data.tokenizer.path={tmp_path}",
        "--config.model.vocab_size=200",
    )
    code, checks = examine(*words)
    assert (code, failed(checks)) == (status.MISTAKE, {"tokenizer"})
    assert "vocab_size=200" in checks["tokenizer"]["fix"]


def test_a_version_out_of_range_fails_and_names_setup(examine, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: {"jax": "0.10.2"}.get(name, real(name)),
    )
    code, checks = examine()
    assert (code, failed(checks)) == (status.MISTAKE, {"jax"})
    assert "launch/setup.sh" in checks["jax"]["fix"]


def test_a_full_disk_is_the_environments_failure(examine, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, checks = examine()
    assert (code, failed(checks)) == (status.ENVIRONMENT, {"disk"})
