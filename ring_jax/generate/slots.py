# SPDX-License-Identifier: Apache-2.0
"""The host's table of slots: a row of numbers for what each was asked and has done."""

import jax
import numpy as np

from ring_jax import sharding
from ring_jax.generate.programs import NO_TOKEN, Orders, Progress
from ring_jax.generate.request import Request
from ring_jax.generate.sampler import Choices

MAX_STOP_IDS = 16
NO_LIMIT = 2**30

_CHOICES = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition_penalty": np.float32,
    "seed": np.uint32,
}
_PROGRESS = {
    "lengths_B": np.int32,
    "last_B": np.int32,
    "num_new_B": np.int32,
    "is_done_B": np.bool_,
    "is_thinking_B": np.bool_,
    "think_left_B": np.int32,
}


class Slots:
    """Numbers of all slots, as the programs take them; a new slot is done."""

    def __init__(self, num_slots: int, vocab_size: int, mesh: jax.sharding.Mesh):
        """Makes a table for the mesh that the programs run on.

        Args:
          num_slots: B.
          vocab_size: V, of the model.
          mesh: whose devices share the slots evenly.
        """
        self.num_slots = num_slots
        self._mesh = mesh
        self._choices = {
            name: np.full(num_slots, name in ("top_p", "repetition_penalty"), dtype)
            for name, dtype in _CHOICES.items()
        }
        self._max_new_B = np.zeros(num_slots, np.int32)
        self._stop_ids_BC = np.full((num_slots, MAX_STOP_IDS), NO_TOKEN, np.int32)
        self._seen_BV = np.zeros((num_slots, vocab_size), bool)
        self._unseen_BV = place(self._seen_BV, mesh)
        # An idle slot has come to its end.
        self._progress = {
            name: np.full(num_slots, name == "is_done_B", dtype)
            for name, dtype in _PROGRESS.items()
        }

    def begin(
        self,
        slot: int,
        request: Request,
        *,
        max_new_tokens: int,
        stop_ids: tuple[int, ...],
        is_thinking: bool,
    ) -> None:
        """Gives a slot to a request whose prompt, but for its last token, was read."""
        for name, values_B in self._choices.items():
            values_B[slot] = getattr(request.sampling, name)
        self._max_new_B[slot] = max_new_tokens
        self._stop_ids_BC[slot] = NO_TOKEN
        self._stop_ids_BC[slot, : len(stop_ids)] = stop_ids
        self._seen_BV[slot] = False
        self._see(slot, request.prompt_ids)
        limit = request.max_think_tokens
        beginning = {
            "lengths_B": len(request.prompt_ids) - 1,
            "last_B": request.prompt_ids[-1],
            "num_new_B": 0,
            "is_done_B": False,
            "is_thinking_B": is_thinking,
            "think_left_B": NO_LIMIT if limit is None else limit,
        }
        for name, value in beginning.items():
            self._progress[name][slot] = value

    def end(self, slot: int) -> None:
        """Leaves a slot idle."""
        self._progress["is_done_B"][slot] = True
        # Rows without a request read nothing of the cache.
        self._progress["lengths_B"][slot] = 0
        self._choices["repetition_penalty"][slot] = 1
        self._choices["temperature"][slot] = 0

    def is_done(self, slot: int) -> bool:
        """Tells whether a slot came to its end, or has no request."""
        return bool(self._progress["is_done_B"][slot])

    def arguments(self) -> tuple[Progress, Orders, jax.Array]:
        """Returns on the devices what `programs.decode` takes."""
        orders = Orders(
            Choices(**self._placed(self._choices)),
            place(self._max_new_B, self._mesh),
            place(self._stop_ids_BC, self._mesh),
        )
        has_penalty = np.any(self._choices["repetition_penalty"] != 1)
        seen_BV = place(self._seen_BV, self._mesh) if has_penalty else self._unseen_BV
        return Progress(**self._placed(self._progress)), orders, seen_BV

    def update(self, progress: Progress, ids_BC: np.ndarray) -> None:
        """Notes how far the slots have come, and what they said."""
        for name in self._progress:
            self._progress[name] = np.array(getattr(progress, name))
        for slot in np.flatnonzero(self._choices["repetition_penalty"] != 1):
            self._see(int(slot), ids_BC[slot][ids_BC[slot] != NO_TOKEN])

    def _placed(self, numbers: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: place(x, self._mesh) for name, x in numbers.items()}

    def _see(self, slot: int, ids: tuple[int, ...] | np.ndarray) -> None:
        if self._choices["repetition_penalty"][slot] != 1:
            self._seen_BV[slot, np.asarray(ids, np.int64)] = True


def place(x: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """Puts an array of rows on the mesh; every process has all of it."""
    spec = sharding.activation("B") if x.ndim == 1 else sharding.whole_rows()
    layout = sharding.on_mesh(spec, mesh)
    # A copy: on CPU the device would share what the next step's numbers overwrite.
    rows = x.copy()
    return jax.make_array_from_callback(x.shape, layout, rows.__getitem__)
