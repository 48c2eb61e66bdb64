# SPDX-License-Identifier: Apache-2.0
"""The suites of `ring evaluate`, as data: one table, and how a run changes it.

Groups and capabilities are those of the panel of arXiv:2504.07158's summary table.
Contests are sampled as Ring-lite's evaluation is (temperature 1, top-p 0.95, 32,768
tokens: arXiv:2506.14731); the Ring-Lite-Distill report names no protocol of its own.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

from ring_jax.config import ConfigError, SuiteConfig, SuitesConfig
from ring_jax.data.evaluation_files import FILE_SETS
from ring_jax.data.sources.reasoning_tasks import TASKS
from ring_jax.evaluate.heldout import HELDOUT, PREFIX

MATH_PROMPT = (
    "{question}\n\nPlease reason step by step, and put your final answer within "
    "\\boxed{}."
)
"""As DeepSeek-R1 and Qwen recommend it for their models."""
CODE_PROMPT = (
    "Complete this Python function. Reply with the whole function, its imports "
    "included, in one block of code.\n\n```python\n{question}```"
)
type Group = Literal["reasoning", "general"]
PUBLISHED: Sequence[tuple[Group, str, Sequence[str]]] = (
    ("reasoning", "mathematics", ("math500", "gsm8k", "olympiadbench", "mathbench")),
    ("reasoning", "mathematics", ("gaokao2023en",)),
    ("reasoning", "science", ("gpqa",)),
    ("reasoning", "code", ("livecodebench",)),
    ("general", "instruction", ("ifeval",)),
    ("general", "tool use", ("teval",)),
    ("general", "knowledge", ("mmlu", "ceval")),
)
"""Group, capability, and sets that no package ships."""
ALL = "all"
GYM_PREFIX = "gym_"
"""Of suites of reasoning-gym's tasks; each has the levels that the task has."""


def _contest(kind: str, *, num_samples: int) -> SuiteConfig:
    return SuiteConfig(
        kind=kind,
        group="reasoning",
        capability="mathematics",
        prompt=MATH_PROMPT,
        num_samples=num_samples,
        temperature=1.0,
        top_p=0.95,
        max_new_tokens=32_768,
    )


def _published(kind: str, *, group: Group, capability: str) -> SuiteConfig:
    """A set of which the user has the files; its rows bring their own prompts."""
    return SuiteConfig(
        kind=kind,
        group=group,
        capability=capability,
        max_new_tokens=32_768 if group == "reasoning" else 8192,
    )


SUITES: Mapping[str, SuiteConfig] = {
    "aime24": _contest("aime24", num_samples=16),
    "aime25": _contest("aime25", num_samples=16),
    "hmmt": _contest("hmmt", num_samples=4),
    "humaneval": SuiteConfig(
        kind="humaneval",
        group="reasoning",
        capability="code",
        prompt=CODE_PROMPT,
        max_new_tokens=8192,
    ),
    "ifbench": SuiteConfig(
        kind="ifbench", capability="instruction", max_new_tokens=8192
    ),
    "bfcl": SuiteConfig(kind="bfcl", capability="tool use", max_new_tokens=4096),
    "bfcl_live": SuiteConfig(
        kind="bfcl_live", capability="tool use", max_new_tokens=4096
    ),
    **{
        kind: _published(kind, group=group, capability=capability)
        for group, capability, kinds in PUBLISHED
        for kind in kinds
    },
    **{
        f"{GYM_PREFIX}{task}": SuiteConfig(
            kind="reasoning_gym",
            task=task,
            group="reasoning",
            capability="mathematics",
            num_items=32,
            max_new_tokens=512,
        )
        for task in TASKS
    },
}
"""Name -> suite. Those of packages need the packages of `launch/setup.sh`, those of
`PUBLISHED` their files."""


def suite_names(text: str) -> list[str]:
    """Splits names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def asks_heldout(names: Sequence[str], config: SuitesConfig) -> bool:
    """Tells whether any of the names may stand for held-out rows of a run."""
    kinds = [config.own[name].kind for name in names if name in config.own]
    is_named = any(name == HELDOUT or name.startswith(PREFIX) for name in names)
    return is_named or HELDOUT in kinds


def choose_suites(names: Sequence[str], config: SuitesConfig) -> dict[str, SuiteConfig]:
    """Looks up suites by name, or by group, and applies what a run changes.

    Args:
      names: of suites; `heldout`, `reasoning`, `general` and `all` stand for several.
      config: of the run: its own suites, those of held-out rows among them, and
        settings instead of the suites'.

    Raises:
      ConfigError: there is no such suite, or a name names files.
    """
    known = {
        name: _changed(suite, config)
        for name, suite in {**SUITES, **config.own}.items()
    }
    for name in config.own:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(
                f"suites.own: {name!r} names files; use letters, digits, _ and -."
            )
    chosen: dict[str, SuiteConfig] = {}
    for name in names:
        chosen |= _named(name, known)
    return chosen


def _named(name: str, known: Mapping[str, SuiteConfig]) -> dict[str, SuiteConfig]:
    if name in known:
        return {name: known[name]}
    if name == HELDOUT:
        return {one: suite for one, suite in known.items() if suite.kind == HELDOUT}
    groups = {suite.group for suite in known.values()} | {ALL}
    if name not in groups:
        near = difflib.get_close_matches(name, [*known, *groups, HELDOUT], n=1)
        advice = (
            f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(known)}."
        )
        raise ConfigError(f"suites: {name!r} is no suite. {advice}")
    return {
        one: suite
        for one, suite in known.items()
        if name in (ALL, suite.group) and _is_there(suite)
    }


def _is_there(suite: SuiteConfig) -> bool:
    """A group takes published sets whose files are there, and no held-out rows."""
    has_files = suite.kind not in FILE_SETS or pathlib.Path(suite.path or "").exists()
    return has_files and suite.kind != HELDOUT


def _changed(suite: SuiteConfig, config: SuitesConfig) -> SuiteConfig:
    names = ("num_items", "num_samples", "temperature", "max_new_tokens")
    given = {name: getattr(config, name) for name in names}
    if suite.kind in FILE_SETS and suite.path is None:
        given["path"] = str(pathlib.Path(config.published_sets_dir, suite.kind))
    return dataclasses.replace(
        suite, **{name: value for name, value in given.items() if value is not None}
    )
