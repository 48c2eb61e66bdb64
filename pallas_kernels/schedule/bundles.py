# SPDX-License-Identifier: Apache-2.0
"""Reads what the TPU's compiler says of one kernel: its final bundles.

A bundle is what a TensorCore issues in one cycle. The dump prints one a line:

    0x8d   : > { %s240_s12 = sand.u32 1, %s51115_s26  ;;  %s47628_s6 = sshll.u32 ... }

Names are `%<definition>_<register>`, so a value is found by the definition that made it,
whatever the registers' latencies are. Region comments mark where branches lead.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?:?[ :>]*\{(.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_INSTRUCTION = re.compile(r"^\s*(?:(%\w+)\s*=\s*)?([a-z]\w*(?:\.[a-z]\w*|\.\d+)*)(.*)$")
_PREDICATE = re.compile(r"\((!?)(%?p\d+(?:_p\d+)?)\)")
_ATTRIBUTE = re.compile(r"\[(?:resolvable|thread):[^\]]*\]")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_OPERAND = re.compile(r"/\* operand (\d+) \*/")
_MXU = re.compile(r"mxu(\d)")
_RESULT_BUFFER = re.compile(r"mrb\[(\d+)\]\.mxu(\d)")


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


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What is issued in one cycle, as far as time and control flow depend on it."""

    instructions: tuple[Instruction, ...]
    """Scalar instructions, DMAs, waits, branches."""
    matmuls: tuple[str, ...]
    """Matrix unit, or its result buffer, of each matmul issued."""
    pops: tuple[str, ...]
    """The same of each result that is taken out."""
    num_spills: int
    """Vector registers stored to, or loaded from, spill slots."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A kernel as the compiler leaves it."""

    name: str
    bundles: tuple[Bundle, ...]
    regions: dict[int, int]
    """Region -> index of its first bundle: where branches lead."""

    def last_delay_slot(self, branch: int) -> int:
        """Returns the last bundle after a branch that is executed in any case.

        Older chips have four such slots; tpu7x has a delay in their place, and the
        next region begins sooner.
        """
        starts, last = set(self.regions.values()), branch
        while last + 1 < len(self.bundles) and last < branch + 4:
            if last + 1 in starts:
                break
            last += 1
        return last

    @functools.cached_property
    def num_spills(self) -> int:
        """Vector spills and fills, each counted once however often it runs."""
        return sum(bundle.num_spills for bundle in self.bundles)


def read_program(path: Path) -> Program:
    """Parses a dump `<time>-<kernel>-<pass>-final_bundles.txt`.

    Raises:
      ValueError: the text holds no bundles: another version of the compiler wrote it.
    """
    bundles, regions = [], {}
    for line in _logical_lines(path):
        match = _BUNDLE.match(line)
        if match is None:
            continue
        index = len(bundles)
        for region in _REGION.findall(line):
            regions.setdefault(int(region), index)
        bundles.append(_parse_bundle(match.group(1)))
    if not bundles:
        raise ValueError(f"{path}: no bundles in it; this reads dumps of libtpu 0.0.5x.")
    name = re.sub(r"^\d+-(.*)-\d+-final_bundles\.txt$", r"\1", path.name)
    return Program(name, tuple(bundles), regions)


def _logical_lines(path: Path) -> list[str]:
    """Joins the lines of comments that are broken into several."""
    text = path.read_text()
    return re.sub(
        r"/\*[^*]*?\*/", lambda m: m.group().replace("\n", " "), text
    ).splitlines()


def _parse_bundle(body: str) -> Bundle:
    instructions, matmuls, pops, num_spills = [], [], [], 0
    for text in body.split(";;"):
        if "vmatmul" in text:
            matmuls.append(_unit(text))
        elif "vpop.f32.mr" in text:
            pops.append(_unit(text))
        elif re.search(r"= v(st|ld)\b", text):
            num_spills += "_spill]" in text
        elif (instruction := _parse_instruction(text)) is not None:
            instructions.append(instruction)
    # A merge of definitions is printed after its first use in the same bundle.
    instructions.sort(key=lambda instruction: instruction.opcode != "sphi")
    return Bundle(tuple(instructions), tuple(matmuls), tuple(pops), num_spills)


def _unit(text: str) -> str:
    if buffer := _RESULT_BUFFER.search(text):
        return f"mxu{buffer.group(2)}.{buffer.group(1)}"
    match = _MXU.search(text)
    return f"mxu{match.group(1) if match else 0}"


def _parse_instruction(text: str) -> Instruction | None:
    operand = _OPERAND.search(text)
    plain = _ATTRIBUTE.sub("", _COMMENT.sub(" ", text)).split("}")[0]
    match = _INSTRUCTION.match(plain)
    if match is None or not _is_executed(match.group(2)):
        return None
    result, opcode, rest = match.groups()
    if "inlined_call_operand" in opcode:
        number = operand.group(1) if operand else "-1"
        kind = "operand.value" if "no memory space" in text else "operand.address"
        return Instruction(kind, result, (number,), None, False, text)
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
        text,
    )


_IGNORED = {"shalt", "sfence"}


def _is_executed(opcode: str) -> bool:
    head = opcode.split(".")[0]
    if head in _IGNORED:
        return False
    return head == "vsyncadd" or not head.startswith("v")


def opcodes(program: Program) -> collections.Counter[str]:
    """Counts the executed opcodes, each once however often it runs."""
    return collections.Counter(
        instruction.opcode
        for bundle in program.bundles
        for instruction in bundle.instructions
    )
