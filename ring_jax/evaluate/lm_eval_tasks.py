# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-eval: found, asked of a model of ours, kept as evaluations are.

Beside `scores.json` and the records, `lm_eval.json` has every metric as lm-eval reports
it. A task is asked as a whole: one that was interrupted is asked again from its start,
one that is done is not.
"""

import datetime
import difflib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from lm_eval.api.task import (  # pyright: ignore[reportMissingImports]  # in the extra
    Task,
)
from lm_eval.defaults import (  # pyright: ignore[reportMissingImports]  # in the extra
    DEFAULT_OTHER_SEED,
)
from lm_eval.evaluator import (  # pyright: ignore[reportMissingImports]  # in the extra
    evaluate,
)
from lm_eval.tasks import (  # pyright: ignore[reportMissingImports]  # in the extra
    TaskManager,
)

from ring_jax.config import ConfigError, SuitesConfig
from ring_jax.evaluate import records as files
from ring_jax.evaluate.lm_eval_model import EngineLM
from ring_jax.evaluate.lm_eval_records import (
    PREFIX,
    Sample,
    first_metric,
    record_of,
    shares_of,
    summarise_task,
)

REPORT = files.LM_EVAL


def read_tasks(
    names: Sequence[str], *, path: pathlib.Path | None, config: SuitesConfig
) -> dict[str, Task]:
    """Finds tasks, and reads their documents; of a group, all of its tasks.

    Args:
      names: of tasks, groups or tags, of lm-eval or under `path`.
      path: a folder of tasks in lm-eval's YAML, or None.
      config: examples, tokens and temperature instead of a task's.

    Raises:
      ConfigError: there is no such task, or its documents are not on this machine.
    """
    if path is not None and not path.is_dir():
        raise ConfigError(f"--lm-eval-path={path} is no folder of task files.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if path is None else str(path))
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            advice = f"Did you mean `{near[0]}`?" if near else "Give --lm-eval-path."
            raise ConfigError(f"--lm-eval: lm-eval has no task {name!r}. {advice}")
    try:
        tasks = manager.load(list(names))["tasks"]
    except (OSError, ValueError, KeyError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(
            f"--lm-eval={','.join(names)}: cannot be read ({line}). Documents come "
            "from files (dataset_path: json), or from the cache of `datasets`."
        ) from None
    for task in tasks.values():
        _configure(task, config)
    return tasks


def _configure(task: Task, config: SuitesConfig) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"--lm-eval: {task.task_name} runs programs of the model without a jail; "
            "ask one of our suites instead."
        )
    changes: dict[str, Any] = {}
    if config.max_new_tokens is not None:
        changes["max_gen_toks"] = config.max_new_tokens
    if config.temperature is not None:
        changes["temperature"] = config.temperature
        changes["do_sample"] = config.temperature > 0
    if changes and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", changes, update=True)
    if config.lm_eval.num_fewshot is not None:
        task.set_config("num_fewshot", config.lm_eval.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def evaluate_tasks(
    tasks: Mapping[str, Task],
    lm: EngineLM,
    *,
    folder: pathlib.Path,
    model: Mapping[str, Any],
    config: SuitesConfig,
) -> dict[str, Any]:
    """Asks tasks, and writes them into an evaluation folder.

    Args:
      tasks: by name, see `read_tasks`.
      lm: who is asked.
      folder: `<workdir>/evaluation/<label>`.
      model: what tells it from others; a folder is of one model.
      config: how many documents are asked.

    Returns:
      What `scores.json` holds: of these tasks, and of what was done before. A task
      whose metric is no share (a perplexity) is in `lm_eval.json` only.

    Raises:
      ConfigError: the folder was begun with something else, or a task asks for what
        the engine has not.
    """
    settings = {
        PREFIX + name: _settings(task, model, config) for name, task in tasks.items()
    }
    files.note(folder, settings)
    report = files.read_json(folder / REPORT)
    scores = files.read_json(folder / files.SCORES)
    scores |= {"label": folder.name, "model": model["name"]}
    scores["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    scores.setdefault("suites", {})
    for name, task in tasks.items():
        if name in report:
            continue
        found = evaluate(
            lm,
            {"tasks": {name: task}},
            limit=config.num_items,
            bootstrap_iters=0,
            apply_chat_template=config.lm_eval.prompts == "chat",
            fewshot_as_multiturn=config.lm_eval.prompts == "chat",
        )
        assert found is not None
        results = found["results"][name]
        samples = found["samples"][name]
        if summary := _keep(folder, task, results, samples, (lm, config)):
            scores["suites"][PREFIX + name] = summary
            files.write_json(folder / files.SCORES, scores)
        report[name] = {
            "metrics": {key: value for key, value in results.items() if "," in key},
            "num_fewshot": found["n-shot"].get(name),
            "num_items": results["sample_len"],
            "version": found["versions"].get(name),
            "lm_eval": version("lm_eval"),
        }
        files.write_json(folder / REPORT, report)
    return scores


def _keep(
    folder: pathlib.Path,
    task: Task,
    results: Mapping[str, Any],
    samples: Sequence[Sample],
    asked: tuple[EngineLM, SuitesConfig],
) -> dict[str, Any] | None:
    """Writes a task's records; returns its summary, or None without a share."""
    lm, config = asked
    metric = first_metric(results)
    of_metric = [sample for sample in samples if sample["filter"] == metric.filter]
    if (shares := shares_of(metric, of_metric)) is None:
        return None
    name = str(task.task_name)
    records = [
        record_of(
            PREFIX + name,
            sample,
            metric=metric,
            said=lm.spoken.get((name, sample["doc_id"])),
        )
        for sample in of_metric
    ]
    path = folder / f"{PREFIX}{name}.jsonl"
    path.unlink(missing_ok=True)
    kept = files.Records(path)
    for record in records:
        kept.add(record)
    chances = [1 / len(sample["arguments"]) for sample in of_metric]
    is_choice = task.OUTPUT_TYPE == "multiple_choice" and metric.name != "exact_match"
    return summarise_task(
        metric,
        shares,
        records,
        chance=sum(chances) / len(chances) if is_choice else None,
        config=config.lm_eval,
    )


def _settings(
    task: Task, model: Mapping[str, Any], config: SuitesConfig
) -> dict[str, Any]:
    if pathlib.Path(name := str(task.task_name)).name != name:
        raise ConfigError(f"--lm-eval: {name!r} cannot name files; rename the task.")
    documents = (json.dumps(doc, default=_named) for doc in task.eval_docs)
    return {
        "model": dict(model),
        "lm_eval": version("lm_eval"),
        "prompts": config.lm_eval.prompts,
        "num_items": config.num_items,
        "group": config.lm_eval.group,
        "capability": config.lm_eval.capability,
        "task": files.digest_of([json.dumps(task.dump_config(), default=_named)]),
        "items": files.digest_of(documents),
    }


def _named(value: Any) -> str:
    """Writes what JSON has not; a function by its name, which has no address."""
    return getattr(value, "__name__", type(value).__name__)
