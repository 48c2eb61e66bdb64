# SPDX-License-Identifier: Apache-2.0
"""The one chip table: dense bfloat16 peak of each device kind.

Sources: the vendors' product pages (Google Cloud TPU system architecture; NVIDIA H100
and H200 data sheets, dense figures without sparsity).
"""

PEAK_FLOPS_PER_SECOND = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""`jax.Device.device_kind` -> FLOP/s of one device, as jax counts devices."""


def peak_flops_per_second(device_kind: str) -> float | None:
    """Returns the dense bfloat16 peak of a device kind; None: it is not known."""
    return PEAK_FLOPS_PER_SECOND.get(device_kind)
