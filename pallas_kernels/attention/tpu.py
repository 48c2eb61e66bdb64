# SPDX-License-Identifier: Apache-2.0
"""Attention inside documents as Pallas kernels for TPUs, v5e and newer.

A visit is a block of queries and a block of keys of which at least one pair sees each
other. Visits are listed at run time from the starts of the documents, and the grid has
as many steps as there are visits: what lies across documents or above the diagonal is
neither fetched nor stepped over.

                 keys  0 1 2 3 4 5     row of 6 blocks, documents of 2.5 and 3.5 blocks:
        queries 0      d                   d  on the diagonal    m  masked
                1      w d                 w  whole, no mask
                2      m m d           forward and the queries' gradient go row by row,
                3          m d         that of keys and values column by column
                4          m w d
                5          m w w d

Scores are held with keys along sublanes and queries along lanes. A query's maximum, sum
and start are then lanes of one row: nothing is broadcast to 128 lanes, in HBM neither,
and reductions over keys add whole registers. The G heads that read
a key/value head are in one block of queries, so that keys and values are fetched once
for all of them.

Of a row that is split over devices (`context.py`) the queries at hand are two chunks,
and the keys lie in the order of the devices: a visit knows where in the row both are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import hardware
from pallas_kernels.attention.context import Context
from pallas_kernels.attention.flash import (
    Spans,
    attend_in_blocks,
    block_of,
    with_gradients,
)

BLOCK = 512
LANES = 128
MASKED = -1e30
"""Score of an unseen key; finite, as a query's first block may hold only such keys."""
# Share of a core's VMEM that the kernels may use, the compiler's own needs included.
VMEM_LIMIT = 0.95
NOTHING, SOME, ALL = range(3)
"""How many of its pairs of a query and a key a visit has that see each other."""
MAX_VISITS = 2**16
"""Listed visits, of 12 bytes, that fit the scalar memory of a core (1 MiB)."""


def unsupported(query_BTNH: jax.Array, key_BTKH: jax.Array) -> str | None:
    """Returns why the operands cannot run: no TPU, another dtype, or too long."""
    if reason := hardware.why_no_tpu():
        return reason
    if query_BTNH.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it accumulates in float32, and an operand is {query_BTNH.dtype}"
    (B, T), S = query_BTNH.shape[:2], key_BTKH.shape[1]
    if S > T and T // 2 % LANES:
        return (
            f"a device's two chunks of a row have {T // 2} positions each, and blocks "
            f"are multiples of {LANES}; make rows a multiple of {2 * LANES * S // T}"
        )
    block = block_of(T, S, largest=BLOCK, unit=LANES)
    if (num_visits := _max_visits(B, -(-T // block), -(-S // block))) > MAX_VISITS:
        return (
            f"{B} rows of {S} positions take up to {num_visits:,} pairs of blocks, and "
            f"scalar memory lists {MAX_VISITS:,}; give a device fewer or shorter rows"
        )
    return None


def packed_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    context: Context,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v over the document up to each query."""
    T = query_BTNH.shape[1]
    block = block_of(T, T * context.num_shards, largest=BLOCK, unit=LANES)
    return attend_in_blocks(
        _attend,
        query_BTNH,
        key_BTKH,
        value_BTKH,
        segments_BT,
        context=context,
        block=block,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visits:
    """Pairs of blocks in the order of a kernel's grid; i32, ready for scalar memory.

    All visits of one owner follow each other: it is a block of queries, or of keys,
    whose results they add up. J counts visits; from `num_visits` on they do not exist,
    and there is at least one such.
    """

    owner_J: jax.Array
    """Block of the owner, counted through the whole batch."""
    other_J: jax.Array
    """Block, of the same row, of the keys or queries that the owner meets. Blocks are
    counted as they lie in memory; `query_place_J` and `key_place_J` say where in the
    row that is."""
    sight_J: jax.Array
    """`NOTHING`, `SOME` or `ALL`."""
    # Not of visits:
    query_place_J: jax.Array
    """Which block of the row a block of its queries is."""
    key_place_J: jax.Array
    """Which block of the row a block of its keys is."""


def plan_visits(spans: Spans, *, owned_by: str) -> tuple[Visits, jax.Array]:
    """Lists the pairs of blocks that see each other.

    Starts never fall along a row, so that the blocks an owner meets are neighbours in
    the row, and each of them has a pair that sees each other: queries meet the keys
    from their first one's start to their own block, keys the queries from the first
    that is not before them to the last whose first start is not behind them. Keys that
    no query at hand sees are visited once, for somebody must write that their gradient
    is 0.

    Args:
      spans: whose blocks begin at multiples of their length, those of queries on the
        average in the middle of the row.
      owned_by: "query" or "key".

    Returns:
      The visits, and how many there are.
    """
    start_BT, block = spans.start_BT, spans.block
    key_J = spans.key_J // block
    place = {"query": jnp.asarray(spans.query_J) // block, "key": jnp.asarray(key_J)}
    num = {side: len(places) for side, places in place.items()}
    num_own = num[owned_by]
    low_BJ, high_BJ = _met_blocks(start_BT[:, ::block] // block, place, owned_by)
    low_J, met_J = low_BJ.reshape(-1), (high_BJ - low_BJ).reshape(-1)
    count_J = jnp.maximum(met_J, 1)
    end_J = jnp.cumsum(count_J)
    visit_J = jnp.arange(_max_visits(len(start_BT), num["query"], num["key"]) + 1)
    owner_J = jnp.searchsorted(end_J, visit_J, side="right", method="compare_all")
    i_J = jnp.minimum(owner_J, end_J.size - 1)
    row_J, own_J = i_J // num_own, i_J % num_own
    other_J = low_J[i_J] + visit_J - (end_J - count_J)[i_J]
    if owned_by == "query":
        other_J = jnp.asarray(np.argsort(key_J))[other_J]
        queries_J, keys_J = own_J, other_J
    else:
        # Keys that nobody sees may lie behind the last queries.
        other_J = jnp.minimum(other_J, num["query"] - 1)
        queries_J, keys_J = other_J, own_J
    # The last query of a block starts last.
    last_J = start_BT[:, block - 1 :: block][row_J, queries_J]
    place_J = place["key"][keys_J]
    is_masked_J = (place["query"][queries_J] == place_J) | (last_J > place_J * block)
    sight_J = jnp.where(met_J[i_J] == 0, NOTHING, jnp.where(is_masked_J, SOME, ALL))
    visits = Visits(owner_J, other_J, sight_J, place["query"], place["key"])
    return jax.tree.map(lambda x: x.astype(jnp.int32), visits), end_J[-1]


def _met_blocks(
    first_BJ: jax.Array, place: dict, owned_by: str
) -> tuple[jax.Array, jax.Array]:
    """Returns the first block that each owner of a row meets, and that after the last.

    `first_BJ` is where the keys of a block of queries begin. Blocks of keys are counted
    in the row, those of queries as they are at hand.
    """
    query_J, key_J = place["query"], place["key"]
    if owned_by == "query":
        return first_BJ, jnp.broadcast_to(query_J[None] + 1, first_BJ.shape)
    is_before_JJ = query_J[None] < key_J[:, None]
    is_met_BJJ = first_BJ[:, None] <= key_J[None, :, None]
    low_J = jnp.sum(is_before_JJ, axis=1, dtype=jnp.int32)
    high_BJ = jnp.sum(is_met_BJJ, axis=2, dtype=jnp.int32)
    return jnp.broadcast_to(low_J[None], high_BJ.shape), high_BJ


def _max_visits(num_rows: int, num_queries: int, num_keys: int) -> int:
    """Returns how many visits rows may take, of so many blocks of queries and keys.

    On the average a block of queries is in the middle of the row. Keys are visited that
    nobody sees.
    """
    causal = num_queries * (num_keys + 1) // 2
    return num_rows * (causal + num_keys - num_queries)


def _forward(query_BKGTH, key_JBKSH, value_JBKSH, spans):
    """Returns the output and the log of the softmax's denominators, f32[B, K, G, T]."""
    B, K, G, T, H = query_BKGTH.shape
    row = pltpu.VMEM((G, spans.block), jnp.float32)
    out_BKGTH, log_total_BKGT = _call(
        _Forward,
        spans,
        {
            "start_1T": spans.start_BT[:, None],
            "query_GTH": query_BKGTH,
            "key_SH": key_JBKSH,
            "value_SH": value_JBKSH,
        },
        outputs={
            "out_GTH": _like(query_BKGTH.shape, query_BKGTH.dtype, query_BKGTH),
            "log_total_GT": _like((B, K, G, T), jnp.float32, query_BKGTH),
        },
        scratch=[row, row, pltpu.VMEM((G, H, spans.block), jnp.float32)],
    )
    return out_BKGTH, log_total_BKGT


def _backward(
    query_BKGTH, key_JBKSH, value_JBKSH, spans, out_BKGTH, log_total_BKGT, grad_BKGTH
):
    """Returns the gradients of query, key and value.

    One kernel for all three would form the scores once instead of twice, but what it
    adds to other blocks' gradients would have to go through HBM.
    """
    G, T, H = query_BKGTH.shape[2:]
    shift_BKGT = jnp.sum(
        out_BKGTH.astype(jnp.float32) * grad_BKGTH.astype(jnp.float32), axis=4
    )
    inputs = {
        "start_1T": spans.start_BT[:, None],
        "query_GTH": query_BKGTH,
        "key_SH": key_JBKSH,
        "value_SH": value_JBKSH,
        "grad_GTH": grad_BKGTH,
        "log_total_GT": log_total_BKGT,
        "shift_GT": shift_BKGT,
    }
    grad_query = _like(query_BKGTH.shape, query_BKGTH.dtype, query_BKGTH)
    grad_key = _like(key_JBKSH.shape, key_JBKSH.dtype, query_BKGTH)
    (grad_query_BKGTH,) = _call(
        _QueryGradient,
        spans,
        inputs,
        outputs={"grad_query_GTH": grad_query},
        scratch=[pltpu.VMEM((G, H, spans.block), jnp.float32)],
    )
    grad_key_JBKSH, grad_value_JBKSH = _call(
        _KeyValueGradient,
        spans,
        inputs,
        outputs={"grad_key_SH": grad_key, "grad_value_SH": grad_key},
        scratch=[pltpu.VMEM((spans.block, H), jnp.float32)] * 2,
    )
    return grad_query_BKGTH, grad_key_JBKSH, grad_value_JBKSH


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The two blocks of a visit: references into scalar memory and VMEM."""

    visits: Visits
    owned_by: str
    num_blocks: int
    """Of the owner's side, in a row."""
    start_1T: jax.Ref
    query_GTH: jax.Ref
    key_SH: jax.Ref
    value_SH: jax.Ref
    # Only for gradients: of the output; the logs of the denominators; and what the
    # normalisation takes from the gradient of each weight.
    grad_GTH: Any = None
    log_total_GT: Any = None
    shift_GT: Any = None

    @property
    def num_heads(self) -> int:
        return self.query_GTH.shape[0]

    def visible(self, is_masked: bool) -> jax.Array | None:
        """Returns bool[S, T], which keys a query sees; None: all."""
        if not is_masked:
            return None
        j = pl.program_id(1)
        own = jax.lax.rem(self.visits.owner_J[j], self.num_blocks)
        other = self.visits.other_J[j]
        queries, keys = (own, other) if self.owned_by == "query" else (other, own)
        block = self.key_SH.shape[0]
        shape = (block, block)
        first_key = self.visits.key_place_J[keys] * block
        first_query = self.visits.query_place_J[queries] * block
        key_ST = first_key + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        query_ST = first_query + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        return (key_ST <= query_ST) & (key_ST >= self.start_1T[...])

    def scores(self, g: int, visible_ST: jax.Array | None) -> jax.Array:
        """Returns f32[S, T] of one head."""
        scores_ST = _dot("SH,TH->ST", self.key_SH[...], self.query_GTH[g])
        if visible_ST is None:
            return scores_ST
        return jnp.where(visible_ST, scores_ST, MASKED)

    def weights(
        self, g: int, visible_ST: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the softmax's weights and the gradient of the scores; f32[S, T]."""
        rows = slice(g, g + 1)
        weights_ST = jnp.exp(self.scores(g, visible_ST) - self.log_total_GT[rows])
        grad_ST = _dot("SH,TH->ST", self.value_SH[...], self.grad_GTH[g])
        return weights_ST, weights_ST * (grad_ST - self.shift_GT[rows])


@dataclasses.dataclass(frozen=True)
class _Forward:
    """Sums a block of queries' softmax over its visits."""

    OWNED_BY, NUM_PRODUCTS = "query", 2

    pair: _Pair
    out_GTH: jax.Ref
    log_total_GT: jax.Ref
    # In VMEM: the maximum so far, and what was summed below it.
    peak_GT: jax.Ref
    total_GT: jax.Ref
    mixed_GHT: jax.Ref

    def begin(self) -> None:
        _fill(self.peak_GT, MASKED)
        _fill(self.total_GT, 0.0)
        _fill(self.mixed_GHT, 0.0)

    def add(self, *, is_masked: bool) -> None:
        visible_ST = self.pair.visible(is_masked)
        value_SH = self.pair.value_SH[...]
        for g in range(self.pair.num_heads):
            row = slice(g, g + 1)
            scores_ST = self.pair.scores(g, visible_ST)
            peak_1T = jnp.max(scores_ST, axis=0, keepdims=True)
            peak_1T = jnp.maximum(self.peak_GT[row], peak_1T)
            keep_1T = jnp.exp(self.peak_GT[row] - peak_1T)
            raised_ST = jnp.exp(scores_ST - peak_1T)
            total_1T = jnp.sum(raised_ST, axis=0, keepdims=True)
            mixed_HT = _dot("SH,ST->HT", value_SH, raised_ST.astype(value_SH.dtype))
            self.peak_GT[row] = peak_1T
            self.total_GT[row] = keep_1T * self.total_GT[row] + total_1T
            self.mixed_GHT[g] = keep_1T * self.mixed_GHT[g] + mixed_HT

    def finish(self) -> None:
        # A query sees itself, so that no total is 0.
        self.log_total_GT[...] = self.peak_GT[...] + jnp.log(self.total_GT[...])
        for g in range(self.pair.num_heads):
            mixed_HT = self.mixed_GHT[g] / self.total_GT[g : g + 1]
            self.out_GTH[g] = mixed_HT.T.astype(self.out_GTH.dtype)


@dataclasses.dataclass(frozen=True)
class _QueryGradient:
    """Sums the gradient of a block of queries over its visits."""

    OWNED_BY, NUM_PRODUCTS = "query", 3

    pair: _Pair
    grad_query_GTH: jax.Ref
    sum_GHT: jax.Ref

    def begin(self) -> None:
        _fill(self.sum_GHT, 0.0)

    def add(self, *, is_masked: bool) -> None:
        visible_ST = self.pair.visible(is_masked)
        key_SH = self.pair.key_SH[...]
        for g in range(self.pair.num_heads):
            _, grad_ST = self.pair.weights(g, visible_ST)
            self.sum_GHT[g] += _dot("SH,ST->HT", key_SH, grad_ST.astype(key_SH.dtype))

    def finish(self) -> None:
        for g in range(self.pair.num_heads):
            self.grad_query_GTH[g] = self.sum_GHT[g].T.astype(self.grad_query_GTH.dtype)


@dataclasses.dataclass(frozen=True)
class _KeyValueGradient:
    """Sums the gradients of a block of keys and values over its visits and heads."""

    OWNED_BY, NUM_PRODUCTS = "key", 4

    pair: _Pair
    grad_key_SH: jax.Ref
    grad_value_SH: jax.Ref
    key_sum_SH: jax.Ref
    value_sum_SH: jax.Ref

    def begin(self) -> None:
        _fill(self.key_sum_SH, 0.0)
        _fill(self.value_sum_SH, 0.0)

    def add(self, *, is_masked: bool) -> None:
        visible_ST = self.pair.visible(is_masked)
        for g in range(self.pair.num_heads):
            weights_ST, grad_ST = self.pair.weights(g, visible_ST)
            query_TH, grad_TH = self.pair.query_GTH[g], self.pair.grad_GTH[g]
            dtype = query_TH.dtype
            self.value_sum_SH[...] += _dot(
                "ST,TH->SH", weights_ST.astype(dtype), grad_TH
            )
            self.key_sum_SH[...] += _dot("ST,TH->SH", grad_ST.astype(dtype), query_TH)

    def finish(self) -> None:
        self.grad_key_SH[...] = self.key_sum_SH[...].astype(self.grad_key_SH.dtype)
        self.grad_value_SH[...] = self.value_sum_SH[...].astype(
            self.grad_value_SH.dtype
        )


type _Kernel = type[_Forward] | type[_QueryGradient] | type[_KeyValueGradient]


def _call(
    kernel: _Kernel,
    spans: Spans,
    inputs: dict[str, jax.Array],
    *,
    outputs: dict[str, jax.ShapeDtypeStruct],
    scratch: list,
) -> tuple[jax.Array, ...]:
    """Runs a kernel for each key/value head over all visits.

    The letters of an input's and an output's name are those of its block; the arrays
    have B and K in front, the starts B only, keys and values the parts of a row.
    """
    tpu = hardware.target_tpu()
    assert tpu is not None, "`unsupported` lets nothing else through"
    query_BKGTH = inputs["query_GTH"]
    B, K, G, T, H = query_BKGTH.shape
    J, _, _, S, _ = inputs["key_SH"].shape
    num_owners = len({"query": spans.query_J, "key": spans.key_J}[kernel.OWNED_BY])
    specs = _block_specs((G, spans.block, J, S, H), num_owners, kernel.OWNED_BY)
    visits, num_visits = plan_visits(spans, owned_by=kernel.OWNED_BY)
    fields = jax.tree.leaves(visits)
    arrays = [*inputs.values(), *outputs.values()]
    return pl.pallas_call(
        functools.partial(_run, kernel, list(inputs), num_owners),
        out_shape=tuple(outputs.values()),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(fields),
            grid=(K, num_visits),
            in_specs=[specs[_letters(name)] for name in inputs],
            out_specs=tuple(specs[_letters(name)] for name in outputs),
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=int(VMEM_LIMIT * tpu.vmem_bytes),
        ),
        # Of rows that are one document each: how long they are is not known here.
        cost_estimate=pl.CostEstimate(
            flops=kernel.NUM_PRODUCTS * B * K * G * T * J * S * H,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
            transcendentals=B * K * G * T * J * S // 2,
        ),
        name="packed_attention" + kernel.__name__.lower(),
    )(*fields, *inputs.values())


def _run(kernel: _Kernel, names: list[str], num_blocks: int, *refs: Any) -> None:
    """Runs one visit."""
    num_fields = len(dataclasses.fields(Visits))
    visits = Visits(*refs[:num_fields])
    num_read = num_fields + len(names)
    blocks = dict(zip(names, refs[num_fields:num_read], strict=True))
    pair = _Pair(visits, kernel.OWNED_BY, num_blocks, **blocks)
    step = kernel(pair, *refs[num_read:])
    j = pl.program_id(1)
    owner = visits.owner_J[j]
    sight = visits.sight_J[j]
    is_first = (j == 0) | (visits.owner_J[jnp.maximum(j - 1, 0)] != owner)
    pl.when(is_first)(step.begin)
    pl.when(sight == SOME)(functools.partial(step.add, is_masked=True))
    pl.when(sight == ALL)(functools.partial(step.add, is_masked=False))
    pl.when(visits.owner_J[j + 1] != owner)(step.finish)


def _block_specs(
    sizes: tuple[int, int, int, int, int], num_owners: int, owned_by: str
) -> dict[str, pl.BlockSpec]:
    """Returns the blocks of a visit, by their letters.

    `sizes` are G, the positions of a block, the parts of keys, their positions, and H.
    """
    G, block, J, S, H = sizes

    def in_parts(b, k, i):
        # Even scalar divisions show in the time of a step.
        part, i = _divmod(i, S // block) if J > 1 else (0, i)
        return part, b, k, i, 0

    def spec(side: str, shape: tuple, index: Callable) -> pl.BlockSpec:
        def index_map(k, j, owner_J, other_J, *_):
            row, own = _divmod(owner_J[j], num_owners)
            return index(row, k, own if side == owned_by else other_J[j])

        return pl.BlockSpec(shape, index_map)

    head = (None, None)
    return {
        "1T": spec("query", (None, 1, block), lambda b, k, i: (b, 0, i)),
        "GT": spec("query", (*head, G, block), lambda b, k, i: (b, k, 0, i)),
        "GTH": spec("query", (*head, G, block, H), lambda b, k, i: (b, k, 0, i, 0)),
        "SH": spec("key", (None, *head, block, H), in_parts),
    }


def _divmod(i: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Returns i // num and i % num of an i that is not negative."""
    if num.bit_count() == 1:
        return i >> (num.bit_length() - 1), i & (num - 1)
    return jax.lax.div(i, num), jax.lax.rem(i, num)


def _fill(ref: jax.Ref, value: float) -> None:
    ref[...] = jnp.full(ref.shape, value, ref.dtype)


def _letters(name: str) -> str:
    return name.rpartition("_")[2]


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Contracts two matrices over their common letter; f32."""
    left, right = equation.partition("->")[0].split(",")
    (common,) = set(left) & set(right)
    contracted = ((left.index(common),), (right.index(common),))
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), preferred_element_type=jnp.float32
    )


def _like(shape, dtype, x: jax.Array) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


_attend = with_gradients(_forward, _backward)
