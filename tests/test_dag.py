"""dvc.yaml says what the stages really do: their imports, their params, their order."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import closure

ROOT = closure.ROOT
DAG: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = list(DAG["stages"])
ORDER = "prepare degrade base gan restore features pairs label frm learning refl benchmark report".split()
MODULES = [path for name in closure.PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]


def keys(spec: dict[str, Any]) -> set[str]:
    """The declared params with `${item.…}` written as `*`, as `closure.groups` writes computed parts."""
    return {re.sub(r"\$\{[^}]*\}", "*", key) for key in spec.get("params", [])}


def paths(spec: dict[str, Any], kind: str) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in spec.get(kind, [])]


def test_every_stage_of_the_method_is_there_in_order() -> None:
    assert STAGES == ORDER


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_modules_really_imported(stage: str) -> None:
    assert closure.code_deps(DAG["stages"][stage]["deps"]) == closure.wanted(stage), (
        "run `python -m tests.closure --write`"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_groups_really_read(stage: str) -> None:
    assert keys(DAG["stages"][stage]) == closure.groups(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    others = [path for path in closure.closure(stage) if path.parts[0] == "stages" and path.stem != stage]
    assert not others


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_does_and_runs_by_its_module(stage: str) -> None:
    spec = DAG["stages"][stage]
    assert spec["desc"]
    assert spec["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]


def test_the_library_imports_nothing_from_the_stages() -> None:
    library = [path.relative_to(ROOT) for path in MODULES if path.relative_to(ROOT).parts[0] == "pipeline"]
    guilty = [
        str(path)
        for path in library
        if path != Path("pipeline/cli.py") and any(one.parts[0] == "stages" for one in closure.imported(path))
    ]
    assert not guilty


def test_nothing_is_imported_by_computed_name() -> None:
    """Static analysis must see every import; the command line loads stages lazily, compat only other people's code."""
    guilty = [
        str(path)
        for path in MODULES
        if path.name not in ("cli.py", "compat.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr == "import_module")
        or (isinstance(node, ast.Name) and node.id in ("import_module", "__import__"))
    ]
    assert not guilty


def test_every_data_dependency_is_made_by_an_earlier_stage() -> None:
    made: list[str] = ["annotations/human.parquet"]  # from outside the DAG
    for name in STAGES:
        spec = DAG["stages"][name]
        for dep in spec["deps"]:
            if dep.split("/")[0] not in closure.PACKAGES:
                prefixes = [dep, f"{dep}/"]
                assert any(out == dep or out.startswith(prefixes[1]) or dep.startswith(f"{out}/") for out in made), (
                    f"{name}: nothing before it makes {dep}"
                )
        made += [path for kind in ("outs", "metrics", "plots") for path in paths(spec, kind)]


def test_metrics_and_plots_are_small_files_in_git() -> None:
    for name in STAGES:
        for kind in ("metrics", "plots"):
            for entry in DAG["stages"][name].get(kind, []):
                (path, options), *_ = entry.items()
                assert options["cache"] is False, f"{name}: {path}"
                assert path.startswith(f"{kind}/"), f"{name}: {path}"


def test_every_plot_has_axes_a_title_and_a_template_that_is_there() -> None:
    for name in STAGES:
        for entry in DAG["stages"][name].get("plots", []):
            (path, options), *_ = entry.items()
            assert {"x", "y", "title"} <= set(options), f"{name}: {path}"
            if options["template"] != "linear":  # DVC's own
                template = json.loads((ROOT / ".dvc/plots" / f"{options['template']}.json").read_text(encoding="utf-8"))
                assert template["data"] == {"values": "<DVC_METRIC_DATA>"}


def test_the_closure_follows_imports_inside_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("stages", "pipeline", "pipeline/deep"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "stages/one.py").write_text("def f():\n    from pipeline.deep import inner\n    load(f'refl.{f}')\n")
    (tmp_path / "pipeline/deep/__init__.py").write_text("import pipeline.hidden\n")
    (tmp_path / "pipeline/hidden.py").write_text("value('hidden.key')\n")
    (tmp_path / "pipeline/deep/inner.py").write_text("import pipeline.leaf\nvalue('seed'); load('runtime')\n")
    (tmp_path / "pipeline/leaf.py").write_text("import numpy\nfrom pipeline.deep.inner import x\n")
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    closure.tree.cache_clear()
    assert [str(path) for path in closure.closure("one")] == [
        "pipeline/deep/__init__.py",
        "pipeline/deep/inner.py",
        "pipeline/hidden.py",
        "pipeline/leaf.py",
        "stages/one.py",
    ]
    assert closure.groups("one") == {"refl.*", "seed", "hidden.key"}
    closure.tree.cache_clear()
