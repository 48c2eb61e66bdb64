# SPDX-License-Identifier: Apache-2.0
"""The schema of a run: every setting, its default, its unit and its checks.

Files in `configs/` return a `ConfigDict` made by `to_config_dict`; the command line
edits that tree; `from_config_dict` turns it back into these frozen dataclasses,
strictly. So a default exists once, and files and command line are checked by the same
code.
"""

from ring_jax.config.curate import (
    ConsistencyConfig,
    ContaminationConfig,
    CurateConfig,
    DifficultyConfig,
    DuplicatesConfig,
    PurifyConfig,
    RawSourceConfig,
    ScaleConfig,
    ScreenConfig,
    SimilarityConfig,
    TaxonomyConfig,
)
from ring_jax.config.data import (
    CONVERSATION_KINDS,
    TOKEN_CLASSES,
    DataConfig,
    EvaluationSetsConfig,
    LongRowsConfig,
    PackingConfig,
    SourceConfig,
    TokenizerConfig,
    check_ngrams,
    check_virtual,
    conversation_kinds,
)
from ring_jax.config.errors import ConfigError
from ring_jax.config.evaluate import (
    EvaluateConfig,
    GenerateConfig,
    LmEvalConfig,
    SuiteConfig,
    SuitesConfig,
)
from ring_jax.config.model import (
    ModelConfig,
    MoeConfig,
    UpcycleConfig,
    YarnConfig,
    model_identity,
)
from ring_jax.config.run import MeshConfig, RunConfig, run_config_from_json
from ring_jax.config.server import EmbeddingsConfig, TeacherConfig
from ring_jax.config.teacher import (
    CodingConfig,
    NoveltyConfig,
    SynthesisConfig,
    TeacherSamplingConfig,
    TraceConfig,
)
from ring_jax.config.train import (
    CurriculumConfig,
    LossConfig,
    MixtureChangeConfig,
    OptimizerConfig,
    ShareSchedule,
    StageConfig,
    TrainConfig,
    check_shares,
)
from ring_jax.config.tree import (
    flatten_settings,
    from_config_dict,
    to_config_dict,
    to_json,
)
from ring_jax.config.verify import VerificationConfig

__all__ = [
    "CONVERSATION_KINDS",
    "CodingConfig",
    "ConfigError",
    "ConsistencyConfig",
    "ContaminationConfig",
    "CurateConfig",
    "CurriculumConfig",
    "DataConfig",
    "DifficultyConfig",
    "DuplicatesConfig",
    "EmbeddingsConfig",
    "EvaluateConfig",
    "EvaluationSetsConfig",
    "GenerateConfig",
    "LmEvalConfig",
    "LongRowsConfig",
    "LossConfig",
    "MeshConfig",
    "MixtureChangeConfig",
    "ModelConfig",
    "MoeConfig",
    "NoveltyConfig",
    "OptimizerConfig",
    "PackingConfig",
    "PurifyConfig",
    "RawSourceConfig",
    "RunConfig",
    "ScaleConfig",
    "ScreenConfig",
    "ShareSchedule",
    "SimilarityConfig",
    "SourceConfig",
    "StageConfig",
    "SuiteConfig",
    "SuitesConfig",
    "SynthesisConfig",
    "TOKEN_CLASSES",
    "TaxonomyConfig",
    "TeacherConfig",
    "TeacherSamplingConfig",
    "TokenizerConfig",
    "TraceConfig",
    "TrainConfig",
    "UpcycleConfig",
    "VerificationConfig",
    "YarnConfig",
    "check_ngrams",
    "check_shares",
    "check_virtual",
    "conversation_kinds",
    "flatten_settings",
    "from_config_dict",
    "model_identity",
    "run_config_from_json",
    "to_config_dict",
    "to_json",
]
