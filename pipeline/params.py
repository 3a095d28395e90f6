"""Reads `params.yaml`. Knows groups by name, seed and image size; a stage's pydantic model lives with its own code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

try:  # PyYAML's wheels bring libyaml, eight times as fast: every `load` reads the whole file
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

GROUPS = frozenset(
    (
        "seed image_size faces degradation base gan restore features pairs labels svm frm learning refl benchmark"
        " report runtime"
    ).split()
)
PARAMS_FILE = Path("params.yaml")


class UserError(Exception):
    """A mistake that the user can mend: its message names the file, what is wrong and what to do."""


def one_line(error: Exception) -> str:
    """What a library's error says, for a message of ours that quotes it: one line, its first 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def printable(name: str) -> str:
    """A file's name for tables and terminals: bytes that are no UTF-8 stand as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Params(BaseModel):
    """Base of every group's model: unknown keys and wrong types are errors, values can't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=Params)


class _Loader(SafeLoader):
    """Safe YAML that reads `1e-4` as the number it is (as DVC does) and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # super() says what is wrong with it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read(path: Path | None = None) -> dict[str, Any]:
    """The whole params file as plain data.

    Raises UserError for a missing or unreadable file and for a group that no stage knows.
    """
    path = path or PARAMS_FILE
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path.resolve()} is missing; run from the project root or copy a file of profiles/") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:  # of an impossible date, of bytes that are no UTF-8
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of groups, not {type(content).__name__}")
    if unknown := sorted(map(str, set(content) - GROUPS)):
        raise UserError(f"{path}: unknown group `{unknown[0]}`; known groups: {', '.join(sorted(GROUPS))}")
    for name, lowest in (("seed", 0), ("image_size", 16)):  # the two that belong to no stage
        if name in content and (type(content[name]) is not int or content[name] < lowest):
            raise UserError(f"{path}: {name}: {content[name]!r} is no whole number of at least {lowest}")
    if (size := content.get("image_size", 16)) & (size - 1):
        raise UserError(f"{path}: image_size: {size} is no power of two, which the networks need")
    return content


def load(group: str, model: type[M], path: Path | None = None) -> M:
    """Validate one dotted group (`"refl.diffbir"`) as `model`.

    Raises UserError naming the file and the key for an unknown key, a wrong type or a value out of range.
    """
    path = path or PARAMS_FILE
    return validate(model, value(group, path), f"{path}: {group}")


def value(key: str, path: Path | None = None) -> Any:
    """The plain value under a dotted key, e.g. `value("image_size")`. Raises UserError where it is missing."""
    path = path or PARAMS_FILE
    content: Any = read(path)
    for name in key.split("."):
        if not isinstance(content, dict) or name not in content:
            raise UserError(f"{path}: `{key}` is missing")
        content = content[name]
    return content


def validate(model: type[M], content: Any, where: str) -> M:
    """Validate plain data; the UserError's message starts with `where` and names each offending key."""
    try:
        plain = json.dumps(content if content is not None else {}, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no names, an anchor inside itself
        raise UserError(f"{where}: no plain mapping of names to values ({one_line(error)})") from None
    try:
        # strict JSON mode takes a list for a tuple, but refuses "3" for 3
        return model.model_validate_json(plain)
    except ValidationError as error:
        problems = [f"{'.'.join([where, *(str(part) for part in e['loc'])])}: {e['msg']}" for e in error.errors()]
        raise UserError("; ".join(problems)) from None
