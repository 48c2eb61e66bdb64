# SPDX-License-Identifier: Apache-2.0
"""The data of Ring-Lite-Distill (arXiv:2504.07158), as far as it is public.

    ring curate --config=configs/data/ring_lite_distill.py:MIX:ROOT --workdir=runs/MIX

MIX is one of four (default: reasoning), ROOT the folder of the published files
(default: raw). A set lies where `hf download --repo-type=dataset OWNER/NAME
--local-dir=ROOT/OWNER/NAME` puts it; sets marked with * in the Hub's own Parquet form
(`--revision=refs/convert/parquet`). A third part takes some sets only:
`reasoning:raw:openr1_math,scp_116k`.

reasoning        Stage 1. The paper: 2.59M samples; maths 84.2, code 8.33, physics 3.99,
                 others 1.36, biology 1.09, chemistry 1.02 %; maths of high school 68,
                 junior high 16, university 14, primary school 3 %. Of them about 1.04M
                 from public sets: OpenR1-Math-220k, NuminaMath-CoT, SYNTHETIC-1,
                 SCP-116K, Bespoke-Stratos-17k, GeneralThought-430K, codeforces-cots and
                 others, for which OpenThoughts stands here.
generalisation   Stage 2. The paper: 1082K samples, 437K general (197K instructions and
                 questions, 240K tool use) and 645K of stage 1 again (400K maths, 195K
                 code, 50K science). Here: Infinity-Instruct, OpenHermes-2.5, Glaive and
                 xLAM in the paper's counts, and of each set of stage 1 the share that
                 the paper replays of its kind.
queries          Problems without a teacher's reply: `ring synthesise` has them
                 answered, and starts from them (MATH, GSM8K and AoPS are the paper's
                 seeds; AoPS is a part of NuminaMath-CoT). Their rows reply with the
                 gold answer, or with a person's solution: they are seeds, not lessons.
released         The 2.08M samples of stage 1 that the authors published.

Not public: the synthetic problems (1.55M samples) beyond what `released` holds, the
general data (from Ling's own pipeline), which public samples were kept, the preference
pairs beyond 4.3K (`inclusionAI/Ring-lite-distill-preview-dpo-data`), and all shares of
tokens: the paper counts samples, a run's mixture counts trained tokens.

Columns are those of each set's card on the Hub, named at the set. Licences are the
cards'; rows keep them. OpenHermes names none.
"""

import dataclasses

from ring_jax.config import (
    ConfigError,
    CurateConfig,
    RawSourceConfig,
    VerificationConfig,
    to_config_dict,
)

HUB = "https://huggingface.co/datasets"
CONVERTED = ("EricLu", "teknium", "glaiveai", "Salesforce")
"""Owners of sets that are read in the Hub's own Parquet form."""
MAX_ROW_BYTES = 20_000_000
"""Coding tasks come with their tests: megabytes, where contests judge large inputs."""
TIMEOUT_SECONDS = 120.0
"""Of all tests of a program together."""
KEPT_OUT = ("aime24", "aime25", "hmmt", "humaneval", "ifbench", "bfcl")
"""Evaluation sets that packages ship; add your own files as `evaluation_sets`."""

REASONING = {
    # open-r1/OpenR1-Math-220k: problem, solution, answer, generations, messages, ...;
    # `messages` holds a generation of R1 that math-verify or a judge accepted.
    "openr1_math": RawSourceConfig(
        kind="parquet",
        path="open-r1/OpenR1-Math-220k/data/train-*.parquet",
        licence="Apache-2.0",
        version="2025-02",
        form="messages",
        fields={"messages": "messages", "answer": "answer", "id": "uuid"},
        domain="reasoning",
        verifier="math",
    ),
    # open-thoughts/OpenThoughts-114k, subset `metadata`: problem, deepseek_reasoning,
    # deepseek_solution, ground_truth_solution, domain, source, test_cases,
    # starter_code.
    "openthoughts_math": RawSourceConfig(
        kind="parquet",
        path="open-thoughts/OpenThoughts-114k/metadata/train-*.parquet",
        licence="Apache-2.0",
        version="2025-02",
        form="prompt_completion",
        fields={
            "prompt": "problem",
            "reasoning": "deepseek_reasoning",
            "completion": "deepseek_solution",
            "task": "domain",
        },
        only={"domain": "math"},
        answer_in="ground_truth_solution",
        domain="reasoning",
        verifier="math",
    ),
    "openthoughts_code": RawSourceConfig(
        kind="parquet",
        path="open-thoughts/OpenThoughts-114k/metadata/train-*.parquet",
        licence="Apache-2.0",
        version="2025-02",
        form="program",
        fields={
            "prompt": "problem",
            "starter_code": "starter_code",
            "reasoning": "deepseek_reasoning",
            "completion": "deepseek_solution",
            "tests": "test_cases",
            "task": "domain",
        },
        only={"domain": "code"},
        domain="reasoning",
        verifier="program",
    ),
    # PrimeIntellect/SYNTHETIC-1-SFT-Data: response_id, problem_id, task_type, score,
    # messages. Maths, code, science; its replies passed their verifiers.
    "synthetic_1": RawSourceConfig(
        kind="parquet",
        path="PrimeIntellect/SYNTHETIC-1-SFT-Data/data/train-*.parquet",
        licence="Apache-2.0",
        version="2025-02",
        form="messages",
        fields={"messages": "messages", "task": "task_type", "id": "response_id"},
        domain="reasoning",
    ),
    # EricLu/SCP-116K *: domain, problem, matched_solution, r1_response,
    # r1_reasoning_content, ... in its second version, with R1 as the teacher.
    "scp_116k": RawSourceConfig(
        kind="parquet",
        path="EricLu/SCP-116K/default/train/*.parquet",
        licence="MIT",
        version="2025-03",
        form="prompt_completion",
        fields={
            "prompt": "problem",
            "reasoning": "r1_reasoning_content",
            "completion": "r1_response",
            "task": "domain",
        },
        domain="reasoning",
    ),
    # bespokelabs/Bespoke-Stratos-17k: system, conversations. The system's turn asks for
    # tags that are read as reasoning here, so it is left out.
    "bespoke_stratos": RawSourceConfig(
        kind="parquet",
        path="bespokelabs/Bespoke-Stratos-17k/data/train-*.parquet",
        licence="Apache-2.0",
        version="2025-01",
        form="sharegpt",
        fields={"conversations": "conversations"},
        domain="reasoning",
    ),
    # GeneralReasoning/GeneralThought-430K: question_id, question, reference_answer,
    # model_name, model_answer, model_reasoning, task, question_license, verifier_score,
    # ... Replies of several models; those that its verifier accepted are taken.
    "general_thought": RawSourceConfig(
        kind="parquet",
        path="GeneralReasoning/GeneralThought-430K/data/train-*.parquet",
        licence="MIT",
        version="2025-03",
        form="prompt_completion",
        fields={
            "prompt": "question",
            "reasoning": "model_reasoning",
            "completion": "model_answer",
            "answer": "reference_answer",
            "task": "task",
            "id": "question_id",
            "model": "model_name",
            "question_licence": "question_license",
        },
        only={"verifier_score": "1.0"},
        domain="reasoning",
    ),
    # open-r1/codeforces-cots, subset `solutions_py`: id, title, examples, prompt,
    # generation, finish_reason, messages, ... Subset `solutions` is in C++.
    "codeforces_cots": RawSourceConfig(
        kind="parquet",
        path="open-r1/codeforces-cots/solutions_py/train-*.parquet",
        licence="CC-BY-4.0",
        version="2025-03",
        form="program",
        fields={
            "prompt": "prompt",
            "completion": "generation",
            "tests": "examples",
            "id": "id",
        },
        only={"finish_reason": "stop"},
        domain="reasoning",
        verifier="program",
    ),
}

# What the paper replays of each kind of stage 1: 400K of 84.2 % of 2.59M samples of
# maths, 195K of 8.33 % of code, 50K of 7.46 % of science; 645K of all.
REPLAYED = {"maths": 0.183, "code": 0.904, "science": 0.259, "all": 0.249}
KINDS = {
    "openr1_math": "maths",
    "openthoughts_math": "maths",
    "openthoughts_code": "code",
    "codeforces_cots": "code",
    "scp_116k": "science",
}

GENERAL = {
    # BAAI/Infinity-Instruct, subset `Gen` (1,456,927 rows): id, conversations, label,
    # langdetect, source.
    "infinity_instruct": RawSourceConfig(
        kind="parquet",
        path="BAAI/Infinity-Instruct/Gen/train-*.parquet",
        licence="CC-BY-SA-4.0",
        version="Gen",
        form="sharegpt",
        fields={
            "conversations": "conversations",
            "language": "langdetect",
            "abilities": "label.ability_en",
        },
        domain="instruction",
        share=100_000 / 1_456_927,
    ),
    # teknium/OpenHermes-2.5 * (1,001,551 rows): conversations, source, category,
    # system_prompt, ... The card names no licence.
    "openhermes": RawSourceConfig(
        kind="parquet",
        path="teknium/OpenHermes-2.5/default/train/*.parquet",
        licence="NOASSERTION",
        version="2.5",
        form="sharegpt",
        fields={"conversations": "conversations", "task": "category"},
        domain="instruction",
        share=97_000 / 1_001_551,
    ),
    # glaiveai/glaive-function-calling-v2 * (112,960 rows): system, chat.
    "glaive": RawSourceConfig(
        kind="parquet",
        path="glaiveai/glaive-function-calling-v2/default/train/*.parquet",
        licence="Apache-2.0",
        version="v2",
        form="transcript",
        fields={"system": "system", "chat": "chat"},
        domain="tool",
    ),
    # Salesforce/xlam-function-calling-60k * (60,000 rows): id, query, answers, tools.
    "xlam": RawSourceConfig(
        kind="parquet",
        path="Salesforce/xlam-function-calling-60k/dataset/train/*.parquet",
        licence="CC-BY-4.0",
        version="60k",
        form="tool_query",
        fields={"query": "query", "tools": "tools", "answers": "answers", "id": "id"},
        domain="tool",
        verifier="tool_call",
    ),
}

_PROBLEM = {"prompt": "problem", "completion": "answer", "answer": "answer"}
_PROGRAM = {
    "prompt": "question",
    "starter_code": "starter_code",
    "solutions": "solutions",
    "tests": "input_output",
    "difficulty": "difficulty",
}

QUERIES = {
    # AI-MO/NuminaMath-CoT: source, problem, solution, messages.
    "numina_cot": RawSourceConfig(
        kind="parquet",
        path="AI-MO/NuminaMath-CoT/data/train-*.parquet",
        licence="Apache-2.0",
        version="2024-11",
        form="prompt_completion",
        fields={"prompt": "problem", "completion": "solution", "task": "source"},
        answer_in="solution",
        domain="reasoning",
        verifier="math",
    ),
    # SynthLabsAI/Big-Math-RL-Verified: problem, answer, source, domain,
    # llama8b_solve_rate (share of 64 tries that were right).
    "big_math": RawSourceConfig(
        kind="parquet",
        path="SynthLabsAI/Big-Math-RL-Verified/data/train-*.parquet",
        licence="Apache-2.0",
        version="2025-02",
        form="prompt_completion",
        fields={**_PROBLEM, "pass_rate": "llama8b_solve_rate", "task": "source"},
        domain="reasoning",
        verifier="math",
    ),
    # BytedTsinghua-SIA/DAPO-Math-17k: data_source, prompt, ability, reward_model,
    # extra_info. Every problem stands in it about a hundred times.
    "dapo_math": RawSourceConfig(
        kind="parquet",
        path="BytedTsinghua-SIA/DAPO-Math-17k/data/dapo-math-17k.parquet",
        licence="Apache-2.0",
        version="2025-03",
        form="prompt_completion",
        fields={
            "prompt": "prompt",
            "completion": "reward_model.ground_truth",
            "answer": "reward_model.ground_truth",
        },
        domain="reasoning",
        verifier="math",
    ),
    # DigitalLearningGmbH/MATH-lighteval, the training half of MATH: problem, level,
    # solution, type.
    "math": RawSourceConfig(
        kind="parquet",
        path="DigitalLearningGmbH/MATH-lighteval/data/train-*.parquet",
        licence="MIT",
        version="2024",
        form="prompt_completion",
        fields={
            "prompt": "problem",
            "completion": "solution",
            "task": "type",
            "difficulty": "level",
        },
        answer_in="solution",
        difficulties={
            "Level 1": 0.1,
            "Level 2": 0.3,
            "Level 3": 0.5,
            "Level 4": 0.7,
            "Level 5": 0.9,
            "Level ?": 0.0,
        },
        domain="reasoning",
        verifier="math",
    ),
    # openai/gsm8k, subset `main`: question, answer (a solution that ends in #### 72).
    "gsm8k": RawSourceConfig(
        kind="parquet",
        path="openai/gsm8k/main/train-*.parquet",
        licence="MIT",
        version="main",
        form="prompt_completion",
        fields={"prompt": "question", "completion": "answer"},
        answer_in="answer",
        domain="reasoning",
        verifier="math",
    ),
    # BAAI/TACO, subset `ALL`: question, solutions, starter_code, input_output,
    # difficulty, ... The two last but one are JSON as text.
    "taco": RawSourceConfig(
        kind="parquet",
        path="BAAI/TACO/ALL/train-*.parquet",
        licence="Apache-2.0",
        version="2024",
        form="program",
        fields={**_PROGRAM, "task": "source"},
        difficulties={
            "EASY": 0.1,
            "MEDIUM": 0.3,
            "MEDIUM_HARD": 0.5,
            "HARD": 0.7,
            "VERY_HARD": 0.9,
            "UNKNOWN_DIFFICULTY": 0.0,
        },
        domain="reasoning",
        verifier="program",
    ),
    # codeparrot/apps: problem_id, question, solutions, input_output, difficulty, url,
    # starter_code. JSON as text, as in TACO.
    "apps": RawSourceConfig(
        kind="jsonl",
        path="codeparrot/apps/train.jsonl",
        licence="MIT",
        version="1.0",
        form="program",
        fields={**_PROGRAM, "id": "problem_id"},
        difficulties={"introductory": 0.2, "interview": 0.5, "competition": 0.8},
        domain="reasoning",
        verifier="program",
    ),
    # deepmind/code_contests: name, description, public_tests, private_tests,
    # generated_tests, difficulty, solutions, ... Difficulties are numbers: 1 to 5 are
    # EASY to HARDEST, 7 and on the problems A, B, ... of a contest.
    "code_contests": RawSourceConfig(
        kind="parquet",
        path="deepmind/code_contests/data/train-*.parquet",
        licence="CC-BY-4.0",
        version="2022-02",
        form="program",
        fields={
            "prompt": "description",
            "solutions": "solutions",
            "tests": "public_tests",
            "more_tests": "private_tests",
            "difficulty": "difficulty",
            "id": "name",
        },
        difficulties={
            "0": 0.0,
            **{str(n): round(0.2 * n - 0.1, 1) for n in range(1, 6)},
            "6": 0.0,
            **{str(n): min(0.9, round(0.15 * n - 0.95, 2)) for n in range(7, 29)},
        },
        domain="reasoning",
        verifier="program",
    ),
}

RELEASED = {
    # inclusionAI/Ring-lite-distill-preview-sft-data: its card names no columns, so the
    # form is found by the fields of each record.
    "ring_lite_distill_sft": RawSourceConfig(
        kind="jsonl",
        path="inclusionAI/Ring-lite-distill-preview-sft-data/*.jsonl",
        licence="Apache-2.0",
        version="preview",
        domain="reasoning",
    ),
}


def _replay():
    """Names the sets of stage 1 with the share of each that stage 2 sees again."""
    return {
        name: dataclasses.replace(source, share=REPLAYED[KINDS.get(name, "all")])
        for name, source in REASONING.items()
    }


MIXES = {
    "reasoning": REASONING,
    "generalisation": {**GENERAL, **_replay()},
    "queries": QUERIES,
    "released": RELEASED,
}


def get_config(argument: str = "reasoning:raw"):
    mix, _, rest = argument.partition(":")
    root, _, names = rest.partition(":")
    if mix not in MIXES:
        raise ConfigError(f"there is no mix {mix!r}; name one of {', '.join(MIXES)}.")
    sources = MIXES[mix]
    chosen = names.split(",") if names else list(sources)
    if unknown := sorted(set(chosen) - set(sources)):
        raise ConfigError(f"mix {mix} has no {unknown}; it has {sorted(sources)}.")
    return to_config_dict(
        CurateConfig(
            sources={name: _below(root or "raw", sources[name]) for name in chosen},
            evaluation_sets={name: RawSourceConfig(kind=name) for name in KEPT_OUT},
            max_row_bytes=MAX_ROW_BYTES,
            verification=VerificationConfig(timeout_seconds=TIMEOUT_SECONDS),
        )
    )


def _below(root, source):
    owner, name, *_ = source.path.split("/")
    origin = f"{HUB}/{owner}/{name}"
    if owner in CONVERTED:
        origin += " (its revision refs/convert/parquet)"
    return dataclasses.replace(source, path=f"{root}/{source.path}", origin=origin)
