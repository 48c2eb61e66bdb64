# SPDX-License-Identifier: Apache-2.0
"""Settings of optimisation, stages and their mixtures."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Literal

from ring_jax.config.errors import (
    ConfigError,
    require_above,
    require_at_least,
)

ShareSchedule = Literal["step", "linear", "cosine"]
"""How a mixture's shares move to new ones."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101) with warm-up, cosine decay and global-norm clipping."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Applied to matrices only; norms and biases do not decay."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""

    def __post_init__(self):
        require_above(self, 0, "eps", "clip_norm")
        require_at_least(self, 0, "weight_decay")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ConfigError(f"b1={self.b1} and b2={self.b2} must be in [0, 1).")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Terms beside the cross-entropy, and how it is computed."""

    z_loss_coef: float = 1e-4
    """On the squared log-partition of the vocabulary (PaLM, arXiv:2204.02311, 5)."""
    balance_coef: float = 1e-2
    """On E * sum(f_i P_i), where even routing gives 1 (arXiv:2101.03961, eq. 4)."""
    router_z_coef: float = 1e-4
    """On the squared log-partition of the router (arXiv:2202.08906, eq. 5)."""
    head_chunk_tokens: int = 1024
    """Tokens whose logits exist at once; [tokens, vocabulary] never exists whole."""

    def __post_init__(self):
        require_at_least(self, 0, "z_loss_coef", "balance_coef", "router_z_coef")
        require_at_least(self, 1, "head_chunk_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Which rows of a source come when, by rank of difficulty inside their source.

    0 is the easiest row and 1 the hardest; ranks are told apart in eighths. Sources
    whose rows nobody graded are read whole.
    """

    lowest: float = 0.0
    """Rank from which rows are read."""
    highest: float = 1.0
    """Rank up to which rows are read, in the end."""
    start: float = 1.0
    """Part of these ranks that is open at the beginning; 1 opens all at once. The open
    part grows with the square root of time (arXiv:1903.09848, equation 7, p = 2)."""
    over_steps: int = 0
    """Steps after which all ranks are open."""

    def __post_init__(self):
        if not 0 <= self.lowest < self.highest <= 1 or not 0 < self.start <= 1:
            raise ConfigError(
                f"curriculum {dataclasses.asdict(self)} needs 0 <= lowest < highest "
                "<= 1 and 0 < start <= 1."
            )
        if round(8 * self.lowest) == round(8 * self.highest):
            raise ConfigError(
                f"lowest={self.lowest} and highest={self.highest} are the same eighth; "
                "ranks are told apart in eighths."
            )
        if (self.start < 1) != (self.over_steps > 0):
            raise ConfigError(
                f"start={self.start} needs over_steps above 0, and 1 needs none; "
                f"over_steps={self.over_steps}."
            )


def check_shares(shares: Mapping[str, float], *, name: str) -> None:
    """Checks the shares of a mixture.

    Raises:
      ConfigError: there is none, or one is not a finite number above 0.
    """
    bad = {key: share for key, share in shares.items() if not 0 < share < math.inf}
    if bad or not shares:
        raise ConfigError(
            f"{name}={bad or dict(shares)} needs at least one source, each above 0 "
            "and finite; leave out what shall not be read."
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MixtureChangeConfig:
    """A change of a stage's mixture on its way."""

    step: int = 0
    """Step of the stage at which it begins, moved up to the next packing window."""
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Source name -> share of trained tokens from now on."""
    schedule: ShareSchedule = "step"
    over_steps: int = 0
    """Steps in which `linear` and `cosine` get there."""
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    reason: str = ""
    """Why; written to `mixture.json`."""

    def __post_init__(self):
        check_shares(self.mixture, name="mixture")
        require_at_least(self, 1, "step")
        if (self.schedule == "step") != (self.over_steps == 0) or self.over_steps < 0:
            raise ConfigError(
                f"schedule={self.schedule!r} with over_steps={self.over_steps}: a step "
                "takes 0 steps, linear and cosine take some."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """One stage of training: what it reads and how it steps."""

    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Source name -> share of trained tokens; shares need not sum to 1."""
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    mixture_changes: Mapping[str, MixtureChangeConfig] = dataclasses.field(
        default_factory=dict
    )
    """Changes of the mixture by name, at steps that ascend."""
    num_steps: int = 100
    learning_rate: float = 4e-5
    """Peak, after warm-up."""
    warmup_steps: int = 10
    final_learning_rate_fraction: float = 0.1
    routing_warmup_steps: int = 0
    """Stochastic routing warm-up (arXiv:2503.05139, 2.1); 0 for fine-tuning."""
    train_prompts: bool = False
    """Also trains prompt tokens of chat rows; text rows are always trained whole."""

    def __post_init__(self):
        require_at_least(self, 1, "num_steps")
        require_above(self, 0, "learning_rate")
        require_at_least(self, 0, "warmup_steps", "routing_warmup_steps")
        if not 0 <= self.final_learning_rate_fraction <= 1:
            raise ConfigError(
                f"final_learning_rate_fraction={self.final_learning_rate_fraction} "
                "must be from 0 to 1."
            )
        check_shares(self.mixture, name="mixture")
        steps = [change.step for change in self.mixture_changes.values()]
        if steps != sorted(set(steps)):
            raise ConfigError(f"mixture_changes begin at {steps}; let them ascend.")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names all sources that the stage reads, now or after a change."""
        later = (change.mixture for change in self.mixture_changes.values())
        return tuple(dict.fromkeys(itertools.chain(self.mixture, *later)))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the loop steps, whatever the stage."""

    global_batch_size: int = 16
    """Packed rows per optimizer step."""
    seq_len: int = 512
    """Tokens per packed row."""
    num_microbatches: int = 1
    """Gradient accumulation: the batch is split into this many parts."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Weights are float32 masters; matmuls run in this type."""
    remat: Literal["none", "matmuls", "kernels", "block", "offload"] = "block"
    """What the backward pass finds saved of a layer: everything; results of all
    matmuls; attention's and the experts' gate and up; its input; its input in the
    host's memory. It computes the rest again. The order is that of memory."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2
    tensorboard: bool = False
    peak_flops_per_second: float | None = None
    """Per device, for MFU; None reads the chip table, and MFU is absent without one."""

    def __post_init__(self):
        sizes = ("global_batch_size", "seq_len", "num_microbatches")
        require_at_least(self, 1, *sizes, "log_every_steps")
        require_at_least(self, 1, "checkpoint_every_steps", "keep_checkpoints")
        if self.peak_flops_per_second is not None:
            require_above(self, 0, "peak_flops_per_second")
        if self.global_batch_size % self.num_microbatches:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} is not a multiple of "
                f"num_microbatches={self.num_microbatches}."
            )
