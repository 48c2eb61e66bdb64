# SPDX-License-Identifier: Apache-2.0
"""The step compiled ahead of time: what is kept, what is refused, what it holds."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from ring_jax.config import ConfigError, MeshConfig, to_json
from ring_jax.plan import compile as plan_compile
from ring_jax.plan.abstract import abstract_mesh_of, abstract_state
from ring_jax.plan.closed_form import ClosedForm
from ring_jax.plan.compile import CompiledStep, CompileError, Overflow, compile_step
from ring_jax.plan.cost import Plan, checkpoint_bytes, plan_step
from ring_jax.plan.layouts import parameter_layouts, total_collectives
from ring_jax.plan.memory import ATTRIBUTED, EXACT, PROGRAM
from ring_jax.plan.topology import find_pod

POD = find_pod("v5e:2x2")
OVERFLOW = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
    "memory required for HLO temporaries (19.51G) exceeds available HBM (15.75G). HLO "
    "module: jit_train_step."
)


@pytest.fixture
def replies(monkeypatch):
    """Stands for the compiler's process: replies with what the test says."""
    requests = []

    def make(reply, returncode=0, stderr=b""):
        def run(command, *, input, env, **options):
            request = json.loads(input)
            requests.append((request, env))
            if reply is not None:
                path = f"{request['folder']}/reply.json"
                with open(path, "w") as file:
                    json.dump(reply, file)
            return subprocess.CompletedProcess(command, returncode, b"", stderr)

        monkeypatch.setattr(subprocess, "run", run)
        # Its version is asked for before the process is started.
        monkeypatch.setattr(plan_compile.importlib.metadata, "version", lambda _: "1")
        return requests

    return make


def test_an_answer_is_kept_until_something_changes(small_run, tmp_path, replies):
    reply = {"kind": "overflow", "message": OVERFLOW, "memory": None, "mesh_shape": {}}
    requests = replies(reply)
    run = small_run()
    for _ in range(2):
        found = compile_step(run, POD, cache=tmp_path)
        assert isinstance(found, Overflow)
        assert len(requests) == 1
    compile_step(run, POD, cache=tmp_path, fresh=True)
    compile_step(run, find_pod("v5e:2x4"), cache=tmp_path)
    compile_step(small_run(seq_len=128), POD, cache=tmp_path)
    assert len(requests) == 4
    assert requests[0][0]["config"] == to_json(run)


def test_what_a_killed_plan_left_is_deleted_after_a_day(small_run, tmp_path, replies):
    replies({"kind": "overflow", "message": OVERFLOW, "memory": None, "mesh_shape": {}})
    left, under_way = tmp_path / "draft-left", tmp_path / "draft-under_way"
    for draft in (left, under_way):
        draft.mkdir()
    yesterday = time.time() - plan_compile.DRAFT_SECONDS - 60
    os.utime(left, (yesterday, yesterday))
    compile_step(small_run(), POD, cache=tmp_path)
    assert not left.exists()
    assert under_way.exists()


def test_the_process_has_the_presets_flags_and_no_accelerator(
    small_run, tmp_path, replies
):
    requests = replies(
        {"kind": "overflow", "message": OVERFLOW, "memory": None, "mesh_shape": {}}
    )
    compile_step(small_run(), POD, cache=tmp_path, with_bundles=True)
    _, environment = requests[0]
    flags = environment["LIBTPU_INIT_ARGS"]
    assert "--xla_tpu_enable_async_collective_fusion=true" in flags
    assert "--xla_jf_dump_to=" in flags
    assert environment["JAX_PLATFORMS"] == "cpu"


def test_an_overflow_is_read_from_the_compilers_line(small_run, tmp_path, replies):
    replies({"kind": "overflow", "message": OVERFLOW, "memory": None, "mesh_shape": {}})
    found = compile_step(small_run(), POD, cache=tmp_path)
    assert isinstance(found, Overflow)
    # The compiler rounds to hundredths of a GiB.
    assert found.needed == pytest.approx(19.51 * 2**30, abs=1)
    assert found.available == pytest.approx(15.75 * 2**30, abs=1)
    assert found.excess == found.needed - found.available


def test_a_mistake_that_the_process_finds_is_the_users(small_run, tmp_path, replies):
    replies({"kind": "mistake", "message": "config.mesh: fsdp=3 does not fit."})
    with pytest.raises(ConfigError, match="fsdp=3"):
        compile_step(small_run(), POD, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_compiler_refuses_is_told_with_its_reason(
    small_run, tmp_path, replies
):
    line = b"jax.errors.JaxRuntimeError: INTERNAL: RET_CHECK failure"
    replies(None, returncode=1, stderr=b"Traceback\n  File\n" + line)
    with pytest.raises(CompileError, match="v5e:2x2: .*RET_CHECK failure"):
        compile_step(small_run(), POD, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_libtpu_the_extra_is_named(small_run, tmp_path, monkeypatch):
    def version(name):
        if name == "libtpu":
            raise plan_compile.importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(plan_compile.importlib.metadata, "version", version)
    with pytest.raises(ConfigError, match=r"libtpu.*setup.sh tpu"):
        compile_step(small_run(), POD, cache=tmp_path)


def test_a_checkpoint_has_the_same_bytes_on_any_mesh(small_run):
    run = small_run(mesh=MeshConfig(data=1, fsdp=2, expert=2))
    leaves = ClosedForm.of(run, POD).leaves
    assert checkpoint_bytes(run) == sum(leaf.size * leaf.item_bytes for leaf in leaves)


def test_layouts_add_up_to_what_a_device_holds(small_run):
    run = small_run(mesh=MeshConfig(data=1, fsdp=2, expert=2))
    text = parameter_layouts(run)
    mesh = abstract_mesh_of(run.mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        model = abstract_state(run).model
    assert len(text.splitlines()) == len(jax.tree.leaves(model)) + 2
    assert "moe_layers.moe.down_EFD: f32[5, 8@expert, 256@fsdp, 256]" in text
    assert "block [5,4,128,256]" in text
    weights = ClosedForm.of(run, POD).on(mesh.shape).num_weights
    assert f"holds {int(4 * weights):,} bytes" in text


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Shared, so that a step is compiled once for all tests."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def planned(small_run, cache):
    found = plan_step(small_run(), POD, cache=cache)
    assert isinstance(found, Plan)
    return found


@pytest.mark.aot
def test_the_categories_are_the_compilers_and_add_up(planned, small_run):
    memory, run = planned.step.memory, small_run()
    placed = ClosedForm.of(run, POD).on(abstract_mesh_of(run.mesh).shape)
    # Exact: float32 blocks of at least [8, 128], a few padded to that.
    held = memory.categories["weights"] + memory.categories["moments"]
    assert placed.state_bytes <= held <= 1.2 * placed.state_bytes
    # Two moments, and two counters of steps, each padded to a tile.
    assert memory.categories["moments"] == 2 * memory.categories["weights"] + 2 * 512
    assert memory.total == sum(
        memory.categories[name] for name in (*EXACT, *ATTRIBUTED, PROGRAM)
    )
    assert memory.limit == POD.tpu.hbm_bytes


@pytest.mark.aot
def test_the_whole_state_is_donated(planned):
    assert planned.step.undonated == ()
    assert planned.step.memory.categories["results"] < 2**16


@pytest.mark.aot
def test_a_second_plan_is_read_and_not_compiled(planned, small_run, cache, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    again = plan_step(small_run(), POD, cache=cache)
    assert isinstance(again, Plan)
    assert again.time == planned.time
    assert again.step == planned.step
    assert again.step.dump_dir is None


@pytest.mark.aot
def test_the_step_gathers_and_scatters_over_fsdp_alone(planned):
    axes = {axis for _, axis in total_collectives(planned.time.collectives)}
    assert axes == {"fsdp"}


@pytest.mark.aot
def test_what_does_not_fit_is_found_with_what_fills_the_memory(small_run, cache):
    found = compile_step(small_run(global_batch_size=16384), POD, cache=cache)
    assert isinstance(found, Overflow)
    assert found.excess > 0
    assert found.memory is not None
    assert found.needed == found.memory.total
    assert found.memory.categories["temporaries"] > found.available / 2
    # The compiler's own message, which is rounded to hundredths of a GiB, says so, too.
    replies = [json.loads(path.read_text()) for path in cache.glob("*/reply.json")]
    (message,) = [r["message"] for r in replies if r["kind"] == "overflow"]
    assert f"({found.needed / 2**30:.2f}G) exceeds" in message


@pytest.mark.aot
def test_gradients_accumulate_on_a_tpu(small_run, cache):
    found = compile_step(small_run(num_microbatches=2), POD, cache=cache)
    assert isinstance(found, CompiledStep)
    assert found.undonated == ()


COMMAND = """
import subprocess, sys
compiler = [sys.executable, "-m", "ring_jax.plan.compiler_process"]
process = subprocess.Popen(compiler)
print(process.pid, flush=True)
process.wait()
"""


def test_the_compiler_ends_with_the_command_that_asked_it():
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdin is not None and command.stdout is not None
    # A pipe that nobody closes: only the signal can end the compiler.
    with command.stdin, command.stdout:
        compiler = int(command.stdout.readline())
        wait_until(lambda: waits_for_its_request(compiler))
        assert is_running(compiler)
        command.send_signal(signal.SIGKILL)
        command.wait()
        wait_until(lambda: not is_running(compiler))


def waits_for_its_request(process: int) -> bool:
    """Tells whether it reads standard input, which `main` does after all else."""
    number, *arguments = (
        pathlib.Path(f"/proc/{process}/syscall").read_text("utf-8").split()
    )
    # The number of read() on x86 and on ARM.
    return number in ("0", "63") and arguments[0] == "0x0"


def is_running(process: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text("utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
