# SPDX-License-Identifier: Apache-2.0
"""Reads what the TPU's compiler says of one kernel: its final bundles.

A bundle is what a TensorCore issues in one cycle. The dump prints one a line:

    0x8d   : > { %s240_s12 = sand.u32 1, %s51115_s26  ;;  %s47628_s6 = sshll.u32 ... }

Names are `%<definition>_<register>`, so a value is found by the definition that made
it, whatever the registers' latencies are. Region comments mark where branches lead.
"""

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Literal

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?:?[ :>]*\{(.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_BROKEN_COMMENT = re.compile(r"/\*[^*]*?\*/")
_INSTRUCTION = re.compile(r"^\s*(?:(%\w+)\s*=\s*)?([a-z]\w*(?:\.[a-z]\w*|\.\d+)*)(.*)$")
_PREDICATE = re.compile(r"\((!?)(%?p\d+(?:_p\d+)?)\)")
_ATTRIBUTE = re.compile(r"\[(?:resolvable|thread):[^\]]*\]")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_OPERAND = re.compile(r"\[shape: (\w+)\[([\d,]*)\], index: (\d+), kind: (\w+)")
_MXU = re.compile(r"mxu(\d)")
_RESULT_BUFFER = re.compile(r"mrb\[(\d+)\]\.mxu(\d)")
_VECTOR_MEMORY = re.compile(r"= v(st|ld)\b")
_SEMAPHORE = re.compile(
    r"(?:vsyncpa|vsyncadd|dma\.done\.wait|scalar_lea\.sflag)[^\[;]*\[(#allocation\d+)"
)
_FILE_NAME = re.compile(r"^\d+-(.*)-\d+-final_bundles\.txt$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction that the timeline executes."""

    opcode: str
    result: str | None
    operands: tuple[str, ...]
    predicate: str | None
    """Name of the predicate register; None: always executed."""
    is_negated: bool
    text: str

    @property
    def target_region(self) -> int:
        """The region that a branch leads to."""
        return int(self.operands[-1].rsplit("$region", 1)[1])


@dataclasses.dataclass(frozen=True)
class Matmul:
    """One matmul as it is issued."""

    place: str
    """Its matrix unit, or that unit's result buffer."""
    form: Literal["packed", "float32", "latched"]
    """Rows of 16 bits or less, of float32, or of half as many that were latched
    before (`lmr`, to transpose the left operand)."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What is issued in one cycle, as far as time and control flow depend on it."""

    instructions: tuple[Instruction, ...]
    """Scalar instructions, DMAs, waits, branches."""
    matmuls: tuple[Matmul, ...]
    pops: tuple[str, ...]
    """Matrix unit, or its result buffer, of each result that is taken out."""
    num_spills: int
    """Vector registers stored to, or loaded from, spill slots."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A kernel as the compiler leaves it."""

    name: str
    bundles: tuple[Bundle, ...]
    regions: dict[int, int]
    """Region -> index of its first bundle: where branches lead."""
    scalar_sizes: dict[int, int]
    """Number of an operand of integers or booleans -> how many values it has."""
    semaphores: frozenset[str] = frozenset()
    """Allocations that hold semaphores."""

    @functools.cached_property
    def num_spills(self) -> int:
        """Vector spills and fills, each counted once however often it runs."""
        return sum(bundle.num_spills for bundle in self.bundles)


def is_kernel_dump(path: Path, name: str) -> bool:
    """Says whether a dump holds the final bundles of the kernel of that name."""
    match = _FILE_NAME.match(path.name)
    return match is not None and match.group(1) == name


def read_program(path: Path) -> Program:
    """Parses a dump `<time>-<kernel>-<pass>-final_bundles.txt`.

    Raises:
      ValueError: the text holds no bundles: another version of the compiler wrote it.
    """
    match = _FILE_NAME.match(path.name)
    return parse_program(match.group(1) if match else path.stem, path.read_text())


def parse_program(name: str, text: str) -> Program:
    """Parses the text of final bundles.

    Raises:
      ValueError: the text holds no bundles.
    """
    bundles, regions, scalar_sizes = [], {}, {}
    semaphores: set[str] = set()
    for line in _join_comments(text).splitlines():
        match = _BUNDLE.match(line)
        if match is None:
            continue
        for region in _REGION.findall(line):
            regions.setdefault(int(region), len(bundles))
        scalar_sizes |= _scalar_sizes(line)
        semaphores.update(_SEMAPHORE.findall(line))
        bundles.append(_parse_bundle(match.group(1)))
    if not bundles:
        raise ValueError(
            f"{name}: no bundles in the dump; another version of libtpu wrote it than "
            "0.0.50 and 0.0.52, whose formats this reads."
        )
    return Program(name, tuple(bundles), regions, scalar_sizes, frozenset(semaphores))


def _join_comments(text: str) -> str:
    """Joins the lines of comments that are broken into several."""
    return _BROKEN_COMMENT.sub(lambda match: match.group().replace("\n", " "), text)


def _scalar_sizes(line: str) -> dict[int, int]:
    sizes = {}
    for dtype, shape, number, kind in _OPERAND.findall(line):
        if dtype in ("s32", "u32", "pred") and kind == "input":
            lengths = [int(length) for length in shape.split(",") if length]
            sizes[int(number)] = math.prod(lengths)
    return sizes


def _parse_bundle(body: str) -> Bundle:
    instructions, matmuls, pops, num_spills = [], [], [], 0
    for text in body.split(";;"):
        if "vmatmul" in text:
            matmuls.append(Matmul(_matrix_unit(text), _form(text)))
        elif "vpop.f32.mr" in text:
            pops.append(_matrix_unit(text))
        elif _VECTOR_MEMORY.search(text):
            num_spills += "_spill]" in text
        elif (instruction := _parse_instruction(text)) is not None:
            instructions.append(instruction)
    # A merge of definitions is printed after its first use in the same bundle.
    instructions.sort(key=lambda instruction: instruction.opcode != "sphi")
    return Bundle(tuple(instructions), tuple(matmuls), tuple(pops), num_spills)


def _matrix_unit(text: str) -> str:
    """Returns "mxu1", or "mxu1.32" on chips that name the place of a result."""
    if buffer := _RESULT_BUFFER.search(text):
        return f"mxu{buffer.group(2)}.{buffer.group(1)}"
    match = _MXU.search(text)
    return f"mxu{match.group(1) if match else 0}"


def _form(text: str) -> Literal["packed", "float32", "latched"]:
    opcode = text[text.index("vmatmul") :].split()[0]
    if ".lmr." in opcode:
        return "latched"
    return "float32" if ".f32." in opcode else "packed"


def _parse_instruction(text: str) -> Instruction | None:
    plain = _ATTRIBUTE.sub("", _COMMENT.sub(" ", text)).split("}")[0]
    match = _INSTRUCTION.match(plain)
    if match is None or not _is_executed(match.group(2)):
        return None
    result, opcode, rest = match.groups()
    if opcode == "smov.u32":
        # As libtpu writes it from 0.0.52 on.
        opcode = "smov"
    if "inlined_call_operand" in opcode:
        return _parse_operand(result, text)
    # `smov (p), a, b` is a choice; any other predicate skips the instruction.
    is_choice = opcode == "smov" and rest.count(",") == 2
    predicate = None if is_choice else _PREDICATE.search(rest)
    if predicate is not None:
        rest = rest.replace(predicate.group(), "", 1)
    if opcode == "sst":
        # `sst [smem:[address]] value`, with a comma only after a predicate.
        rest = re.sub(r"\]\]\s*,?", "]],", rest, count=1)
    return Instruction(
        opcode,
        result,
        tuple(part.strip() for part in rest.strip().strip(",").split(",")),
        predicate.group(2) if predicate else None,
        bool(predicate and predicate.group(1)),
        text.strip(),
    )


def _parse_operand(result: str | None, text: str) -> Instruction:
    """Makes an operand an instruction: a scalar's value, or an array's address."""
    operand = _OPERAND.search(text)
    kind = "operand.value" if "no memory space" in text else "operand.address"
    number = operand.group(3) if operand else "-1"
    return Instruction(kind, result, (number,), None, False, text.strip())


def _is_executed(opcode: str) -> bool:
    """Says whether control flow or DMAs can depend on it; vector arithmetic cannot."""
    head = opcode.split(".")[0]
    if head in ("shalt", "sfence"):
        return False
    return head == "vsyncadd" or not head.startswith("v")
