# SPDX-License-Identifier: Apache-2.0
"""What an operation of a step is for, by the named scopes it was traced in."""

import dataclasses
import re

from ring_jax.plan.hlo import Instruction, Module

OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Category:
    """A line of the breakdown, and the scopes that belong to it."""

    name: str
    scopes: re.Pattern[str]


def category(name: str, *scopes: str) -> Category:
    """Makes a category of scopes, each a whole element of an operation's path.

    jax writes `jvp(cross_entropy)` and `transpose(jvp(cross_entropy))` for the passes
    of one scope.
    """
    alternatives = "|".join(scopes)
    return Category(name, re.compile(rf"(?:^|[/(])(?:{alternatives})(?:$|[/)])"))


OURS = (
    category("optimizer", "optimizer"),
    category("head and loss", "cross_entropy"),
    category("attention", "attention"),
    category("expert matmuls", "experts"),
    category("router and permutation", "route", "dispatch", "transport", "combine"),
    category("shared expert and dense MLP", "shared", "mlp"),
    category("expert weights and layout", "moe"),
)
"""Of our own training step; the first that fits counts."""


def categorize(
    instruction: Instruction, module: Module, categories: tuple[Category, ...]
) -> str:
    """Returns the name of the first category that an operation fits, or `OTHER`.

    A fusion without a path of its own has that of an operation inside it.
    """
    for path in _paths(instruction, module):
        for candidate in categories:
            if candidate.scopes.search(path):
                return candidate.name
    return OTHER


def _paths(instruction: Instruction, module: Module) -> list[str]:
    paths = [instruction.op_name]
    if instruction.opcode == "fusion":
        # The last operations are the nearest to the result.
        for called in module.called(instruction):
            paths += [inner.op_name for inner in reversed(called.instructions)]
    return paths
