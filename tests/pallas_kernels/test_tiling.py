# SPDX-License-Identifier: Apache-2.0
"""Tiles of the TPU kernels: tuned, computed, refused."""

import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hardware
from pallas_kernels.expert_mlp import tune
from pallas_kernels.expert_mlp.epilogues import SWIGLU_AND_INPUTS
from pallas_kernels.expert_mlp.passes import MODELS, Experts, passes
from pallas_kernels.grouped_matmul import (
    fused_matmul,
    grouped_outer,
    plan_rows,
    tiling,
)
from pallas_kernels.grouped_matmul.tiling import (
    OuterShape,
    OuterTiles,
    ProductShape,
    ProductTiles,
)
from pallas_kernels.schedule import CHIPS
from tests.emulated_tpu import emulated

V6E = hardware.TPUS["TPU v6 lite"]
SHAPE = ProductShape(kernel="grouped_matmul", num_groups=8, width_in=512, width=768)
TILES = ProductTiles(columns=384, matrices=2, row_tiles=2, result_tiles=2)


def entry(
    shape: tiling.Shape = SHAPE,
    tiles: tiling.Tiles = TILES,
    device_kind: str = "TPU v6 lite",
):
    return {
        "device_kind": device_kind,
        "shape": dataclasses.asdict(shape),
        "tiles": dataclasses.asdict(tiles),
    }


def write(path, *entries):
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", CHIPS)
def test_the_kernels_of_known_models_have_tuned_tiles(chip, model, caplog):
    tuned = {
        (each["device_kind"], json.dumps(each["shape"])): each["tiles"]
        for each in json.loads(tiling.PATH.read_text(encoding="utf-8"))
    }
    caplog.set_level(logging.INFO, "pallas_kernels")
    found = CHIPS[chip].tpu
    for pass_ in passes(MODELS[model]):
        tiles = tiling.choose_tiles(pass_.shape, found)
        shape = json.dumps(dataclasses.asdict(pass_.shape))
        assert dataclasses.asdict(tiles) == tuned[found.name, shape]
        assert tiling.unfit(pass_.shape, tiles, found) is None
    assert not caplog.records


def test_a_shape_that_nobody_tuned_gets_computed_tiles_and_one_log_line(caplog):
    caplog.set_level(logging.INFO, "pallas_kernels")
    shape = dataclasses.replace(SHAPE, width=896)
    tiles = {tiling.choose_tiles(shape, V6E) for _ in range(2)}
    assert tiles == {tiling.compute_tiles(shape, V6E)}
    (record,) = caplog.records
    assert "tiles.json has no tiles of num_groups=8" in record.getMessage()
    assert "on TPU v6 lite; computed columns=896" in record.getMessage()


@pytest.mark.parametrize("vmem_bytes", [2**20, 2**22, 2**24, 2**27])
@pytest.mark.parametrize("num_cores", [1, 2])
def test_computed_tiles_are_the_largest_that_fit(vmem_bytes, num_cores):
    small = dataclasses.replace(V6E, vmem_bytes=vmem_bytes, num_cores=num_cores)
    for shape in (
        SHAPE,
        OuterShape(num_groups=8, width_in=256, width=512),
        # Widths that are no multiple of 128 have one tile.
        ProductShape(kernel="grouped_matmul", num_groups=2, width_in=24, width=40),
    ):
        fitting = [
            tiles
            for tiles in shape.candidates(small)
            if tiling.unfit(shape, tiles, small) is None
        ]
        if not fitting:
            with pytest.raises(NotImplementedError, match="pad the width"):
                tiling.compute_tiles(shape, small)
            continue
        chosen = tiling.compute_tiles(shape, small)
        assert shape.vmem_bytes(chosen, small) <= tiling.vmem_budget(small)
        most = max(tiles.columns for tiles in fitting)
        if isinstance(shape, ProductShape):
            assert chosen.columns == most
        elif num_cores == 2 and len(fitting) > 1:
            assert chosen.columns * chosen.columns_in < 256 * 512, "a core is idle"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": 500}, "columns=500 must be a multiple of 128 and divide 768"),
        ({"columns": 512}, "columns=512 must be a multiple of 128 and divide 768"),
        ({"matrices": 3}, "matrices=3 must be a power of two from 2 on"),
        ({"result_tiles": 0}, "result_tiles=0 must be a power of two"),
        ({"row_tiles": 1}, "row_tiles=1 must be a power of two from 2 on"),
        ({"epilogue_columns": 100}, "epilogue_columns=100 must be a multiple of 128"),
        ({"matrices": 1024}, "columns=384, .* bytes of 100,663,296 of VMEM"),
    ],
)
def test_tuned_tiles_that_no_kernel_could_run_with_are_refused(
    change, message, tmp_path
):
    path = write(
        tmp_path / "tiles.json",
        entry(),
        entry(
            dataclasses.replace(SHAPE, num_groups=9),
            dataclasses.replace(TILES, **change),
        ),
    )
    with pytest.raises(ValueError, match=f"tiles.json, entry 1: {message}.*Tune"):
        tiling.load(path)


def test_tiles_of_unknown_chips_and_of_one_shape_twice_are_refused(tmp_path):
    path = write(tmp_path / "tiles.json", entry(device_kind="TPU v3"))
    with pytest.raises(ValueError, match="'TPU v3' must be one of"):
        tiling.load(path)
    with pytest.raises(ValueError, match="the shape of an earlier one"):
        tiling.load(write(path, entry(), entry()))
    outer = OuterShape(num_groups=8, width_in=256, width=512)
    tiles = OuterTiles(columns_in=256, columns=100, row_tiles=8)
    with pytest.raises(ValueError, match="columns=100 must be .* divide 512"):
        tiling.load(write(path, entry(outer, tiles)))


def test_kernels_with_other_tiles_give_the_same(monkeypatch):
    # Two tiles of columns, in each two steps of the epilogue, and the shortest rings.
    R, D, F, sizes = 150, 128, 512, (31, 0, 80, 33)
    monkeypatch.setattr(tiling, "PART_ROWS", 32)
    rng = np.random.default_rng(0)
    x_RD, w_EDF, grad_RF = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((R, D), (len(sizes), D, 2 * F), (R, F))
    )
    weights_R = jnp.abs(x_RD[:, 0])

    def run(implementation):
        plan = plan_rows(jnp.array(sizes), num_rows=R, implementation=implementation)
        outputs, _ = fused_matmul(
            x_RD, w_EDF, plan, SWIGLU_AND_INPUTS, row_weights_R=weights_R
        )
        # Rows of nobody are left as they are.
        return [rows[: sum(sizes)] for rows in outputs]

    tiles = ProductTiles(
        columns=256, matrices=2, row_tiles=2, result_tiles=2, epilogue_columns=128
    )
    outer_tiles = OuterTiles(columns_in=128, columns=128, row_tiles=2)
    groups = jnp.array(sizes)
    with emulated(V6E.name):
        with tiling.use_tiles(tiles):
            found = run("tpu")
        with tiling.use_tiles(outer_tiles):
            found.append(grouped_outer(x_RD, grad_RF, groups, implementation="tpu"))
        with (
            tiling.use_tiles(dataclasses.replace(tiles, columns=384)),
            pytest.raises(ValueError, match="divide 512. Use others"),
        ):
            run("tpu")
    want = run("reference")
    want.append(grouped_outer(x_RD, grad_RF, groups, implementation="reference"))
    for got, expected in zip(found, want, strict=True):
        # float32 sums of up to 128 terms, in another order.
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


# The tuner.


def test_shorter_rings_alone_are_not_tried():
    best = ProductTiles(columns=768, matrices=8, row_tiles=8, result_tiles=4)

    def is_tried(**change):
        tiles = dataclasses.replace(best, **change)
        return tune.is_worth_trying(tiles, best, SHAPE, V6E)

    assert is_tried(row_tiles=16)
    assert is_tried(matrices=4, result_tiles=8)
    assert not is_tried(matrices=4)
    assert not is_tried()
    assert not is_tried(matrices=1024, result_tiles=8)


def test_a_tuned_entry_takes_the_place_of_its_own_shape_only(tmp_path, monkeypatch):
    path = write(tmp_path / "tiles.json", entry(), entry(device_kind="TPU7x"))
    monkeypatch.setattr(tiling, "PATH", path)
    better = dataclasses.replace(TILES, matrices=4)
    tune.save(entry(tiles=better))
    assert tiling.load(path) == {
        ("TPU v6 lite", SHAPE): better,
        ("TPU7x", SHAPE): TILES,
    }
    with pytest.raises(ValueError, match="matrices=3"):
        tune.save(entry(tiles=dataclasses.replace(TILES, matrices=3)))
    assert tiling.load(path)["TPU v6 lite", SHAPE] == better


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--chips=v9", "v9: not one of v5e, v5p"),
        ("--models=ling", "ling: not one of ling_lite"),
        ("--shape=64x2048", "it must be like 64x2048x1408x49152"),
        ("--shape=0x2048x1408x49152", "it must be like 64x2048x1408x49152"),
    ],
)
def test_bad_flags_end_the_tuner_with_a_sentence(flag, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune", flag])
    with pytest.raises(SystemExit) as stopped:
        tune.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.aot
def test_tuning_a_kernel_finds_what_its_schedule_says():
    experts = Experts(num_experts=8, model_dim=512, expert_dim=256, num_rows=2048)
    pass_ = next(each for each in passes(experts) if each.name == "gradient of down")
    found = tune.tune("v6e", experts, pass_)
    assert found["shape"] == dataclasses.asdict(pass_.shape)
    assert 0 < found["estimated_us"] <= found["estimated_us_of_computed"]
    again = tune.try_tiles("v6e", experts, pass_, OuterTiles(**found["tiles"]))
    assert 1e6 * again.seconds == pytest.approx(found["estimated_us"], abs=0.1)
