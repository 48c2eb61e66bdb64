# SPDX-License-Identifier: Apache-2.0
"""A curation of rows that come with packages: seconds on a laptop.

    ring curate --config=configs/data/demo.py --workdir=runs/curated

Training rows of five packages are held against held-out rows of the same tasks. A
folder of raw files of your own is one more source:

    ring curate --config=configs/data/demo.py:raw/ --workdir=runs/curated
"""

from ring_jax.config import CurateConfig, RawSourceConfig, to_config_dict


def get_config(folder: str = ""):
    sources = {
        "chain_sum": RawSourceConfig(
            kind="reasoning_gym", task="chain_sum", level="medium", num_rows=400
        ),
        "gsm_symbolic": RawSourceConfig(
            kind="reasoning_gym", task="gsm_symbolic", level="hard", num_rows=200
        ),
        # Its other levels have the benchmark's wording, and that is kept out here.
        "tool_calls": RawSourceConfig(kind="tool_calls", level="easy", num_rows=200),
        "instructions": RawSourceConfig(kind="instructions", num_rows=300),
        "countries": RawSourceConfig(kind="countries", num_rows=200),
    }
    if folder:
        sources["raw"] = RawSourceConfig(path=folder, licence="NOASSERTION")
    heldout = {
        "chain_sum_heldout": sources["chain_sum"],
        "gsm_symbolic_heldout": sources["gsm_symbolic"],
        "bfcl": RawSourceConfig(kind="bfcl"),
    }
    return to_config_dict(CurateConfig(sources=sources, evaluation_sets=heldout))
