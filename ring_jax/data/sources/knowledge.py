# SPDX-License-Identifier: Apache-2.0
"""Facts asked in several wordings: countries (countryinfo), elements (periodictable).

Held-out rows ask facts that are trained, in wordings that are never trained: whether a
fact is known shows only when it is asked differently.
"""

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import Message, Row
from ring_jax.data.sources import packages
from ring_jax.data.sources.packages import Package
from ring_jax.data.sources.split import SourceRows


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One thing to know."""

    relation: str
    subject: str
    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class Wordings:
    """How a relation is asked; `{}` is the subject."""

    trained: Sequence[str]
    heldout: Sequence[str]


COUNTRY_WORDINGS = {
    "capital": Wordings(
        trained=(
            "What is the capital of {}?",
            "Name the capital of {}.",
            "Which city is the capital of {}?",
            "{}: capital?",
        ),
        heldout=("Tell me the capital of {}.", "The capital of {} is which city?"),
    ),
    "region": Wordings(
        trained=(
            "Which part of the world is {} in?",
            "Name the part of the world of {}.",
            "In which part of the world is {}?",
            "{}: part of the world?",
        ),
        heldout=(
            "Tell me the part of the world of {}.",
            "{} is in which part of the world?",
        ),
    ),
    "currency": Wordings(
        trained=(
            "What is the currency code of {}?",
            "Name the currency code of {}.",
            "Which currency code has {}?",
            "{}: currency code?",
        ),
        heldout=(
            "Tell me the currency code of {}.",
            "The currency code of {} is which one?",
        ),
    ),
}
ELEMENT_WORDINGS = {
    "symbol": Wordings(
        trained=(
            "What is the symbol of {}?",
            "Name the symbol of {}.",
            "Which symbol has {}?",
            "{}: symbol?",
        ),
        heldout=("Tell me the symbol of {}.", "The symbol of {} is which one?"),
    ),
    "number": Wordings(
        trained=(
            "What is the atomic number of {}?",
            "Name the atomic number of {}.",
            "Which atomic number has {}?",
            "{}: atomic number?",
        ),
        heldout=(
            "Tell me the atomic number of {}.",
            "The atomic number of {} is which one?",
        ),
    ),
    "element": Wordings(
        trained=(
            "Which element has the symbol {}?",
            "Name the element with the symbol {}.",
            "What is the element of symbol {}?",
            "Symbol {}: element?",
        ),
        heldout=(
            "Tell me the element with the symbol {}.",
            "{} is the symbol of which element?",
        ),
    ),
}


def read_countries(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Asks capitals, parts of the world and currencies, populous countries first.

    `config.task` narrows it to one relation; `config.num_rows` decides how many facts,
    since each is trained in every trained wording.
    """
    package = packages.installed("countryinfo", licence="MIT")
    relations = _relations(config, COUNTRY_WORDINGS, name)
    facts = _country_facts(relations)
    return _read(facts, COUNTRY_WORDINGS, config, name=name, seed=seed, package=package)


def read_elements(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Asks symbols, atomic numbers and names, light elements first.

    `config.task` narrows it to one relation; `config.num_rows` decides how many facts,
    since each is trained in every trained wording.
    """
    # "Public domain" in its licence file; SPDX knows that as this reference.
    licence = "LicenseRef-public-domain"
    package = packages.installed("periodictable", licence=licence)
    relations = _relations(config, ELEMENT_WORDINGS, name)
    facts = _element_facts(relations)
    return _read(facts, ELEMENT_WORDINGS, config, name=name, seed=seed, package=package)


def _relations(
    config: SourceConfig, wordings: Mapping[str, Wordings], name: str
) -> Sequence[str]:
    if config.task and config.task not in wordings:
        raise ConfigError(
            f"data.sources.{name}.task={config.task!r} must be empty or one of "
            f"{list(wordings)}."
        )
    return [config.task] if config.task else list(wordings)


def _country_facts(relations: Sequence[str]) -> Iterator[Fact]:
    folder = packages.data_folder("countryinfo", "data")
    files = sorted(folder.glob("*.json"))
    countries = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    countries = [country for country in countries if country.get("population")]
    countries.sort(key=_by_population)
    for country in countries:
        known = {
            "capital": country.get("capital"),
            "region": country.get("region"),
            "currency": (country.get("currencies") or [None])[0],
        }
        for relation in relations:
            if known[relation]:
                yield Fact(relation, country["name"], known[relation])


def _by_population(country: Mapping) -> tuple[int, str]:
    return -country["population"], country["name"]


def _element_facts(relations: Sequence[str]) -> Iterator[Fact]:
    import periodictable  # an optional dependency; the caller has checked it

    for element in periodictable.elements:
        if element.number == 0:  # the neutron
            continue
        symbol, name = str(element.symbol), str(element.name)
        known = {
            "symbol": Fact("symbol", name, symbol),
            "number": Fact("number", name, str(element.number)),
            "element": Fact("element", symbol, name),
        }
        for relation in relations:
            yield known[relation]


def _read(
    facts: Iterator[Fact],
    wordings: Mapping[str, Wordings],
    config: SourceConfig,
    *,
    name: str,
    seed: int,
    package: Package,
) -> SourceRows:
    origin = {"source": name, **dataclasses.asdict(package)}
    train, asked = [], []
    for fact in facts:
        trained = wordings[fact.relation].trained
        if len(train) + len(trained) > config.num_rows:
            break
        asked.append(fact)
        train += [_row(fact, wording, origin) for wording in trained]
    if not train:
        raise ConfigError(
            f"data.sources.{name}.num_rows={config.num_rows} has no room for a fact in "
            "all its wordings; give it at least 4."
        )
    heldout = [
        _row(fact, wording, origin)
        for fact in asked
        for wording in wordings[fact.relation].heldout
    ]
    order = random.Random(f"{seed}/{name}")
    order.shuffle(heldout)
    return SourceRows(train, heldout[: config.num_heldout])


def _row(fact: Fact, wording: str, origin: Mapping[str, Any]) -> Row:
    question = wording.format(fact.subject)
    return Row(
        id=f"{origin['source']}/{fact.relation}/{question}",
        messages=(Message("user", question), Message("assistant", fact.answer)),
        domain="knowledge",
        task=fact.relation,
        answer=fact.answer,
        verifier="match",
        metadata={"fact": f"{fact.relation}({fact.subject})"},
        **origin,
    )
