# SPDX-License-Identifier: Apache-2.0
"""Eight experts, two of them for each token, that compute what the dense model does.

    ring import --folder=DENSE --config=configs/upcycle/eight_experts.py --workdir=DIR

`--config.noise_std=0.01` lets the copies differ from the start.
"""

import ml_collections

from ring_jax.config import UpcycleConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(UpcycleConfig(num_experts=8, num_experts_per_token=2))
