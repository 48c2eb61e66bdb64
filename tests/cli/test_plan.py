# SPDX-License-Identifier: Apache-2.0
"""`ring plan` as a person meets it; the compiler is stood in for."""

import dataclasses
import json
import pathlib

import pytest

from ring_jax.cli import plan as verb
from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.plan import CompiledStep, Memory, Overflow, Plan, Tried
from ring_jax.plan.closed_form import Prediction
from ring_jax.plan.collectives import Collective
from ring_jax.plan.memory import Buffer
from ring_jax.plan.search import Candidate
from ring_jax.plan.step_time import StepTime, Use
from ring_jax.plan.walk import Operation

GIB = 2**30
MEMORY = Memory(
    categories={"weights": GIB, "moments": 2 * GIB, "temporaries": 4 * GIB},
    limit=16 * GIB,
    largest=(Buffer("temporaries", GIB, "f32[1024,262144]", "jit(step)/head/dot"),),
)
TIME = StepTime(
    seconds=0.5,
    low_seconds=0.4,
    high_seconds=0.8,
    breakdown={"attention": 0.3, "exposed collectives over fsdp": 0.2},
    sources={"bundles": 0.3},
    collectives=(
        Use(
            Collective(
                name="all-gather.1",
                kind="all-gather",
                axes=("fsdp",),
                group_size=4,
                operand_bytes=2**20,
                wire_bytes=3 * 2**20,
                seconds=0.1,
                links=("x",),
                op_name="",
            ),
            times=4.0,
            is_async=False,
            exposed_seconds=0.2,
        ),
    ),
    operations=(),
    loops={},
)


def a_plan(config, pod, *, seconds=0.5) -> Plan:
    step = CompiledStep(
        hlo="",
        memory=MEMORY,
        mesh_shape={"fsdp": pod.num_devices},
        positions=(),
        chip=pod.chip,
        topology=pod.topology,
        compile_seconds=60.0,
        compiler_bytes=2 * GIB,
        offloaded_bytes=0,
        num_tokens=config.train.global_batch_size * config.train.seq_len,
        undonated=(),
        folder=pathlib.Path("nowhere"),
    )
    return Plan(config, pod, step, dataclasses.replace(TIME, seconds=seconds))


@pytest.fixture
def compiler(monkeypatch):
    """Replaces `plan_step`; the test says with what."""

    def use(answer):
        monkeypatch.setattr(verb, "plan_step", answer)

    return use


def fits(config, pod, *, cache, fresh):
    return a_plan(config, pod)


def overflows(config, pod, *, cache, fresh):
    return Overflow(20 * GIB, 16 * GIB, MEMORY, {"fsdp": 4})


def words(tiny_config, *more):
    return ["plan", f"--config={tiny_config}", "--topology=v5e:2x2", *more]


def test_a_plan_has_memory_time_collectives_and_cost(tiny_config, compiler, capsys):
    compiler(fits)
    assert main(words(tiny_config, "--price=2", "--json")) == status.DONE
    out = capsys.readouterr().out
    for part in (
        "fits with 56.2% to spare",
        "exposed collectives over fsdp",
        "all-gather",
        "range 400 to 800",
        "estimate",
        "exact",
    ):
        assert part in out
    found = json.loads(out.splitlines()[-1])
    # 16 rows of 512 tokens in half a second on 4 chips.
    assert found["tokens_per_second_per_chip"] == 16 * 512 / 0.5 / 4
    hours = 1e9 / found["tokens_per_second_per_chip"] / 3600
    assert found["chip_hours_per_billion_tokens"] == pytest.approx(hours)
    assert found["usd_per_billion_tokens"] == pytest.approx(2 * hours)
    assert found["hbm_total_bytes"] == 7 * GIB
    assert found["collectives"][0]["wire_bytes"] == 4 * 3 * 2**20
    assert found["overrides"] == []


def test_a_kernel_whose_way_is_not_known_says_why(tiny_config, compiler, capsys):
    reason = "packed_attention.1: `sbr.rel [%p1]` depends on data"
    kernel = Operation(
        "packed_attention.1", "attention", "attention", 28, 1e-4, "unknown", reason
    )

    def plans(config, pod, *, cache, fresh):
        plan = a_plan(config, pod)
        time = dataclasses.replace(plan.time, operations=(kernel,))
        return dataclasses.replace(plan, time=time)

    compiler(plans)
    assert main(words(tiny_config, "--json")) == status.DONE
    assert "takes longer than this" in (out := capsys.readouterr().out)
    assert f"\n  {reason}\n" in out
    assert json.loads(out.splitlines()[-1])["kernels_unknown"] == [reason]


def test_storage_and_hosts_give_the_time_of_a_save(tiny_config, compiler, capsys):
    compiler(fits)
    main(words(tiny_config, "--storage=0.5", "--json"))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["save_seconds"] == pytest.approx(found["checkpoint_bytes"] / 0.5e9)


def test_nothing_of_the_data_is_read(tiny_config, compiler):
    compiler(fits)
    missing = "--config.data.sources.chat.path=/no/such/rows.jsonl"
    assert main(words(tiny_config, missing)) == status.DONE


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--topology=v5p-63"], ["v5p-63", "v5p-64"]),
        (["--topology=v9:2x2"], ["v9:2x2", "v6e:2x2"]),
        (["--slices=0"], ["--slices=0"]),
        (["--price=0"], ["--price"]),
        (["--storage=-1"], ["--storage"]),
        (["--config.train.remat=some"], ["remat"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tiny_config, compiler, capsys, more, parts):
    compiler(fits)
    assert main(words(tiny_config, *more)) == status.MISTAKE
    out, line = capsys.readouterr()
    assert (out, line.count("\n")) == ("", 1)
    assert all(part in line for part in parts), line


def test_a_plan_needs_a_topology(tiny_config, capsys):
    assert main(["plan", f"--config={tiny_config}"]) == status.MISTAKE
    assert "--topology" in capsys.readouterr().err


def changed(config, pod, outcome, **train):
    after = dataclasses.replace(
        config, train=dataclasses.replace(config.train, **train)
    )
    return Tried(Candidate(after, Prediction(1.0, GIB)), outcome(after))


def test_an_overflow_names_the_cheapest_change_that_fits(
    tiny_config, compiler, capsys, monkeypatch
):
    compiler(overflows)

    def tries(config, pod, overflow, *, cache):
        yield changed(config, pod, lambda after: overflow, num_microbatches=2)
        yield changed(config, pod, lambda after: a_plan(after, pod), num_microbatches=4)

    monkeypatch.setattr(verb, "compile_until_it_fits", tries)
    assert main(words(tiny_config)) == status.MISTAKE
    out, line = capsys.readouterr()
    assert line.count("\n") == 1
    for part in ("20.00 GiB", "16.00 GiB", "4.00 GiB too little", "temporaries"):
        assert part in line
    assert line.endswith("--config.train.num_microbatches=4\n")
    assert "does not fit" in out


def test_a_run_that_fits_in_no_way_is_one_line(
    tiny_config, compiler, capsys, monkeypatch
):
    compiler(overflows)

    def tries(config, pod, overflow, *, cache):
        yield changed(config, pod, lambda after: overflow, num_microbatches=16)

    monkeypatch.setattr(verb, "compile_until_it_fits", tries)
    assert main(words(tiny_config)) == status.MISTAKE
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "larger pod" in line


def test_search_prints_the_fastest_as_overrides(tiny_config, capsys, monkeypatch):
    def best(config, pod, *, cache):
        yield changed(config, pod, lambda a: a_plan(a, pod, seconds=0.9), remat="none")
        yield changed(
            config, pod, lambda a: a_plan(a, pod, seconds=0.7), num_microbatches=2
        )

    monkeypatch.setattr(verb, "compile_best", best)
    assert main(words(tiny_config, "--search", "--json")) == status.DONE
    out = capsys.readouterr().out
    assert "fastest: --config.train.num_microbatches=2" in out
    found = json.loads(out.splitlines()[-1])
    assert found["overrides"] == ["--config.train.num_microbatches=2"]
    assert found["step_seconds"] == 0.7
