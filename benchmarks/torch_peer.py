# SPDX-License-Identifier: Apache-2.0
"""The peer of `benchmarks.train_step`: transformers and torch, run in their own Python.

It imports nothing of ours. Usage: `python torch_peer.py <shape as JSON>`. It builds one
model a contestant, writes their names as one JSON line, then answers each name on its
standard input with the seconds of one training step; an empty line ends it.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]  # in the peer's own environment
from transformers import (  # pyright: ignore[reportMissingImports]  # likewise
    GraniteMoeSharedConfig,
    GraniteMoeSharedForCausalLM,
)

WARMUP_STEPS = 3
"""The first compiles, the second may compile again for what the first assumed."""


def main() -> None:
    """Serves training steps over standard input and output."""
    shape = json.loads(sys.argv[1])
    torch.set_num_threads(shape["num_cores"])
    modes = ["eager"]
    # torch.compile needs a C++ compiler on a CPU.
    if shutil.which("c++") or shutil.which("g++"):
        modes.append("compiled")
    steps = {
        f"{dtype} {mode}": make_step(shape, dtype, mode)
        for dtype in ("float32", "bfloat16")
        for mode in modes
    }
    for step in steps.values():
        for _ in range(WARMUP_STEPS):
            step()
    print(json.dumps(list(steps)), flush=True)
    for line in sys.stdin:
        if not line.strip():
            return
        start = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - start, flush=True)


def make_step(shape: dict, dtype: str, mode: str) -> Callable[[], float]:
    """Builds model and optimizer; returns one step: forward, backward, clip, AdamW."""
    torch.manual_seed(0)
    model = GraniteMoeSharedForCausalLM(model_config(shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if mode == "compiled" else model
    size = (shape["batch_size"], shape["seq_len"])
    ids = torch.randint(0, shape["vocab_size"], size)

    def step() -> float:
        with autocast(dtype):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def model_config(shape: dict) -> GraniteMoeSharedConfig:
    """Returns the peer's config of the same shape."""
    return GraniteMoeSharedConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["model_dim"],
        intermediate_size=shape["expert_dim"],
        shared_intermediate_size=shape["num_shared_experts"] * shape["expert_dim"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        num_local_experts=shape["num_experts"],
        num_experts_per_tok=shape["num_experts_per_token"],
        max_position_embeddings=shape["seq_len"],
        tie_word_embeddings=False,
        use_cache=False,
    )


def autocast(dtype: str) -> contextlib.AbstractContextManager:
    """Returns the context that runs matmuls in `dtype`; weights stay float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
