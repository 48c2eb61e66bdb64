# SPDX-License-Identifier: Apache-2.0
"""One suite for every implementation of attention, against numpy float64 and jax.nn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import hardware
from pallas_kernels.attention import (
    IMPLEMENTATIONS,
    default_implementation,
    packed_attention,
    tpu,
    unsupported,
    xla,
)
from pallas_kernels.attention.flash import Spans, document_starts
from tests.attention_reference import (
    assert_close,
    expected,
    found,
    operands,
    segments,
)
from tests.emulated_tpu import emulated

BLOCK = 128
# Lengths of the documents of each row; what is left of a row is padding. Two rows of
# 320 where they do: one compilation.
ROWS = {
    "one_document": [[320], [320]],
    "many_short": [[1, 2, 3, 40, 20, 9] * 4 + [20], [7] * 40],
    "ends_at_block_edges": [[128, 128, 64], [256, 64]],
    "ends_after_block_edges": [[129, 128, 63], [257, 63]],
    "padded_tail": [[100, 30], [320]],
    "padded_around_a_block_edge": [[255], [128, 192]],
    "padded_from_a_block_edge": [[128], [320]],
    "nothing_but_padding": [[], [320]],
    "not_a_multiple_of_the_block": [[150, 41], [191]],
    "shorter_than_a_block": [[5, 6], [3]],
}
HEADS = {"one_each": (2, 2), "four_share": (4, 1), "two_groups": (8, 2)}


@pytest.fixture(params=[*IMPLEMENTATIONS, "xla, looped"])
def implementation(request, monkeypatch):
    """Each implementation, with small blocks; the TPU's is interpreted, on one core."""
    monkeypatch.setattr(tpu, "BLOCK", BLOCK)
    if request.param == "xla, looped":
        monkeypatch.setattr(xla, "MAX_UNROLLED", 0)
        monkeypatch.setattr(xla, "BLOCK", 64)
    if request.param != "tpu":
        yield request.param.partition(",")[0]
        return
    with emulated("TPU v6 lite", detect_races=False):
        yield request.param


@pytest.fixture
def case(implementation, request):
    """The name of the case, by which its compiled programs are found again."""
    del implementation
    return request.node.callspec.params["implementation"]


@functools.partial(jax.jit, static_argnames="case")
def both_passes(arrays, segments_BT, *, case):
    """Compiled once for all rows of a shape, by the names of `implementation`."""
    name = case.partition(",")[0]
    attend = functools.partial(packed_attention, implementation=name)
    return found(attend, arrays, segments_BT)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_values_and_gradients_match_the_definition(case, rows):
    segments_BT = segments(rows)
    arrays = operands(segments_BT)
    actual = both_passes(arrays, segments_BT, case=case)
    assert_close(actual, expected(arrays, segments_BT))
    for x in actual:
        assert not np.any(np.asarray(x)[np.asarray(segments_BT) == 0])


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [
        # Beside the four that share one, in float32, of the test above.
        pytest.param(HEADS["one_each"], "float32", id="one_each"),
        pytest.param(HEADS["two_groups"], "float32", id="two_groups"),
        pytest.param(HEADS["two_groups"], "bfloat16", id="two_groups-bfloat16"),
        *(
            pytest.param(
                HEADS[name], "bfloat16", id=f"{name}-bfloat16", marks=pytest.mark.slow
            )
            for name in ("one_each", "four_share")
        ),
    ],
)
def test_heads_share_keys_in_order(implementation, heads, dtype):
    segments_BT = segments(ROWS["ends_after_block_edges"])
    arrays = operands(segments_BT, heads, dtype)
    attend = functools.partial(packed_attention, implementation=implementation)
    actual = found(attend, arrays, segments_BT)
    assert_close(actual, expected(arrays, segments_BT), dtype)


def test_tokens_match_dot_product_attention_of_jax(implementation):
    segments_BT = segments(ROWS["many_short"])
    arrays = operands(segments_BT, (8, 2))
    is_token_BT11 = (segments_BT != 0)[:, :, None, None]
    arrays[3] = jnp.where(is_token_BT11, arrays[3], 0)
    same_B1TS = (segments_BT[:, :, None] == segments_BT[:, None])[:, None]

    def peer(query_BTNH, key_BTKH, value_BTKH, _):
        return jax.nn.dot_product_attention(
            query_BTNH, key_BTKH, value_BTKH, mask=same_B1TS, is_causal=True
        )

    attend = functools.partial(packed_attention, implementation=implementation)
    out_BTNH, *grads = found(attend, arrays, segments_BT)
    peer_BTNH, *peer_grads = found(peer, arrays, segments_BT)
    # What it gives for padding is not ours to compare.
    wanted = [jnp.where(is_token_BT11, peer_BTNH, 0), *peer_grads]
    assert_close([out_BTNH, *grads], [np.asarray(x, np.float64) for x in wanted])


def test_padding_leaks_nothing_even_if_it_holds_nan(case):
    segments_BT = segments(ROWS["padded_tail"])
    arrays = operands(segments_BT)
    wanted = expected(arrays, segments_BT)
    is_token_BT11 = (segments_BT != 0)[:, :, None, None]
    arrays = [jnp.where(is_token_BT11, x, jnp.nan) for x in arrays]
    assert_close(both_passes(arrays, segments_BT, case=case), wanted)


def test_padding_may_lie_before_and_between_documents(case):
    row = [0] * 70 + [3] * 100 + [0] * 30 + [1] * 50 + [0] * 70
    segments_BT = jnp.array([row, row[::-1]])
    arrays = operands(segments_BT)
    actual = both_passes(arrays, segments_BT, case=case)
    assert_close(actual, expected(arrays, segments_BT))


def test_a_nan_stays_in_its_own_document_and_after_it(case):
    segments_BT = segments([[130, 100, 90], [320]])
    query, key, value, grad = operands(segments_BT)
    # Blocks of 128 hold parts of two documents, of which one has the NaN as a key.
    arrays = [query, key.at[0, 150].set(jnp.nan), value, grad]
    out_BTNH, *_ = both_passes(arrays, segments_BT, case=case)
    is_nan_BT = np.isnan(out_BTNH).any(axis=(2, 3))
    assert np.argwhere(is_nan_BT).tolist() == [[0, t] for t in range(150, 230)]


def test_scores_far_apart_neither_overflow_nor_vanish(case):
    segments_BT = segments([[100, 150, 70], [320]])
    query, *rest, grad = operands(segments_BT)
    arrays = [query * 300, *rest, grad]
    actual = both_passes(arrays, segments_BT, case=case)
    wanted = both_passes(arrays, segments_BT, case="reference")
    for a, b in zip(actual, wanted, strict=True):
        # Scores of 1,000 are rounded by 2^-24 * 1,000 = 6e-5, and weights with them.
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * float(jnp.max(b)))


# The interpreter calls back into Python, which neither remat nor shard_map
# differentiates; compiling a step ahead of time covers both.
@pytest.mark.parametrize(
    ("implementation", "max_unrolled"), [("xla", 0), ("xla", 4), ("reference", 4)]
)
def test_each_device_attends_within_its_own_rows_under_shard_map(
    implementation, max_unrolled, monkeypatch
):
    axes = ("data", "fsdp", "expert")
    mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(AxisType.Explicit,) * 3)
    rows = [[100 + 10 * b, 60] for b in range(8)]
    segments_BT = segments(rows)
    arrays = operands(segments_BT)
    wanted = expected(arrays, segments_BT)
    monkeypatch.setattr(xla, "MAX_UNROLLED", max_unrolled)
    spec = P(axes)
    attend = functools.partial(packed_attention, implementation=implementation)
    with jax.set_mesh(mesh):
        run = jax.shard_map(attend, in_specs=(spec,) * 4, out_specs=spec)
        layout = jax.NamedSharding(mesh, spec)
        *placed, segments_BT = jax.device_put([*arrays, segments_BT], layout)
        passes = jax.jit(lambda *x: found(jax.checkpoint(run), x[:4], x[4]))
        assert_close(passes(*placed, segments_BT), wanted)


def num_pairs(segments_BT, block):
    """Counts the pairs of blocks that see each other, from all pairs of positions."""
    T = segments_BT.shape[1]
    # A position of padding sees itself.
    visible_BTS = segments_BT[:, :, None] == segments_BT[:, None]
    visible_BTS &= (segments_BT != 0)[:, :, None]
    visible_BTS |= np.eye(T, dtype=bool)[None]
    visible_BTS &= np.tri(T, dtype=bool)[None]
    blocks = visible_BTS.reshape(-1, T // block, block, T // block, block)
    return blocks.any(axis=(2, 4)), blocks.all(axis=(2, 4))


PACKED = {
    "one_document": [[1024]],
    "short": [[50] * 20, [200, 56, 100, 300, 12, 300]],
    "edges": [[128, 256, 129, 127, 384], [64, 64, 1, 255]],
    "padding": [[], [700]],
}


@pytest.mark.parametrize("owned_by", ["query", "key"])
@pytest.mark.parametrize("rows", [*PACKED.values()], ids=PACKED)
def test_each_pair_of_blocks_that_sees_each_other_is_visited_once(rows, owned_by):
    segments_BT = np.pad(segments(rows), ((0, 0), (0, -sum(rows[-1]) % 1024)))
    segments_BT = segments_BT[:, :1024]
    start_BT = document_starts(jnp.asarray(segments_BT))
    firsts = np.arange(0, 1024, 128)
    spans = Spans(start_BT, firsts, firsts)
    visits, num_visits = tpu.plan_visits(spans, owned_by=owned_by)
    owner, other, sight, *_ = (np.asarray(x) for x in jax.tree.leaves(visits))
    assert np.all(np.diff(owner) >= 0)
    # The kernel's last step looks one visit ahead.
    assert owner[num_visits] != owner[num_visits - 1]
    is_seen, is_whole = num_pairs(segments_BT, 128)
    num_visited = np.zeros_like(is_seen, int)
    for j in range(int(num_visits)):
        row, own = divmod(owner[j], is_seen.shape[1])
        pair = (own, other[j]) if owned_by == "query" else (other[j], own)
        num_visited[row, *pair] += 1
        assert sight[j] == (tpu.ALL if is_whole[row, *pair] else tpu.SOME)
    np.testing.assert_array_equal(num_visited, is_seen)


def test_short_documents_cost_blocks_in_proportion_to_the_row():
    for num_blocks in (8, 64):
        segments_BT = segments([[100] * (num_blocks * 128 // 100)])
        start_BT = document_starts(segments_BT[:, : num_blocks * 128 // 100 * 100])
        start_BT = jnp.pad(start_BT, ((0, 0), (0, -start_BT.shape[1] % 128)), "edge")
        T = start_BT.shape[1]
        firsts = np.arange(0, T, 128)
        spans = Spans(start_BT, firsts, firsts)
        _, num_visits = tpu.plan_visits(spans, owned_by="query")
        # Its own block, and at most the one before.
        assert num_visits <= 2 * num_blocks
        first = [
            int(xla.first_key_block(start_BT[:, i * 128 : (i + 1) * 128]))
            for i in range(num_blocks)
        ]
        assert all(i - block <= 1 for i, block in enumerate(first))


def abstract_passes(num_positions):
    """Compiles both passes of `xla` for a long row."""
    shapes = [(1, num_positions, n, 16) for n in (2, 1, 1, 2)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    segments_BT = jax.ShapeDtypeStruct((1, num_positions), jnp.int32)
    attend = functools.partial(packed_attention, implementation="xla")
    passes = jax.jit(lambda segments_BT, *arrays: found(attend, arrays, segments_BT))
    return passes.lower(segments_BT, *arrays).compile()


def test_memory_grows_linearly_with_the_row():
    sizes = []
    for num_positions in (4096, 32768):
        memory = abstract_passes(num_positions).memory_analysis()
        assert memory is not None
        sizes.append(memory.temp_size_in_bytes)
    # 8 times the positions; a square would be 64 times, of 4 GiB a head.
    assert sizes[1] < 8.5 * sizes[0]


@pytest.mark.slow
@pytest.mark.parametrize("num_positions", [32768, 65536])
def test_long_rows_of_short_documents_run_on_a_cpu(num_positions):
    lengths = [900] * (num_positions // 900)
    segments_BT = segments([[*lengths, num_positions - sum(lengths)]])
    arrays = operands(segments_BT, (4, 1), width=64)
    attend = jax.jit(functools.partial(packed_attention, implementation="xla"))
    out_BTNH, *grads = found(attend, arrays, segments_BT)
    # The same documents in rows of their own.
    alone = [x[:, 1800:2700] for x in arrays]
    wanted = expected(alone, jnp.ones((1, 900), jnp.int32))
    assert_close([x[:, 1800:2700] for x in (out_BTNH, *grads)], wanted)


def test_default_implementation_is_the_first_that_can_run():
    query, key, _, _ = operands(jnp.ones((1, 8), jnp.int32))
    assert default_implementation(query, key) == "xla"
    halves = query.astype(jnp.float16), key.astype(jnp.float16)
    assert default_implementation(*halves) == "reference"
    assert "float16" in (unsupported("xla", *halves) or "")
    assert "the device is cpu" in (unsupported("tpu", query, key) or "")
    with hardware.pretend("TPU v5p"):
        assert default_implementation(query, key) == "tpu"
        long = jnp.zeros((64, 2**15, 1, 1), jnp.float32)
        assert "fewer or shorter rows" in (unsupported("tpu", long, long) or "")


def test_a_refusal_is_a_sentence():
    segments_BT = jnp.ones((1, 8), jnp.int32)
    query, key, value, _ = operands(segments_BT, (4, 2))
    with pytest.raises(NotImplementedError, match="xla cannot run: .* float16"):
        query_half, key_half = query.astype(jnp.float16), key.astype(jnp.float16)
        packed_attention(
            query_half, key_half, key_half, segments_BT, implementation="xla"
        )
    with pytest.raises(ValueError, match="must be one of"):
        packed_attention(query, key, value, segments_BT, implementation="xle")
    with pytest.raises(ValueError, match="share B, T and H"):
        packed_attention(query, key, value[..., :-1], segments_BT)
    with pytest.raises(ValueError, match="make N a multiple of K"):
        packed_attention(query[:, :, :3], key, value, segments_BT)
    with pytest.raises(ValueError, match="cast all three to one dtype"):
        packed_attention(query.astype(jnp.bfloat16), key, value, segments_BT)
    with pytest.raises(ValueError, match="segments are integers"):
        packed_attention(query, key, value, segments_BT * 1.0)
