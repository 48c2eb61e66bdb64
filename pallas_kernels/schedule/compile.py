# SPDX-License-Identifier: Apache-2.0
"""Compiles a function ahead of time for a named chip and reads its Pallas kernels.

Every compilation is a process of its own (`compiler.py`, `compiler_process.py`). It
dumps its final bundles into a temporary folder, which is gone when this returns.
"""

import dataclasses
import functools
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pallas_kernels import hardware
from pallas_kernels.schedule.blocks import Block, Blocks
from pallas_kernels.schedule.bundles import Program, is_kernel_dump, read_program
from pallas_kernels.schedule.compiler import CompileError, ask_compiler, dump_flags

LARGE_BYTES = 2**20
_KERNEL = re.compile(r'%([\w.-]+) = .*custom_call_target="tpu_custom_call"')
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")
_VMEM = re.compile(
    r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'
)
_NO_WORK = ("parameter", "bitcast", "get-tuple-element", "tuple", "custom-call")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU, and the smallest topology of it that its compiler knows."""

    device_kind: str
    topology: str

    @property
    def tpu(self) -> hardware.Tpu:
        """What the chip has."""
        return hardware.TPUS[self.device_kind]


CHIPS = {
    "v5e": Chip("TPU v5 lite", "v5e:2x2"),
    "v5p": Chip("TPU v5p", "v5:2x2x1"),
    "v6e": Chip("TPU v6 lite", "v6e:2x2"),
    "tpu7x": Chip("TPU7x", "tpu7x:2x2x1"),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel in a compiled program; all of it is exact."""

    program: Program
    tpu: hardware.Tpu
    vmem_bytes: int
    """What the compiler says it uses (`used_scoped_memory_configs`)."""

    @property
    def name(self) -> str:
        """The kernel's name in the compiled program."""
        return self.program.name

    @property
    def num_bundles(self) -> int:
        """Its length; each bundle once, however often it runs."""
        return len(self.program.bundles)

    @property
    def num_spills(self) -> int:
        """Vector spills and fills, each once."""
        return self.program.num_spills

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Its basic blocks, with the chip's pace of matmuls."""
        return Blocks(
            self.program,
            cycles_per_matmul=self.tpu.cycles_per_matmul,
            num_delay_slots=self.tpu.num_delay_slots,
        )

    @functools.cached_property
    def hot_block(self) -> Block:
        """The body of the main loop."""
        return self.blocks.hottest()

    @property
    def matmul_share(self) -> float:
        """Share of the hot block's cycles in which the matrix units have work."""
        block = self.hot_block
        busy = block.num_matmuls * self.tpu.cycles_per_matmul
        return busy / self.tpu.num_matrix_units / block.cycles


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What a function was compiled to."""

    kernels: tuple[Kernel, ...]
    """In the order in which the program names them."""
    large_ops: tuple[str, ...]
    """Operations of XLA around the kernels with results above `LARGE_BYTES`."""
    seconds: float
    """Of compilation, with the dumps."""
    libtpu_version: str


def compile_kernels(
    fn: Callable,
    *abstract_args,
    chip: str,
    compiler_options: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Compilation:
    """Compiles a function for one device of a chip that need not be there.

    Args:
      fn: a function of a module, or `functools.partial` of one: another process imports
        it.
      abstract_args: trees of `jax.ShapeDtypeStruct`, replicated over the device.
      chip: a key of `CHIPS`.
      compiler_options: as of `jax.stages.Lowered.compile`.
      python: interpreter of an environment with jax, libtpu and what `fn` imports.

    Raises:
      ValueError: an unknown chip.
      CompileError: libtpu is missing, the program does not compile, or the dumps hold
        no kernel.
    """
    if chip not in CHIPS:
        raise ValueError(f"compile_kernels: chip={chip!r} must be one of {[*CHIPS]}.")
    with tempfile.TemporaryDirectory(prefix="schedule-") as name:
        folder = Path(name)
        reply = compile_into(
            folder,
            fn,
            *abstract_args,
            chip=chip,
            compiler_options=compiler_options,
            python=python,
        )
        kernels = read_kernels(reply["hlo"], folder, CHIPS[chip].tpu)
    if not kernels:
        raise CompileError(
            f"compile_kernels: {_name(fn)} for {chip} has no Pallas kernel: "
            f"XLA made it {large_ops(reply['hlo'])}."
        )
    return Compilation(
        kernels=tuple(kernels),
        large_ops=tuple(large_ops(reply["hlo"])),
        seconds=reply["seconds"],
        libtpu_version=reply["libtpu_version"],
    )


def compile_into(
    folder: Path,
    fn: Callable,
    *abstract_args,
    chip: str,
    compiler_options: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> dict:
    """Compiles as `compile_kernels` does, and leaves the dumps of all code in a folder.

    Returns:
      "hlo", the compiled program; "seconds" of compilation; "libtpu_version".

    Raises:
      CompileError: libtpu is missing, or the program does not compile.
    """
    reply = folder / "reply.pickle"
    request = {
        "fn": fn,
        "args": abstract_args,
        "topology": CHIPS[chip].topology,
        "compiler_options": dict(compiler_options or {}),
        "reply": reply,
    }
    try:
        found = ask_compiler(
            "pallas_kernels.schedule.compiler_process",
            pickle.dumps(request),
            reply,
            flags=dump_flags(folder),
            python=python,
        )
    except CompileError as error:
        raise CompileError(f"compile_kernels: {error}") from error
    return pickle.loads(found)


def _name(fn: Callable) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", repr(fn))


def read_kernels(hlo: str, folder: Path, tpu: hardware.Tpu) -> list[Kernel]:
    """Reads the Pallas kernels of a compiled program from a folder of its dumps."""
    kernels = []
    for line in hlo.splitlines():
        if not (match := _KERNEL.search(line)):
            continue
        vmem = _VMEM.search(line)
        path = _find_dump(folder, match.group(1))
        vmem_bytes = int(vmem.group(1)) if vmem else 0
        kernels.append(Kernel(read_program(path), tpu, vmem_bytes))
    return kernels


def _find_dump(folder: Path, kernel: str) -> Path:
    for path in folder.iterdir():
        if is_kernel_dump(path, kernel):
            return path
    raise CompileError(
        f"compile_kernels: libtpu dumped no final bundles of {kernel}: its flags are "
        "those of version 0.0.50. Install that one."
    )


def large_ops(hlo: str) -> list[str]:
    """Lists "kind type[shape]" of the entry computation's large results."""
    entry = hlo.partition("\nENTRY ")[2].partition("\n}")[0]
    found = []
    for line in entry.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None or match.group(4).startswith(_NO_WORK):
            continue
        name, dtype, shape, _ = match.groups()
        if _num_bytes(dtype, shape) >= LARGE_BYTES:
            found.append(f"{name} {dtype}[{shape}]")
    return found


def _num_bytes(dtype: str, shape: str) -> int:
    bits = re.search(r"\d+", dtype)
    size = int(bits.group()) // 8 if bits else 1
    for length in filter(None, shape.split(",")):
        size *= int(length)
    return size
