# SPDX-License-Identifier: Apache-2.0
"""Writes the report of a run: one HTML file that needs nothing from elsewhere."""

import dataclasses
import datetime
import json
import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ring_jax.config import TOKEN_CLASSES, ConfigError
from ring_jax.report import charts
from ring_jax.report.charts import HeatMap, LineChart, format_number
from ring_jax.report.comparison import Comparison, compare_stages
from ring_jax.report.evaluation_page import FILTERS, comparison_values
from ring_jax.report.page_file import write_page
from ring_jax.report.run_folder import Record, RunFolder, read_run_folder

MFU_FORMULA = (
    "MFU = tokens per second × model FLOPs per token (forward and backward, without "
    "recomputation) ÷ (devices × peak FLOP/s of a device). Tokens are those of "
    "documents: padding counts as none."
)
PEAK_OF_CPU = "a CPU's peak is the best rate that a large float32 matmul reached on it"


def write_report(workdir: Path, out: Path | None = None) -> Path:
    """Writes the report of the run in `workdir`, however far that run has come.

    Args:
      workdir: a run folder.
      out: the file to write; None writes `report.html` into the run folder.

    Returns:
      The file that was written.

    Raises:
      ConfigError: `workdir` is no readable run folder, one of its evaluations is
        damaged, or `out` is no place for a file.
    """
    run = read_run_folder(workdir)
    comparison = compare_stages(workdir)
    out = out or workdir / "report.html"
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"out={out} must name a file in a folder that exists.")
    filters = {**FILTERS, "number": format_number}
    link = _link(workdir / "evaluation.html", out)
    values = {"page": _page(run, comparison, link), "comparison": comparison}
    if comparison is not None:
        values |= comparison_values(comparison)
    return write_page("report.html.jinja", out, values, filters=filters)


def _link(page: Path, out: Path) -> str:
    """Links to a page from another; empty where there is none."""
    path = os.path.relpath(page.resolve(), out.resolve().parent)
    return quote(path) if page.is_file() else ""


@dataclasses.dataclass(frozen=True)
class Page:
    """What the template shows beside the comparison of the stages."""

    name: str
    status: str
    facts: Sequence[tuple[str, str]]
    comparison_link: str
    losses: Sequence[LineChart]
    sources: Sequence[LineChart]
    optimisation: Sequence[LineChart]
    router: HeatMap | None
    router_charts: Sequence[LineChart]
    throughput: Sequence[LineChart]
    mfu_formula: str
    stages: Sequence[Mapping[str, Any]]
    heldout_stages: Sequence[str]
    heldout_losses: Mapping[str, Sequence[float | None]]
    """Source -> the loss at the end of each stage."""
    config: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    events: Sequence[Mapping[str, str]]
    slots: Mapping[str, int]
    notes: Sequence[str]


def _page(run: RunFolder, comparison: Comparison | None, link: str) -> Page:
    spans = _stage_spans(run)
    return Page(
        name=run.name,
        status=_status(run),
        facts=list(_facts(run)),
        comparison_link=link,
        losses=_losses(run, spans),
        sources=_source_charts(run, spans),
        optimisation=_optimisation(run, spans),
        router=charts.heat_map(run.routers),
        router_charts=_router_charts(run, spans),
        throughput=_throughput(run, spans),
        mfu_formula=_mfu_formula(run),
        stages=_stages(run, spans),
        heldout_stages=list(run.heldout_losses),
        heldout_losses=_heldout_losses(run),
        config=_config_sections(run.config),
        events=[_event(event) for event in run.events],
        slots=_slots(run, comparison),
        notes=list(_notes(run)),
    )


def _slots(run: RunFolder, comparison: Comparison | None) -> dict[str, int]:
    # Colours of the comparison; without one the first stage is grey, as a base is.
    columns = comparison.columns if comparison else ()
    slots = {column.name: column.slot for column in columns}
    for name in (*_stage_configs(run), *run.heldout_losses):
        slots.setdefault(name, 1 + (len(slots) - 1) % 6 if slots else 0)
    return slots


def _heldout_losses(run: RunFolder) -> dict[str, list[float | None]]:
    by_stage = run.heldout_losses.values()
    sources = dict.fromkeys(source for losses in by_stage for source in losses)
    return {
        source: [losses.get(source) for losses in by_stage]
        for source in sources
        if any(losses.get(source) is not None for losses in by_stage)
    }


def _stage_configs(run: RunFolder) -> Mapping[str, Any]:
    stages = run.config.get("stages")
    return stages if isinstance(stages, dict) else {}


def _stage_spans(run: RunFolder) -> list[tuple[str, int, int]]:
    steps: dict[str, list[int]] = {}
    for record in run.steps:
        steps.setdefault(str(record.get("stage")), []).append(record["step"])
    spans, first = [], 1
    for name, stage_steps in steps.items():
        spans.append((name, first, stage_steps[-1]))
        first = stage_steps[-1] + 1
    return spans


def _status(run: RunFolder) -> str:
    steps = sum(
        int(stage.get("num_steps", 0)) for stage in _stage_configs(run).values()
    )
    done = run.steps[-1]["step"] if run.steps else 0
    if run.events and run.events[-1].get("event") == "end":
        return "finished"
    if not done:
        return "no step logged yet"
    return f"step {done:,} of {steps:,}" if steps else f"step {done:,}"


def _facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    start, last = run.start, run.steps[-1] if run.steps else {}
    if (count := start.get("num_parameters")) is not None:
        yield "parameters", f"{count:,}"
    if (count := start.get("num_active_parameters")) is not None:
        yield "active per token", f"{count:,}"
    if (count := last.get("train/trained_tokens")) is not None:
        yield "trained tokens", f"{count:,}"
    if last:
        yield "optimizer steps", f"{last['step']:,}"
    if run.started is not None and run.ended is not None:
        yield "started", _time(run.started)
        yield "first to last record", _duration(run.ended - run.started)
    if devices := start.get("devices"):
        yield "devices", str(devices)
    if (seed := run.config.get("seed")) is not None:
        yield "seed", str(seed)
    if versions := start.get("versions"):
        yield "versions", ", ".join(f"{name} {v}" for name, v in versions.items())


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


Spans = Sequence[tuple[str, int, int]]


def _losses(run: RunFolder, spans: Spans) -> list[LineChart]:
    objective = charts.line_chart(
        [
            charts.line(run.steps, "train/cross_entropy", name="cross-entropy"),
            charts.line(run.steps, "train/loss", name="objective"),
        ],
        title="Loss (nats per trained token)",
        note="The objective adds the router and z-loss terms to the cross-entropy.",
        stages=spans,
    )
    classes = charts.line_chart(
        [
            charts.line(run.steps, f"loss/class/{name}", name=name)
            for name in TOKEN_CLASSES
        ],
        title="Cross-entropy by token class (nats)",
        note="What a token is for. A class of loss weight 0 is measured, not trained.",
        stages=spans,
        scale="from_zero",
    )
    return [chart for chart in (objective, classes) if chart]


def _source_charts(run: RunFolder, spans: Spans) -> list[LineChart]:
    prefix = "loss/source/"
    keys = dict.fromkeys(
        key for record in run.steps for key in record if key.startswith(prefix)
    )
    lines = [charts.line(run.steps, key, name=key.removeprefix(prefix)) for key in keys]
    highest = max((y for line in lines for _, y in line.points), default=1.0)
    drawn = [
        charts.line_chart([line], title=line.name, stages=spans, y_range=(0.0, highest))
        for line in lines
    ]
    return [chart for chart in drawn if chart]


def _optimisation(run: RunFolder, spans: Spans) -> list[LineChart]:
    rate = charts.line_chart(
        [charts.line(run.steps, "train/learning_rate", name="learning rate")],
        title="Learning rate",
        stages=spans,
        scale="from_zero",
    )
    norm = charts.line_chart(
        [charts.line(run.steps, "train/grad_norm", name="gradient norm")],
        title="Gradient norm before clipping",
        stages=spans,
        scale="log",
    )
    return [chart for chart in (rate, norm) if chart]


def _router_charts(run: RunFolder, spans: Spans) -> list[LineChart]:
    load = charts.line_chart(
        [charts.line(run.steps, "router/max_load", name="busiest expert")],
        title="Busiest expert of any layer (load ÷ mean load)",
        note="1 is even routing.",
        stages=spans,
    )
    losses = charts.line_chart(
        [
            charts.line(run.steps, "router/balance_loss", name="balance loss"),
            charts.line(run.steps, "router/z_loss", name="router z-loss"),
        ],
        title="Router losses before their coefficients",
        note="Even routing gives a balance loss of 1.",
        stages=spans,
        scale="from_zero",
    )
    return [chart for chart in (load, losses) if chart]


def _throughput(run: RunFolder, spans: Spans) -> list[LineChart]:
    speed = charts.line_chart(
        [charts.line(run.steps, "throughput/tokens_per_second", name="tokens/s")],
        title="Tokens per second",
        stages=spans,
        scale="from_zero",
    )
    mfu = charts.line_chart(
        [charts.line(run.steps, "throughput/mfu", name="MFU")],
        title="MFU (share of peak)",
        stages=spans,
        scale="from_zero",
    )
    wait = charts.line_chart(
        [charts.line(run.steps, "throughput/data_wait_share", name="share")],
        title="Waiting for the next batch (share of the time)",
        stages=spans,
        scale="from_zero",
    )
    return [chart for chart in (speed, mfu, wait) if chart]


def _mfu_formula(run: RunFolder) -> str:
    peak = run.start.get("peak_flops_per_second")
    if peak is None:
        return f"{MFU_FORMULA} It is absent where the peak of a device is not known."
    return f"{MFU_FORMULA} Peak here: {peak:.3g} FLOP/s per device ({PEAK_OF_CPU})."


def _stages(run: RunFolder, spans: Spans) -> list[dict[str, Any]]:
    done = {name: last - first + 1 for name, first, last in spans}
    rows = []
    for name, stage in _stage_configs(run).items():
        mixture = stage.get("mixture") or {}
        total = sum(mixture.values()) or 1
        rows.append(
            {
                "name": name,
                "num_steps": stage.get("num_steps"),
                "num_done": done.get(name, 0),
                "learning_rate": stage.get("learning_rate"),
                "mixture": [
                    (source, share / total) for source, share in mixture.items()
                ],
            }
        )
    return rows


def _config_sections(
    config: Record,
) -> list[tuple[str, list[tuple[str, str]]]]:
    scalars = [(k, json.dumps(v)) for k, v in config.items() if not isinstance(v, dict)]
    sections = [("run", scalars)] if scalars else []
    for name, section in config.items():
        if isinstance(section, dict):
            sections.append((name, list(_flatten(section))))
    return sections


def _flatten(section: Record, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _event(event: Record) -> dict[str, str]:
    known = ("kind", "event", "step", "time")
    rest = {key: value for key, value in event.items() if key not in known}
    when, step = event.get("time"), event.get("step")
    return {
        "time": _time(when) if isinstance(when, int | float) else "–",
        "event": str(event.get("event")),
        "step": f"{step:,}" if isinstance(step, int) else "–",
        "rest": ", ".join(f"{key}={value}" for key, value in rest.items()),
    }


def _notes(run: RunFolder) -> Iterator[str]:
    if run.num_unreadable_lines:
        yield (
            f"{run.num_unreadable_lines} unreadable line(s) of metrics.jsonl were left "
            "out; a process that is killed while writing leaves one behind."
        )
