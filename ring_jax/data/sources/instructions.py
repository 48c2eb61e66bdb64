# SPDX-License-Identifier: Apache-2.0
"""Instructions whose fulfilment can be checked, built from word lists.

Two tasks: `repeat` (write this word so often, in this form) and `list` (name so many of
a kind, in this form). A held-out row is a combination of word and form that is never
trained; its word and each part of its form occur in other training rows.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import ring_jax
from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import Message, Row
from ring_jax.data.sources.packages import Package
from ring_jax.data.sources.split import SourceRows, is_heldout

_WORDS_BY_KIND = {
    "colours": "red blue green black white brown pink grey",
    "animals": "cat dog horse cow sheep lion tiger bear wolf fox",
    "fruits": "apple pear plum lemon cherry grape peach melon",
    "tools": "hammer saw drill knife axe rope ladder brush",
    "metals": "iron gold silver copper tin lead zinc",
    "rooms": "kitchen bedroom cellar attic hall garage office",
    "trees": "oak pine birch maple cedar willow elm",
    "months": "march april may june july august october",
}
WORDS = {kind: words.split() for kind, words in _WORDS_BY_KIND.items()}
NUMBERS = ("zero", "one", "two", "three", "four")


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How the words of a reply are written."""

    count: int
    separator: str
    case: str
    ending: str

    def apply(self, words: Sequence[str]) -> str:
        """Writes words in this form."""
        text = self.separator.join(words) + self.ending
        return text.upper() if self.case == "upper" else text


SEPARATORS = {" ": "", ", ": "with commas", "-": "with dashes"}
CASES = {"lower": "", "upper": "in capitals"}
ENDINGS = {"": "", "!": "ending in !", ".": "ending in a full stop"}


def read_instructions(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Draws distinct instructions; `config.task` narrows them to `repeat` or `list`.

    Raises:
      ConfigError: the task is unknown.
    """
    items = {"repeat": _repeat_items, "list": _list_items}
    if config.task and config.task not in items:
        raise ConfigError(
            f"data.sources.{name}.task={config.task!r} must be empty or one of "
            f"{list(items)}."
        )
    tasks = [config.task] if config.task else list(items)
    order = random.Random(f"{seed}/{name}")
    package = Package(f"ring-jax=={ring_jax.__version__}", "Apache-2.0")
    origin = {"source": name, **dataclasses.asdict(package)}
    rows = [
        _row(task, subject, form, order=order, origin=origin)
        for task in tasks
        for subject, form in items[task]()
    ]
    order.shuffle(rows)
    train = [row for row in rows if not is_heldout(row.metadata["item"])]
    heldout = [row for row in rows if is_heldout(row.metadata["item"])]
    return SourceRows(train[: config.num_rows], heldout[: config.num_heldout])


def _repeat_items() -> list[tuple[str, Form]]:
    words = [word for kind in WORDS.values() for word in kind]
    return [(word, form) for word in words for form in _forms((1, 2, 3))]


def _list_items() -> list[tuple[str, Form]]:
    # Few combinations exist, so each is asked several times, with other words as reply.
    return [(kind, form) for kind in WORDS for form in _forms((2, 3)) for _ in range(4)]


def _forms(counts: Sequence[int]) -> list[Form]:
    return [
        Form(count, separator, case, ending)
        for count in counts
        for separator in (SEPARATORS if count > 1 else (" ",))
        for case in CASES
        for ending in ENDINGS
    ]


def _row(
    task: str,
    subject: str,
    form: Form,
    *,
    order: random.Random,
    origin: Mapping[str, Any],
) -> Row:
    asked = [SEPARATORS[form.separator], CASES[form.case], ENDINGS[form.ending]]
    conditions = ", ".join(part for part in asked if part)
    if task == "repeat":
        instruction = f"Write {subject} {NUMBERS[form.count]} times"
        words: Sequence[str] = [subject] * form.count
        constraints = [{"kind": "words", "words": list(words)}]
    else:
        instruction = f"Name {NUMBERS[form.count]} {subject}"
        words = order.sample(WORDS[subject], form.count)
        choices = {"kind": "choices", "choices": list(WORDS[subject])}
        constraints = [{**choices, "count": form.count}]
    prompt = f"{instruction}{', ' if conditions else ''}{conditions}."
    answer = form.apply(words)
    item = f"{task}:{prompt}"
    return Row(
        id=f"{origin['source']}/{item}/{answer}",
        messages=(Message("user", prompt), Message("assistant", answer)),
        domain="instruction",
        task=task,
        answer=answer,
        verifier="constraints",
        metadata={"item": item, "constraints": [*constraints, _form_constraint(form)]},
        **origin,
    )


def _form_constraint(form: Form) -> dict[str, Any]:
    return {"kind": "form", **dataclasses.asdict(form)}
