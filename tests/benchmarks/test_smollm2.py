# SPDX-License-Identifier: Apache-2.0
"""A pretrained model, real text, and an implementation that we did not write."""

import numpy as np
import pytest

from benchmarks import smollm2
from configs.models.smollm2_135m import get_config
from ring_jax.checkpoint.gguf import import_gguf
from ring_jax.config import ModelConfig, from_config_dict


def test_the_perplexity_of_even_chances_is_the_number_of_choices():
    ids_BT = np.arange(12, dtype=np.int32).reshape(2, 6)
    logits_BTV = np.full((2, 6, 40), 3.0, np.float32)
    assert smollm2.perplexity(logits_BTV, ids_BT) == pytest.approx(40.0)
    # The token that follows, and no other, is what a row must be sure of.
    for row in range(2):
        logits_BTV[row, np.arange(5), ids_BT[row, 1:]] = 100.0
    assert smollm2.perplexity(logits_BTV, ids_BT) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.hf
def test_smollm2_is_what_mlx_says_it_is_before_and_after_upcycling():
    model = import_gguf(smollm2.fetch())
    assert model.config == from_config_dict(ModelConfig, get_config().to_dict())
    found = smollm2.measure(model, num_windows=2)
    assert "Paris" in found["answer"]
    assert abs(found["perplexity_ratio_to_mlx"] - 1) < 0.005
    # A model that reads nonsense into its weights has one in the thousands.
    assert found["perplexity"] < 50
    # Shares of the logits' standard deviation, float32 over 30 layers.
    assert found["max_logit_difference_to_mlx"] < 1e-2
    assert found["max_logit_difference_upcycled"] < 1e-2
