# SPDX-License-Identifier: Apache-2.0
"""Estimates of programs that the TPU's own compiler compiled; needs the extra [tpu]."""

import json
import pathlib
import subprocess
import sys

import pytest

from pallas_kernels.hardware import TPUS
from pallas_kernels.schedule.compiler import compiler_environment, dump_flags
from ring_jax.plan.links import PlacedMesh
from ring_jax.plan.step_time import StepTime, estimate_step

pytestmark = pytest.mark.aot

V5E = TPUS["TPU v5 lite"]
LAYERS, WIDTH, ROWS = 8, 4096, 2048
# Compiled in a process of its own: libtpu reads its flags when it is loaded.
SCAN = """
import json, pathlib, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

folder, layers, width, rows = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5])
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = jax.make_mesh(
    (1, 4), ("data", "fsdp"), devices=topology.devices, axis_types=(AxisType.Auto,) * 2
)
shape = lambda dims, *spec: jax.ShapeDtypeStruct(
    dims, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec))
)

def forward(x_MD, weights_LDD):
    def layer(x_MD, w_DD):
        w_DD = jax.lax.with_sharding_constraint(w_DD, NamedSharding(mesh, P()))
        with jax.named_scope("mlp"):
            return x_MD @ w_DD, None
    return jax.lax.scan(layer, x_MD, weights_LDD)[0]

x = shape((4 * rows, width), "fsdp")
weights = shape((layers, width, width), None, "fsdp")
compiled = jax.jit(forward).lower(x, weights).compile()
(folder / "step.hlo").write_text(compiled.as_text())
places = [[0, *device.coords, 0] for device in mesh.devices.flat]
(folder / "places.json").write_text(json.dumps(places))
"""


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> StepTime:
    """A scan over layers that each gather their weight and multiply by it."""
    folder = tmp_path_factory.mktemp("scan")
    dumps = folder / "dumps"
    dumps.mkdir()
    subprocess.run(
        [sys.executable, "-c", SCAN, folder, *map(str, (LAYERS, WIDTH, ROWS))],
        env=compiler_environment(dump_flags(dumps)),
        check=True,
        capture_output=True,
    )
    places = json.loads((folder / "places.json").read_text())
    mesh = PlacedMesh({"data": 1, "fsdp": 4}, tuple(map(tuple, places)), V5E)
    return estimate_step(
        pathlib.Path(folder / "step.hlo").read_text(),
        mesh,
        dump_dir=dumps,
        kernel_scalars=lambda kernel, computation: None,
    )


def test_products_of_a_scan_take_the_time_of_their_roofline(scan):
    assert list(scan.loops.values()) == [LAYERS]
    flops = 2 * ROWS * WIDTH**2 * LAYERS
    roofline = flops / V5E.flops_per_second
    # XLA's own loop of matmuls reaches 97 to 98 % of the peak on this chip by the
    # bundles it is made of; below 93 % or above 100 % the bundles are misread.
    assert 0.93 < roofline / scan.breakdown["shared expert and dense MLP"] <= 1.0


def test_every_operation_of_weight_is_known_from_its_bundles(scan):
    known = scan.sources["bundles"]
    assert known > 0.98 * sum(scan.sources.values())


def test_each_layer_gathers_its_weight_over_the_axis_that_holds_it(scan):
    gathers = [use for use in scan.collectives if use.collective.kind == "all-gather"]
    moved = sum(use.times * use.collective.wire_bytes for use in gathers)
    assert {use.collective.axes for use in gathers} == {("fsdp",)}
    assert moved == LAYERS * 2 * WIDTH**2 * 3 / 4
