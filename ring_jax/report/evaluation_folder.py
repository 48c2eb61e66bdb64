# SPDX-License-Identifier: Apache-2.0
"""Reads finished evaluations: the scores of a model by suite, and its graded outputs.

An evaluation is a folder `<run>/evaluation/<label>/` with `scores.json` and a file
`<suite>.jsonl` of graded outputs for each suite, one record per item and sample.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.report.run_folder import Record

GROUPS = ("reasoning", "general")
"""What training is to improve, and what it is to keep."""

STATUSES = ("done", "partial", "refused")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """What one model scored in one suite; None where nothing was measured."""

    name: str
    group: str
    """One of `GROUPS`."""
    capability: str
    metric: str
    score: float | None
    """Share of what is right, 0 to 1; None for a refused suite."""
    low: float | None
    """Lower end of the 95 % interval of the score."""
    high: float | None
    num_items: int
    num_samples: int
    """Samples of each item."""
    by_difficulty: Mapping[str, tuple[float, int]]
    """Level -> score and number of items."""
    chance: float | None
    """What guessing scores."""
    truncated_share: float | None
    malformed_share: float | None
    mean_think_tokens: float | None
    mean_tokens: float | None
    status: str
    """One of `STATUSES`."""
    reason: str
    """Why a suite is partial or refused."""


@dataclasses.dataclass
class ItemGrade:
    """The samples of one item."""

    num_right: int = 0
    num_samples: int = 0

    @property
    def is_right(self) -> bool:
        """Whether more than half of the samples are right."""
        return 2 * self.num_right > self.num_samples

    def score(self, metric: str) -> Fraction:
        """Returns whether any sample is right for `pass@k`, else the right share."""
        if metric.startswith("pass"):
            return Fraction(self.num_right > 0)
        return Fraction(self.num_right, self.num_samples)


@dataclasses.dataclass(frozen=True)
class SuiteRecords:
    """What the graded outputs of one suite say, without their texts."""

    grades: Mapping[str, ItemGrade]
    think_tokens: Sequence[int]
    """Thinking of each output, in tokens."""
    tag_errors: Mapping[str, int]
    """Kind of a paired-tag error -> outputs that have it."""
    num_outputs: int
    num_cut_off: int
    """Outputs that reached the limit of tokens."""
    num_unreadable: int
    """Lines that are no graded record; they count nowhere."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's evaluation."""

    label: str
    model: str
    date: str
    folder: Path
    suites: Mapping[str, Suite]
    records: Mapping[str, SuiteRecords]
    """Of the suites whose outputs are in the folder."""


def find_evaluations(folders: Sequence[Path]) -> list[Path]:
    """Lists evaluation folders; a run folder stands for all of its evaluations.

    The evaluations of a run come in the order `base`, stages as in its config, others
    by their date.

    Raises:
      ConfigError: a folder is missing or holds no evaluation.
    """
    return [found for folder in folders for found in _evaluations_of(folder)]


def stage_evaluations(run: Path) -> list[Path]:
    """Lists the evaluations of `base` and of a run's stages that have scores."""
    names = dict.fromkeys(("base", *_stage_names(run / "config.json")))
    folders = [run / "evaluation" / name for name in names]
    return [folder for folder in folders if (folder / "scores.json").is_file()]


def _evaluations_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name an evaluation or a run folder.")
    if (folder / "scores.json").is_file():
        return [folder]
    inner = folder / "evaluation"
    found = [path.parent for path in inner.glob("*/scores.json")]
    if not found:
        raise ConfigError(
            f"{folder} has no scores.json and no evaluation/*/scores.json; name a "
            "folder that `ring evaluate` has written, or a run folder with some."
        )
    stages = _stage_names(folder / "config.json")
    return sorted(found, key=lambda path: _order_in_run(path, stages))


def _stage_names(config_path: Path) -> list[str]:
    if not config_path.is_file():
        return []
    stages = _read_object(config_path).get("stages")
    return list(stages) if isinstance(stages, dict) else []


def _order_in_run(path: Path, stages: Sequence[str]) -> tuple[bool, int, str, str]:
    rank = stages.index(path.name) if path.name in stages else len(stages)
    date = str(_read_object(path / "scores.json").get("date"))
    return path.name != "base", rank, date, path.name


def read_evaluation(folder: Path) -> Evaluation:
    """Reads `scores.json` and the grades of all outputs.

    Raises:
      ConfigError: `scores.json` is missing, no JSON object, or holds a value that
        cannot be; the line names the suite and the field.
    """
    path = folder / "scores.json"
    scores = _read_object(path)
    suites = scores.get("suites")
    if not isinstance(suites, dict) or not suites:
        raise ConfigError(f"{path}: suites={suites!r} names no suite; evaluate again.")
    read = {name: _suite(path, name, suite) for name, suite in suites.items()}
    records = {
        name: _suite_records(folder, name)
        for name in read
        if _records_path(folder, name).is_file()
    }
    return Evaluation(
        label=str(scores.get("label") or folder.name),
        model=str(scores.get("model") or "not named"),
        date=str(scores.get("date") or "no date"),
        folder=folder,
        suites=read,
        records=records,
    )


def read_records(folder: Path, suite: str) -> Iterator[Record]:
    """Yields the graded outputs of a suite, in the order of the file.

    Of several records of an item and sample the last one counts: an evaluation that
    goes on appends to what an earlier start has written.
    """
    path = _records_path(folder, suite)
    counted = set(_last_lines(path).values())
    for number, record in enumerate(_lines(path)):
        if record is not None and number in counted and _has_verdict(record):
            yield record


def _last_lines(path: Path) -> dict[tuple[str, Any], int]:
    return {
        (str(record["id"]), record.get("sample")): number
        for number, record in enumerate(_lines(path))
        if record is not None
    }


def _has_verdict(record: Record) -> bool:
    # Without an outcome `is_correct` is the verdict; others wait for a second start.
    return record.get("outcome", "right") in ("right", "wrong")


def _records_path(folder: Path, suite: str) -> Path:
    return folder / f"{suite}.jsonl"


def _read_object(path: Path) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no JSON object; write it again.")
    return value


def _suite(path: Path, name: str, suite: Any) -> Suite:
    where = f"{path}: suite {name}"
    if not isinstance(suite, dict) or Path(name).name != name:
        raise ConfigError(f"{where} is no named table of scores; evaluate again.")
    status = _one_of(where, suite, "status", STATUSES)
    score = _share(where, suite, "score")
    num_items = int(_number(where, suite, "num_items") or 0)
    is_without_items = score is not None and not num_items
    if status != "refused" and (is_without_items or (status, score) == ("done", None)):
        raise ConfigError(
            f"{where}: status={status} with score={score} of num_items={num_items}; "
            "a score needs its items, and a suite that is done a score."
        )
    return Suite(
        name=name,
        group=_one_of(where, suite, "group", GROUPS),
        capability=str(suite.get("capability") or "other"),
        metric=str(suite.get("metric") or "not named"),
        score=None if status == "refused" else score,
        low=_share(where, suite, "low"),
        high=_share(where, suite, "high"),
        num_items=num_items,
        num_samples=int(_number(where, suite, "num_samples") or 1),
        by_difficulty=dict(_levels(where, suite.get("by_difficulty") or {})),
        chance=_share(where, suite, "chance"),
        truncated_share=_share(where, suite, "truncated_share"),
        malformed_share=_share(where, suite, "malformed_share"),
        mean_think_tokens=_number(where, suite, "mean_think_tokens"),
        mean_tokens=_number(where, suite, "mean_tokens"),
        status=status,
        reason=str(suite.get("reason") or ""),
    )


def _levels(where: str, levels: Any) -> Iterator[tuple[str, tuple[float, int]]]:
    if not isinstance(levels, dict):
        raise ConfigError(f"{where}: by_difficulty={levels!r} is no table of levels.")
    for level, values in levels.items():
        of_level = f"{where}, level {level}"
        if not isinstance(values, dict):
            raise ConfigError(f"{of_level}: {values!r} is no score and num_items.")
        score = _share(of_level, values, "score")
        num_items = int(_number(of_level, values, "num_items") or 0)
        if score is not None and num_items:
            yield str(level), (score, num_items)


def _one_of(where: str, suite: Record, key: str, allowed: Sequence[str]) -> str:
    value = suite.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{where}: {key}={value!r} is none of {', '.join(allowed)}.")
    return value


def _number(where: str, suite: Record, key: str) -> float | None:
    value = suite.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{where}: {key}={value!r} is no number from 0 on.")
    return float(value)


def _share(where: str, suite: Record, key: str) -> float | None:
    value = _number(where, suite, key)
    if value is not None and value > 1:
        raise ConfigError(f"{where}: {key}={value:g} is no share from 0 to 1.")
    return value


def _lines(path: Path) -> Iterator[Record | None]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                yield _graded(line)


def _graded(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or "id" not in record:
        return None
    is_graded = isinstance(record.get("is_correct"), bool)
    is_sample = isinstance(record.get("sample", 0), int)
    return record if is_graded and is_sample else None


def _suite_records(folder: Path, suite: str) -> SuiteRecords:
    grades: dict[str, ItemGrade] = {}
    think_tokens: list[int] = []
    tag_errors: dict[str, int] = {}
    num_outputs = num_cut_off = 0
    for record in read_records(folder, suite):
        num_outputs += 1
        num_cut_off += record.get("stop_reason") == "length"
        grade = grades.setdefault(str(record["id"]), ItemGrade())
        grade.num_right += record["is_correct"]
        grade.num_samples += 1
        if isinstance(count := record.get("num_think_tokens"), int):
            think_tokens.append(count)
        if record.get("is_well_formed") is False:
            kind = tag_error(str(record.get("output") or ""))
            tag_errors[kind] = tag_errors.get(kind, 0) + 1
    lines = _lines(_records_path(folder, suite))
    return SuiteRecords(
        grades=grades,
        think_tokens=think_tokens,
        tag_errors=tag_errors,
        num_outputs=num_outputs,
        num_cut_off=num_cut_off,
        num_unreadable=sum(record is None for record in lines),
    )


def tag_error(output: str) -> str:
    """Names what is wrong with the <think> tags of an output that is not well-formed.

    Source: the paired-tag errors that arXiv:2504.07158 counts.
    """
    opened, closed = output.count("<think>"), output.count("</think>")
    if not opened and not closed:
        return "no tags"
    if opened > closed:
        return "opened, never closed"
    if closed > opened:
        return "closed, never opened" if closed == 1 else "closed more than once"
    return "more than one pair" if opened > 1 else "out of place"
