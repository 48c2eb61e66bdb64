# SPDX-License-Identifier: Apache-2.0
"""`ring inspect --data` in a terminal: coloured rows, then what a run makes of them."""

import rich.box
import rich.console
import rich.table
import rich.text

from ring_jax.cli.data_view import CLASSES, DataView

STYLES = {
    "prompt": "blue",
    "think": "yellow",
    "answer": "green",
    "tool": "cyan",
    "stop": "magenta",
}
"""Colour of a class; a class that is not trained is dim, one that weighs more, bold."""


def print_data(view: DataView, console: rich.console.Console) -> None:
    """Prints rows with each token class in its colour, then sources and stages."""
    console.print(_legend(view))
    for row in view.rows:
        # Soft: a pipe gets the lines of the text, not of a terminal's width.
        console.print(rich.text.Text(row.description, "bold"), soft_wrap=True)
        text = rich.text.Text()
        for span in row.spans:
            text.append(span.text, style(span.token_class, span.weight))
        console.print(text, soft_wrap=True, end="\n\n")
    console.print(_sources(view))
    console.print(_classes(view))
    for stage in view.stages:
        console.print(_shares(view, stage))
    settings = view.settings
    told = f"template {settings['template']}; the tokenizer's own: "
    console.print(told + settings["chat_template"], soft_wrap=True, highlight=False)
    verdict = f"refuses: {view.gate}" if view.gate else "lets this run pass"
    colour = "bold red" if view.gate else "green"
    console.print(rich.text.Text(f"the start gate {verdict}", colour), soft_wrap=True)


def style(token_class: str, weight: float) -> str:
    """Returns the style of a class at a loss weight."""
    if not weight:
        return f"dim {STYLES[token_class]}"
    return f"bold {STYLES[token_class]}" if weight > 1 else STYLES[token_class]


def _legend(view: DataView) -> rich.text.Text:
    legend = rich.text.Text()
    # Stages of equal weights share a line.
    lines: dict[tuple, list[str]] = {}
    for stage, weights in view.weights.items():
        lines.setdefault(tuple(weights.items()), []).append(stage)
    for weights, stages in lines.items():
        legend.append(f"loss weights of {', '.join(stages)}:")
        for name, weight in weights:
            legend.append(f"  {name} {weight:g}", style(name, weight))
        legend.append("\n")
    return legend


def _sources(view: DataView) -> rich.table.Table:
    table = _table(
        "source", "rows", "left out", "of tokens", "moved", "split", "trained on"
    )
    for name, source in view.sources.items():
        lost = source["tokens_left_out"] / max(1, source["tokens"])
        split = f"{source['rows_split']:,}"
        if source["rows_split"]:
            split += f" into {source['parts']:,}"
        table.add_row(
            name,
            f"{source['rows']:,}",
            f"{source['rows_left_out']:,}",
            _percent(lost),
            f"{source['rows_moved']:,}",
            split,
            f"{source['trainable_rows']:,}",
        )
    return table


def _classes(view: DataView) -> rich.table.Table:
    table = _table("tokens of", *CLASSES)
    for name, source in view.sources.items():
        by_class = source["tokens_by_class"]
        table.add_row(name, *(f"{by_class[label]:,}" for label in CLASSES))
    return table


def _shares(view: DataView, stage: str) -> rich.table.Table:
    table = _table(
        stage, "planned", "trained tokens", "count", "of its own", "rows", "epochs"
    )
    for name, source in view.stages[stage].items():
        table.add_row(
            name,
            _percent(source["planned_share"]),
            _percent(source["share"]),
            f"{source['trained_tokens']:,}",
            _percent(source["trained_part"]),
            f"{source['rows']:,}",
            f"{source['epochs']:.2f}",
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(*headers: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        justify = "right" if number else "left"
        table.add_column(header, overflow="fold", justify=justify)
    return table
