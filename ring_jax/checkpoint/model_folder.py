# SPDX-License-Identifier: Apache-2.0
"""Model folders as Hugging Face keeps them, written and read without any of its code.

A folder is data: JSON, safetensors and text. Nothing in it is executed, and a tensor is
read only after all names, shapes and types have been found right.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers

from ring_jax.checkpoint import safetensors_stream
from ring_jax.checkpoint.architectures import ARCHITECTURES
from ring_jax.checkpoint.huggingface import (
    Dtype,
    config_from_hf,
    config_to_hf,
    parameter_shapes,
    tensors,
)
from ring_jax.checkpoint.safetensors_stream import DTYPES, Spec
from ring_jax.checkpoint.tree import flatten
from ring_jax.checkpoint.weights import Tensor
from ring_jax.config import ConfigError, ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_START_TOKEN = "<|startoftext|>"

_DTYPES = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"]}


def export_folder(
    params: Any,
    config: ModelConfig,
    out_dir: str | Path,
    *,
    tokenizer: str | Path,
    chat_template: str,
    dtype: Dtype = "bfloat16",
    shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes a folder that vLLM, SGLang, llama.cpp and mlx-lm can open.

    Files appear together, by one rename, after each has been read back and compared. A
    folder that an export wrote before is replaced.

    Args:
      params: the model's parameters, as a tree or by path; fully addressable. One layer
        at a time is copied to the host.
      config: the settings that the parameters belong to.
      out_dir: the folder to write.
      tokenizer: a `tokenizer.json`, or a folder that holds one.
      chat_template: Jinja text of the conversation format.
      dtype: of all tensors; float32 is exact.
      shard_bytes: size above which a new file begins; a tensor is never split.

    Returns:
      The folder.

    Raises:
      ConfigError: the parameters, the tokenizer or `out_dir` do not fit; nothing is
        written.
      OSError: the disk failed.
    """
    flat = flatten(params)
    shapes = {path: tuple(array.shape) for path, array in flat.items()}
    if shapes != (expected := parameter_shapes(config)):
        path = min(set(shapes.items()) ^ set(expected.items()))[0]
        raise ConfigError(
            f"export: parameter `{path}` is {shapes.get(path)}; these settings have "
            f"{expected.get(path)}. Export with the settings that it was trained with."
        )
    texts = tokenizer_files(tokenizer, config) | {
        "config.json": _json(config_to_hf(config, dtype=dtype)),
        "chat_template.jinja": chat_template,
    }
    out_dir = Path(out_dir).absolute()
    _refuse_foreign(out_dir)
    partial = out_dir.with_name(f"{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        texts |= _write_tensors(flat, config, partial, _DTYPES[dtype], shard_bytes)
        for name, text in texts.items():
            _write_text(partial / name, text)
        _replace(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out_dir


def import_folder(folder: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Reads a folder into float32 parameters by path.

    Raises:
      ConfigError: one line that names the file, key or tensor that is wrong. Memory for
        tensors is taken only after all of them have been checked.
    """
    folder = Path(folder)
    config = read_config(folder)
    expected = tensors(config)
    placed = _locate(folder)
    _check(folder, placed, expected)
    params = {
        path: np.empty(shape, np.float32)
        for path, shape in parameter_shapes(config).items()
    }
    for file_name in sorted(set(placed.values())):
        with safetensors_stream.reader(folder / file_name) as file:
            for name in file.specs:
                expected[name].put(params, file.read(name).astype(np.float32))
    return config, params


def read_config(folder: str | Path) -> ModelConfig:
    """Reads the settings of a folder's model.

    Raises:
      ConfigError: there is no config.json, or it cannot be read; one line.
    """
    try:
        return config_from_hf(_read_json(Path(folder) / "config.json"))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def tokenizer_files(tokenizer: str | Path, config: ModelConfig) -> dict[str, str]:
    """Returns the files of a folder that describe a tokenizer, by name.

    Args:
      tokenizer: a `tokenizer.json`, or a folder that holds one.
      config: the model that it is for.

    Raises:
      ConfigError: it is no tokenizer, or its ids are not those of the model.
    """
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    vocab = _read_vocab(path)
    names = {token_id: name for name, token_id in vocab.items()}
    if max(names, default=-1) >= config.vocab_size:
        raise ConfigError(
            f"tokenizer: {path} has ids up to {max(names)}, the model has "
            f"vocab_size={config.vocab_size}; give the tokenizer of the model."
        )
    if missing := {config.eos_id, config.pad_id} - set(names):
        raise ConfigError(
            f"tokenizer: {path} has no token of id {min(missing)}, the model's end or "
            "padding token; give the tokenizer of the model."
        )
    ids = {"eos": config.eos_id, "pad": config.pad_id}
    if _START_TOKEN in vocab:
        ids["bos"] = vocab[_START_TOKEN]
    special = {f"{kind}_token": names[token_id] for kind, token_id in ids.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    generation = {f"{kind}_token_id": token_id for kind, token_id in ids.items()}
    return {
        "tokenizer.json": path.read_text(encoding="utf-8"),
        "tokenizer_config.json": _json(settings | special),
        "special_tokens_map.json": _json(special),
        "generation_config.json": _json(generation),
    }


def _read_vocab(path: Path) -> dict[str, int]:
    # Looked at first, because the library's own errors have no type to catch.
    try:
        has_model = isinstance(_read_json(path).get("model"), dict)
    except ConfigError as error:
        raise ConfigError(f"tokenizer: {path}: {error}") from None
    if not has_model:
        raise ConfigError(f"tokenizer: {path} holds no model; give a tokenizer.json.")
    backend = tokenizers.Tokenizer.from_file(str(path))
    return backend.get_vocab(with_added_tokens=True)


def _refuse_foreign(out_dir: Path) -> None:
    """Refuses to replace what no export wrote."""
    if not out_dir.exists():
        return
    if out_dir.is_dir() and not any(out_dir.iterdir()):
        return
    config = out_dir / "config.json"
    text = config.read_text("utf-8", "replace") if config.is_file() else ""
    if any(name in text for name in ARCHITECTURES):
        return
    raise ConfigError(
        f"{out_dir}: is there already and is no exported model; choose another --out."
    )


def _write_tensors(
    flat: Mapping[str, Any],
    config: ModelConfig,
    folder: Path,
    dtype: np.dtype,
    shard_bytes: int,
) -> dict[str, str]:
    """Writes the safetensors files; returns the index file's text, if one is needed."""
    table = tensors(config)
    specs = {name: Spec(dtype, tensor.shape) for name, tensor in table.items()}
    shards = _shards(specs, shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        numbers = range(1, len(shards) + 1)
        names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in numbers]
    for name, shard in zip(names, shards, strict=True):
        part = {tensor: specs[tensor] for tensor in shard}
        arrays = _stored(flat, [table[tensor] for tensor in shard], dtype)
        checksums = safetensors_stream.write(folder / name, part, arrays)
        safetensors_stream.verify(folder / name, part, checksums)
    if len(shards) == 1:
        return {}
    total = sum(spec.num_bytes for spec in specs.values())
    placed = {
        tensor: name
        for name, shard in zip(names, shards, strict=True)
        for tensor in shard
    }
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(placed.items())),
    }
    return {INDEX: _json(index)}


def _shards(specs: Mapping[str, Spec], shard_bytes: int) -> list[list[str]]:
    """Fills one file after the other, in the order of the tensors."""
    shards, size = [[]], 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.num_bytes
    return shards


def _stored(
    flat: Mapping[str, Any], table: list[Tensor], dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Yields tensors as stored; a parameter is on the host one layer at a time."""
    slabs: dict[str, tuple[int | None, np.ndarray]] = {}
    for tensor in table:
        blocks = []
        for block in tensor.blocks:
            if block.path not in slabs or slabs[block.path][0] != block.layer:
                array = flat[block.path]
                part = array if block.layer is None else array[block.layer]
                slabs[block.path] = (block.layer, np.asarray(jax.device_get(part)))
            blocks.append(block.take(slabs[block.path][1]))
        yield np.concatenate(blocks).astype(dtype)


def _write_text(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    """Moves a folder to its name; what was there goes only after that."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.name} is missing; give a folder in Hugging Face's layout."
        ) from None
    except NotADirectoryError:
        raise ConfigError("is a file; give the folder that holds it.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not JSON ({error}).") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name} is not a JSON object.")
    return tree


def _locate(folder: Path) -> dict[str, str]:
    """Returns which file each tensor is in, by name, without opening a file.

    Raises:
      ConfigError: there are no safetensors, or the index points outside the folder.
    """
    if (folder / INDEX).exists():
        try:
            weight_map = _read_json(folder / INDEX).get("weight_map")
        except ConfigError as error:
            raise ConfigError(f"{folder}: {error}") from None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConfigError(f"{folder}: {INDEX} has no weight_map.")
        for name, file_name in weight_map.items():
            _refuse_outside(folder, name, file_name)
        return weight_map
    if (folder / SINGLE).is_file():
        _refuse_outside(folder, "every tensor", SINGLE)
        with safetensors_stream.reader(folder / SINGLE) as file:
            return dict.fromkeys(file.specs, SINGLE)
    others = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if others:
        raise ConfigError(
            f"{folder}: {others[0].name} is a pickle, which can run code when it is "
            "read; convert the folder to safetensors first."
        )
    raise ConfigError(f"{folder}: holds neither {SINGLE} nor {INDEX}.")


def _refuse_outside(folder: Path, name: str, file_name: Any) -> None:
    is_bare = isinstance(file_name, str) and file_name == Path(file_name).name
    if not is_bare or not file_name.endswith(".safetensors"):
        raise ConfigError(
            f"{folder}: {INDEX} places `{name}` in {file_name!r}; it must name a "
            ".safetensors file of this folder."
        )
    path = folder / file_name
    if path.is_symlink():
        raise ConfigError(
            f"{path}: is a symbolic link and may lead out of the folder; copy the "
            "folder with `cp -rL` first."
        )


def _check(
    folder: Path, placed: Mapping[str, str], expected: Mapping[str, Tensor]
) -> None:
    """Holds all headers against the table.

    Raises:
      ConfigError: names the first tensor that is missing, extra or wrongly shaped.
    """
    if missing := sorted(set(expected) - set(placed)):
        raise ConfigError(
            f"{folder}: `{missing[0]}` is missing ({len(missing)} tensors in all); the "
            "model of config.json has it."
        )
    if extra := sorted(set(placed) - set(expected)):
        raise ConfigError(
            f"{folder}: `{extra[0]}` is not part of the model of config.json "
            f"({len(extra)} such tensors)."
        )
    for file_name in sorted(set(placed.values())):
        with safetensors_stream.reader(folder / file_name) as file:
            announced = {name for name in placed if placed[name] == file_name}
            if wrong := sorted(announced ^ set(file.specs)):
                raise ConfigError(
                    f"{folder / file_name}: {INDEX} and the file disagree on "
                    f"`{wrong[0]}`."
                )
            for name, spec in file.specs.items():
                if spec.shape != expected[name].shape:
                    raise ConfigError(
                        f"{folder / file_name}: `{name}` has shape {spec.shape}; "
                        f"config.json asks for {expected[name].shape}."
                    )
