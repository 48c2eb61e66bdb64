# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets of packages as rows with gold answers, for `ring evaluate` alone.

A row asks as its benchmark does, without instructions about the form of the answer:
those belong to a suite. The reply is a gold one, where the benchmark has any.
"""

import gzip
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.data.evaluation_sets import PACKAGED, check_name
from ring_jax.data.schema import Message, Row, ToolCall
from ring_jax.data.sources import packages

NO_GOLD = "..."
"""The reply of rows that nobody answered."""
BFCL_KINDS = ("simple_python", "multiple", "parallel", "parallel_multiple")
BFCL_LIVE_KINDS = (
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
)
"""Categories that are graded by comparing calls; the others run programs or models."""
_TOOLS = (
    "You can call these functions, a JSON schema a line:\n{tools}\n\n"
    "Reply with the calls that answer the user and nothing else, each as\n"
    '<tool_call>{{"name": NAME, "arguments": OBJECT}}</tool_call>'
)


def read_rows(name: str) -> list[Row]:
    """Reads a packaged set as rows.

    Args:
      name: one of `PACKAGED`, or `bfcl_live` for BFCL's categories of real users.

    Raises:
      ConfigError: there is no such set, its package is missing, or a record has
        another form than it had in the version that was looked at.
    """
    family = "bfcl" if name in _BFCL else name
    check_name(family)
    known = PACKAGED[family]
    distribution = packages.find_distribution(known.package)
    version = known.version if distribution is None else distribution.version
    origin: dict[str, Any] = {
        "source": name,
        "licence": known.licence,
        "package": f"{known.package}=={version}",
    }
    try:
        if name in _BFCL:
            return list(_calls(_BFCL[name], origin))
        paths = packages.data_files(known.package, known.files, version=known.version)
        records = [record for path in paths for record in _records(path)]
        return [row for record in records for row in _READERS[name](record, origin)]
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"evaluation set {name}: {known.package} {version} cannot be read "
            f"({error!r}); install {known.package}=={known.version}."
        ) from None


def _records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, filter(str.strip, lines))


def _contest(record: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[Row]:
    subsets = {"aime24": "aime24", "aime25": "aime25", "hmmt": "hmmt-24-25"}
    if record["subset_for_metrics"] != subsets[origin["source"]]:
        return
    answer = str(record["expected_answer"])
    yield Row(
        id=record["id"],
        messages=(
            Message("user", record["question"]),
            Message("assistant", f"\\boxed{{{answer}}}"),
        ),
        domain="reasoning",
        answer=answer,
        verifier="math",
        **origin,
    )


def _program(record: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[Row]:
    prompt = record["prompt"]
    solution = f"```python\n{prompt}{record['canonical_solution']}```"
    yield Row(
        id=record["task_id"],
        messages=(Message("user", prompt), Message("assistant", solution)),
        domain="code",
        verifier="program",
        metadata={
            "check": record["test"],
            "function": record["entry_point"],
            # Its imports and helpers; what it begins is defined again by the reply.
            "preamble": prompt,
        },
        **origin,
    )


def _instruction(record: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[Row]:
    kwargs = [
        {name: value for name, value in of_one.items() if value is not None}
        for of_one in record["kwargs"]
    ]
    yield Row(
        id=str(record["key"]),
        messages=(Message("user", record["prompt"]), Message("assistant", NO_GOLD)),
        domain="instruction",
        verifier="ifbench_loose",  # the score that the benchmark's authors report
        metadata={
            "instruction_id_list": list(record["instruction_id_list"]),
            "kwargs": kwargs,
            "prompt": record["prompt"],
        },
        **origin,
    )


_READERS: Mapping[
    str, Callable[[Mapping[str, Any], Mapping[str, Any]], Iterator[Row]]
] = {
    "aime24": _contest,
    "aime25": _contest,
    "hmmt": _contest,
    "humaneval": _program,
    "ifbench": _instruction,
}
_BFCL = {"bfcl": BFCL_KINDS, "bfcl_live": BFCL_LIVE_KINDS}


def _calls(kinds: Sequence[str], origin: Mapping[str, Any]) -> Iterator[Row]:
    known = PACKAGED["bfcl"]
    for kind in kinds:
        names = [
            f"bfcl_eval/data/{folder}BFCL_v4_{kind}.json"
            for folder in ("", "possible_answer/")
        ]
        questions, answers = packages.data_files(
            known.package, names, version=known.version
        )
        accepted = {
            record["id"]: record["ground_truth"] for record in _records(answers)
        }
        for record in _records(questions):
            yield _call(record, accepted[record["id"]], kind, origin)


def _call(
    record: Mapping[str, Any],
    accepted: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]],
    kind: str,
    origin: Mapping[str, Any],
) -> Row:
    tools = "\n".join(json.dumps(tool) for tool in record["function"])
    system = Message("system", _TOOLS.format(tools=tools))
    (turns,) = record["question"]
    asked = [Message(turn["role"], turn["content"]) for turn in turns]
    calls = [
        {name: _listed(parameters) for name, parameters in call.items()}
        for call in accepted
    ]
    gold = [
        ToolCall(name, _first_values(parameters))
        for call in calls
        for name, parameters in call.items()
    ]
    return Row(
        id=record["id"],
        messages=(system, *asked, Message("assistant", "", tool_calls=tuple(gold))),
        domain="tool",
        task=kind,
        verifier="tool_call",
        metadata={"accepted": calls},
        **origin,
    )


def _listed(parameters: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Lists the accepted values of each parameter; a few objects hold one plain value.

    Where two items accept nothing for a parameter, it is one that may be left out.
    """
    return {
        name: [
            _listed(option) if isinstance(option, Mapping) else option
            for option in (options or [""] if isinstance(options, list) else [options])
        ]
        for name, options in parameters.items()
    }


def _first_values(parameters: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Takes the first accepted value of each parameter; one of "" may be left out."""
    return {
        name: _value(options[0])
        for name, options in parameters.items()
        if options and "" not in options
    }


def _value(option: Any) -> Any:
    if isinstance(option, Mapping):  # an object's own fields list accepted values
        return _first_values(option)
    return [_value(item) for item in option] if isinstance(option, list) else option
