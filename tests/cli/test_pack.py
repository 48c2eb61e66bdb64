# SPDX-License-Identifier: Apache-2.0
"""`ring pack` as a person meets it."""

import json
import pathlib
import shutil

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.data import packed_rows

SHORT = ("--config.stages.base.num_steps=4", "--config.train.global_batch_size=8")


@pytest.fixture
def run(tiny_config, tmp_path):
    def run_(verb: str, folder: str, *words: str) -> int:
        flags = [f"--config={tiny_config}", f"--workdir={tmp_path / folder}"]
        return main([verb, *flags, *SHORT, *words])

    return run_


def test_packed_rows_are_counted_and_training_is_told_how_to_read_them(
    run, tmp_path, capsys
):
    assert run("pack", "packed", "--json") == status.DONE
    *lines, last = capsys.readouterr().out.splitlines()
    packed = tmp_path / "packed"
    assert f"--config.data.packed={packed}" in lines[-1]
    found = packed_rows.load_manifest(packed)["stages"]["base"]
    assert json.loads(last)["stages"]["base"]["num_tokens"] == found["num_tokens"]
    assert f"{found['num_tokens']:,}" in "".join(lines)
    words = ("--mixture", f"--config.data.packed={packed}", "--json")
    assert run("pack", "packed", f"--config.data.packed={packed}") == status.DONE
    assert run("inspect", "none", *words) == status.DONE


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.*")}


def one_line(capsys, *parts: str) -> None:
    line = capsys.readouterr().err
    assert line.startswith("ring: error: ")
    assert line.count("\n") == 1
    assert all(part in line for part in parts), line


def test_a_folder_of_other_data_is_refused_and_stays(run, tmp_path, capsys):
    assert run("pack", "packed") == status.DONE
    before = contents(tmp_path / "packed")
    capsys.readouterr()
    assert run("pack", "packed", "--config.seed=1") == status.MISTAKE
    one_line(capsys, "begun with stages.base.identity.seed=0, now it is 1")
    assert contents(tmp_path / "packed") == before


def test_training_refuses_what_does_not_fit_before_it_writes(run, tmp_path, capsys):
    assert run("pack", "packed") == status.DONE
    capsys.readouterr()
    packed = f"--config.data.packed={tmp_path / 'packed'}"
    assert run("train", "run", packed, "--config.seed=1") == status.MISTAKE
    one_line(capsys, "seed: 0 -> 1", "ring pack")
    (tmp_path / "packed" / packed_rows.MANIFEST).unlink()
    assert run("train", "run", packed) == status.MISTAKE
    one_line(capsys, "was begun and not finished", "ring pack")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else_is_refused(run, tmp_path, capsys):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "thesis.tex").write_text("")
    assert run("pack", "packed") == status.MISTAKE
    one_line(capsys, "'thesis.tex'", "name an empty folder")
    (tmp_path / "file").write_text("")
    assert run("pack", "file") == status.MISTAKE
    one_line(capsys, "is a file")


def test_a_disk_without_room_is_told_before_the_work(
    run, tmp_path, capsys, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert run("pack", "packed") == status.ENVIRONMENT
    one_line(capsys, "1e-06 GB free", "make room")
    assert not list((tmp_path / "packed").glob("*.array_record"))
    monkeypatch.undo()
    assert run("pack", "packed") == status.DONE, "the same command goes on"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--workdir=W"], "--config=FILE.py"),
        (["--config=C"], "--workdir"),
        (["--config=C", "--workdir=W", "--config.data.pakced=x"], "`packed`"),
        (["--config=C", "--workdir=W", "--config.data.class_weights.stop=0"], "stop"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tiny_config: pathlib.Path, tmp_path, capsys, words, part
):
    out = tmp_path / "packed"
    words = [w.replace("=W", f"={out}").replace("=C", f"={tiny_config}") for w in words]
    assert main(["pack", *words]) == status.MISTAKE
    one_line(capsys, part)
    assert not out.exists()
