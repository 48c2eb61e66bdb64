# SPDX-License-Identifier: Apache-2.0
"""Configs as trees that files and flags edit, and as text; back, strictly."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict

from ring_jax.config.errors import ConfigError


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
