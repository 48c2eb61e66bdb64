# SPDX-License-Identifier: Apache-2.0
"""The compiler flags: what their file says of each, and whether compilers take them."""

import json
import subprocess
import sys

import pytest

from ring_jax.cluster import FLAGS_FILE, GENERATIONS, find_preset, preset_names

from .conftest import REPOSITORY, refused

CONTENTS = json.loads(FLAGS_FILE.read_text("utf-8"))
FLAGS = [
    (preset, flag)
    for preset, contents in CONTENTS["presets"].items()
    for flag in contents["flags"]
]
TOPOLOGIES = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}
TOPOLOGIES["tpu7x"] = "tpu7x:2x2x1"

# A gradient of a product whose operands are spread over all chips: all-gathers and a
# reduce-scatter, which are what the flags are about.
STEP = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

found = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = Mesh(np.array(found.devices), ("fsdp",))
rows = NamedSharding(mesh, PartitionSpec("fsdp", None))
x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=rows)
step = jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
jax.jit(step, out_shardings=rows).lower(x, x).compile()
"""


@pytest.mark.parametrize(("preset", "flag"), FLAGS)
def test_each_flag_has_a_reason_and_a_source(preset, flag):
    assert set(flag) == {"name", "value", "why", "source"}
    assert flag["name"].startswith("xla_")
    assert isinstance(flag["value"], str)
    assert len(flag["why"].split()) > 4
    assert "\n" not in flag["why"]
    assert flag["source"] in CONTENTS["sources"]


def test_every_generation_has_a_preset_and_no_flag_comes_twice():
    assert set(GENERATIONS) < set(preset_names())
    for name in preset_names():
        names = [flag.partition("=")[0] for flag in find_preset(name).flags]
        assert len(names) == len(set(names))


def test_the_versions_that_were_checked_are_those_that_are_installed():
    pins = (REPOSITORY / "launch/constraints.txt").read_text("utf-8").splitlines()
    for name, version in CONTENTS["checked_with"].items():
        assert f"{name}=={version}" in pins


def test_train_sets_the_flags_and_lets_the_users_win(world):
    ring = world.script("ring", 'env; printf "arg=%s\\n" "$@"\n')
    result = world.run(
        "train.sh",
        *("v6e", "--config=a b.py"),
        RING=str(ring),
        LIBTPU_INIT_ARGS="--xla_tpu_scoped_vmem_limit_kib=1",
    )
    lines = result.stdout.splitlines()
    flags = " ".join(find_preset("v6e").flags)
    assert f"LIBTPU_INIT_ARGS={flags} --xla_tpu_scoped_vmem_limit_kib=1" in lines
    assert "RING_XLA_PRESET=v6e" in lines
    assert lines[-2:] == ["arg=train", "arg=--config=a b.py"]


def test_train_without_flags_sets_none_and_an_unknown_preset_is_refused(world):
    ring = world.script("ring", "env; exit 75\n")
    result = world.run("train.sh", "none", RING=str(ring))
    assert "LIBTPU_INIT_ARGS" not in result.stdout
    assert result.returncode == 75
    refused(world.run("train.sh", "v7", RING=str(ring)), "v7", "v5e, v5p, v6e, tpu7x")


def compile_step(world, name: str, flags: tuple[str, ...]):
    """Compiles STEP for a generation in a process that starts with these flags."""
    return subprocess.run(
        [sys.executable, "-c", STEP, TOPOLOGIES[name]],
        env={
            **world.environment,
            **{"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"},
            **{"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
            "LIBTPU_INIT_ARGS": " ".join(flags),
        },
        capture_output=True,
        text=True,
    )


@pytest.mark.aot
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_tpus_compiler_takes_the_preset(name, world):
    result = compile_step(world, name, find_preset(name).flags)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.aot
def test_the_tpus_compiler_refuses_a_flag_that_it_does_not_know(world):
    result = compile_step(world, "v5e", ("--xla_no_such_flag=true",))
    assert result.returncode != 0
    assert "xla_no_such_flag" in result.stderr


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5p", "v6e"])
def test_what_was_left_out_is_still_refused(name, world):
    for flag in CONTENTS["left_out"]:
        if name in flag["presets"]:
            left_out = f"--{flag['name']}={flag['value']}"
            flags = (*find_preset(name).flags, left_out)
            result = compile_step(world, name, flags)
            assert "FAILED_PRECONDITION" in result.stderr


def test_the_cpus_compiler_knows_the_flags_for_gpus(world):
    preset = find_preset("h100")
    result = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={
            **world.environment,
            "JAX_PLATFORMS": "cpu",
            preset.variable: " ".join(preset.flags),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
