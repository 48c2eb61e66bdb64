# SPDX-License-Identifier: Apache-2.0
"""Published evaluation sets, read from files that you have: rows that can be graded."""

import csv
import dataclasses
import gzip
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.data import evaluation_columns as columns
from ring_jax.data.evaluation_columns import Item
from ring_jax.data.schema import Message, Row

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz")

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class FileSet:
    """What a set's files are called, and how a record of them asks."""

    files: str
    """As published; told where they are missing."""
    page: str
    """Where they and their columns are described."""
    licence: str
    """SPDX identifier of the published set; NOASSERTION where its page names none."""
    domain: str
    """As in `Row`."""
    fields: str
    """The columns that are read."""
    read: Callable[[Record, str], Item]
    """A record and its file's name without ending -> what is asked."""


def read(name: str, path: str) -> list[Row]:
    """Reads a set from a file, or from all files of a folder, in the order of names.

    Args:
      name: one of `FILE_SETS`.
      path: a file, or a folder that holds the set's files and nothing else; their
        endings are those of `SUFFIXES`.

    Returns:
      Rows whose last turn is the gold answer, or `NO_REPLY` where none is published.

    Raises:
      ConfigError: the set is unknown; there is no such file, where the line says which
        file to put there; or a record is not of the published format.
    """
    if name not in FILE_SETS:
        raise ConfigError(f"evaluation set {name!r} must be one of {list(FILE_SETS)}.")
    known = FILE_SETS[name]
    files = _files(name, pathlib.Path(path))
    rows = [row for file in files for row in _rows(name, file)]
    if not rows:
        raise ConfigError(
            f"evaluation set {name}: {path} holds no items; it must hold {known.files} "
            f"of {known.page}."
        )
    return rows


def _files(name: str, path: pathlib.Path) -> Sequence[pathlib.Path]:
    known = FILE_SETS[name]
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [file for file in inside if file.is_file() and file.name.endswith(SUFFIXES)]
    if not found:
        raise ConfigError(
            f"evaluation set {name}: {path} is no file ending in {'/'.join(SUFFIXES)} "
            f"and no folder of such; download {known.files} from {known.page} and put "
            f"it there (columns: {known.fields})."
        )
    return found


def _rows(name: str, file: pathlib.Path) -> Iterator[Row]:
    known, stem = FILE_SETS[name], file.name.partition(".")[0]
    place = 1
    try:
        for record in _records(file):
            item = known.read(record, stem)
            yield _row(name, f"{name}/{item.id or f'{stem}/{place - 1}'}", file, item)
            place += 1
    except ConfigError:
        raise
    except (
        OSError,
        EOFError,
        csv.Error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ConfigError(
            f"evaluation set {name}: {file.name}, record {place}, is not of the "
            f"published format ({type(error).__name__}: {str(error)[:200]}); it must "
            f"have {known.fields}, as {known.files} of {known.page}."
        ) from None


def _row(name: str, row_id: str, file: pathlib.Path, item: Item) -> Row:
    reply = Message("assistant", item.reply)
    return Row(
        id=row_id,
        messages=(*item.messages, reply),
        source=name,
        domain=FILE_SETS[name].domain,
        task=item.task,
        level=item.level,
        licence=FILE_SETS[name].licence,
        package=file.name,
        difficulty=item.difficulty,
        answer=item.answer,
        verifier=item.verifier,
        metadata=item.metadata,
    )


def _records(file: pathlib.Path) -> Iterator[Record]:
    if file.name.endswith(".parquet"):
        yield from _parquet().read_table(file).to_pylist()
        return
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8-sig", newline="") as text:
        if file.suffix == ".csv":
            yield from _table(text)
        elif file.suffix == ".json":
            whole = json.load(text)
            yield from whole.values() if isinstance(whole, dict) else whole
        else:
            yield from (json.loads(line) for line in text if line.strip())


def _table(text: Any) -> Iterator[Record]:
    csv.field_size_limit(1 << 30)
    lines = csv.reader(text)
    first = next(lines, [])
    # MMLU's own files have no line of names: question, four choices, letter.
    if len(first) == 6 and first[-1] in columns.LETTERS:
        names = ["question", "A", "B", "C", "D", "answer"]
        yield dict(zip(names, first, strict=True))
    else:
        names = first
    for line in lines:
        yield dict(zip(names, line, strict=True))


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(
            "evaluation set: pyarrow is missing; run pip install 'ring-jax[curate]'."
        ) from None
    return pyarrow.parquet


_HUB = "https://huggingface.co/datasets/"

FILE_SETS: Mapping[str, FileSet] = {
    "math500": FileSet(
        files="test.jsonl",
        page=_HUB + "HuggingFaceH4/MATH-500",
        licence="MIT",
        domain="reasoning",
        fields="problem, answer, subject, level, unique_id",
        read=columns.math500,
    ),
    "gsm8k": FileSet(
        files="test.jsonl",
        page=_HUB + "openai/gsm8k",
        licence="MIT",
        domain="reasoning",
        fields="question, answer (ends in #### and the number)",
        read=columns.gsm8k,
    ),
    "gpqa": FileSet(
        files="gpqa_diamond.csv",
        page=_HUB + "Idavidrein/gpqa",
        licence="CC-BY-4.0",
        domain="reasoning",
        fields="Question, Correct Answer, Incorrect Answer 1 to 3, Subdomain",
        read=columns.gpqa,
    ),
    "livecodebench": FileSet(
        files="test.jsonl, test2.jsonl, ...",
        page=_HUB + "livecodebench/code_generation_lite",
        licence="NOASSERTION",
        domain="code",
        fields="question_content, question_id, starter_code, difficulty, contest_date, "
        "public_test_cases, private_test_cases, metadata",
        read=columns.livecodebench,
    ),
    "olympiadbench": FileSet(
        files="OE_TO_maths_en_COMP (674 items)",
        page=_HUB + "Hothan/OlympiadBench",
        licence="Apache-2.0",
        domain="reasoning",
        fields="id, question, context, final_answer, answer_type, unit, error",
        read=columns.olympiadbench,
    ),
    "mathbench": FileSet(
        files="college/single_choice_en.jsonl, primary/cloze_en.jsonl, ...",
        page="https://github.com/open-compass/MathBench",
        licence="Apache-2.0",
        domain="reasoning",
        fields="question, answer, and options where a letter is the answer",
        read=columns.mathbench,
    ),
    "gaokao2023en": FileSet(
        files="Gaokao2023-Math-En.jsonl",
        page=_HUB + "MARIO-Math-Reasoning/Gaokao2023-Math-En",
        licence="MIT",
        domain="reasoning",
        fields="question, answer",
        read=columns.gaokao2023en,
    ),
    "ifeval": FileSet(
        files="ifeval_input_data.jsonl",
        page=_HUB + "google/IFEval",
        licence="Apache-2.0",
        domain="instruction",
        fields="key, prompt, instruction_id_list, kwargs",
        read=columns.ifeval,
    ),
    "teval": FileSet(
        files="instruct_v2.json, retrieve_str_v2.json, review_str_v2.json",
        page=_HUB + "lovesnowbest/T-Eval",
        licence="Apache-2.0",
        domain="tool",
        fields="origin_prompt, ground_truth, template, meta_data",
        read=columns.teval,
    ),
    "mmlu": FileSet(
        files="the folder test (abstract_algebra_test.csv, ...), or all/test-*.parquet",
        page=_HUB + "cais/mmlu",
        licence="MIT",
        domain="knowledge",
        fields="question, choices, answer, subject; or six columns without names",
        read=columns.mmlu,
    ),
    "ceval": FileSet(
        files="the folder val (accountant_val.csv, ...; test has no answers)",
        page=_HUB + "ceval/ceval-exam",
        licence="CC-BY-NC-SA-4.0",
        domain="knowledge",
        fields="question, A, B, C, D, answer",
        read=columns.ceval,
    ),
}
"""Name -> its published files."""
