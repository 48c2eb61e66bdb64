# SPDX-License-Identifier: Apache-2.0
"""How `ring plan` shows what it found: tables for people, a mapping for scripts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from ring_jax.config import RunConfig
from ring_jax.plan import (
    EXACT,
    PROGRAM,
    CompileError,
    Memory,
    Overflow,
    Plan,
    Pod,
    Tried,
    overrides,
    total_collectives,
)

GIB = 2**30
MIB = 2**20

_WHOLE = ("HBM of a device", "time of a step (estimate)", "collectives", "shape")


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the user says of prices and paces."""

    storage_bytes_per_second: float
    """Of one host."""
    chip_hour: float | None
    """US dollars."""


def print_plan(plan: Plan, rates: Rates, console: rich.console.Console) -> None:
    """Prints all tables of a plan."""
    sizes = plan.step.mesh_shape.items()
    axes = " x ".join(f"{axis}={n}" for axis, n in sizes if n > 1) or "of one device"
    console.print(
        f"{plan.pod.name}: {plan.pod.num_chips} chips, {plan.pod.num_devices} devices;"
        f" mesh {axes}; {plan.step.num_tokens:,} tokens a step",
        soft_wrap=True,
    )
    console.print(_memory_table(plan.step.memory))
    console.print(_largest_table(plan.step.memory))
    console.print(_time_table(plan))
    console.print(_collectives_table(plan))
    console.print(_summary_table(plan, rates))
    if unknown := [name for name, count in plan.time.loops.items() if count is None]:
        console.print(f"not counted, their length depends on data: {unknown}")
    if reasons := _unknown(plan):
        console.print(
            "the step takes longer than this: these kernels, whose way is not known, "
            "count by their bytes alone",
            *reasons,
            sep="\n  ",
            style="bold red",
            soft_wrap=True,
            # Reasons quote the compiler's code, which has brackets.
            markup=False,
        )
    if plan.step.undonated:
        console.print(
            f"held twice, the donation failed: {', '.join(plan.step.undonated)}",
            style="bold red",
        )


def print_tried(
    config: RunConfig, tried: Sequence[Tried], console: rich.console.Console
) -> None:
    """Prints the candidates that were compiled."""
    table = _table("change", "closed form", "step", "HBM")
    for one in tried:
        words = " ".join(overrides(config, one.candidate.config)) or "none"
        guess = f"{1e3 * one.candidate.prediction.seconds:,.0f} ms"
        outcome = one.outcome
        if isinstance(outcome, CompileError):
            table.add_row(words, guess, str(outcome), "")
        elif isinstance(outcome, Overflow):
            table.add_row(words, guess, "does not fit", _gib(outcome.needed))
        else:
            step = f"{1e3 * outcome.time.seconds:,.0f} ms"
            table.add_row(words, guess, step, _gib(outcome.step.memory.total))
    console.print(table)


def say_overflow(config: RunConfig, pod: Pod, overflow: Overflow) -> str:
    """Returns one line: by how much a step does not fit, and what takes most."""
    train = config.train
    line = (
        f"plan: {pod.name}: the step needs {_gib(overflow.needed)} of HBM a device and "
        f"has {_gib(overflow.available)}, {_gib(overflow.excess)} too little, with "
        f"remat={train.remat} and num_microbatches={train.num_microbatches}"
    )
    if overflow.memory is None:
        return f"{line}."
    parts = sorted(overflow.memory.categories.items(), key=_second, reverse=True)
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts[:3])
    top = overflow.memory.largest[0]
    return (
        f"{line}: {listed}; the largest buffer is {top.shape}, {_gib(top.num_bytes)}, "
        f"of {_short(top.source)}."
    )


def summary(plan: Plan, rates: Rates) -> dict[str, Any]:
    """Returns the plan for scripts: bytes, seconds and shares."""
    step, memory, time = plan.step, plan.step.memory, plan.time
    found = {
        "pod": plan.pod.name,
        "num_chips": plan.pod.num_chips,
        "mesh": dict(step.mesh_shape),
        "tokens_per_step": step.num_tokens,
        "hbm_bytes": dict(memory.categories),
        "hbm_total_bytes": memory.total,
        "hbm_limit_bytes": memory.limit,
        "step_seconds": time.seconds,
        "step_seconds_range": [time.low_seconds, time.high_seconds],
        "breakdown_seconds": dict(time.breakdown),
        "tokens_per_second_per_chip": plan.tokens_per_second_per_chip,
        "mfu": plan.mfu,
        "collectives": [
            {"kind": kind, "axis": axis, **dataclasses.asdict(total)}
            for (kind, axis), total in total_collectives(plan.time.collectives).items()
        ],
        "compile_seconds": step.compile_seconds,
        "compiler_bytes": step.compiler_bytes,
        "offloaded_bytes": step.offloaded_bytes,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "save_seconds": plan.save_seconds(rates.storage_bytes_per_second),
        "chip_hours_per_billion_tokens": plan.chip_hours_per_billion_tokens,
        "undonated": list(step.undonated),
        "kernels_unknown": _unknown(plan),
    }
    if rates.chip_hour is not None:
        found["usd_per_billion_tokens"] = (
            rates.chip_hour * plan.chip_hours_per_billion_tokens
        )
    return found


def _unknown(plan: Plan) -> list[str]:
    """Says of each kernel that could not be executed why, the longest first."""
    return [o.reason for o in plan.time.operations if o.source == "unknown"]


def _memory_table(memory: Memory) -> rich.table.Table:
    table = _table("HBM of a device", "GiB", "share", "")
    for name, size in memory.categories.items():
        is_exact = name in (*EXACT, PROGRAM)
        known = "exact" if is_exact else "attributed; the sum of these is exact"
        table.add_row(name, f"{size / GIB:.3f}", _share(size, memory.limit), known)
    table.add_section()
    total, left = memory.total, memory.limit - memory.total
    table.add_row("total", f"{total / GIB:.3f}", _share(total, memory.limit), "exact")
    spare = f"fits with {memory.spare_share:.1%} to spare"
    table.add_row("left", f"{left / GIB:.3f}", _share(left, memory.limit), spare)
    return table


def _largest_table(memory: Memory) -> rich.table.Table:
    table = _table("largest buffers", "GiB", "shape", "of")
    for buffer in memory.largest[:6]:
        size = f"{buffer.num_bytes / GIB:.3f}"
        table.add_row(buffer.category, size, buffer.shape, _short(buffer.source))
    return table


def _time_table(plan: Plan) -> rich.table.Table:
    time = plan.time
    table = _table("time of a step (estimate)", "ms", "share")
    for name, seconds in time.breakdown.items():
        share = _share(seconds, time.seconds)
        table.add_row(name, f"{1e3 * seconds:,.1f}", share)
    table.add_row("host", "0.0", "hidden: steps are dispatched ahead")
    table.add_section()
    table.add_row("total", f"{1e3 * time.seconds:,.1f}", _range(plan))
    return table


def _range(plan: Plan) -> str:
    low, high = 1e3 * plan.time.low_seconds, 1e3 * plan.time.high_seconds
    return f"range {low:,.0f} to {high:,.0f}"


def _collectives_table(plan: Plan) -> rich.table.Table:
    table = _table(
        "collectives", "axis", "a step", "MiB sent (exact)", "ms", "of it exposed"
    )
    for (kind, axis), total in total_collectives(plan.time.collectives).items():
        table.add_row(
            kind,
            axis,
            f"{total.count:,.0f}",
            f"{total.wire_bytes / MIB:,.1f}",
            f"{1e3 * total.seconds:,.2f}",
            f"{1e3 * total.exposed_seconds:,.2f}",
        )
    return table


def _summary_table(plan: Plan, rates: Rates) -> rich.table.Table:
    table = _table("", "value", "how it is known")
    time, step = plan.time, plan.step
    table.add_row(
        "tokens/s/chip",
        f"{plan.tokens_per_second_per_chip:,.0f}",
        f"estimate, {_per_chip(plan, time.high_seconds):,.0f} to "
        f"{_per_chip(plan, time.low_seconds):,.0f}; rows full",
    )
    table.add_row(
        "MFU",
        f"{plan.mfu:.1%}",
        "estimate; model FLOPs without recomputation / (seconds x devices x peak), "
        f"{plan.model_flops / step.num_tokens / 1e9:.1f} GFLOP a token",
    )
    known = ", ".join(
        f"{source} {_share(seconds, sum(time.sources.values()))}"
        for source, seconds in time.sources.items()
    )
    table.add_row("the core's seconds", known, "what they are estimated from")
    table.add_row(
        "compile time",
        f"{step.compile_seconds:,.0f} s",
        f"measured here, with {_gib(step.compiler_bytes)} of memory",
    )
    if step.offloaded_bytes:
        table.add_row(
            "in the host's memory", _gib(step.offloaded_bytes), "exact; of each device"
        )
    table.add_row(
        "checkpoint",
        f"{plan.checkpoint_bytes / 1e9:,.1f} GB",
        "exact; state, each array once",
    )
    table.add_row(
        "save time",
        f"{plan.save_seconds(rates.storage_bytes_per_second):,.0f} s",
        f"estimate at {rates.storage_bytes_per_second / 1e9:g} GB/s a host (--storage)",
    )
    hours = plan.chip_hours_per_billion_tokens
    table.add_row(
        "a billion tokens",
        f"{hours / plan.pod.num_chips:,.1f} h",
        f"estimate; {hours:,.0f} chip hours",
    )
    if rates.chip_hour is not None:
        table.add_row(
            "cost of that",
            f"{hours * rates.chip_hour:,.0f} USD",
            f"estimate at {rates.chip_hour:g} USD a chip and hour (--price)",
        )
    return table


def _per_chip(plan: Plan, seconds: float) -> float:
    return plan.step.num_tokens / seconds / plan.pod.num_chips


def _table(*headers: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        numeric = header in ("GiB", "ms", "a step", "MiB sent (exact)", "of it exposed")
        table.add_column(
            header,
            justify="right" if numeric else "left",
            overflow="fold",
            # On a narrow terminal, explanations and paths are broken, names are not.
            no_wrap=header in _WHOLE,
        )
    return table


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def _short(source: str) -> str:
    """Returns the last scopes of a path: the first ones are jax's own."""
    return "/".join(source.split("/")[-3:]) or "unnamed"


def _second(item: tuple[str, int]) -> int:
    return item[1]
