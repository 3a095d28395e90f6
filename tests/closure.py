"""What a stage really imports and reads, found without running it: what dvc.yaml's `deps` and `params` must say.

`python -m tests.closure` says where dvc.yaml differs; `python -m tests.closure --write` brings it up to date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.params import GROUPS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "stages")
UNTRACKED = {"runtime"}  # how to run, never what to compute


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def module_files(name: str) -> list[Path]:
    """`pipeline.refl.losses` → pipeline/refl/losses.py, and the `__init__.py` on the way that are not empty."""
    path = Path(*name.split("."))
    inits = [folder / "__init__.py" for folder in (path, *path.parents)]
    files = [path.with_suffix(".py"), *(init for init in inits if init.parent != Path())]
    return [file for file in files if (ROOT / file).is_file() and (ROOT / file).read_text(encoding="utf-8").strip()]


def imported(module: Path) -> Iterator[Path]:
    """Our modules that one file imports, anywhere in it (also inside functions and under TYPE_CHECKING)."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (file for name in names if name.split(".")[0] in PACKAGES for file in module_files(name))


def closure(stage: str) -> list[Path]:
    """The stage's file and every module of ours that it imports, directly or not, sorted."""
    found: set[Path] = set()
    waiting = [Path("stages") / f"{stage}.py"]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(imported(module))
    return sorted(found)


def package_data(stage: str) -> list[Path]:
    """Files beside a stage's modules that they name in a string, e.g. a Jinja2 template."""
    folders = {module.parent for module in closure(stage)} - {Path(name) for name in PACKAGES}
    beside = {
        file.relative_to(ROOT)
        for folder in folders
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    strings = {
        node.value
        for module in closure(stage)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return sorted(file for file in beside if file.name in strings)


def groups(stage: str) -> set[str]:
    """Keys of params.yaml that the closure reads by `load("…")` or `value("…")`; a computed part is `*`.

    `params.read()` reads every group. A key within a group that is read whole is left out.
    """
    read: set[str] = set()
    for module in closure(stage):
        if module == Path("pipeline/params.py"):
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "params.read":
                    read |= GROUPS
                elif name.split(".")[-1] in ("load", "value") and node.args and (key := text(node.args[0])):
                    read.add(key)
    tracked = {key for key in read if key.split(".")[0] not in UNTRACKED}
    return {key for key in tracked if not any(key.startswith(f"{other}.") for other in tracked)}


def text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return None


def stages(dag: dict[str, Any]) -> list[str]:
    return [name for name in dag["stages"] if (ROOT / "stages" / f"{name}.py").is_file()]


def code_deps(deps: list[str]) -> list[str]:
    """The code among a stage's deps; the rest is data."""
    return sorted(dep for dep in deps if dep.split("/")[0] in PACKAGES)


def wanted(stage: str) -> list[str]:
    return sorted(str(path) for path in [*closure(stage), *package_data(stage)])


def main(write: bool) -> int:
    """Print what differs, or write it; the exit code says whether anything did."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    path = ROOT / "dvc.yaml"
    dag = yaml.load(path)
    changed = 0
    for name in stages(dag):
        deps = list(dag["stages"][name]["deps"])
        code, want = code_deps(deps), wanted(name)
        for dep in sorted(set(code) ^ set(want)):
            changed += 1
            print(f"{name}: {'-' if dep in code else '+'} {dep}")
        if code != want:
            dag["stages"][name]["deps"] = [*want, *(dep for dep in deps if dep not in code)]
    if write and changed:
        yaml.dump(dag, path)
    return 1 if changed and not write else 0


if __name__ == "__main__":
    sys.exit(main(write="--write" in sys.argv[1:]))
