# SPDX-License-Identifier: Apache-2.0
"""Workers of a cluster give the bytes of one process, whatever befalls them."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import (
    ConfigError,
    CurateConfig,
    EmbeddingsConfig,
    ScaleConfig,
    SimilarityConfig,
    TeacherConfig,
)
from ring_jax.curate import curate, pipeline, ray_engine
from ring_jax.curate.engines import open_engine
from ring_jax.curate.ray_engine import WorkersFailedError, open_ray
from tests.curate.hostile import ENDS, HOSTILE
from tests.curate.jobs import Fails, Square, no_workbench
from tests.embeddings import embeddings_reply
from tests.loopback_server import serving
from tests.planted_rows import chat, clean

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = pathlib.Path(sys.executable)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster with three CPUs, which the tests of this file share."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_engine.QUIET.items():
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # The path of a socket is short: pytest's own folder is too deep.
        with tempfile.TemporaryDirectory(prefix="ring-", dir="/tmp") as folder:
            log = pathlib.Path(folder, "log")
            command = [
                PYTHON.with_name("ray"), "start", "--head", "--block", "--num-cpus=3",
                f"--port={address.partition(':')[2]}", "--include-dashboard=false",
                f"--temp-dir={folder}",
            ]  # fmt: skip
            with log.open("w") as file:
                process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)
            try:
                wait_until(lambda: "runtime started" in log.read_text())
                yield address
            finally:
                process.terminate()
                process.wait()


def wait_until(is_so, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def on(address: str | None, config: CurateConfig, num_workers: int) -> CurateConfig:
    scale = ScaleConfig(engine="ray", num_workers=num_workers, address=address)
    return dataclasses.replace(config, scale=scale)


def marked(mark: str) -> dict[int, str]:
    """Processes in whose environment `mark` is, and their command lines."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_text()
    return found


def worker_pids() -> list[int]:
    """Processes that are workers of this file's cluster."""
    found = marked(os.environ["RAY_AUTH_TOKEN"])
    return [pid for pid, words in found.items() if words.startswith("ray::_Worker")]


@pytest.fixture
def engine(cluster):
    scale = ScaleConfig(engine="ray", num_workers=2, address=cluster)
    with open_ray(scale, no_workbench) as opened:
        yield opened


def folder_of(tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_results_come_in_order_and_jobs_that_fail_are_tried_again(engine, tmp_path):
    slow_first = [Square(number, seconds=0.3 * (number == 0)) for number in range(7)]
    assert list(engine.run(slow_first)) == [n**2 for n in range(7)]
    killed = Fails(folder_of(tmp_path, "killed"), "killed", times=2)
    disk = Fails(folder_of(tmp_path, "disk"), "disk", times=1, number=-2)
    jobs = [Square(1), killed, Square(2), disk, Square(3)]
    assert list(engine.run(jobs)) == [1, -1, 4, -2, 9]
    for way, error, words, num_tried in (
        ("disk", WorkersFailedError, r"job 7 failed .*No space.* 3 times", 3),
        ("mistake", ConfigError, "it has no topic", 1),
        ("bug", AssertionError, "our bug", 1),
    ):
        folder = folder_of(tmp_path, f"always {way}")
        with pytest.raises(error, match=words):
            list(engine.run([Square(1), Fails(folder, way, times=9, number=7)]))
        assert len(list(folder.iterdir())) == num_tried


def test_few_jobs_are_drawn_ahead_of_their_results(engine):
    drawn = []
    results = engine.run(Square(drawn.append(n) or n) for n in range(100))
    for number, _ in zip(range(20), results, strict=False):
        assert len(drawn) <= number + 2 * 2 + 4


def test_workers_compare_by_meaning_as_one_process_does(cluster, make_config, tmp_path):
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    with serving(embeddings_reply) as server:
        teacher = TeacherConfig(url=server.url, model="bag")
        config = make_config(
            embeddings=EmbeddingsConfig(server=teacher, texts_per_request=3),
            similarity=SimilarityConfig(check="drop", threshold=0.1),
        )
        curate(config, alone)
        curate(on(cluster, config, 2), spread)
    assert contents(spread) == contents(alone)
    assert '"step": "similarity"' in (spread / "quarantine.jsonl").read_text()


def test_a_cluster_gives_the_bytes_of_one_process_though_a_worker_is_killed(
    cluster, make_config, tmp_path
):
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    curate(make_config(), alone)
    killed = []

    def kill() -> None:
        wait_until(lambda: any((spread / ".work").glob("raw-*")))
        killed.append(min(worker_pids()))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    curate(on(cluster, make_config(), 2), spread)
    thread.join()
    assert killed
    assert contents(spread) == contents(alone)


def test_what_a_cluster_began_this_process_ends(
    cluster, make_config, tmp_path, monkeypatch
):
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    curate(make_config(), alone)

    def interrupted(*told):
        if num_made(broken) >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.logging, "info", interrupted)
        with pytest.raises(KeyboardInterrupt):
            curate(on(cluster, make_config(), 2), broken)
    assert not worker_pids()
    # As if the third chunk's worker had been the faster.
    shutil.rmtree(broken / ".work" / "raw-000001")
    curate(make_config(), broken)
    assert contents(broken) == contents(alone)


def num_made(folder: pathlib.Path) -> int:
    return len(list((folder / ".work").glob("raw-*")))


CONFIG = """
from ring_jax.config import CurateConfig, RawSourceConfig, VerificationConfig
from ring_jax.config import to_config_dict

def get_config():
    return to_config_dict(CurateConfig(
        sources={"raw": RawSourceConfig(path="ROWS", licence="CC0-1.0")},
        verification=VerificationConfig(timeout_seconds=500.0),
        chunk_rows=50,
    ))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_command_that_is_stopped_leaves_no_process_and_goes_on(tmp_path, sent, code):
    rows = tmp_path / "rows.jsonl"
    # With the hostile verifiers the command cannot end before it is stopped.
    hanging = chat("Who?", "I.", answer="I", verifier="hangs")
    records = [*map(clean, range(400)), hanging]
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    file = tmp_path / "curation.py"
    file.write_text(CONFIG.replace("ROWS", str(rows)))
    # Every process that comes of the command has this path in its environment.
    mark = folder_of(tmp_path, f"mark-{secrets.token_hex(8)}")
    (mark / "sitecustomize.py").write_text(HOSTILE)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{mark}"}
    out = tmp_path / "out"
    words = ["curate", f"--config={file}", f"--workdir={out}"]
    command = [PYTHON, "-m", "ring_jax.cli.main", *words, "--config.scale.engine=ray"]
    process = subprocess.Popen(
        # What a shell starts in the background is deaf to Ctrl-C, and its children too.
        ["env", "--default-signal=INT", *command],
        env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: num_made(out) > 3)
    running = " ".join(marked(mark.name).values())
    assert "raylet" in running
    process.send_signal(sent)
    _, told = process.communicate()
    assert process.returncode == code
    if sent != signal.SIGKILL:
        assert told == "ring: interrupted; run the same command again to go on.\n"
        assert not list(out.glob("*.array_record"))
    wait_until(lambda: not marked(mark.name), seconds=300.0)
    for folder in set(re.findall(r"/tmp/ring-\w+", running)):
        # Who is killed outright can take nothing away.
        assert sent == signal.SIGKILL or not pathlib.Path(folder).exists()
        shutil.rmtree(folder, ignore_errors=True)
    assert main(words) == status.DONE
    assert main(["curate", f"--config={file}", f"--workdir={tmp_path / 'alone'}"]) == 0
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_changes_no_byte(
    cluster, make_config, tmp_path, num_workers
):
    curate(make_config(), tmp_path / "alone")
    curate(on(cluster, make_config(), num_workers), tmp_path / "spread")
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")


# A cluster begins with forks, of which JAX warns once another test has loaded it.
@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.slow
def test_verifiers_of_a_worker_have_their_limits(hostile, tmp_path):
    curate(hostile, tmp_path / "alone")
    # The hostile ones are found by PYTHONPATH, which only a cluster of our own is told.
    curate(on(None, hostile, 2), tmp_path / "spread")
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")
    manifest = json.loads((tmp_path / "spread" / "manifest.json").read_text())
    assert manifest["num_quarantined"] == len(ENDS)


@pytest.mark.slow
def test_a_job_that_kills_every_worker_ends_with_one_line(engine, tmp_path):
    with pytest.raises(WorkersFailedError, match="job 7 failed .* 3 times") as caught:
        list(engine.run([Fails(tmp_path, "killed", times=9, number=7)]))
    assert "\n" not in str(caught.value)
    assert status.status_of(caught.value) == status.ENVIRONMENT


def test_without_ray_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'ring-jax\[scale\]'"),
        open_engine(ScaleConfig(engine="ray"), no_workbench),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "10.0.0.1:6379"}, "choose engine=ray"),
        ({"engine": "ray", "address": "ray://head:10001"}, "must be HOST:PORT"),
        ({"num_workers": 0}, "num_workers=0"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        ScaleConfig(**settings)


def test_a_cluster_that_does_not_answer_ends_with_one_line():
    scale = ScaleConfig(engine="ray", address="127.0.0.1:9")
    with pytest.raises(WorkersFailedError, match="does not answer") as caught:
        open_ray(scale, no_workbench).__enter__()
    assert "\n" not in str(caught.value)
