# SPDX-License-Identifier: Apache-2.0
"""The production recipes: layouts as text, and steps that fit their pods."""

import dataclasses
import importlib
import pathlib
import re
from typing import Any

import jax
import jax.export
import pytest

from ring_jax import sharding
from ring_jax.config import RunConfig, from_config_dict
from ring_jax.plan import (
    Plan,
    collective_lines,
    default_cache,
    find_pod,
    parameter_layouts,
    plan_step,
)
from ring_jax.plan.abstract import abstract_batch, abstract_mesh_of, abstract_state
from ring_jax.train.optimizer import make_optimizer
from ring_jax.train.step import make_train_step

FOLDER = pathlib.Path(__file__).parent.parent.parent / "configs" / "recipes"
MODULES = {
    file.stem: importlib.import_module(f"configs.recipes.{file.stem}")
    for file in sorted(FOLDER.glob("*.py"))
}
RECIPES = [name for name, module in MODULES.items() if hasattr(module, "get_config")]
ON_TPU = [name for name in RECIPES if hasattr(MODULES[name], "TOPOLOGY")]


REPOSITORY = FOLDER.parent.parent
GOLDEN = REPOSITORY / "tests" / "golden" / "plan"


def load(name: str) -> RunConfig:
    return from_config_dict(RunConfig, MODULES[name].get_config())


@pytest.mark.parametrize("name", RECIPES)
def test_the_layouts_of_a_recipe_are_the_reviewed_ones(name, check_golden):
    check_golden(f"plan/{name}.layouts.txt", parameter_layouts(load(name)))


@pytest.mark.parametrize("name", RECIPES)
def test_the_mesh_of_a_recipe_divides_model_and_batch(name):
    run = load(name)
    mesh = abstract_mesh_of(run.mesh)
    sharding.check_model(run.model, mesh)
    rows = sharding.BATCH_AXES
    num_parts = run.train.num_microbatches
    for axis in rows:
        num_parts *= mesh.shape[axis]
    assert run.train.global_batch_size % num_parts == 0


@pytest.mark.parametrize("name", ON_TPU)
def test_the_mesh_of_a_recipe_has_the_devices_of_its_pod(name):
    module, run = MODULES[name], load(name)
    assert abstract_mesh_of(run.mesh).size == find_pod(module.TOPOLOGY).num_devices
    said = module.__doc__ or ""
    assert f"--config=configs/recipes/{name}.py --topology={module.TOPOLOGY}" in said


@pytest.mark.parametrize("name", RECIPES)
def test_the_step_of_a_recipe_lays_out_on_its_mesh(name):
    run = load(name)
    mesh = abstract_mesh_of(run.mesh)
    # Of one layer: shapes are the same for each, and tracing takes a while.
    model = dataclasses.replace(run.model, num_layers=1, num_dense_layers=0)
    run = dataclasses.replace(run, model=model)
    with jax.sharding.use_abstract_mesh(mesh):
        state, batch = abstract_state(run), abstract_batch(run, mesh)
        optimizer = make_optimizer(run.train.optimizer, run.stages)
        after, _ = jax.eval_shape(make_train_step(run, optimizer), state, batch)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype) == (now.shape, now.dtype)
        assert layout_of(before) == layout_of(now)


def layout_of(array: jax.ShapeDtypeStruct) -> list:
    """The mesh axes of each dimension; a scalar may have no layout at all."""
    layout = () if array.sharding is None else array.sharding.spec
    return [*layout, *(None,) * (array.ndim - len(layout))]


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TPU)
def test_the_step_of_a_recipe_fits_its_pod_with_the_reviewed_collectives(
    name, check_golden
):
    plan = plan_step(
        load(name), find_pod(MODULES[name].TOPOLOGY), cache=default_cache()
    )
    assert isinstance(plan, Plan), plan
    assert plan.step.memory.spare_share >= 0.05
    assert plan.step.undonated == ()
    lines = collective_lines(plan.time.collectives)
    check_golden(f"plan/{name}.collectives.txt", lines)


def test_the_step_for_a_node_of_gpus_lowers_for_them():
    run = load("ling_lite_8xh100")
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, num_layers=5))
    # Emulated devices stand for the GPUs; only the lowering is theirs.
    mesh = sharding.make_mesh(run.mesh, jax.devices())
    with jax.set_mesh(mesh):
        state, batch = abstract_state(run), abstract_batch(run, mesh)
        optimizer = make_optimizer(run.train.optimizer, run.stages)
        step: Any = make_train_step(run, optimizer)
        export = jax.export.export(
            step,
            platforms=["cuda"],
            # XLA's own mark of a layout, on which jax gives no promise of stability.
            disabled_checks=[
                jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")
            ],
        )
        exported = export(state, batch)
    assert exported.platforms == ("cuda",)
    assert exported.nr_devices == 8
    assert "reduce_scatter" in exported.mlir_module()


def explained() -> dict[str, set[str]]:
    """Reads collective -> mesh axes from the table of docs/parallelism.md."""
    page = (REPOSITORY / "docs/parallelism.md").read_text("utf-8")
    section = page.partition("### The collectives of a step")[2].partition("\n#")[0]
    rows = re.findall(r"^\| ([a-z-]+) \| ([a-z, ]+) \|", section, re.MULTILINE)
    return {kind: set(axes.split(", ")) for kind, axes in rows if axes != "over"}


def stem(path: pathlib.Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.collectives.txt")), ids=stem)
def test_the_docs_explain_each_collective_of_a_recipe(path):
    table = explained()
    for line in path.read_text("utf-8").splitlines():
        match = re.match(r"([a-z-]+) over ([\w:]+): ", line)
        assert match is not None, line
        kind, label = match.groups()
        # "a:2" is a part of 2 of axis a, and axes are joined by "x".
        axes = {axis.partition(":")[0] for axis in split_axes(label)}
        assert axes <= table.get(kind, set()), line


def split_axes(label: str) -> list[str]:
    """Splits axes that are joined by "x"; no name of an axis is part of another's."""
    names = "|".join(sharding.MESH_AXES)
    assert re.fullmatch(rf"({names})(:\d+)?(x({names})(:\d+)?)*", label), label
    return re.findall(rf"(?:{names})(?::\d+)?", label)
