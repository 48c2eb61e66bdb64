# SPDX-License-Identifier: Apache-2.0
"""The process of one compilation, started by `compiler.py` with libtpu's flags set.

A pickled request comes on standard input, and the reply goes to the file that it names.
It runs in the environment of a kernel's own packages, which need not be ours.
"""

import importlib.metadata
import pickle
import sys
import time

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pallas_kernels.schedule.compiler import end_with_parent


def main() -> None:
    """Compiles what the request names."""
    try:
        libtpu_version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            "the TPU's compiler is not installed: launch/setup.sh tpu, or pip "
            "install libtpu==0.0.50.1"
        ) from None
    request = pickle.load(sys.stdin.buffer)
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=request["topology"]
    )
    # Some functions, `jax.lax.ragged_dot` for one, refuse explicit axes.
    mesh = jax.make_mesh(
        (1,), ("device",), axis_types=(AxisType.Auto,), devices=topology.devices[:1]
    )
    layout = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(
        lambda arg: jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=layout),
        request["args"],
    )
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = jax.jit(request["fn"]).lower(*args)
        compiled = lowered.compile(request["compiler_options"])
    reply = {
        "hlo": compiled.as_text(),
        "seconds": time.perf_counter() - start,
        "libtpu_version": libtpu_version,
    }
    request["reply"].write_bytes(pickle.dumps(reply))


if __name__ == "__main__":
    end_with_parent()
    main()
