# SPDX-License-Identifier: Apache-2.0
"""Brings the weights of stacked layers from where they are stored, and gradients back.

On a torus a gather has several phases, of which each needs the one before. XLA would
put all work of a layer beside the last of such a chain. So beside a layer runs one
phase of each of several layers to come: the last of the next one, the last but one of
that after it, and so on. A phase moves several times what the one before it moves, so
what waits between phases is small. The sums of gradients go the same way back, one
phase beside each of the layers that follow.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ring_jax import sharding
from ring_jax.weight_gather import Blocks, WeightGather

type Coming = list[list[Blocks]]
"""For each group of weights those of several layers, each a phase further than the one
before: the nearest layer last."""
type Going = list[list[Any]]
"""For each group the gradients of several layers, each a phase further."""


@dataclasses.dataclass(frozen=True)
class _Group:
    """Weights of a layer that are gathered as one."""

    places: tuple[int, ...]
    """Among the parameters of a layer."""
    gather: WeightGather

    @property
    def is_late(self) -> bool:
        """Whether the way back begins beside the next layer.

        Attention is what the gradient of a layer ends with, and there is little beside
        it. The gradients of experts are large, and come halfway.
        """
        return not any("E" in dims for dims in self.gather.dims)

    @property
    def lead(self) -> int:
        """By how many layers a weight sets out before the layer that it arrives at."""
        return self.gather.num_phases - 1


@dataclasses.dataclass(frozen=True)
class _Return:
    """A phase on a gradient's way back."""

    cut: Callable
    exchange: Callable
    sum: Callable


class WeightTraffic:
    """The weights of some layers on their way, by position in the order of their use.

    Positions 0 to L - 1 are the layers forward, L to 2 L - 1 the same ones backward.
    """

    def __init__(self, layers: Any, dtype: DTypeLike):
        """Takes a module whose arrays have an L in front, and the dtype of copies."""
        self._params, self._structure = jax.tree.flatten(layers, is_leaf=_is_param)
        self._num_layers = self._params[0][...].shape[0]
        places = range(len(self._params))
        stored = [i for i in places if _is_stored_in_parts(self._params[i])]
        experts = [i for i in stored if "E" in self._params[i].dims]
        others = [i for i in stored if i not in experts]
        groups = [[place] for place in experts] + ([others] if others else [])
        self._groups = [self._group(group, dtype) for group in groups]
        self._rest = [i for i in places if i not in stored]

    def start(self) -> tuple[Any, Coming]:
        """Returns the layer of position 0, and what is coming then."""
        coming = []
        for group in self._groups:
            states = []
            for num_phases in range(1, group.lead + 1):
                state = self._begin(group, group.lead - num_phases)
                for phase in range(num_phases):
                    state = _take(group.gather, state, phase)
                states.append(state)
            coming.append(states)
        return self.receive(self.send(coming, 0), 0)

    def send(self, coming: Coming, position: int | jax.Array) -> Coming:
        """Sends all that is coming through one more phase.

        Args:
          coming: from the last `receive`.
          position: of the layer that arrives, one more than at that call.

        Returns:
          What `receive` takes. Only then is it there.
        """
        return [
            [group.gather.exchange(blocks, k) for k, blocks in enumerate(arrays)]
            for group, arrays in self._to_send(coming, position)
        ]

    def receive(self, sent: Coming, position: int | jax.Array) -> tuple[Any, Coming]:
        """Returns the layer that arrived, each device's own copies, and what comes."""
        params = list(self._params)
        for place, value in zip(
            self._rest, self._at(self._rest, position), strict=True
        ):
            params[place] = nnx.Param(value, dims=params[place].dims)
        coming = []
        for group, arrays in zip(self._groups, sent, strict=True):
            *states, last = [
                group.gather.merge(blocks, phase) for phase, blocks in enumerate(arrays)
            ]
            copies = group.gather.finish(last)
            for place, copy in zip(group.places, copies, strict=True):
                params[place] = nnx.Param(copy, dims=params[place].dims)
            coming.append(states)
        return jax.tree.unflatten(self._structure, params), coming

    def nothing(self, layer: Any, coming: Coming) -> tuple[Going, list[jax.Array]]:
        """Returns zeros: gradients on their way, and those of all layers.

        Args:
          layer: as from `receive`.
          coming: as from `receive`.
        """
        going = []
        for group, states in zip(self._groups, coming, strict=True):
            waiting = [_values(layer, group.places)] if group.is_late else []
            going.append(jax.tree.map(jnp.zeros_like, [*waiting, *reversed(states)]))
        return going, [jnp.zeros_like(param[...]) for param in self._params]

    def like_sent_back(self, coming: Coming, position: int | jax.Array) -> Coming:
        """Returns arrays of the types of `send_back`'s; arguments as of `send`."""
        return [
            list(reversed(arrays))[0 if group.is_late else 1 :]
            for group, arrays in self._to_send(coming, position)
        ]

    def send_back(self, going: Going) -> Coming:
        """Sends all gradients that are on their way through one more phase."""
        return [
            [step.exchange(step.cut(grad)) for step, grad in self._steps(group, grads)]
            for group, grads in zip(self._groups, going, strict=True)
        ]

    def receive_back(
        self, sent: Coming, grad_layer: Any, grads: list[jax.Array], number: jax.Array
    ) -> tuple[Going, list[jax.Array]]:
        """Sums what came, sends a layer's gradients off, and puts away what is done.

        Args:
          sent: from `send_back`.
          grad_layer: of each device's own copies.
          grads: of all layers; replaced where some came to the end.
          number: of the layer.

        Returns:
          What is on its way now, and `grads`.
        """
        grads, going = list(grads), []
        for group, arrays in zip(self._groups, sent, strict=True):
            moved = [step.sum(blocks) for step, blocks in self._steps(group, arrays)]
            found = _values(grad_layer, group.places)
            if not group.is_late:
                found = _take_back(self._way_back(group)[0], found)
            *waiting, done = [found, *moved]
            # The first are zeros, and are overwritten.
            whose = jnp.minimum(number + len(waiting), self._num_layers - 1)
            _write(grads, group.places, done, whose)
            going.append(waiting)
        _write(grads, self._rest, _values(grad_layer, self._rest), number)
        return going, grads

    def drain(self, going: Going, grads: list[jax.Array]) -> Any:
        """Takes what is still on its way to the end; returns gradients as a module."""
        grads = list(grads)
        for group, waiting in zip(self._groups, going, strict=True):
            steps = [step for step, _ in self._steps(group, waiting)]
            for number, grad in enumerate(waiting[: self._num_layers]):
                for step in steps[number:]:
                    grad = _take_back(step, grad)
                _write(grads, group.places, grad, number)
        params = [
            nnx.Param(grad, dims=param.dims)
            for grad, param in zip(grads, self._params, strict=True)
        ]
        return jax.tree.unflatten(self._structure, params)

    def _group(self, places: list[int], dtype: DTypeLike) -> _Group:
        params = [self._params[place] for place in places]
        gather = WeightGather(
            dims=tuple(param.dims for param in params),
            shapes=tuple(param[...].shape[1:] for param in params),
            dtype=dtype,
        )
        return _Group(tuple(places), gather)

    def _begin(self, group: _Group, position: int | jax.Array) -> Blocks:
        return group.gather.begin(self._at(group.places, position))

    def _at(self, places: Sequence[int], position: int | jax.Array) -> list[jax.Array]:
        L = self._num_layers
        number = jnp.where(position < L, position, 2 * L - 1 - position)
        # Past both ends nobody uses what comes.
        number = jnp.clip(number, 0, L - 1)
        return [
            jax.lax.dynamic_index_in_dim(self._params[i][...], number, keepdims=False)
            for i in places
        ]

    def _to_send(
        self, coming: Coming, position: int | jax.Array
    ) -> Iterable[tuple[_Group, list[Blocks]]]:
        for group, states in zip(self._groups, coming, strict=True):
            states = [self._begin(group, position + group.lead), *states]
            yield group, [group.gather.spread(x, k) for k, x in enumerate(states)]

    def _steps(self, group: _Group, waiting: list[Any]) -> Iterable[tuple]:
        """Returns each waiting gradient with its next phase."""
        steps = self._way_back(group)
        return zip(steps[len(steps) - len(waiting) :], waiting, strict=True)

    def _way_back(self, group: _Group) -> list[_Return]:
        """Returns the transposes of all steps, those of the last phase first.

        They are linear, so that any weights will do; nothing is sent for them.
        """
        gather, steps = group.gather, list[_Return]()
        weights = self._at(group.places, 0)
        parts, begin_back = jax.vjp(gather.begin, weights)
        for phase in range(gather.num_phases):
            blocks, spread_back = _transposed(gather.spread, parts, phase)
            blocks, exchange_back = _transposed(gather.exchange, blocks, phase)
            parts, merge_back = _transposed(gather.merge, blocks, phase)
            steps.insert(0, _Return(merge_back, exchange_back, spread_back))
        _, finish_back = jax.vjp(gather.finish, parts)
        first, last = steps[0].cut, steps[-1].sum
        steps[0] = dataclasses.replace(
            steps[0], cut=lambda grads: first(*finish_back(grads))
        )
        steps[-1] = dataclasses.replace(
            steps[-1], sum=lambda blocks: begin_back(last(blocks))[0]
        )
        return steps


def _take(gather: WeightGather, parts: Blocks, phase: int) -> Blocks:
    blocks = gather.exchange(gather.spread(parts, phase), phase)
    return gather.merge(blocks, phase)


def _take_back(step: _Return, grad: Any) -> Any:
    return step.sum(step.exchange(step.cut(grad)))


def _transposed(step: Callable, blocks: Blocks, phase: int) -> tuple[Blocks, Callable]:
    out, pull_back = jax.vjp(functools.partial(step, phase=phase), blocks)
    return out, lambda grads: pull_back(grads)[0]


def _values(layer: Any, places: Sequence[int]) -> list[Any]:
    params = jax.tree.leaves(layer, is_leaf=_is_param)
    return [params[place].get_value() for place in places]


def _write(
    grads: list[jax.Array],
    places: Sequence[int],
    values: list[jax.Array],
    number: int | jax.Array,
) -> None:
    for place, value in zip(places, values, strict=True):
        grads[place] = jax.lax.dynamic_update_index_in_dim(
            grads[place], value, number, 0
        )


def _is_param(node: Any) -> bool:
    return isinstance(node, nnx.Param)


def _is_stored_in_parts(param: nnx.Param) -> bool:
    return sharding.stored_by(param.dims) is not None
