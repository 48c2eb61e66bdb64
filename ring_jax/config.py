# SPDX-License-Identifier: Apache-2.0
"""The schema of a run: every setting, its default, its unit and its checks.

Files in `configs/` return a `ConfigDict` made by `to_config_dict`; the command line
edits that tree; `from_config_dict` turns it back into these frozen dataclasses,
strictly. So a default exists once, and files and command line are checked by the same
code.
"""

import dataclasses
import difflib
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict

TOKEN_CLASSES = ("padding", "prompt", "think", "answer", "tool", "stop")
"""What a token is for; its index is the class id that batches carry."""


CONVERSATION_KINDS = (
    "single_turn",
    "multi_turn",
    "system",
    "tool_call",
    "tool_result",
    "thinking",
    "empty_thinking",
    "earlier_thinking",
    "tool_thinking",
    "white_space",
)
"""In which chat templates are compared; `data/template_check.py` shows each."""


class ConfigError(ValueError):
    """A user's mistake: one line that names the setting, its value and the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class YarnConfig:
    """Context extension by YaRN (arXiv:2309.00071), parametrised as on the Hub."""

    factor: float = 4.0
    original_max_positions: int = 32768
    """Positions that the model was trained on before extension."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self):
        if self.factor < 1.0:
            raise ConfigError(f"factor={self.factor} is below 1; YaRN only extends.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MoeConfig:
    """Routed layers with ungated shared experts (arXiv:2503.05139, 2.1)."""

    num_experts: int = 64
    num_experts_per_token: int = 6
    num_shared_experts: int = 2
    """Shared experts run as one SwiGLU of this many expert widths; 0 means none."""
    expert_dim: int = 1408
    """Width of one expert's hidden layer."""
    renormalize_weights: bool = True
    """Divides the chosen probabilities by their sum; top-1 is never renormalised."""
    implementation: Literal["auto", "tpu", "xla", "reference"] = "auto"
    """Which `pallas_kernels.grouped_matmul` runs; `auto` takes the best that can."""
    transport: Literal["auto", "fsdp", "ring", "ragged_all_to_all"] = "auto"
    """What moves where devices share the experts (`mesh.expert`): weights, tokens, or
    routed rows; `auto` takes the least traffic, and logs it."""
    quantization: Literal["none", "int8", "float8_e4m3fn"] = "none"
    """Type in which the forward pass multiplies rows and experts' matrices, rounded to
    the nearest; gradients and weights stay as they are. int8 is for TPU v5e, v5p and
    v6e, float8 for tpu7x; others than TPUs emulate both."""

    def __post_init__(self):
        if not 1 <= self.num_experts_per_token <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_token={self.num_experts_per_token} must be from 1 to "
                f"num_experts={self.num_experts}; a token cannot visit an expert twice."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """BailingMoE v1 (`BailingMoeForCausalLM`); defaults are those of Ling-lite.

    With all layers dense it is a Llama (`LlamaForCausalLM`), and `moe` is unused.
    """

    vocab_size: int = 126464
    """Rows of the embedding; rows without a token are padding and are never sampled."""
    model_dim: int = 2048
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 128
    attention_implementation: Literal["auto", "tpu", "xla", "reference"] = "auto"
    """Which `pallas_kernels.attention` runs; `auto` takes the best that can."""
    mlp_dim: int = 5632
    """Width of the feed-forward layer in dense layers; unused when there are none."""
    num_dense_layers: int = 0
    """How many of the first layers are dense (`first_k_dense_replace`)."""
    moe: MoeConfig = dataclasses.field(default_factory=MoeConfig)
    norm_eps: float = 1e-6
    rope_theta: float = 600000.0
    rope_scaling: YarnConfig | None = None
    max_positions: int = 16384
    norm_head: bool = True
    """Divides each channel of the head by its L2 norm over the vocabulary."""
    tie_embeddings: bool = False
    has_output_bias: bool = False
    """A bias on the attention's output projection (`use_bias`)."""
    has_qkv_bias: bool = False
    init_std: float = 0.006
    eos_id: int = 126081
    pad_id: int = 126081

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}; each kv head serves equally many."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} is odd; rotary pairs halves.")
        if not 0 <= self.num_dense_layers <= self.num_layers:
            raise ConfigError(
                f"num_dense_layers={self.num_dense_layers} must be from 0 to "
                f"num_layers={self.num_layers}."
            )
        if self.is_dense and self.norm_head:
            raise ConfigError(
                f"norm_head=True, but all {self.num_layers} layers are dense: that is "
                "a Llama, whose head is not normed. Set norm_head=False."
            )
        if self.is_dense and self.has_qkv_bias != self.has_output_bias:
            raise ConfigError(
                f"has_qkv_bias={self.has_qkv_bias} and has_output_bias="
                f"{self.has_output_bias}, but all {self.num_layers} layers are dense: "
                "that is a Llama, whose attention has all biases or none."
            )
        for name in ("eos_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is not an id below "
                    f"vocab_size={self.vocab_size}."
                )

    @property
    def is_dense(self) -> bool:
        """Whether no layer is routed."""
        return self.num_dense_layers == self.num_layers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UpcycleConfig:
    """How `ring import` makes a BailingMoE of a dense Llama (arXiv:2212.05055)."""

    num_experts: int = 8
    """Copies of each feed-forward layer."""
    num_experts_per_token: int = 2
    num_shared_experts: int = 0
    """Experts for all tokens, each as wide as a routed one; they begin by adding 0."""
    num_dense_layers: int = 0
    """How many of the first layers stay as they are."""
    noise_std: float = 0.0
    """Noise on the experts' weights, in standard deviations of a layer's weights. 0
    keeps the dense model's outputs; copies then differ by what is routed to them."""
    seed: int = 0
    """Of routers and noise."""

    def __post_init__(self):
        if not 2 <= self.num_experts_per_token <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_token={self.num_experts_per_token} must be from 2 to "
                f"num_experts={self.num_experts}: the weight of a single expert is not "
                "normalised, and would scale what the dense layer computes."
            )
        if min(self.num_shared_experts, self.num_dense_layers, self.seed) < 0:
            raise ConfigError(
                f"num_shared_experts={self.num_shared_experts}, num_dense_layers="
                f"{self.num_dense_layers} and seed={self.seed} must be at least 0."
            )
        if not 0 <= self.noise_std < math.inf:
            raise ConfigError(
                f"noise_std={self.noise_std} must be finite and at least 0."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, which takes what is left."""

    slice: int = 1
    """Slices of TPU chips, between which the data centre's network runs."""
    data: int = -1
    """Copies of the weights within a slice."""
    fsdp: int = 1
    """Devices that store a part of each weight, and gather it where it is used."""
    context: int = 1
    """Devices that share each row's tokens, for long rows."""
    expert: int = 1
    """Devices that share the experts."""
    tensor: int = 1
    """Devices that share heads, hidden widths and the vocabulary."""

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        if any(size != -1 and size < 1 for size in sizes) or sizes.count(-1) > 1:
            raise ConfigError(
                f"sizes {dataclasses.asdict(self)} must be positive; one can be -1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Where the tokenizer comes from: a file, or training on the run's own text."""

    path: str | None = None
    """A `tokenizer.json` or a folder that holds one; None trains one on the spot."""
    vocab_size: int = 2048
    """Entries of a tokenizer trained on the spot, special tokens included."""
    num_training_rows: int = 20000
    """Rows of the run's own sources that it is trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One named source of rows; `kind` names a reader in `ring_jax.data.sources`."""

    kind: str = "jsonl"
    num_rows: int = 1000
    """Training rows to read or generate; a reader with fewer gives what it has."""
    num_heldout: int = 64
    """Held-out rows, disjoint from training rows; 0 keeps it out of panels."""
    task: str = ""
    """For generated sources: the task's name, such as `chain_sum`."""
    level: Literal["", "easy", "medium", "hard"] = ""
    path: str | None = None
    """For `jsonl`: the file to read. For `array_record`: shards, by a file, a folder or
    a pattern."""
    first_row: int = 0
    """For `virtual`: number of the first of the `num_rows` rows that are trained."""
    generator_seed: int | None = None
    """For `virtual`: what its rows are generated from; None takes the run's seed."""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For `virtual`: settings of reasoning-gym's generator by name, over the level's
    own. Without a level, problem and answer are in the generator's words."""

    def __post_init__(self):
        check_virtual(self.first_row, self.parameters)


def check_virtual(first_row: int, parameters: Mapping[str, Any]) -> None:
    """Refuses a row below 0, and parameters that are no plain values.

    Raises:
      ConfigError: names the value.
    """
    if first_row < 0:
        raise ConfigError(f"first_row={first_row} must be at least 0.")
    for name, value in flatten_settings(parameters).items():
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, bool | int | float | str) for part in parts):
            raise ConfigError(
                f"parameters.{name}={value!r} must be a number, a text, True, False, "
                "or a tuple of these."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LongRowsConfig:
    """Training rows longer than a packed row. An answer is never cut."""

    policy: Literal["drop", "move", "split"] = "drop"
    """`drop` leaves them out; `move` keeps them for a run with longer packed rows, as
    shards in the run folder; `split` cuts their reasoning (or a plain text) behind
    paragraphs, lines or sentences; parts begin with the prompt and with the end of the
    reasoning so far."""
    carried_tokens: int = 256
    """Reasoning that `split` repeats before it goes on, at most half of a part."""
    max_loss: float = 0.05
    """Share of the tokens of a source that may be in rows left out; more is refused."""

    def __post_init__(self):
        if self.carried_tokens < 1 or not 0 <= self.max_loss <= 1:
            raise ConfigError(
                f"carried_tokens={self.carried_tokens} must be at least 1, and "
                f"max_loss={self.max_loss} from 0 to 1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How rows are put together into packed rows."""

    algorithm: Literal["best_fit", "first_fit"] = "first_fit"
    """`first_fit` places rows as they come, each where it fits first; `best_fit` places
    the longest of a window first, each where it leaves the least room: a little fuller,
    and steps are less alike."""
    window_rows: int = 256
    """Packed rows that are filled together, moved up to whole batches: more are fuller;
    a change of the mixture begins with the next such window."""
    fill: float | None = None
    """Share of a packed row that tokens take; None measures what the lengths allow."""
    no_room: Literal["drop", "refuse"] = "drop"
    """What becomes of a row that found no room in four windows after its own: left out
    and counted, or the run ends."""

    def __post_init__(self):
        if self.window_rows < 8:
            # A row that finds no room waits for a window that has some to spare.
            raise ConfigError(f"window_rows={self.window_rows} must be at least 8.")
        if self.fill is not None and not 0 < self.fill <= 1:
            raise ConfigError(f"fill={self.fill} must be above 0 and at most 1.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSetsConfig:
    """Rows that hold an item of an evaluation set, looked for before the first step.

    Every set that is installed is looked for (`ring_jax/data/evaluation_sets.py`).
    """

    overlap: Literal["refuse", "allow", "ignore"] = "refuse"
    """What a row with such an item does: it ends the command, it is counted and told,
    or nobody looks."""
    overlap_of: Mapping[str, Literal["refuse", "allow", "ignore"]] = dataclasses.field(
        default_factory=dict
    )
    """The same for single sets, such as `{"bfcl": "allow"}`; a set that is named here
    must be installed."""
    ngram: int = 13
    """As in `ContaminationConfig`, and so are the next two."""
    shortest_ngram: int = 6
    max_items_per_ngram: int = 8

    def __post_init__(self):
        check_ngrams(self.shortest_ngram, self.ngram)


def check_ngrams(shortest_ngram: int, ngram: int) -> None:
    """Refuses n-grams of an impossible length.

    Raises:
      ConfigError: names both.
    """
    if not 1 <= shortest_ngram <= ngram:
        raise ConfigError(
            f"shortest_ngram={shortest_ngram} must be from 1 to ngram={ngram}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is read, and how rows become tokens."""

    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    template: Literal["ling", "ring", "ring_keep_thinking"] = "ring"
    """`ring` puts a reply's reasoning between <think> and </think>, and leaves that of
    earlier turns out; `ring_keep_thinking` keeps it; `ling` drops all."""
    template_differences: str = ""
    """Conversation kinds, comma-separated, in which the chat template that comes with
    the tokenizer may write other tokens than `template` does."""
    class_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "prompt": 0.0,
            "think": 1.0,
            "answer": 1.0,
            "tool": 1.0,
            "stop": 1.0,
        }
    )
    """Loss weight of each token class."""
    long_rows: LongRowsConfig = dataclasses.field(default_factory=LongRowsConfig)
    packing: PackingConfig = dataclasses.field(default_factory=PackingConfig)
    evaluation_sets: EvaluationSetsConfig = dataclasses.field(
        default_factory=EvaluationSetsConfig
    )
    cache_dir: str | None = None
    """Where trained tokenizers are kept; None: the run folder."""
    packed: str | None = None
    """Folder of `ring pack`, from which stages read their packed rows; None packs them
    while training. Batches are the same."""
    num_workers: int = 0
    """Processes that make batches beside the training process; 0 uses a thread of it.
    Batches are the same with any number."""
    on_change: Literal["refuse", "allow"] = "refuse"
    """What a continued run does when it finds other data than it began with; after
    `allow`, rows can come twice or not at all."""

    def __post_init__(self):
        classes = TOKEN_CLASSES[1:]
        if unknown := sorted(set(self.class_weights) - set(classes)):
            raise ConfigError(f"class_weights has {unknown}; classes are {classes}.")
        if bad := {
            k: w for k, w in self.class_weights.items() if not 0 <= w < math.inf
        }:
            raise ConfigError(f"class_weights {bad} must be finite and at least 0.")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers={self.num_workers} must be at least 0.")
        conversation_kinds(self.template_differences)


def conversation_kinds(names: str) -> tuple[str, ...]:
    """Returns the kinds of conversations that a comma-separated setting names.

    Raises:
      ConfigError: there is no such kind.
    """
    kinds = tuple(filter(None, (name.strip() for name in names.split(","))))
    if unknown := sorted(set(kinds) - set(CONVERSATION_KINDS)):
        raise ConfigError(
            f"template_differences has {unknown}; kinds are {CONVERSATION_KINDS}."
        )
    return kinds


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
    schedule: Literal["step", "linear", "cosine"] = "step"
    """How shares move to the new ones."""
    over_steps: int = 0
    """Steps in which `linear` and `cosine` get there."""
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    reason: str = ""
    """Why; written to `mixture.json`."""

    def __post_init__(self):
        check_shares(self.mixture, name="mixture")
        if self.step < 1:
            raise ConfigError(f"step={self.step} must be at least 1.")
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
        if self.num_steps < 1:
            raise ConfigError(f"num_steps={self.num_steps} must be at least 1.")
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
        if self.global_batch_size % self.num_microbatches:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} is not a multiple of "
                f"num_microbatches={self.num_microbatches}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """The held-out panel at the end of each stage."""

    items_per_source: int = 64
    max_prompt_tokens: int = 96
    max_new_tokens: int = 96
    batch_size: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """How `ring generate` draws, and how the engine goes about it (`generation.md`)."""

    temperature: float = 0.0
    """Divides the logits before drawing; 0 takes the most probable token."""
    top_k: int = 0
    """How many of the most probable tokens are kept; 0 keeps all."""
    top_p: float = 1.0
    """Keeps the most probable tokens that together reach this probability."""
    min_p: float = 0.0
    """Keeps tokens at least this share as probable as the most probable one."""
    repetition_penalty: float = 1.0
    max_think_tokens: int | None = None
    """Tokens between <think> and </think>, which then is closed; None: no limit."""
    stop: str | None = None
    """A text that ends an answer, and is not in it."""
    steps_per_dispatch: int = 8
    """Tokens of each answer between two looks of the host."""
    prefill_chunk_tokens: int = 256
    """Most tokens of a prompt that are read at once; rounded up to a power of two."""
    prefix_cache_tokens: int = 4096
    """Tokens of prompts whose keys and values are kept for others that begin alike."""

    def __post_init__(self):
        for name in ("steps_per_dispatch", "prefill_chunk_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run."""

    seed: int = 0
    num_devices: int = 1
    """Emulated devices on CPU; ignored where an accelerator is present, and in one of
    several processes, where the launcher says how many each has."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    suites: "SuitesConfig" = dataclasses.field(default_factory=lambda: SuitesConfig())
    stages: Mapping[str, StageConfig] = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    """A Hugging Face folder to start from; None starts from random weights."""

    def __post_init__(self):
        if not self.stages:
            raise ConfigError("stages is empty; a run needs at least one stage.")
        for name, stage in self.stages.items():
            if unknown := sorted(set(stage.sources) - set(self.data.sources)):
                near = difflib.get_close_matches(unknown[0], self.data.sources, n=1)
                advice = f"Did you mean `{near[0]}`?" if near else "Declare it there."
                raise ConfigError(
                    f"stages.{name}.mixture names {unknown}, which data.sources lacks. "
                    f"{advice}"
                )
        if self.train.seq_len > self.model.max_positions:
            raise ConfigError(
                f"train.seq_len={self.train.seq_len} is more than "
                f"model.max_positions={self.model.max_positions}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RawSourceConfig:
    """Where a curation reads raw rows: files, or a package of `ring_jax.data`."""

    kind: str = "jsonl"
    """`jsonl`, `parquet`, `array_record`, or a kind of `SourceConfig`; of an evaluation
    set also one that a package ships, such as `aime24`."""
    path: str | None = None
    """For files: one file, a folder, or a pattern such as `raw/*.parquet`."""
    form: Literal[
        "auto",
        "row",
        "messages",
        "sharegpt",
        "alpaca",
        "prompt_completion",
        "preference",
        "program",
        "transcript",
        "tool_query",
        "text",
    ] = "auto"
    """How a record says its conversation; `auto` looks at the names of its fields."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Field of the form -> column of the files, where a set has names of its own;
    `a.b` is the field b of column a. With any, columns that are not named are left
    out."""
    only: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Column -> its value, as text, in records that are wanted; others are turned away
    as `not_selected`."""
    answer_in: str = ""
    r"""Column that ends in the gold answer: `\boxed{7}`, `#### 7`, "answer is 7"."""
    difficulties: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Word of the field `difficulty` -> difficulty from 0 to 1; 0 says nothing."""
    share: float = 1.0
    """Of the records of files, drawn by a hash of their place; the rest is not read."""
    origin: str = ""
    """Where the files are published; told where they are missing."""
    licence: str = ""
    """SPDX identifier; files must name one (`NOASSERTION` where nobody knows)."""
    version: str = ""
    """What the manifest calls this state of the files, beside their sha256."""
    domain: str = ""
    """Domain of rows that name none; empty: the source's name."""
    verifier: str = ""
    """Verifier of rows that name none but have an answer."""
    num_rows: int = 1000
    """For packages: rows to read or generate. Files are read whole."""
    task: str = ""
    """For packages: as in `SourceConfig`, and so are the next four."""
    level: Literal["", "easy", "medium", "hard"] = ""
    first_row: int = 0
    generator_seed: int | None = None
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_virtual(self.first_row, self.parameters)
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share={self.share} must be above 0 and at most 1.")
        for word, difficulty in self.difficulties.items():
            if not 0.0 <= difficulty <= 1.0:
                raise ConfigError(
                    f"difficulties.{word}={difficulty} must be from 0 to 1."
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScreenConfig:
    """Rows that try to steer the model, or that hide text from a reader's eye."""

    control_tokens: Literal["drop", "keep"] = "drop"
    """Tokens of chat templates inside a turn that is not the assistant's."""
    invisible_text: Literal["drop", "keep"] = "drop"
    prompt_injection: Literal["drop", "keep"] = "drop"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PurifyConfig:
    """Defects of generated replies (the purification of arXiv:2506.14731's data)."""

    repetition: Literal["drop", "keep"] = "drop"
    truncation: Literal["drop", "keep"] = "drop"
    broken_latex: Literal["drop", "keep"] = "drop"
    missing_image: Literal["drop", "keep"] = "drop"
    empty_think: Literal["drop", "strip", "keep"] = "drop"
    """A think block without text; `strip` keeps the row without the block."""
    mixed_languages: Literal["drop", "keep"] = "drop"
    """A reply in a script that its prompt does not use."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ContaminationConfig:
    """Overlap with the evaluation sets by n-grams of words."""

    check: Literal["drop", "keep"] = "drop"
    ngram: int = 13
    """Words that a row and an evaluation item must share in sequence."""
    shortest_ngram: int = 6
    """Items of fewer words than `ngram` are looked for whole, down to this length;
    still shorter ones must equal the row's whole prompt."""
    max_items_per_ngram: int = 8
    """An n-gram of more items of one set than this is a template's wording, and says
    nothing; items made of such n-grams alone are compared by their whole prompt."""

    def __post_init__(self):
        check_ngrams(self.shortest_ngram, self.ngram)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyConfig:
    """Agreement among sampled answers, where a row has `metadata.samples`."""

    check: Literal["drop", "keep"] = "drop"
    min_samples: int = 3
    """Rows with fewer samples are left as they are."""
    min_agreement: float = 0.5
    """The most frequent answer must have more than this share of the samples."""

    def __post_init__(self):
        if not 0.0 <= self.min_agreement < 1.0:
            raise ConfigError(
                f"min_agreement={self.min_agreement} must be from 0 to below 1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerificationConfig:
    """Grading of replies by the verifiers that rows name, in processes of their own."""

    check: Literal["drop", "keep"] = "drop"
    without_verifier: Literal["drop", "keep"] = "keep"
    """Rows that name no verifier."""
    num_workers: int = 2
    timeout_seconds: float = 10.0
    """Of one row; the worker is killed with all that it started."""
    max_memory_bytes: int = 4_000_000_000
    """Address space of one worker."""

    def __post_init__(self):
        if self.num_workers < 1 or self.timeout_seconds <= 0:
            raise ConfigError(
                f"num_workers={self.num_workers} must be at least 1 and "
                f"timeout_seconds={self.timeout_seconds} above 0."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DuplicatesConfig:
    """Rows that were there before; the first in the order of the sources is kept."""

    exact: Literal["drop", "keep"] = "drop"
    near: Literal["drop", "keep"] = "drop"
    compare: Literal["conversation", "prompt"] = "conversation"
    """`prompt` keeps one reply for each prompt."""
    threshold: float = 0.8
    """Share of common n-grams (Jaccard) from which two rows are near duplicates."""
    ngram: int = 5
    """Words of a shingle."""
    num_hashes: int = 128
    """Of a MinHash signature; the estimate's standard error is about
    sqrt(J (1 - J) / num_hashes)."""
    max_same_reply: int = 100
    """Rows that may have one and the same long reply; more is how a poisoned set
    looks. 0 allows any number."""

    def __post_init__(self):
        if not 0.0 < self.threshold <= 1.0:
            raise ConfigError(f"threshold={self.threshold} must be in (0, 1].")
        if self.ngram < 1 or self.num_hashes < 16 or self.num_hashes % 16:
            raise ConfigError(
                f"ngram={self.ngram} must be at least 1 and num_hashes="
                f"{self.num_hashes} a multiple of 16."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DifficultyConfig:
    """How hard a row is, from 0 to 1."""

    by: Literal["auto", "pass_rate", "level", "length", "keep"] = "auto"
    """1 - pass rate of `metadata.samples` or `metadata.pass_rate`, the generator's
    level, or the reply's length; `auto` takes the first of these that a row has."""
    longest_reply: int = 32_000
    """Characters of a reply whose length counts as difficulty 1."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TaxonomyConfig:
    """Topics by keywords; the counts show what is missing."""

    check: Literal["tag", "off"] = "tag"
    nodes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Node, such as `maths/algebra`, -> keywords, comma-separated; added to the nodes
    of `ring_jax/curate/taxonomy.json`."""
    min_rows: int = 10
    """A node with fewer rows is listed as a gap."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig:
    """Where chunks are made and shards written; it decides nothing of the result."""

    engine: Literal["process", "ray"] = "process"
    """`process` is the command's own; `ray` needs the extra [scale]."""
    num_workers: int = 2
    """Ray workers, of one CPU each; each has `verification.num_workers` of its own."""
    address: str | None = None
    """Of a Ray cluster, such as `10.0.0.1:6379`; where it is absent, one is started on
    this machine for as long as the command runs."""

    def __post_init__(self):
        if self.num_workers < 1:
            raise ConfigError(f"num_workers={self.num_workers} must be at least 1.")
        if self.address and not re.fullmatch(r"[^\s:/]+:\d{1,5}", self.address):
            raise ConfigError(
                f"address={self.address!r} must be HOST:PORT of the cluster's head."
            )
        if self.address and self.engine != "ray":
            raise ConfigError(
                f"address={self.address!r} is of no use to engine={self.engine!r}; "
                "choose engine=ray, or leave it out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """A curation: from raw files to shards of rows that can be trusted."""

    seed: int = 0
    """Of generated sources."""
    output_dir: str | None = None
    """Where `--workdir` is not given."""
    shard_rows: int = 10_000
    """Rows of an output shard."""
    chunk_rows: int = 2_000
    """Raw rows that are held in memory and finished together; an interrupted curation
    goes on behind the last finished chunk."""
    max_row_bytes: int = 1_000_000
    """Of a raw row; larger ones are quarantined."""
    num_examples: int = 3
    """Removed rows shown for each reason in the manifest."""
    sources: Mapping[str, RawSourceConfig] = dataclasses.field(default_factory=dict)
    evaluation_sets: Mapping[str, RawSourceConfig] = dataclasses.field(
        default_factory=dict
    )
    """What must not be trained on; of a package, its held-out rows."""
    screen: ScreenConfig = dataclasses.field(default_factory=ScreenConfig)
    purify: PurifyConfig = dataclasses.field(default_factory=PurifyConfig)
    contamination: ContaminationConfig = dataclasses.field(
        default_factory=ContaminationConfig
    )
    consistency: ConsistencyConfig = dataclasses.field(
        default_factory=ConsistencyConfig
    )
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    duplicates: DuplicatesConfig = dataclasses.field(default_factory=DuplicatesConfig)
    difficulty: DifficultyConfig = dataclasses.field(default_factory=DifficultyConfig)
    taxonomy: TaxonomyConfig = dataclasses.field(default_factory=TaxonomyConfig)
    scale: ScaleConfig = dataclasses.field(default_factory=ScaleConfig)

    def __post_init__(self):
        if not self.sources:
            raise ConfigError("sources is empty; a curation needs at least one.")
        for name in ("shard_rows", "chunk_rows", "max_row_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in [*self.sources, *self.evaluation_sets]:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
                raise ConfigError(
                    f"source {name!r} names files; use letters, digits, _ . and -."
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """A server that answers prompts by OpenAI's chat-completions protocol."""

    url: str = ""
    """Up to the version, such as `http://localhost:8000/v1`."""
    model: str = ""
    """As the server calls it."""
    key_variable: str = ""
    """Environment variable that holds the server's key; empty: none is sent."""
    num_parallel: int = 8
    """Requests under way at once."""
    requests_per_minute: float = 0.0
    """At most, tries again included; 0 is any number."""
    timeout_seconds: float = 900.0
    """Without a byte from the server."""
    max_tries: int = 6
    """Of one request that the server fails to answer."""
    first_wait_seconds: float = 1.0
    """Before the second try; doubles with each, up to two minutes."""

    def __post_init__(self):
        if self.num_parallel < 1 or self.max_tries < 1 or self.timeout_seconds <= 0:
            raise ConfigError(
                f"num_parallel={self.num_parallel} and max_tries={self.max_tries} must "
                f"be at least 1, timeout_seconds={self.timeout_seconds} above 0."
            )
        if self.requests_per_minute < 0 or self.first_wait_seconds < 0:
            raise ConfigError(
                f"requests_per_minute={self.requests_per_minute} and "
                f"first_wait_seconds={self.first_wait_seconds} must not be negative."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSamplingConfig:
    """How a teacher draws its answers; the defaults are those of arXiv:2504.07158."""

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 16_384
    seed: int = 0
    """Of the first answer to a prompt; the next one has the next seed."""

    def __post_init__(self):
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_tokens > 0):
            raise ConfigError(
                f"temperature={self.temperature} must not be negative, top_p="
                f"{self.top_p} in (0, 1] and max_tokens={self.max_tokens} above 0."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TraceConfig:
    """Answers sampled for training: `ring generate --n=N`, `--config.traces.*`."""

    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    """The server of `--server` and `--model`."""
    sampling: TeacherSamplingConfig = dataclasses.field(
        default_factory=TeacherSamplingConfig
    )
    """Of `max_tokens`, a model of our own has at most `evaluate.max_new_tokens`."""
    asked_as: str = "{prompt}"
    """What is asked; `{prompt}` stands for the last user turn, which the row keeps."""
    choose: Literal["first", "shortest"] = "first"
    """Of the right answers of a row; length is in characters, reasoning included."""
    min_agreement: float = 0.5
    """Without a gold answer, more than this share of the samples must agree."""
    verifier: str = "math"
    """Of rows that name none; it also says which answers are the same."""
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    domain: str = "reasoning"
    """Of rows that name none, as the licence."""
    licence: str = "NOASSERTION"
    """SPDX identifier."""
    batch_rows: int = 64
    """Rows whose samples are asked for together."""

    def __post_init__(self):
        if "{prompt}" not in self.asked_as:
            raise ConfigError(f"asked_as={self.asked_as!r} must hold {{prompt}}.")
        if not 0.5 <= self.min_agreement < 1.0:
            raise ConfigError(
                f"min_agreement={self.min_agreement} must be from 0.5 to below 1."
            )
        if self.batch_rows < 1:
            raise ConfigError(f"batch_rows={self.batch_rows} must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisConfig:
    """Problems that a teacher makes of problems, kept where its solutions agree.

    Source: arXiv:2504.07158: ten solutions of a new problem, kept when more than five
    agree; accepted problems are seeds again.
    """

    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    seeds: Mapping[str, RawSourceConfig] = dataclasses.field(default_factory=dict)
    """Sources of the first problems; what they reply is not used."""
    max_seeds: int = 1000
    """Seeds at most, in turns from every task and fifth of difficulty."""
    answer_seeds: Literal["yes", "no"] = "no"
    """Whether the teacher also answers the seeds, which become rows as new problems."""
    num_rounds: int = 2
    """Rounds of new problems; each starts from what the one before accepted. With 0
    and `answer_seeds`, the teacher answers seeds alone."""
    problems_per_seed: int = 2
    solutions_per_problem: int = 10
    min_agreement: float = 0.5
    """The most frequent answer must have more than this share of the solutions."""
    max_similarity: float = 0.8
    """Of five-word runs that a problem may share with its seed (Jaccard)."""
    batch_problems: int = 64
    """Problems that are solved together; their solutions are held in memory."""
    problem_prompt: str = (
        "Here is a problem:\n\n{problem}\n\nWrite one new problem on the same topic, "
        "not easier, that a reader can solve without this one and that has a single "
        "final answer. Write nothing but the problem, between <problem> and </problem>."
    )
    """`{problem}` stands for the seed."""
    solution_prompt: str = (
        "{problem}\n\nReason step by step, and put the final answer within \\boxed{}."
    )
    """`{problem}` stands for the problem; the row asks for the problem alone."""
    problem_sampling: TeacherSamplingConfig = dataclasses.field(
        default_factory=TeacherSamplingConfig
    )
    solution_sampling: TeacherSamplingConfig = dataclasses.field(
        default_factory=TeacherSamplingConfig
    )
    domain: str = "reasoning"
    verifier: str = "math"
    """Of the rows; it also says which answers of the solutions are the same."""
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    """Workers and limits of the verifier."""
    licence: str = "NOASSERTION"
    """SPDX identifier of new problems; seeds keep their own."""
    max_row_bytes: int = 20_000_000
    """Of a seed."""

    def __post_init__(self):
        if not self.seeds:
            raise ConfigError("seeds is empty; name a source of problems.")
        for name in ("max_seeds", "problems_per_seed", "batch_problems"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.solutions_per_problem < 3:
            raise ConfigError(
                f"solutions_per_problem={self.solutions_per_problem} must be at least "
                "3: fewer have no majority."
            )
        if self.num_rounds < 0 or (self.num_rounds == 0 and self.answer_seeds == "no"):
            raise ConfigError(
                f"num_rounds={self.num_rounds} with answer_seeds={self.answer_seeds!r} "
                "makes nothing; set one of them."
            )
        for name in ("problem_prompt", "solution_prompt"):
            if "{problem}" not in getattr(self, name):
                raise ConfigError(f"{name} has no {{problem}}; put it where it goes.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """A suite of `ring evaluate`: its items, how they are asked, what is counted."""

    kind: str = "rows"
    """`rows` of a file, `reasoning_gym`, a set that a package ships, or a published set
    of which you have the files."""
    path: str | None = None
    """Of `rows`: a JSONL file of the row schema, each row with a verifier. Of a
    published set: its file, or the folder of its files."""
    task: str = ""
    """Of `reasoning_gym`."""
    group: Literal["reasoning", "general"] = "general"
    capability: str = ""
    """Such as mathematics, code, science, instruction, tool use, knowledge."""
    prompt: str = "{question}"
    """What the user says; `{question}` stands for the item's own last turn."""
    num_items: int | None = None
    """At most, the same ones each time; of `reasoning_gym` per level. None: all."""
    num_samples: int = 1
    """Replies to each item."""
    metric: Literal["avg", "pass", "maj"] = "avg"
    """Over the samples of an item: share of right ones, whether any is right, or
    whether the most frequent answer is."""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    """Of a reply, reasoning included."""
    seed: int = 0
    """Of the items chosen, the draws and the intervals."""

    def __post_init__(self):
        if "{question}" not in self.prompt:
            raise ConfigError("prompt has no {question}; put it where it goes.")
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.num_items is not None and self.num_items < 1:
            raise ConfigError(f"num_items={self.num_items} must be at least 1.")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ConfigError(
                f"temperature={self.temperature} must not be negative and "
                f"top_p={self.top_p} in (0, 1]."
            )
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"num_samples={self.num_samples} at temperature=0 are the same reply; "
                "raise the temperature, or set num_samples=1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SuitesConfig:
    """What `ring evaluate` asks, beside or instead of the settings of its suites."""

    own: Mapping[str, SuiteConfig] = dataclasses.field(default_factory=dict)
    """More suites, or others under known names."""
    num_items: int | None = None
    """Instead of each suite's; None: as the suite says. So are the next three."""
    num_samples: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    server: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    """Who answers, where `--server` names a server; its pace and key."""
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    """Workers that grade, and their limits."""


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """Turns a dataclass into a locked `ConfigDict` that files and flags can edit."""
    tree = ml_collections.ConfigDict(sort_keys=False)
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        tree[field.name] = _to_editable(getattr(config, field.name), hints[field.name])
    return tree.lock()


def _to_editable(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    if isinstance(value, Mapping):
        # Open mappings (sources, stages, mixtures) take new keys; their values are
        # checked when the tree is turned back.
        tree = ml_collections.ConfigDict(sort_keys=False)
        for key, item in value.items():
            tree[key] = _to_editable(item, type(item))
        return tree
    if value is None:
        scalar = next(t for t in typing.get_args(hint) if t is not type(None))
        is_section = dataclasses.is_dataclass(scalar)
        return config_dict.placeholder(object if is_section else scalar)
    return value


def from_config_dict[T](
    cls: type[T], tree: Mapping[str, Any], path: str = "config"
) -> T:
    """Builds the dataclass `cls`, rejecting keys and types that it does not declare.

    Raises:
      ConfigError: one line with the path, the value and what to do.
    """
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            advice = (
                f"Did you mean `{near[0]}`?" if near else f"It has {sorted(hints)}."
            )
            raise ConfigError(
                f"{path}.{key}: {cls.__name__} has no such field. {advice}"
            )
        kwargs[key] = _convert(tree[key], hints[key], f"{path}.{key}")
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _convert(value: Any, hint: Any, path: str) -> Any:
    if isinstance(hint, types.UnionType):
        options = [t for t in typing.get_args(hint) if t is not type(None)]
        return None if value is None else _convert(value, options[0], path)
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(
                f"{path}={value!r} must be one of {typing.get_args(hint)}."
            )
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            raise ConfigError(f"{path}={value!r} must be a section of settings.")
        section = typing.cast(Mapping[str, Any], value)
        return from_config_dict(typing.cast(type, hint), section, path)
    if origin is Mapping:
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            raise ConfigError(f"{path}={value!r} must map names to values.")
        item = typing.get_args(hint)[1]
        return {key: _convert(value[key], item, f"{path}.{key}") for key in value}
    return _plain(value) if hint is Any else _convert_scalar(value, hint, path)


def _convert_scalar(value: Any, hint: Any, path: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(
            f"{path}={value!r} is {type(value).__name__}; it must be {hint.__name__}."
        )
    return value


def _plain(value: Any) -> Any:
    """Writes an untyped value in one way, whichever file it comes from."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {key: _plain(value[key]) for key in value}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def to_json(config: Any) -> str:
    """Writes a resolved config as text, every setting in declaration order."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def flatten_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings of a tree by dotted name, such as `train.seq_len`."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# Settings of a model that do not change what a trained one computes, or only how
# exactly.
_HOW = (
    "init_std",
    "attention_implementation",
    "moe.implementation",
    "moe.transport",
    "moe.quantization",
)


def model_identity(model: ModelConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that make it this model, by dotted name."""
    tree = dataclasses.asdict(model) if isinstance(model, ModelConfig) else model
    return {k: v for k, v in flatten_settings(tree).items() if k not in _HOW}


def run_config_from_json(text: str) -> RunConfig:
    """Reads back what `to_json` wrote for a run."""
    return from_config_dict(RunConfig, json.loads(text))
