# SPDX-License-Identifier: Apache-2.0
r"""New maths problems of the training half of GSM8K, by a teacher behind a server.

    ring synthesise --config=configs/data/synthesis.py --workdir=runs/synthesis \
        --config.teacher.url=http://localhost:8000/v1 --config.teacher.model=NAME

ARG names other seeds: a file or a folder of rows, such as the shards that
`ring curate --config=configs/data/ring_lite_distill.py:queries` wrote. Ten solutions a
problem, kept when more than five agree, drawn at 0.6 and 0.95: the counts and the
sampling of Ring-Lite-Distill (arXiv:2504.07158). With 1,000 seeds, two rounds and two
problems a seed, the teacher writes up to 6,000 problems and 60,000 solutions.
"""

from ring_jax.config import RawSourceConfig, SynthesisConfig, to_config_dict


def get_config(path: str = ""):
    seeds = RawSourceConfig(
        kind="parquet",
        path="raw/openai/gsm8k/main/train-*.parquet",
        origin="https://huggingface.co/datasets/openai/gsm8k",
        licence="MIT",
        form="prompt_completion",
        fields={"prompt": "question", "completion": "answer"},
        answer_in="answer",
    )
    if path:
        kind = "jsonl" if path.endswith((".jsonl", ".jsonl.gz")) else "array_record"
        seeds = RawSourceConfig(kind=kind, path=path, licence="NOASSERTION")
    return to_config_dict(SynthesisConfig(seeds={"seeds": seeds}))
