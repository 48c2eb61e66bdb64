# SPDX-License-Identifier: Apache-2.0
"""Writes the report of a run: one HTML file that needs nothing from elsewhere."""

import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ring_jax.config import TOKEN_CLASSES, ConfigError
from ring_jax.report import charts, panels
from ring_jax.report.charts import HeatMap, LineChart, format_number
from ring_jax.report.page_file import write_page
from ring_jax.report.run_folder import Record, RunFolder, read_run_folder
from ring_jax.report.samples import CHANGES, Samples, join_samples

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
      ConfigError: `workdir` is no readable run folder, or `out` is no place for a file.
    """
    run = read_run_folder(workdir)
    out = out or workdir / "report.html"
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"out={out} must name a file in a folder that exists.")
    filters = {"number": format_number, "percent": _percent}
    values = {"page": _page(run)}
    return write_page("report.html.jinja", out, values, filters=filters)


@dataclasses.dataclass(frozen=True)
class Bar:
    """The scores of one panel in one group of the headline."""

    stage: str
    slot: int
    average: panels.Average


@dataclasses.dataclass(frozen=True)
class BarGroup:
    """A domain, or one level of it, before and after."""

    name: str
    num_items: int
    most_frequent: float | None
    bars: Sequence[Bar]


@dataclasses.dataclass(frozen=True)
class Headline:
    """The one number of a part of the panel, before and after."""

    name: str
    stages: tuple[str, str]
    before: panels.Average
    after: panels.Average


@dataclasses.dataclass(frozen=True)
class Page:
    """All that the template shows, in its order."""

    name: str
    status: str
    facts: Sequence[tuple[str, str]]
    headlines: Sequence[Headline]
    domains: Sequence[BarGroup]
    levels: Sequence[BarGroup]
    losses: Sequence[LineChart]
    sources: Sequence[LineChart]
    optimisation: Sequence[LineChart]
    router: HeatMap | None
    router_charts: Sequence[LineChart]
    throughput: Sequence[LineChart]
    mfu_formula: str
    stages: Sequence[Mapping[str, Any]]
    panel_stages: Sequence[str]
    table: Sequence[Mapping[str, Any]]
    samples: Samples | None
    changes: Mapping[str, str]
    config: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    events: Sequence[Mapping[str, str]]
    slots: Mapping[str, int]
    notes: Sequence[str]


def _page(run: RunFolder) -> Page:
    spans = _stage_spans(run)
    averages = {
        s: panels.domain_averages(_rows(panel)) for s, panel in run.panels.items()
    }
    levels = {s: panels.level_averages(_rows(panel)) for s, panel in run.panels.items()}
    slots = _slots(run)
    return Page(
        name=run.name,
        status=_status(run),
        facts=list(_facts(run)),
        headlines=_headline(run),
        domains=_bar_groups({s: _named(a) for s, a in averages.items()}, slots),
        levels=_bar_groups({s: _named(a) for s, a in levels.items()}, slots),
        losses=_losses(run, spans),
        sources=_source_charts(run, spans),
        optimisation=_optimisation(run, spans),
        router=charts.heat_map(run.routers),
        router_charts=_router_charts(run, spans),
        throughput=_throughput(run, spans),
        mfu_formula=_mfu_formula(run),
        stages=_stages(run, spans),
        panel_stages=list(run.panels),
        table=_table(run),
        samples=join_samples(_in_order(run.samples, run.panels)),
        changes=CHANGES,
        config=_config_sections(run.config),
        events=[_event(event) for event in run.events],
        slots=slots,
        notes=list(_notes(run)),
    )


def _rows(panel: Record) -> list[Record]:
    return [row for row in panel.get("rows") or [] if isinstance(row, dict)]


def _slots(run: RunFolder) -> dict[str, int]:
    # The start model is grey, which is slot 0; stages take the colours after it.
    names = dict.fromkeys([*run.panels, *_stage_configs(run), *run.samples])
    names.pop("base", None)
    return {"base": 0} | {name: 1 + i % 6 for i, name in enumerate(names)}


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


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


Averages = Mapping[str, panels.Average]


def _headline(run: RunFolder) -> list[Headline]:
    if not run.panels:
        return []
    stages = list(run.panels)
    first = "base" if "base" in run.panels else stages[0]
    before, after = _rows(run.panels[first]), _rows(run.panels[stages[-1]])
    parts = (
        ("reasoning", panels.reasoning_average),
        ("everything else", panels.general_average),
    )
    headlines = [
        Headline(name, (first, stages[-1]), average(before), average(after))
        for name, average in parts
    ]
    return [line for line in headlines if line.after.accuracy is not None]


def _named(averages: Mapping[Any, panels.Average]) -> Averages:
    return {
        key if isinstance(key, str) else ", ".join(key): value
        for key, value in averages.items()
        if value.accuracy is not None
    }


def _bar_groups(
    averages: Mapping[str, Averages], slots: Mapping[str, int]
) -> list[BarGroup]:
    names = dict.fromkeys(name for groups in averages.values() for name in groups)
    return [_bar_group(name, averages, slots) for name in names]


def _bar_group(
    name: str, averages: Mapping[str, Averages], slots: Mapping[str, int]
) -> BarGroup:
    bars = [
        Bar(stage, slots[stage], groups[name])
        for stage, groups in averages.items()
        if name in groups
    ]
    newest = bars[-1].average
    return BarGroup(name, newest.num_items, newest.most_frequent, bars)


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


def _table(run: RunFolder) -> list[dict[str, Any]]:
    rows: dict[tuple, dict[str, Any]] = {}
    for stage, panel in run.panels.items():
        for row in _rows(panel):
            key = (row.get("source"), row.get("task"), row.get("level"))
            entry = rows.setdefault(key, {"row": row, "stages": {}})
            entry["stages"][stage] = row
    return sorted(rows.values(), key=_table_order)


def _table_order(entry: Mapping[str, Any]) -> tuple[bool, str]:
    domain = str(entry["row"].get("domain"))
    return domain != panels.REASONING, domain


def _in_order[Value](
    by_stage: Mapping[str, Value], order: Mapping[str, Any]
) -> dict[str, Value]:
    ranks = {stage: rank for rank, stage in enumerate(order)}
    known = sorted(by_stage, key=lambda stage: ranks.get(stage, len(ranks)))
    return {stage: by_stage[stage] for stage in known}


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
