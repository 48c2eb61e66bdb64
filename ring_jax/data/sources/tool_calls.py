# SPDX-License-Identifier: Apache-2.0
"""Function calls over the schemas of the Berkeley Function-Calling Leaderboard.

The package bfcl-eval pins libraries that cannot live beside ours, so it is installed
without its dependencies and its data files are read, never its code.

Levels: `easy` names the function and its values, `medium` describes the function and
offers two, `hard` is the benchmark's own request. Values of easy and medium are drawn
anew; held-out rows are calls that are never trained.

Source: bfcl_eval/data/BFCL_v4_simple_python.json and possible_answer/ of the same name.
"""

import collections
import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import Message, Row, ToolCall
from ring_jax.data.sources import packages
from ring_jax.data.sources.split import SourceRows, is_heldout

DATA_FILE = "BFCL_v4_simple_python.json"
NUM_FUNCTIONS = 40
"""Functions of the levels easy and medium: those with the shortest names."""
MAX_DRAWS_PER_ROW = 30
DIFFICULTY = {"easy": 0.0, "medium": 0.5, "hard": 1.0}
WORDINGS = (
    "Call {name} with {values}.",
    "Run {name} with {values}.",
    "Use {name}: {values}.",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """A schema, trimmed to what fits a small model's context."""

    name: str
    description: str
    types: Mapping[str, str]
    """Parameter -> type, required ones only."""

    def signature(self) -> str:
        """Writes the schema in one line."""
        parameters = ", ".join(f"{name}: {kind}" for name, kind in self.types.items())
        return f"{self.name}({parameters})"


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A question of the benchmark with its accepted calls."""

    function: Function
    question: str
    accepted: Mapping[str, Sequence[Any]]
    """Parameter -> accepted values; an empty string among them makes it optional."""


def read_tool_calls(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Reads or draws function calls of `config.level` (easy when empty)."""
    package = packages.installed("bfcl-eval", licence="Apache-2.0")
    origin = {"source": name, **dataclasses.asdict(package)}
    level = config.level or "easy"
    requests = _requests()
    order = random.Random(f"{seed}/{name}/{level}")
    if level == "hard":
        rows = [_benchmark_row(request, origin) for request in requests]
        order.shuffle(rows)
    else:
        rows = _drawn_rows(requests, config, level=level, order=order, origin=origin)
    train = [row for row in rows if not is_heldout(row.metadata["item"])]
    heldout = {
        row.metadata["item"]: row for row in rows if is_heldout(row.metadata["item"])
    }
    return SourceRows(
        train[: config.num_rows], list(heldout.values())[: config.num_heldout]
    )


def _requests() -> list[Request]:
    folder = packages.data_folder("bfcl_eval", "data")
    answers = {
        line["id"]: line["ground_truth"]
        for line in _read_lines(folder / "possible_answer" / DATA_FILE)
    }
    requests = []
    for line in _read_lines(folder / DATA_FILE):
        schema = line["function"][0]
        parameters = schema["parameters"]
        types = {p: parameters["properties"][p]["type"] for p in parameters["required"]}
        ((_, accepted),) = answers[line["id"]][0].items()
        function = Function(schema["name"], schema["description"], types)
        requests.append(Request(function, line["question"][0][0]["content"], accepted))
    return requests


def _read_lines(path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(
            f"data: {path.name} is missing from bfcl-eval; run "
            f"{packages.WITHOUT_DEPENDENCIES['bfcl-eval']}."
        ) from None
    return [json.loads(line) for line in lines]


def _benchmark_row(request: Request, origin: Mapping[str, Any]) -> Row:
    arguments = {
        parameter: _value_of(options[0])
        for parameter, options in request.accepted.items()
        if options and options[0] != ""
    }
    return _row(
        [request.function],
        question=request.question,
        call=ToolCall(request.function.name, arguments),
        accepted=request.accepted,
        level="hard",
        origin=origin,
    )


def _value_of(option: Any) -> Any:
    if isinstance(option, Mapping):  # an object's own fields list accepted values
        return {name: _value_of(options[0]) for name, options in option.items()}
    return [_value_of(item) for item in option] if isinstance(option, list) else option


def _drawn_rows(
    requests: Sequence[Request],
    config: SourceConfig,
    *,
    level: str,
    order: random.Random,
    origin: Mapping[str, Any],
) -> list[Row]:
    values = _known_values(requests)
    functions = _simple_functions(requests, values)
    rows, seen = [], set()
    num_wanted = config.num_rows * 8 // 7 + config.num_heldout * 8
    for _ in range(MAX_DRAWS_PER_ROW * num_wanted):
        if len(rows) == num_wanted:
            break
        row = _drawn_row(functions, values, level=level, order=order, origin=origin)
        if row.id not in seen:
            seen.add(row.id)
            rows.append(row)
    return rows


def _drawn_row(
    functions: Sequence[Function],
    values: Mapping[str, Sequence[str]],
    *,
    level: str,
    order: random.Random,
    origin: Mapping[str, Any],
) -> Row:
    function, other = order.sample(functions, 2)
    arguments: dict[str, Any] = {
        parameter: order.randint(1, 99)
        if kind == "integer"
        else order.choice(values[parameter])
        for parameter, kind in function.types.items()
    }
    said = " and ".join(f"{name} {value}" for name, value in arguments.items())
    offered = [function]
    if level == "medium":
        offered = order.sample([function, other], 2)
        question = f"{function.description} Values: {said}."
    else:
        question = order.choice(WORDINGS).format(name=function.name, values=said)
    return _row(
        offered,
        question=question,
        call=ToolCall(function.name, arguments),
        accepted={name: [value] for name, value in arguments.items()},
        level=level,
        origin=origin,
    )


def _known_values(requests: Sequence[Request]) -> dict[str, list[str]]:
    """Collects the one-word values that the benchmark accepts, by parameter name."""
    values = collections.defaultdict(set)
    for request in requests:
        for parameter, accepted in request.accepted.items():
            values[parameter] |= {v for v in accepted if _is_word(v)}
    return {parameter: sorted(words) for parameter, words in values.items()}


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isalpha() and 2 < len(value) < 12


def _simple_functions(
    requests: Sequence[Request], values: Mapping[str, Sequence[str]]
) -> list[Function]:
    functions = {}
    for request in requests:
        types = request.function.types
        is_drawable = all(
            kind == "integer" or (kind == "string" and len(values.get(name, ())) > 3)
            for name, kind in types.items()
        )
        if is_drawable and 1 <= len(types) <= 2:
            functions.setdefault(request.function.name, request.function)
    by_length = sorted(functions.values(), key=_name_length)
    return by_length[:NUM_FUNCTIONS]


def _name_length(function: Function) -> tuple[int, str]:
    return len(function.name), function.name


def _row(
    functions: Sequence[Function],
    *,
    question: str,
    call: ToolCall,
    accepted: Mapping[str, Sequence[Any]],
    level: str,
    origin: Mapping[str, Any],
) -> Row:
    tools = "; ".join(function.signature() for function in functions)
    # The call, not the wording, is the item: a held-out call is not trained in any.
    item = call.to_json() if level != "hard" else question
    return Row(
        id=f"{origin['source']}/{level}/{tools}/{question}",
        messages=(
            Message("system", f"Tools: {tools}"),
            Message("user", question),
            Message("assistant", "", tool_calls=(call,)),
        ),
        domain="tool",
        task="call",
        level=level,
        difficulty=DIFFICULTY[level],
        answer=call.to_json(),
        verifier="tool_call",
        metadata={"item": item, "accepted": [{call.name: dict(accepted)}]},
        **origin,
    )
