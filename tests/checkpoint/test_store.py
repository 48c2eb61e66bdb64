# SPDX-License-Identifier: Apache-2.0
"""Checkpoints come back bit for bit, or not at all."""

import gc
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.checkpoint.store import StorageError, Store, check_model, read_newest
from ring_jax.config import ConfigError, MeshConfig, ModelConfig
from ring_jax.sharding import P

# A read that fails leaves tasks of Orbax unfinished; they complain when collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def _state(seed=0):
    random = np.random.default_rng(seed)
    return {
        "model": {"w_DF": jnp.asarray(random.normal(size=(16, 32)), jnp.float32)},
        "moments": [jnp.asarray(random.normal(size=(16, 32)), jnp.bfloat16)],
        "step": jnp.int32(seed),
    }


def _abstract(state):
    def describe(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return jax.tree.map(describe, state)


def _assert_same_bits(left, right):
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def directory(tmp_path):
    """A folder with steps 1 and 2."""
    store = Store(tmp_path, keep=3)
    for step in (1, 2):
        store.save(step, _state(step), {"row": 10 * step}, {"stage": "base"})
    store.close()
    yield tmp_path
    # Here the complaints of failed reads are expected; at the end of all tests, not.
    gc.collect()


def test_what_is_saved_comes_back_with_the_data_state(directory):
    store = Store(directory, keep=3)
    assert store.latest() == 2
    restored = store.restore(_abstract(_state()))
    _assert_same_bits(restored.state, _state(2))
    assert (restored.data_state, restored.meta) == ({"row": 20}, {"stage": "base"})
    store.close()


def test_a_new_folder_has_no_latest_step(tmp_path):
    store = Store(tmp_path / "new", keep=1)
    assert store.latest() is None
    with pytest.raises(ConfigError, match="no checkpoint here"):
        store.restore(_abstract(_state()))
    store.close()


def test_only_the_newest_steps_are_kept(tmp_path):
    store = Store(tmp_path, keep=2)
    for step in range(1, 5):
        store.save(step, _state(step), {}, {})
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_saving_a_committed_step_again_changes_nothing(directory):
    store = Store(directory, keep=3)
    store.save(2, _state(7), {}, {})
    _assert_same_bits(store.restore(_abstract(_state())).state, _state(2))
    store.close()


def test_donating_the_state_during_a_save_does_not_change_what_is_saved(tmp_path):
    store = Store(tmp_path, keep=1)
    x = jnp.arange(2**20, dtype=jnp.float32)
    expected = np.array(x)
    store.save(1, {"x": x}, {}, {})
    overwrite = jax.jit(jnp.negative, donate_argnums=0)
    for _ in range(5):
        x = overwrite(x)
    x.block_until_ready()
    store.wait()
    _assert_same_bits(store.restore(_abstract({"x": x})).state["x"], expected)
    store.close()


@pytest.mark.parametrize("to_spec", [P(), P("data", "fsdp"), P(None, ("data", "fsdp"))])
def test_a_save_from_eight_devices_restores_into_another_layout(tmp_path, to_spec):
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    x = jax.device_put(_state()["model"]["w_DF"], sharding.on_mesh(P("fsdp"), mesh))
    store = Store(tmp_path, keep=1)
    store.save(1, {"x": x}, {}, {})
    to = sharding.on_mesh(to_spec, mesh)
    abstract = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)}
    restored = store.restore(abstract).state["x"]
    assert restored.sharding == to
    _assert_same_bits(restored, x)
    store.close()


def test_a_save_from_eight_devices_restores_onto_the_mesh_in_force(tmp_path, mesh):
    eight = sharding.make_mesh(MeshConfig(data=8))
    x = jax.device_put(_state()["model"]["w_DF"], sharding.on_mesh(P("data"), eight))
    store = Store(tmp_path, keep=1)
    with jax.set_mesh(eight):
        store.save(1, {"x": x}, {}, {})
    # What `jax.eval_shape` returns on an explicit mesh: a layout without devices.
    layout = jax.sharding.NamedSharding(mesh.abstract_mesh, P("fsdp"))
    abstract = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)}
    restored = store.restore(abstract).state["x"]
    assert restored.sharding == sharding.on_mesh(P("fsdp"), mesh)
    _assert_same_bits(restored, x)
    store.close()


def test_what_has_no_layout_is_restored_to_all_of_the_mesh_in_force(directory):
    eight = sharding.make_mesh(MeshConfig(data=8))
    wanted = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    with jax.set_mesh(eight):
        _, arrays = read_newest(directory, lambda record: wanted)
    assert arrays["step"].sharding == sharding.on_mesh(P(), eight)


def _files(directory):
    return sorted(path for path in (directory / "2").rglob("*") if path.is_file())


def _truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _delete(path: Path):
    path.unlink()


def _flip_first(path: Path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:] if content else b"")


def _flip_middle(path: Path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _delete, _flip_first, _flip_middle])
def test_damage_to_any_file_is_survived_and_never_silent(directory, damage):
    outcomes = set()
    for file in _files(directory):
        copy = directory.parent / "copy"
        shutil.copytree(directory, copy)
        damage(copy / file.relative_to(directory))
        store = Store(copy, keep=3)
        state = store.restore(_abstract(_state())).state
        fell_back = (copy / "2.corrupt").exists()
        assert store.latest() == int(state["step"]) == (1 if fell_back else 2)
        # Files that Orbax does not read may be damaged freely; the arrays are right.
        _assert_same_bits(state, _state(1 if fell_back else 2))
        outcomes.add(fell_back)
        store.close()
        shutil.rmtree(copy)
    assert outcomes == {True, False}


def test_a_flipped_bit_in_an_array_is_seen_though_orbax_does_not(directory):
    data = max((directory / "2" / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    _flip_middle(data)
    store = Store(directory, keep=3)
    _assert_same_bits(store.restore(_abstract(_state())).state, _state(1))
    assert (directory / "2.corrupt").exists()
    # The run goes on and writes step 2 again.
    store.save(2, _state(2), {}, {})
    store.wait()
    assert store.latest() == 2
    store.close()


def test_when_no_step_verifies_nothing_is_moved_and_the_error_is_loud(directory):
    for step in ("1", "2"):
        shutil.rmtree(directory / step / "state")
    store = Store(directory, keep=3)
    with pytest.raises(StorageError, match="no checkpoint verifies .*step 2.*step 1"):
        store.restore(_abstract(_state()))
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
    store.close()


def test_a_checkpoint_of_another_tree_is_refused_by_name(directory):
    store = Store(directory, keep=3)
    wanted = _abstract(_state())
    with pytest.raises(ConfigError, match=r"step 2 has no `model.head_DV`"):
        store.restore(wanted | {"model": wanted["model"] | {"head_DV": wanted["step"]}})
    wider = jax.ShapeDtypeStruct((16, 64), jnp.float32)
    with pytest.raises(ConfigError, match=r"float32\[16,32\]; this run has .*16,64"):
        store.restore(wanted | {"model": {"w_DF": wider}})
    with pytest.raises(ConfigError, match=r"has `moments.0`, which this run lacks"):
        store.restore({key: wanted[key] for key in ("model", "step")})
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
    store.close()


def test_a_checkpoint_of_other_model_settings_is_refused_by_name(tmp_path):
    store = Store(tmp_path, keep=1, model=ModelConfig(rope_theta=1e4))
    store.save(1, _state(), {}, {})
    store.close()
    store = Store(tmp_path, keep=1, model=ModelConfig(init_std=0.1, rope_theta=1e4))
    store.restore(_abstract(_state()))
    store.close()
    store = Store(tmp_path, keep=1, model=ModelConfig(rope_theta=6e5))
    refusal = r"model.rope_theta=10000.0; .* 600000.0"
    with pytest.raises(ConfigError, match=refusal):
        store.restore(_abstract(_state()))
    store.close()
    with pytest.raises(ConfigError, match=refusal):
        check_model(tmp_path, ModelConfig(rope_theta=6e5))
    check_model(tmp_path, ModelConfig(rope_theta=1e4))
    check_model(tmp_path / "none", ModelConfig())


def test_a_reader_takes_a_part_and_changes_nothing(directory):
    _flip_middle(directory / "2" / "record" / "data.json")
    w_DF = _state()["model"]["w_DF"]
    wanted = {"model.w_DF": jax.ShapeDtypeStruct(w_DF.shape, w_DF.dtype)}
    record, arrays = read_newest(directory, lambda record: wanted)
    assert record["step"] == 1
    _assert_same_bits(arrays, {"model.w_DF": _state(1)["model"]["w_DF"]})
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


def test_a_folder_that_cannot_be_written_is_an_error_of_storage(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written to"):
        Store(tmp_path / "file" / "checkpoints", keep=1)
