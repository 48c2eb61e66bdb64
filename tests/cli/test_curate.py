# SPDX-License-Identifier: Apache-2.0
"""`ring curate` as a person meets it."""

import json
import pathlib
import re

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.cli.settings import load_config_file
from ring_jax.config import CurateConfig, from_config_dict, to_json
from ring_jax.curate import load_manifest
from tests.planted_rows import PLANTED, clean

CONFIG = """
from ring_jax.config import CurateConfig, RawSourceConfig, to_config_dict

def get_config():
    return to_config_dict(CurateConfig(
        sources={"raw": RawSourceConfig(path="ROWS", licence="CC0-1.0")},
    ))
"""


@pytest.fixture
def curation(tmp_path):
    """A config file of two clean rows and an injected one."""
    rows = tmp_path / "rows.jsonl"
    records = [clean(1), clean(2), PLANTED["injected"][1]]
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = tmp_path / "curation.py"
    config.write_text(CONFIG.replace("ROWS", str(rows)))
    return config


def test_a_curation_prints_its_steps_and_says_where_the_rows_are(
    curation, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["curate", f"--config={curation}", f"--workdir={out}", "--json"]
    assert main(words) == status.DONE
    text = capsys.readouterr().out
    assert "prompt_injection" in text
    last = json.loads(text.splitlines()[-1])
    assert (last["num_records"], last["num_rows"]) == (3, 2)
    assert load_manifest(out)["num_quarantined"] == 1
    assert main(words) == status.DONE, "the same command again finds it finished"


def test_a_curation_that_leaves_nothing_ends_with_3(curation, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(PLANTED["injected"][1]) + "\n")
    out = tmp_path / "out"
    assert main(["curate", f"--config={curation}", f"--workdir={out}"]) == 3
    assert load_manifest(out)["num_rows"] == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["--workdir"]),
        (["--workdir=W", "--config.sources.raw.path=/no/such"], ["/no/such"]),
        (["--workdir=W", "--config.sources.raw.kind=csv"], ["'csv'", "parquet"]),
        (["--workdir=W", "--config.purify.repetition=maybe"], ["'maybe'", "'drop'"]),
        (["--workdir=W", "--config.duplicates.treshold=1"], ["`threshold`"]),
        (["--workdir=W", "--config.duplicates.threshold=2"], ["threshold=2.0"]),
        (["--workdir=W", "--config.contamination.ngram=0"], ["ngram=0"]),
        (["--workdir=W", "--config.shard_rows=0"], ["shard_rows=0"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    curation, tmp_path, capsys, words, parts
):
    out = tmp_path / "out"
    words = [word.replace("=W", f"={out}") for word in words]
    assert main(["curate", f"--config={curation}", *words]) == status.MISTAKE
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(part in line for part in parts), line
    assert not out.exists()


def test_a_run_is_no_curation(tiny_config, tmp_path, capsys):
    words = ["curate", f"--config={tiny_config}", f"--workdir={tmp_path / 'out'}"]
    assert main(words) == status.MISTAKE
    assert "no curation" in capsys.readouterr().err
    assert main(["curate"]) == status.MISTAKE


def test_the_demo_resolves_to_the_reviewed_settings(check_golden):
    tree = load_config_file("configs/data/demo.py").to_dict()
    config = from_config_dict(CurateConfig, tree)
    check_golden("configs/data/demo.txt", to_json(config) + "\n")


def test_the_snippets_in_the_docs_run():
    text = pathlib.Path("docs/data.md").read_text("utf-8")
    names: dict = {}
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, names)
    config = from_config_dict(CurateConfig, names["get_config"]().to_dict())
    assert config.sources["maths"].verifier == "match"
    assert names["stage"].mixture_changes["more replay"].over_steps == 200
