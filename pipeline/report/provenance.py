"""What a report was made from. Nothing that changes without the data or the code changing: no time, no head commit."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pipeline import params

CODE = Path(__file__).parents[2]  # where this code runs from
CODE_PATHS = ("pipeline", "stages", "constraints.txt")


def dvc_md5(path: Path) -> str:
    """The hash that dvc.lock records for a file or folder, so that a reader can look the data up there.

    A folder's is the MD5 of the JSON list of its files' MD5 and relative paths, with the suffix `.dir`.
    """
    if path.is_file():
        return _md5(path.read_bytes())
    files = sorted(p for p in path.rglob("*") if p.is_file())
    entries = [{"md5": _md5(p.read_bytes()), "relpath": p.relative_to(path).as_posix()} for p in files]
    entries.sort(key=lambda entry: entry["relpath"])
    return _md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"


def params_text() -> tuple[str, str]:
    """All params but `runtime` (how to run, not what) as YAML in a fixed order, and the text's SHA-256."""
    content: dict[str, Any] = {name: group for name, group in params.read().items() if name != "runtime"}
    text = yaml.safe_dump(content, sort_keys=True, default_flow_style=None, allow_unicode=True, width=100)
    return text, hashlib.sha256(text.encode()).hexdigest()


def code_commit(root: Path = CODE) -> str:
    """The git commit that last changed the code (later ones, of results or texts, don't), and whether it was edited."""
    try:
        commit = _git(root, "log", "-1", "--format=%H", "--", *CODE_PATHS)
        edited = _git(root, "status", "--porcelain", "--", *CODE_PATHS)
    except FileNotFoundError:
        return "unknown: git is not installed"
    except subprocess.CalledProcessError:
        return "unknown: the code is not in a git checkout"
    if not commit:
        return "unknown: no commit holds the code"
    return f"{commit}, edited since" if edited else commit


def _git(root: Path, *arguments: str) -> str:
    found = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
