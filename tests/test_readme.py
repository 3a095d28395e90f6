"""The README's links lead somewhere, its commands exist and its profiles are there."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import networkx
from dvc.repo import Repo

from pipeline import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL))


def test_relative_links_and_pictures_are_there() -> None:
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)", TEXT)]
    local = [target for target in targets if target and not target.startswith("http")]
    assert local
    assert not [target for target in local if not (ROOT / target).exists()]


def test_make_targets_and_profiles_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(?:\.venv/bin/)?make ([a-z]+)", SHELL, flags=re.MULTILINE))
    assert {"repro", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    assert all((ROOT / f"profiles/{name}.yaml").is_file() for name in re.findall(r"PROFILE=([\w-]+)", TEXT))


def test_commands_of_the_console_script_exist() -> None:
    named = set(re.findall(r"diffusionreward\s+([a-z]+)", TEXT))
    assert named
    assert named <= {*cli.COMMANDS, "stage"}


def test_the_drawing_is_the_dag_without_arrows_that_others_imply() -> None:
    drawn: set[tuple[str, str]] = set()
    for line in TEXT.partition("flowchart LR\n")[2].partition("```")[0].splitlines():
        drawn |= set(pairwise(re.sub(r"\[.*\]", "", stage).strip() for stage in line.split("-->")))
    dag = networkx.DiGraph()
    with Repo(str(ROOT)) as repo:
        for stage, needed in repo.index.graph.edges:  # of the files under annotations/, too, which are no stages
            names = [one.addressing.partition("@")[0] for one in (needed, stage)]
            if not any("/" in name for name in names):
                dag.add_edge(*names)
    assert drawn == set(networkx.transitive_reduction(dag).edges)
