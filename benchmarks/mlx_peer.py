# SPDX-License-Identifier: Apache-2.0
"""mlx-lm on the CPU, as the peer of `benchmarks.generate`."""

import pathlib
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_model

type Ids = Sequence[Sequence[int]]
type Complete = Callable[[Ids, int], list[list[int]]]
"""(prompts, new tokens) -> the new tokens of each prompt."""


def open_peer(folder: pathlib.Path) -> nn.Module:
    """Opens an exported folder; on the CPU, whatever else there is."""
    mx.set_default_device(mx.Device(mx.cpu))
    model, _ = load_model(folder)
    mx.eval(model.parameters())
    return model


def ways(model: nn.Module, *, num_prompts: int) -> dict[str, Complete]:
    """Returns the ways in which mlx-lm completes so many prompts, by name."""

    def in_batch(prompts: Ids, num_new: int) -> list[list[int]]:
        return _in_batch(model, prompts, num_new)

    def alone(prompts: Ids, num_new: int) -> list[list[int]]:
        return [_alone(model, prompt, num_new) for prompt in prompts]

    found = {"BatchGenerator": in_batch}
    return found | {"generate_step": alone} if num_prompts == 1 else found


def come_to_rest() -> None:
    """Waits for the step that mlx-lm began beyond the last token."""
    mx.synchronize()


def _in_batch(model: nn.Module, prompts: Ids, num_new: int) -> list[list[int]]:
    """Completes all prompts together, read in one batch; no token ends them."""
    generator = BatchGenerator(
        model, completion_batch_size=len(prompts), prefill_batch_size=len(prompts)
    )
    numbers = generator.insert(list(map(list, prompts)), [num_new] * len(prompts))
    said: dict[int, list[int]] = {number: [] for number in numbers}
    while responses := generator.next_generated():
        for response in responses:
            said[response.uid].append(response.token)
    generator.close()
    return [said[number] for number in numbers]


def _alone(model: nn.Module, prompt: Sequence[int], num_new: int) -> list[int]:
    steps = generate_step(mx.array(list(prompt)), model, max_tokens=num_new)
    return [token for token, _ in steps]
