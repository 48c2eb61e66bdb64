# SPDX-License-Identifier: Apache-2.0
"""Data, from raw rows to batches: how fast, how full, how soon it goes on.

    python -m benchmarks.data [--quick] [--curation-rows=1000000]

`prepare` and `feed`: see `prepare_and_feed.py`. `packing_efficiency_16k`: the share of
packed rows that tokens take, of lengths drawn like a mixture of long traces and short
instructions. `restart_seconds`: the slowest of some steps, found anew, of a mixture of
two sources of a billion rows. `dedup`: see `deduplication.py`. `--curation-rows` adds
the peak memory of `ring curate` on so many short rows, which takes minutes for a
million. The last line is one JSON object.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import deduplication, prepare_and_feed
from benchmarks.billion_rows import billion_rows
from benchmarks.conditions import conditions
from ring_jax.data import length_index
from ring_jax.data.ledger import Ledger
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.mixture_table import Change, Geometry
from ring_jax.data.windows import Windows

SEQ_LEN = 16_384
TRAINED = (False, True, True, True, True)
"""All classes but prompts."""
FIRST_MEASURED, NUM_MEASURED = 32, 96
"""Steps of which packed rows are looked at: whole windows, after the first."""
RESTARTED = (0, 77_777, 1_500_000)
"""Steps; more than a billion rows came before the last."""
CURATION = """
from ring_jax.config import CurateConfig, RawSourceConfig, to_config_dict

def get_config():
    source = RawSourceConfig(path={path!r}, licence="CC0-1.0")
    return to_config_dict(CurateConfig(sources={{"rows": source}}))
"""
CURATE = """
import pathlib, sys
from ring_jax.cli.main import main

status = main(sys.argv[1:])
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
# Not getrusage, whose maximum a process has from the one that started it.
print(*(line for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


def main() -> None:
    """Measures one after the other, and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, for a first look")
    parser.add_argument("--curation-rows", type=int, default=0, metavar="ROWS")
    args = parser.parse_args()
    num_traces, num_dedup_rows = (60, 2_000) if args.quick else (2_000, 20_000)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        result = prepare_and_feed.measure(folder, num_traces=num_traces)
        result["packing_efficiency_16k"] = round(packing_efficiency(), 4)
        result["restart_seconds"] = round(restart_seconds(), 3)
        result |= deduplication.measure(num_dedup_rows)
        if args.curation_rows:
            result["curation_rows"] = args.curation_rows
            peak = curation_peak_bytes(folder, num_rows=args.curation_rows)
            result["curation_peak_bytes"] = peak
    for name, value in result.items():
        print(f"{name:<36}{value:>14,}")
    print(json.dumps(result | {"is_quick": args.quick} | conditions()))


def packing_efficiency() -> float:
    """Packs windows of drawn lengths; returns the share of them that tokens take."""
    rng = np.random.default_rng(0)
    indexes = {
        "traces": drawn_index(rng, 20_000, mean=5_000, sigma=0.7),
        "instructions": drawn_index(rng, 40_000, mean=250, sigma=0.8),
    }
    ledger = opened(indexes, batch_size=16, window_steps=16)
    windows = Windows(ledger)
    steps = range(FIRST_MEASURED, FIRST_MEASURED + NUM_MEASURED)
    tokens = sum(
        share.tokens for step in steps for share in windows.composition(step).values()
    )
    return tokens / (len(steps) * ledger.geometry.batch_size * SEQ_LEN)


def drawn_index(
    rng: np.random.Generator, num_rows: int, *, mean: float, sigma: float
) -> LengthIndex:
    """Makes an index of log-normal lengths, a third of each row its prompt."""
    lengths_C = rng.lognormal(np.log(mean), sigma, num_rows).astype(np.int64)
    lengths_C = np.clip(lengths_C, 4, SEQ_LEN)
    counts_CU = np.zeros((num_rows, len(TRAINED)), np.int32)
    counts_CU[:, 0] = lengths_C // 3
    counts_CU[:, 2] = lengths_C - 2 - lengths_C // 3
    counts_CU[:, 4] = 1
    return length_index.from_counts(counts_CU, rng.random(num_rows, np.float32))


def restart_seconds() -> float:
    """Finds what some steps hold, each from nothing but table and indexes."""
    indexes = {"a": billion_rows(mean=400), "b": billion_rows(mean=2_000)}
    ledger = opened(indexes, batch_size=64, window_steps=4)
    seconds = []
    for step in RESTARTED:
        start = time.perf_counter()
        Windows(Ledger(indexes, ledger.geometry, ledger.table)).composition(step)
        seconds.append(time.perf_counter() - start)
    return max(seconds)


def opened(
    indexes: dict[str, LengthIndex], *, batch_size: int, window_steps: int
) -> Ledger:
    """Opens a stage: four trained tokens of the first source for one of the second."""
    geometry = Geometry(
        batch_size=batch_size,
        seq_len=SEQ_LEN,
        window_steps=window_steps,
        algorithm="first_fit",
        fill=None,
        trained_classes=TRAINED,
        seed="0/base",
    )
    mixture = dict(zip(indexes, (0.8, 0.2), strict=True))
    change = Change(start_step=0, mixture=mixture)
    return Ledger(indexes, geometry, []).extended(change)


def curation_peak_bytes(folder: pathlib.Path, *, num_rows: int) -> int:
    """Curates short rows with `ring curate`; returns the most memory that it held."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(5_000)]
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            asked, told = (" ".join(rng.choices(words, k=20)) for _ in range(2))
            messages = [
                {"role": "user", "content": f"{number}: {asked}?"},
                {"role": "assistant", "content": told},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    config = folder / "curation.py"
    config.write_text(CURATION.format(path=str(path)), encoding="utf-8")
    words = [f"--config={config}", f"--workdir={folder / 'curated'}"]
    command = [sys.executable, "-c", CURATE, "curate", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-2]) * 1024


if __name__ == "__main__":
    main()
