# SPDX-License-Identifier: Apache-2.0
r"""What a record of a published evaluation set asks, by the columns of that set.

Prompts, as published: mathematics as Qwen2.5-Math's evaluation and OpenCompass
(`\boxed{}`); choices as openai/simple-evals ("Answer: $LETTER"); MathBench as
OpenCompass' `mathbench_prompt.py`; LiveCodeBench as its generic template; IFEval and
T-Eval as their files say. All without examples.
"""

import base64
import dataclasses
import hashlib
import io
import json
import pickle
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.data.schema import Message

Record = Mapping[str, Any]

LETTERS = "ABCDEFGHIJ"
NO_REPLY = "(no reply is published)"
MAX_TEST_BYTES = 1 << 30
"""Of one problem's private tests, unpacked; more is no published file."""

_MATH = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_MATH_CHINESE = "{}\n请一步一步推理，并在最后用\\boxed{{}}给出你的答案。"
_CHOICE = (
    "Answer the following multiple choice question. The last line of your response "
    "should be of the following format: 'Answer: $LETTER' (without quotes) where "
    "LETTER is one of {letters}. Think step by step before answering.\n\n{question}"
    "\n\n{options}"
)
_CHOICE_CHINESE = (
    "回答下面的单项选择题。请一步一步推理，最后一行的格式为“答案：X”，"
    "其中X是{letters}中的一个。\n\n{question}\n\n{options}"
)
_MATHBENCH = (
    "Question: Here is a multiple-choice question about mathematics. Please reason "
    "through it step by step, and at the end, provide your answer option with "
    '"Therefore, the correct answer is option X", Where "X" is the correct option you '
    "think from A，B，C，D. Here is the question you need to answer:\n{question}\n"
    "{options}\nLet's think step by step:"
)
_MATHBENCH_CHINESE = (
    "问题: 以下是一道关于数学的单项选择题，请你一步一步推理，"
    "并在最后用“所以答案为选项X”给出答案，"
    "其中“X”为选项A，B，C，D中你认为正确的选项。下面是你要回答的问题\n{question}\n{options}\n"
    "让我们一步一步思考："
)
_CODE_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem "
    "specification) and will generate a correct Python program that matches the "
    "specification and passes all tests."
)
_CODE_STARTER = (
    "You will use the following starter code to write the solution to the problem and "
    "enclose your code within delimiters.\n```python\n{}\n```"
)
_CODE_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do "
    "not directly test on the sample inputs). Enclose your code within delimiters as "
    "follows.\n```python\n# YOUR CODE HERE\n```"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question; the other fields of its `Row` are the same for the whole set."""

    messages: tuple[Message, ...]
    answer: str
    verifier: str
    reply: str = NO_REPLY
    """A right reply, where the answer makes one."""
    id: str = ""
    """Of the record, where it has one."""
    task: str = ""
    level: str = ""
    difficulty: float = 0.0
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def math500(record: Record, stem: str) -> Item:
    """Reads a record of MATH-500; difficulty is the level, 1 to 5, of 5."""
    del stem
    level = int(record["level"])
    item = _math(record["problem"], record["answer"])
    return dataclasses.replace(
        item,
        id=record["unique_id"],
        task=record["subject"],
        level=str(level),
        difficulty=level / 5,
    )


def gsm8k(record: Record, stem: str) -> Item:
    """Reads a record of GSM8K, whose answers end in `#### 1,234`."""
    del stem
    _, mark, number = record["answer"].rpartition("####")
    if not mark:
        raise ValueError("the answer has no ####")
    item = _math(record["question"], number.strip())
    return dataclasses.replace(item, verifier="number")


def gpqa(record: Record, stem: str) -> Item:
    """Reads a record of GPQA; its choices are shuffled by a seed of the question."""
    del stem
    right = record["Correct Answer"].strip()
    wrong = [record[f"Incorrect Answer {number}"].strip() for number in (1, 2, 3)]
    question = record["Question"].strip()
    seed = hashlib.blake2b(question.encode(), digest_size=8).digest()
    order = [right, *wrong]
    random.Random(int.from_bytes(seed)).shuffle(order)
    letter = LETTERS[order.index(right)]
    item = _choice(_CHOICE, question, order, letter)
    return dataclasses.replace(
        item, id=record.get("Record ID") or "", task=record.get("Subdomain") or ""
    )


def livecodebench(record: Record, stem: str) -> Item:
    """Reads a record of LiveCodeBench's code generation, with all of its tests.

    Source: `lcb_runner/benchmarks/code_generation.py` and `prompts/code_generation.py`.
    """
    del stem
    tests = [
        *json.loads(record["public_test_cases"]),
        *_private_tests(record["private_test_cases"]),
    ]
    function = json.loads(record["metadata"] or "{}").get("func_name") or ""
    kinds = {test["testtype"] for test in tests}
    if kinds != {"functional" if function else "stdin"}:
        raise ValueError(f"tests of kinds {sorted(kinds)} and func_name={function!r}")
    starter = record["starter_code"]
    form = _CODE_STARTER.format(starter) if starter else _CODE_STDIN
    prompt = f"### Question:\n{record['question_content']}\n\n### Format: {form}\n\n"
    asked = f"{prompt}### Answer: (use the provided format with backticks)\n"
    levels = ("easy", "medium", "hard")
    metadata: dict[str, Any] = {
        "tests": [{"input": test["input"], "output": test["output"]} for test in tests],
        "contest_date": str(record["contest_date"]),
    }
    return Item(
        id=record["question_id"],
        messages=(Message("system", _CODE_SYSTEM), Message("user", asked)),
        answer="",
        verifier="program",
        task=record.get("platform") or "",
        level=record["difficulty"],
        difficulty=(1 + levels.index(record["difficulty"])) / len(levels),
        metadata=metadata | ({"function": function} if function else {}),
    )


def _private_tests(text: str) -> list[dict[str, str]]:
    """Decodes JSON, or the pickled text of JSON in zlib in base 64."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(text), MAX_TEST_BYTES)
    except zlib.error as error:
        raise ValueError(f"private_test_cases: {error}") from None
    if not unpacker.eof:
        raise ValueError(f"private_test_cases: cut off, or over {MAX_TEST_BYTES} bytes")
    try:
        return json.loads(_TextUnpickler(io.BytesIO(data)).load())
    except pickle.UnpicklingError as error:
        raise ValueError(f"private_test_cases: {error}") from None


class _TextUnpickler(pickle.Unpickler):
    """Unpickles text and plain containers: a file from elsewhere must run no code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module_name}.{global_name}, not text")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"refers to {pid!r}, and is not text")


def olympiadbench(record: Record, stem: str) -> Item:
    """Reads a record of OlympiadBench's open-ended problems in text (OE_TO).

    A numerical answer with a tolerance (`error`) is graded as a number within it.
    """
    del stem
    if not record["final_answer"]:
        raise ValueError("it has no final_answer (a proof); take the files OE_TO_*")
    if any(value for key, value in record.items() if key.startswith("image")):
        raise ValueError("it asks about an image; take the files OE_TO_*")
    (answer, *rest) = record["final_answer"]
    parts = [record.get("context") or "", record["question"]]
    item = _math("\n".join(filter(None, parts)), ", ".join([answer, *rest]))
    metadata = {"unit": record.get("unit") or ""}
    tolerance = _relative_tolerance(answer, record.get("error"))
    if tolerance and not rest:
        item = dataclasses.replace(item, verifier="number")
        metadata |= {"relative_tolerance": tolerance}
    return dataclasses.replace(
        item,
        id=str(record["id"]),
        task=record.get("subfield") or "",
        level=record.get("answer_type") or "",
        metadata=metadata,
    )


def _relative_tolerance(answer: str, error: Any) -> float:
    """Turns an absolute tolerance into a share of a gold number; 0 where it is none."""
    try:
        share = float(error) / abs(float(answer.strip("$ ")))
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return share if 0 < share < 1 else 0.0


def mathbench(record: Record, stem: str) -> Item:
    """Reads a record of MathBench: a choice where it has options, else a value.

    Each question is asked once; OpenCompass' circular score asks it in four orders.
    """
    is_chinese = stem.endswith("_cn")
    question, answer = record["question"].strip(), record["answer"].strip()
    if "options" not in record:
        form = _MATH_CHINESE if is_chinese else _MATH
        return dataclasses.replace(_math(question, answer, form=form), task=stem)
    form = _MATHBENCH_CHINESE if is_chinese else _MATHBENCH
    item = _choice(form, question, record["options"], answer)
    return dataclasses.replace(item, task=stem)


def gaokao2023en(record: Record, stem: str) -> Item:
    """Reads a record of Gaokao2023-Math-En."""
    del stem
    return _math(record["question"], str(record["answer"]))


def ifeval(record: Record, stem: str) -> Item:
    """Reads a record of IFEval; the prompt is asked as it is."""
    del stem
    names = list(record["instruction_id_list"])
    given = [
        {key: value for key, value in one.items() if value is not None}
        for one in record["kwargs"]
    ]
    return Item(
        id=str(record["key"]),
        messages=(Message("user", record["prompt"]),),
        answer="",
        verifier="ifeval",
        metadata={"instruction_id_list": names, "kwargs": given},
    )


def teval(record: Record, stem: str) -> Item:
    """Reads a record of T-Eval's files instruct, retrieve_str and review_str.

    The others (plan, reason, understand) are scored by a sentence encoder, and refused.
    """
    kind = stem.partition("_")[0]
    if kind not in ("instruct", "retrieve", "review"):
        raise ValueError(f"{stem} is scored by a sentence encoder")
    truth = record["ground_truth"]
    truth = json.loads(truth) if isinstance(truth, str) else truth
    form = record.get("meta_data", {}).get("response_format", "str")
    template = record.get("template") if kind == "instruct" else None
    return Item(
        messages=tuple(
            Message(turn["role"], turn["content"]) for turn in record["origin_prompt"]
        ),
        answer=json.dumps(truth, ensure_ascii=False),
        verifier="teval",
        task=kind,
        level=form,
        metadata={"kind": kind, "form": form, "truth": truth, "template": template},
    )


def mmlu(record: Record, stem: str) -> Item:
    """Reads a record of MMLU, of the hub's columns or of the six of its own files."""
    if "choices" in record:
        options, answer = record["choices"], record["answer"]
    else:
        options, answer = [record[letter] for letter in "ABCD"], record["answer"]
    letter = LETTERS[answer] if isinstance(answer, int) else answer
    item = _choice(_CHOICE, record["question"].strip(), options, letter)
    task = record.get("subject") or stem.removesuffix("_test")
    return dataclasses.replace(item, task=task)


def ceval(record: Record, stem: str) -> Item:
    """Reads a record of C-Eval's validation files, asked in Chinese."""
    options = [record[letter] for letter in "ABCD"]
    item = _choice(_CHOICE_CHINESE, record["question"], options, record["answer"])
    return dataclasses.replace(item, task=stem.removesuffix("_val"))


def _math(question: str, answer: str, *, form: str = _MATH) -> Item:
    if not answer.strip():
        raise ValueError("it has no answer")
    return Item(
        messages=(Message("user", form.format(question)),),
        answer=answer,
        verifier="math",
        reply=f"\\boxed{{{answer}}}",
    )


def _choice(form: str, question: str, options: Sequence[str], letter: str) -> Item:
    letters = LETTERS[: len(options)]
    if not letter or letter not in letters:
        raise ValueError(f"answer={letter!r} is none of {letters}")
    listed = "\n".join(
        f"{name}. {text}" for name, text in zip(letters, options, strict=True)
    )
    prompt = form.format(letters=letters, question=question, options=listed)
    return Item(
        messages=(Message("user", prompt),),
        answer=letter,
        verifier="choice",
        reply=f"Answer: {letter}",
        metadata={"choices": [str(option) for option in options]},
    )
