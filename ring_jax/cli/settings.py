# SPDX-License-Identifier: Apache-2.0
"""From `--config`, its overrides and `--workdir` to the frozen `RunConfig` of a run."""

import argparse
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import re
import traceback
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from ring_jax.config import (
    ConfigError,
    ModelConfig,
    RunConfig,
    from_config_dict,
)

# What a user's file can raise that is a mistake in the file. MemoryError, SystemExit
# and KeyboardInterrupt are not.
_FILE_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

_VERBS_OF_OTHERS = {"sources": "curate", "seeds": "synthesise"}
"""Setting that files of one verb alone have -> that verb."""


def load_run_config(args: argparse.Namespace) -> RunConfig:
    """Reads the run that a command line names, its overrides applied.

    Without `--config`, the settings are those that `--workdir` was trained with.

    Args:
      args: `config`, `workdir` and `overrides`, as `ring_jax.cli.main` parses them.

    Raises:
      ConfigError: one line, whatever is wrong with the file or an override.
    """
    if args.config is not None:
        config = load_any_config(args)
        if isinstance(config, ModelConfig):
            raise ConfigError(
                f"--config={args.config} holds a model, not a run; name a run's file, "
                "such as configs/quickstart.py."
            )
        return config
    if args.workdir is None:
        raise ConfigError(
            f"{args.verb}: no settings; give --config=FILE.py or a run's --workdir=DIR."
        )
    tree = dataclasses.asdict(load_run_folder_config(args.workdir))
    return override(RunConfig, tree, args.overrides)


def load_any_config(args: argparse.Namespace) -> RunConfig | ModelConfig:
    """Reads `--config`, a run's or a model's alone, its overrides applied.

    Raises:
      ConfigError: one line, whatever is wrong with the file or an override.
    """
    tree = load_config_file(args.config).to_dict()
    for setting, verb in _VERBS_OF_OTHERS.items():
        if setting in tree:
            raise ConfigError(
                f"--config={args.config} holds {setting}, not a run; `ring {verb}` "
                "takes it."
            )
    schema = ModelConfig if "vocab_size" in tree else RunConfig
    return override(schema, tree, args.overrides)


def require_workdir(args: argparse.Namespace) -> pathlib.Path:
    """Returns `--workdir`.

    Raises:
      ConfigError: it is not given, or is a file.
    """
    if args.workdir is None:
        raise ConfigError(f"{args.verb}: name the run folder with --workdir=DIR.")
    if args.workdir.exists() and not args.workdir.is_dir():
        raise ConfigError(f"--workdir={args.workdir} is a file; name a folder.")
    return args.workdir


def load_run_folder_config(workdir: pathlib.Path) -> RunConfig:
    """Reads the resolved settings that a run folder keeps.

    Raises:
      ConfigError: the folder has none, or they cannot be read.
    """
    tree = _read_run_folder(workdir)
    return from_config_dict(RunConfig, tree, f"{workdir / 'config.json'}: config")


def load_run_folder_model_config(workdir: pathlib.Path) -> ModelConfig:
    """Reads a run folder's model settings; an imported folder has no others.

    Raises:
      ConfigError: the folder has none, or they cannot be read.
    """
    tree = _read_run_folder(workdir).get("model", {})
    path = f"{workdir / 'config.json'}: config.model"
    return from_config_dict(ModelConfig, tree, path)


def load_imported_config(workdir: pathlib.Path, base: RunConfig) -> RunConfig:
    """Reads the settings of an imported folder over those of a run that has the rest.

    Raises:
      ConfigError: the folder has none, or they cannot be read.
    """
    tree = dataclasses.asdict(base)
    for name, section in _read_run_folder(workdir).items():
        is_section = isinstance(section, dict) and isinstance(tree.get(name), dict)
        tree[name] = tree[name] | section if is_section else section
    return from_config_dict(RunConfig, tree, f"{workdir / 'config.json'}: config")


def _read_run_folder(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(f"{workdir} is no run folder: it has no config.json.")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no settings; restore it.")
    return tree


def load_config_file(flag: str) -> ml_collections.ConfigDict:
    """Runs a config file's `get_config`.

    Args:
      flag: `FILE.py`, or `FILE.py:ARG` for `get_config("ARG")`.

    Raises:
      ConfigError: the file is missing, fails, or does not return a `ConfigDict`.
    """
    name, colon, argument = flag.partition(".py:")
    path = pathlib.Path(f"{name}.py" if colon else flag)
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(
            f"--config={flag}: {path} is no Python file. {_near_file(path)}"
        )
    spec = importlib.util.spec_from_file_location(f"ring_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError("it has no function get_config().")
        tree = module.get_config(argument) if colon else module.get_config()
    except _FILE_MISTAKES as error:
        raise ConfigError(f"--config={flag}: {_explain(error, path)}") from None
    if not isinstance(tree, ml_collections.ConfigDict):
        raise ConfigError(
            f"--config={flag}: get_config returned {type(tree).__name__}; return "
            "to_config_dict(RunConfig(...)) of ring_jax.config."
        )
    return tree


def _near_file(path: pathlib.Path) -> str:
    siblings = [str(file) for file in path.parent.glob("*.py")]
    near = difflib.get_close_matches(str(path), siblings, n=1)
    return f"Did you mean `{near[0]}`?" if near else "Give the path of a config file."


def _explain(error: Exception, path: pathlib.Path) -> str:
    # ml_collections lists every field of a locked tree before it suggests one.
    listing = re.compile(r"Other fields present: .*?(?=Did you mean|\Z)", re.DOTALL)
    text = " ".join(listing.sub("", str(error)).strip("'").split())
    if isinstance(error, ConfigError):
        return text
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename) == path
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    where = f" in line {line}" if line else ""
    return f"{type(error).__name__}{where}: {text}. Mend the file."


def override[T](
    schema: type[T], tree: dict[str, Any], overrides: Iterable[tuple[str, str]]
) -> T:
    """Edits a tree as `--config.section.field=value` asks, and checks the result.

    A value is read by the type that the schema gives its field. What cannot be read so,
    and names that the schema lacks, stay as they are: `from_config_dict` refuses them.
    """
    for name, text in overrides:
        keys = name.split(".")[1:]
        tree = _replaced(tree, schema, keys, text, "config")
    return from_config_dict(schema, tree)


def _replaced(value: Any, hint: Any, keys: list[str], text: str, path: str) -> Any:
    """Returns `value` with the setting below it at `keys` replaced."""
    if not keys:
        return _read(text, hint)
    hint = _options(hint)[0]
    key, *rest = keys
    inner_path = f"{path}.{key}"
    section = dict(value) if isinstance(value, Mapping) else {}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if key not in hints:
            return section | {key: text}
        inner_hint = hints[key]
    elif typing.get_origin(hint) is Mapping:
        inner_hint = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(inner_hint) and key not in section:
            near = difflib.get_close_matches(key, section, n=1)
            advice = (
                f"Did you mean `{near[0]}`?" if near else f"It has {list(section)}."
            )
            raise ConfigError(f"{inner_path}: {path} has no such entry. {advice}")
    else:
        raise ConfigError(f"{inner_path}: {path} is a single value, set it itself.")
    section[key] = _replaced(section.get(key), inner_hint, rest, text, inner_path)
    return section


def _read(text: str, hint: Any) -> Any:
    options = _options(hint)
    if types.NoneType in options and text.lower() in ("none", "null"):
        return None
    if options[0] is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if options[0] in (int, float):
        try:
            return options[0](text)
        except ValueError:
            return text
    return text


def _options(hint: Any) -> tuple[Any, ...]:
    """Returns the types of `A | None` with A first; a plain type alone."""
    if isinstance(hint, types.UnionType):
        some = [
            option for option in typing.get_args(hint) if option is not types.NoneType
        ]
        return (*some, types.NoneType)
    return (hint,)
