# SPDX-License-Identifier: Apache-2.0
"""Folders round-trip bit for bit, and a bad one is refused in one line."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tokenizers

from ring_jax import sharding
from ring_jax.checkpoint.huggingface import tensors
from ring_jax.checkpoint.model_folder import export_folder, import_folder
from ring_jax.checkpoint.tree import place
from ring_jax.config import ConfigError, MeshConfig, ModelConfig, MoeConfig
from ring_jax.model import abstract_transformer
from tests.bailing_reference import random_parameters

CONFIG = ModelConfig(
    vocab_size=64,
    model_dim=32,
    num_layers=3,
    num_dense_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=40,
    moe=MoeConfig(num_experts=4, num_experts_per_token=2, expert_dim=24),
    eos_id=1,
    pad_id=1,
)
NUMPY_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
INDEX = "model.safetensors.index.json"
VICTIM = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.fixture
def tokenizer(tmp_path):
    vocab = {"a": 0, "<|endoftext|>": 1, "<|startoftext|>": 2}
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [])).save(str(path))
    return path


@pytest.fixture
def export(tmp_path, tokenizer):
    def export(params, config=CONFIG, **settings):
        return export_folder(
            params,
            config,
            tmp_path / "export",
            tokenizer=tokenizer,
            chat_template="{{ messages }}",
            **settings,
        )

    return export


@pytest.fixture
def folder(export):
    """A folder of several shards."""
    return export(random_parameters(CONFIG), dtype="float32", shard_bytes=40_000)


def _assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].dtype == right[path].dtype == np.float32
        assert left[path].tobytes() == right[path].tobytes(), path


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"has_qkv_bias": True}]
)
def test_a_round_trip_is_bit_exact(export, dtype, shard_bytes, changes):
    config = dataclasses.replace(
        CONFIG, has_output_bias="has_qkv_bias" in changes, **changes
    )
    params = random_parameters(config)
    stored = {
        path: array.astype(NUMPY_DTYPES[dtype]).astype(np.float32)
        for path, array in params.items()
    }
    folder = export(params, config, dtype=dtype, shard_bytes=shard_bytes)
    read_config, read = import_folder(folder)
    assert read_config == config
    _assert_same_bits(read, stored)
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    export(read, config, dtype=dtype, shard_bytes=shard_bytes)
    assert first == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_reference_reader_finds_the_layout_of_pytorch(folder):
    params = random_parameters(CONFIG)
    read = {}
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
        read |= safetensors.numpy.load_file(file)
    assert {name: array.shape for name, array in read.items()} == {
        name: tensor.shape for name, tensor in tensors(CONFIG).items()
    }
    # Layer 2 of the model is layer 1 of the routed ones.
    query_DNH = params["moe_layers.attention.query_DNH"][1]
    value_DKH = params["moe_layers.attention.value_DKH"][1]
    rows = read["model.layers.2.attention.query_key_value.weight"]
    np.testing.assert_array_equal(rows[16 * 3 + 5], query_DNH[:, 3, 5])
    np.testing.assert_array_equal(rows[16 * (4 + 2 + 1) + 5], value_DKH[:, 1, 5])
    out_NHD = params["moe_layers.attention.out_NHD"][1]
    dense = read["model.layers.2.attention.dense.weight"]
    np.testing.assert_array_equal(dense[:, 16 * 3 + 5], out_NHD[3, 5])
    gate_up_ED2F = params["moe_layers.moe.gate_up_ED2F"][1]
    up = read["model.layers.2.mlp.experts.3.up_proj.weight"]
    np.testing.assert_array_equal(up, gate_up_ED2F[3, :, 1].T)
    np.testing.assert_array_equal(read["lm_head.weight"], params["head_DV"].T)


def test_a_folder_has_the_files_that_readers_expect(folder):
    shards = sorted(folder.glob("*.safetensors"))
    count = len(shards)
    assert count > 2
    assert [shard.name for shard in shards] == [
        f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    ]
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(
        4 * int(np.prod(tensor.shape)) for tensor in tensors(CONFIG).values()
    )
    assert set(index["weight_map"]) == set(tensors(CONFIG))
    others = {file.name for file in folder.iterdir()} - {shard.name for shard in shards}
    assert others == {
        INDEX,
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer_config["eos_token"] == "<|endoftext|>"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 2}


def test_a_model_on_eight_devices_is_exported_like_one_on_the_host(export):
    params = random_parameters(CONFIG)
    expected = (export(params, dtype="float32") / "model.safetensors").read_bytes()
    with jax.set_mesh(sharding.make_mesh(MeshConfig(data=1, fsdp=2, expert=4))):
        model = place(abstract_transformer(CONFIG), params)
        folder = export(model, dtype="float32")
    assert (folder / "model.safetensors").read_bytes() == expected


def test_parameters_of_other_settings_are_refused_before_anything_is_written(
    export, tmp_path
):
    params = random_parameters(CONFIG)
    other = dataclasses.replace(CONFIG, has_output_bias=True)
    with pytest.raises(
        ConfigError, match="`dense_layers.attention.out_bias_D` is None"
    ):
        export(params, other)
    params["final_norm_D"] = params["final_norm_D"][:-1]
    with pytest.raises(ConfigError, match=r"`final_norm_D` is \(31,\).* have \(32,\)"):
        export(params)
    assert not (tmp_path / "export").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(export):
    params = random_parameters(CONFIG)
    with pytest.raises(ConfigError, match="no token of id 7"):
        export(params, dataclasses.replace(CONFIG, eos_id=7))
    small = dataclasses.replace(CONFIG, vocab_size=2)
    with pytest.raises(ConfigError, match="ids up to 2, the model has vocab_size=2"):
        export(random_parameters(small), small)


def test_a_file_that_is_no_tokenizer_is_refused(export, tokenizer):
    params = random_parameters(CONFIG)
    for text, message in (("{", "is not JSON"), ("{}", "holds no model")):
        tokenizer.write_text(text)
        with pytest.raises(ConfigError, match=message):
            export(params)
    tokenizer.unlink()
    with pytest.raises(ConfigError, match="tokenizer.json is missing"):
        export(params)


def test_what_no_export_wrote_is_not_replaced(export, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no exported model"):
        export(random_parameters(CONFIG))
    assert (tmp_path / "export" / "thesis.tex").read_text() == "years of work"


def test_a_failed_export_leaves_the_old_one(folder, export, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        export(random_parameters(CONFIG, seed=1))
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {path.name for path in folder.parent.iterdir()} == {
        "export",
        "tokenizer.json",
    }


def _rewrite(folder: Path, change) -> None:
    """Applies `change` to the tensors of the file that holds the victim."""
    index = json.loads((folder / INDEX).read_text())
    file = folder / index["weight_map"][VICTIM]
    arrays = safetensors.numpy.load_file(file)
    change(arrays)
    safetensors.numpy.save_file(arrays, file)


def _edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def _missing(folder):
    _rewrite(folder, lambda arrays: arrays.pop(VICTIM))
    _edit_index(folder, lambda placed: placed.pop(VICTIM))


def _extra(folder):
    file = json.loads((folder / INDEX).read_text())["weight_map"][VICTIM]
    _edit_index(folder, lambda placed: placed.update({"model.extra": file}))
    _rewrite(folder, lambda arrays: arrays.update({"model.extra": np.zeros(3)}))


def _missing_from_its_file(folder):
    _rewrite(folder, lambda arrays: arrays.pop(VICTIM))


def _in_two_files(folder):
    other = "model.norm.weight"
    _rewrite(folder, lambda arrays: arrays.update({other: np.zeros(32, np.float32)}))


def _wrong_shape(folder):
    _rewrite(
        folder, lambda arrays: arrays.update({VICTIM: arrays[VICTIM][:, 1:].copy()})
    )


def _transposed(folder):
    transposed = tensors(CONFIG)[VICTIM].shape[::-1]
    _rewrite(
        folder, lambda arrays: arrays.update({VICTIM: np.zeros(transposed, np.float32)})
    )


def _wrong_dtype(folder):
    _rewrite(
        folder,
        lambda arrays: arrays.update({VICTIM: arrays[VICTIM].astype(np.float16)}),
    )


def _points_outside(folder):
    shutil.copy(next(folder.glob("*.safetensors")), folder.parent / "x.safetensors")
    _edit_index(folder, lambda placed: placed.update({VICTIM: "../x.safetensors"}))


def _points_to_an_absolute_path(folder):
    _edit_index(folder, lambda placed: placed.update({VICTIM: "/x.safetensors"}))


def _points_to_a_number(folder):
    _edit_index(folder, lambda placed: placed.update({VICTIM: 3}))


def _links_outside(folder):
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][VICTIM]
    file.symlink_to(file.rename(folder.parent / "x.safetensors"))


def _no_such_shard(folder):
    (folder / json.loads((folder / INDEX).read_text())["weight_map"][VICTIM]).unlink()


def _truncated(folder):
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][VICTIM]
    file.write_bytes(file.read_bytes()[:-4])


def _header_is_damaged(folder):
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][VICTIM]
    content = bytearray(file.read_bytes())
    content[20] ^= 0xFF
    file.write_bytes(content)


def _index_is_no_json(folder):
    (folder / INDEX).write_text("{")


def _index_is_a_list(folder):
    (folder / INDEX).write_text("[]")


def _index_without_map(folder):
    (folder / INDEX).write_text("{}")


def _only_a_pickle(folder):
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _no_weights(folder):
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()


def _no_config(folder):
    (folder / "config.json").unlink()


def _config_is_nested_too_deep(folder):
    (folder / "config.json").write_text("[" * 100_000)


def _config_is_of_v2(folder):
    file = folder / "config.json"
    text = file.read_text().replace("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM")
    file.write_text(text)


BAD_FOLDERS = {
    _missing: f"`{VICTIM}` is missing",
    _extra: "`model.extra` is not part of the model",
    _missing_from_its_file: f"disagree on `{VICTIM}`",
    _in_two_files: "disagree on `model.norm.weight`",
    _wrong_shape: rf"`{VICTIM}` has shape \(32, 23\); .* \(32, 24\)",
    _transposed: rf"`{VICTIM}` has shape \(24, 32\); .* \(32, 24\)",
    _wrong_dtype: f"`{VICTIM}` has dtype F16",
    _points_outside: f"places `{VICTIM}` in '../x.safetensors'",
    _points_to_an_absolute_path: f"places `{VICTIM}` in '/x.safetensors'",
    _points_to_a_number: f"places `{VICTIM}` in 3",
    _links_outside: "is a symbolic link",
    _no_such_shard: "cannot be read",
    _truncated: "cannot be read",
    _header_is_damaged: "cannot be read",
    _index_is_no_json: f"{INDEX} is not JSON",
    _index_is_a_list: f"{INDEX} is not a JSON object",
    _index_without_map: f"{INDEX} has no weight_map",
    _only_a_pickle: "pytorch_model.bin is a pickle",
    _no_weights: "holds neither model.safetensors nor",
    _no_config: "config.json is missing",
    _config_is_nested_too_deep: "config.json is not JSON",
    _config_is_of_v2: "BailingMoeV2ForCausalLM",
}


@pytest.mark.parametrize(
    ("spoil", "message"), BAD_FOLDERS.items(), ids=[s.__name__[1:] for s in BAD_FOLDERS]
)
def test_a_bad_folder_is_refused_in_one_line(folder, monkeypatch, spoil, message):
    spoil(folder)
    # Memory for tensors is taken only for a folder that is right.
    monkeypatch.setattr(np, "empty", None)
    with pytest.raises(ConfigError, match=message) as caught:
        import_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="config.json is missing"):
        import_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        import_folder(tokenizer)
