# SPDX-License-Identifier: Apache-2.0
"""mlx-lm on the CPU, as the peer of `benchmarks.generate`."""

import pathlib
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_model

type Ids = Sequence[Sequence[int]]
type Rounds = Iterator[list[list[int]]]
"""After every few new tokens a prompt, what was said by then; at the end, all of it."""
type Say = Callable[[Ids, int, int], Rounds]
"""(prompts, new tokens, tokens of a round) -> rounds."""


def open_peer(folder: pathlib.Path) -> nn.Module:
    """Opens an exported folder; on the CPU, whatever else there is."""
    mx.set_default_device(mx.Device(mx.cpu))
    model, _ = load_model(folder)
    mx.eval(model.parameters())
    return model


def ways(model: nn.Module, *, num_prompts: int) -> dict[str, Say]:
    """Returns the ways in which mlx-lm completes so many prompts, by name."""

    def in_batch(prompts: Ids, num_new: int, num_round: int) -> Rounds:
        return _in_batch(model, prompts, num_new, num_round=num_round)

    def alone(prompts: Ids, num_new: int, num_round: int) -> Rounds:
        (prompt,) = prompts
        return _alone(model, prompt, num_new, num_round=num_round)

    found: dict[str, Say] = {"BatchGenerator": in_batch}
    return found | {"generate_step": alone} if num_prompts == 1 else found


def _in_batch(
    model: nn.Module, prompts: Ids, num_new: int, *, num_round: int
) -> Rounds:
    """Completes all prompts together, read in one batch; no token ends them."""
    generator = BatchGenerator(
        model, completion_batch_size=len(prompts), prefill_batch_size=len(prompts)
    )
    numbers = generator.insert(list(map(list, prompts)), [num_new] * len(prompts))
    said: dict[int, list[int]] = {number: [] for number in numbers}
    for step in range(1, 1 + num_new):
        for response in generator.next_generated():
            said[response.uid].append(response.token)
        if step % num_round == 0:
            # It is a step ahead, which would go on in the time of others.
            mx.synchronize()
            yield list(said.values())
    generator.close()


def _alone(
    model: nn.Module, prompt: Sequence[int], num_new: int, *, num_round: int
) -> Rounds:
    said: list[int] = []
    for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=num_new):
        said.append(int(token))
        if len(said) % num_round == 0:
            mx.synchronize()
            yield [said]
