# SPDX-License-Identifier: Apache-2.0
"""Eight emulated devices, strict ranks, and a mesh in force for every test."""

import gc
import math
import os
import pathlib
from collections.abc import Callable

# Most of the tests' time is compilation, half of that is optimisation. For the commands
# that tests start, too; benchmarks and the run itself are compiled in full.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nothing is left in the user's cache, and no test lives on what another compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from pallas_kernels.schedule import CHIPS  # noqa: E402  (devices are set first)
from ring_jax.config import MeshConfig  # noqa: E402  (devices are set first)
from ring_jax.sharding import make_mesh  # noqa: E402  (devices are set first)

LONGEST = (
    "test_loop.py",
    "test_step.py",
    "test_quantization.py",
    "test_expert_mlp.py",
    "test_transformer.py",
    "test_grouped_matmul.py",
    "test_attention.py",
    "test_context_attention.py",
    "test_processes.py",
    "test_attention_tpu.py",
    "test_linear_cross_entropy.py",
    "test_expert_parallel.py",
)
"""Files that take long, about the longest first: begun last, one keeps a worker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that take longest, so that all workers end together."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """Leaves what is imported and collected out of every later garbage collection."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="Rewrite the reviewed text files."
    )


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Gives back what a file's tests compiled.

    Each program is mapped into memory in pieces, and Linux allows a process 65,530 of
    them: a worker that keeps the programs of all files dies in the compiler.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Holds a text against its reviewed file, a path under tests/golden."""

    def check(name: str, text: str) -> None:
        path = pathlib.Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), (
            f"golden/{name} differs. A refactor changes no golden file; if the change "
            "is intended, run pytest --update-golden and review the diff."
        )

    return check


@pytest.fixture
def absent_mesh() -> Callable[..., Mesh]:
    """Makes meshes of TPUs that are not there, for their compiler; needs libtpu."""

    def make(chip: str, **sizes: int) -> Mesh:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=CHIPS[chip].topology
        )
        devices = topology.devices[: math.prod(sizes.values())]
        return make_mesh(MeshConfig(**({"data": 1} | sizes)), devices)

    return make


@pytest.fixture
def mesh():
    """A mesh of one device, in force; the layout tests bring larger ones."""
    single = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(single):
        yield single
