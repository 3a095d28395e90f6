"""The whole DAG on profiles/ci.yaml in a temporary clone: it runs, repeats, reruns only what changed, and travels."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from skimage.data import astronaut

from pipeline import tables
from pipeline.images import decode, encode_png
from tests.chromium import CHROMIUM, FLAGS, NO_CHROMIUM

ROOT = Path(__file__).resolve().parents[1]
RESTORERS = ("diffbir", "osediff", "gfpgan")
VARIANTS = ("full", "no_reward", "more_base")
REFL = {f"refl@{restorer}-{variant}" for restorer in RESTORERS for variant in VARIANTS}

pytestmark = pytest.mark.slow


# this environment's `python`, `dvc` and `diffusionreward` first on the PATH
ENVIRONMENT = {**os.environ, "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}


def run(at: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=at, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def dvc(at: Path, *arguments: str) -> str:
    done = run(at, "dvc", *arguments)
    assert done.returncode == 0, f"dvc {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def git(at: Path, *arguments: str) -> str:
    done = run(at, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ran(output: str) -> set[str]:
    """The stages that `dvc repro` ran."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def changed(project: Path) -> dict[str, set[str]]:
    """What changed for each stage that would rerun for a change of its own: params, files and folders.

    What follows those stages is not known before they ran.
    """
    found: dict[str, set[str]] = {}
    for stage, changes in json.loads(dvc(project, "status", "--json")).items():
        for what in changes:
            if isinstance(what, str):  # "changed command"
                found.setdefault(stage, set()).add(what)
                continue
            for path, how in {**what.get("changed deps", {}), **what.get("changed outs", {})}.items():
                found.setdefault(stage, set()).update(how if isinstance(how, dict) else [path])
    return found


def run_stages(project: Path, *names: str) -> None:
    """Stages one after the other in one fresh process, without DVC: their outputs are deleted first, as DVC does."""
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    for out in [project / out["path"] for name in names for out in lock[name]["outs"]]:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    calls = []
    for name in names:
        stage, _, row = name.partition("@")
        given = ", ".join(map(repr, row.split("-"))) if row else ""
        calls.append(f"import_module('stages.{stage}').main({given})")
    done = run(project, "python", "-c", "from importlib import import_module\n" + "\n".join(calls))
    assert done.returncode == 0, done.stderr[-4000:]


def outputs(project: Path) -> dict[str, bytes]:
    """The bytes of everything that the stages made."""
    folders = [project / name for name in ("data", "metrics", "plots")]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(project)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose params.yaml is the tiny profile, after `dvc repro`."""
    clone = tmp_path_factory.mktemp("e2e") / "clone"
    git(ROOT, "clone", "--quiet", str(ROOT), str(clone))
    shutil.copy(clone / "profiles/ci.yaml", clone / "params.yaml")
    for name in ("dvc.lock", "metrics", "plots"):  # the default profile's results are not this run's
        git(clone, "rm", "-r", "--quiet", "--ignore-unmatch", name)
    git(clone, "commit", "--quiet", "--all", "--message", "the tiny profile")
    if (ROOT / ".scratch/wheels").is_dir():  # fetched before: spare the network
        shutil.copytree(ROOT / ".scratch/wheels", clone / ".scratch/wheels")
    assert ran(dvc(clone, "repro")) == {
        "prepare", "degrade", "base", "gan", "restore", "features", "pairs", "label", "frm", "learning", *REFL,
        "benchmark", "report"
    }  # fmt: skip
    git(clone, "add", "dvc.lock", "metrics", "plots")
    git(clone, "commit", "--quiet", "--message", "results")
    return clone


@pytest.fixture
def edited(project: Path) -> Iterator[Path]:
    """The project, with what a test edits put back afterwards."""
    yield project
    git(project, "checkout", "--quiet", "--", ".")
    git(project, "clean", "-fdxq", "annotations")
    dvc(project, "checkout", "--quiet", "--force")


def edit_params(project: Path, values: dict[str, Any]) -> None:
    """Set params by their dotted keys; each must be there, with another value."""
    content = yaml.safe_load((project / "params.yaml").read_text())
    for key, value in values.items():
        *parents, last = key.split(".")
        group = content
        for name in parents:
            group = group[name]
        assert last in group, f"{key} is no param"
        assert group[last] != value, f"{key} is {value} already"
        group[last] = value
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_every_output_is_there_and_the_checkout_stays_clean(project: Path) -> None:
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    made = [out["path"] for stage in lock["stages"].values() for out in stage["outs"]]
    assert all((project / path).exists() for path in made)
    assert git(project, "status", "--porcelain") == ""
    benchmark = json.loads((project / "metrics/benchmark.json").read_text())
    for restorer in RESTORERS:
        assert set(benchmark["comparisons"]["test"][restorer]) >= {"full-base", "full-no_reward", "full-more_base"}
        assert "id_dlib" in benchmark["improvement"]["test"][restorer]
        watched = json.loads((project / f"metrics/refl/{restorer}-full.json").read_text())
        assert watched["labels"] == "simulated"
        assert watched["impostor"]["id_dlib"]["mean"] > 0
    report = (project / "data/report/report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']https?:""", report), "the report must open without network"


def test_the_trained_model_restores_a_photo_by_the_command(project: Path, tmp_path: Path) -> None:
    """What a visitor types first, with the model that it names by default."""
    photo = np.asarray(astronaut(), dtype=np.uint8)
    (tmp_path / "astronaut.png").write_bytes(encode_png(photo))
    done = run(project, "diffusionreward", "restore", str(tmp_path / "astronaut.png"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "the model restores faces at 64 × 64 px" in done.stdout
    assert "more than twice the model's 64 px" in done.stdout
    changed = (decode((tmp_path / "out/astronaut.png").read_bytes(), "result") != photo).any(axis=2)
    assert 0.005 < changed.mean() < 0.2  # the face, and nothing else


def test_the_trained_model_restores_a_crop_by_the_command(project: Path, tmp_path: Path) -> None:
    (cell,) = tables.read_frame(tables.DEGRADED, project / "data/degraded", ["image"])["image"][:1]
    (tmp_path / "face.png").write_bytes(cell["bytes"])
    done = run(project, "diffusionreward", "restore", str(tmp_path / "face.png"), "--aligned", "--out", str(tmp_path))
    assert done.returncode == 2, "it would replace the photo"
    out = tmp_path / "restored"
    done = run(project, "diffusionreward", "restore", str(tmp_path / "face.png"), "--aligned", "--out", str(out))
    assert done.returncode == 0, done.stderr
    restored = decode((out / "face.png").read_bytes(), "face.png")
    assert restored.shape == (64, 64, 3)
    assert (restored != decode(cell["bytes"], "LQ")).any()


def test_a_second_run_does_nothing(project: Path) -> None:
    lock = (project / "dvc.lock").read_bytes()
    output = dvc(project, "repro")
    assert ran(output) == set()
    assert "Data and pipelines are up to date" in output
    assert (project / "dvc.lock").read_bytes() == lock


READ_BY: dict[str, tuple[Any, set[str]]] = {
    "faces.max_rejected": (0.3, {"prepare"}),
    "degradation.noise": ([0.0, 3.0], {"degrade"}),
    "gan.discriminator.r1": (2.0, {"gan", *REFL}),  # `base` is not trained again
    "frm.reward.seed": (7, {"frm", "learning"}),
    "learning.steps": (5, {"learning"}),
    "refl.diffbir.learning_rate": (0.003, {f"refl@diffbir-{variant}" for variant in VARIANTS}),
    "benchmark.resamples": (123, {"benchmark"}),
    "report.first_faces": (3, set()),
}


def test_a_change_concerns_the_stages_that_read_it_only(edited: Path) -> None:
    """A param: the stages that read it, and the report, which shows every param but `runtime`. A remark: one stage."""
    edit_params(edited, {"runtime.num_workers": 3})
    assert changed(edited) == {}
    edit_params(edited, {key: value for key, (value, _) in READ_BY.items()})
    code = sorted((edited / "pipeline/report").glob("*.py"))
    for path in code:
        path.write_text(path.read_text() + "\n# a remark\n")
    found = changed(edited)
    for key, (_, stages) in READ_BY.items():
        read = {stage for stage, what in found.items() if any(f"{key}.".startswith(f"{one}.") for one in what)}
        assert read == stages | {"report"}, key
    assert {stage for stage, what in found.items() if any(one.endswith(".py") for one in what)} == {"report"}


def test_a_change_reruns_its_stage_and_what_follows_only(edited: Path) -> None:
    before = outputs(edited)
    edit_params(edited, {"benchmark.resamples": 150})
    assert ran(dvc(edited, "repro")) == {"benchmark", "report"}
    after = outputs(edited)
    moved = {name for name in before | after if before.get(name) != after.get(name)}
    assert moved
    assert {
        name for name in moved if not name.startswith(("data/report/", "metrics/benchmark", "plots/benchmark"))
    } == set()


def test_running_stages_again_gives_the_same_bytes(project: Path) -> None:
    """Fresh, without checkpoints and run-cache: same CPU, same threads, same versions, same bytes.

    In one process, so that nothing may depend on what an earlier stage left in it either.
    """
    shutil.rmtree(project / ".scratch/gan")  # a finished training would be taken up again
    assert not list((project / ".scratch/refl").glob("*"))  # nor of ReFL, which leaves none
    before = outputs(project)
    again = ["prepare", "degrade", "gan", "restore", "pairs", "label", "frm", "learning"]
    again += ["refl@diffbir-full", "refl@osediff-full"]
    run_stages(project, *again)
    after = outputs(project)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    assert git(project, "status", "--porcelain") == ""


def test_push_and_pull_bring_everything_to_another_clone(project: Path, tmp_path: Path) -> None:
    """The README's commands: git tells the other clone what was run and where it lies."""
    before = git(project, "rev-parse", "HEAD").strip()
    dvc(project, "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    dvc(project, "push")
    git(project, "add", ".dvc/config", "params.yaml", "dvc.lock", "metrics", "plots", "annotations")
    git(project, "commit", "--quiet", "-m", "what I ran")
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(project), str(other))
    git(project, "reset", "--quiet", "--hard", before)  # for the other tests
    dvc(other, "pull")
    assert outputs(other) == outputs(project)
    assert ran(dvc(other, "repro")) == set()
    assert git(other, "status", "--porcelain") == ""


def vote(address: str, count: int) -> None:
    """Judge `count` pairs with the keyboard alone, in a real browser."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install .[dev])")
    keys = ["ArrowLeft", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"]
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        page.keyboard.type("Ada")  # the field has the focus
        page.keyboard.press("Enter")
        page.wait_for_selector("body.ready")
        for number in range(count):
            before = page.get_attribute("#stage", "data-lease")
            page.keyboard.press(keys[number % len(keys)])
            page.wait_for_selector(f'body.ready #stage:not([data-lease="{before}"])')
        page.wait_for_selector("#status[data-state=saved]")
        assert page.text_content("#count").startswith(f"{count} of ")
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_a_person_votes_exports_sets_one_param_and_repro_retrains_with_their_votes(edited: Path) -> None:
    """What a person does after `make repro`: annotate in a browser, `labels export`, labels.source, `dvc repro`."""
    trained = ["data/svm/svm.skops", "data/frm/reward/model.safetensors", "data/refl/diffbir/full"]
    before = outputs(edited)
    server = subprocess.Popen(
        ["diffusionreward", "annotate", "--port", "0"], cwd=edited, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        said = next(line for line in server.stdout if "annotate at" in line)  # after the round that it makes by itself
        vote(re.findall(r"http://\S+", said)[0], 30)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    exported = run(edited, "diffusionreward", "labels", "export")
    assert exported.returncode == 0, exported.stderr
    assert "30 votes, 30 new" in exported.stdout
    edit_params(edited, {"labels.source": "both"})
    assert ran(dvc(edited, "repro", "refl@diffbir-full")) == {"label", "frm", "refl@diffbir-full"}
    assert changed(edited).keys() == {"learning", "benchmark", "report", *REFL} - {"refl@diffbir-full"}
    run_stages(edited, "learning", "benchmark", "report")  # take them, too

    counts = json.loads((edited / "metrics/svm.json").read_text())["human_votes"]
    assert (counts["read"], counts["standing"]) == (30, 30)
    mine = tables.read_frame(tables.VOTES, edited / "annotations/human.parquet")
    used = tables.read_frame(tables.VOTES, edited / "data/votes").query("annotator_kind == 'human'")
    assert set(used.event_id) == set(mine.event_id)
    first = mine[mine.pair_id.isin(tables.read_frame(tables.PAIRS, edited / "data/pairs").pair_id)]
    labels = tables.read_frame(tables.ANNOTATIONS, edited / "data/annotations").set_index("pair_id")
    assert set(labels.loc[first.pair_id, "source"]) == {"human"}
    assert labels.loc[first.pair_id, "winner"].eq(first.winner.replace("both_bad", "tie").to_numpy()).all()
    frm = json.loads((edited / "metrics/frm.json").read_text())
    assert (frm["labels"], frm["heldout"]["labels"]) == ("human+simulated", "simulated")
    after = outputs(edited)
    for path in trained:
        files = {name for name in before if name.startswith(path) and not name.endswith(".json")}
        assert files
        assert any(after[name] != before[name] for name in files), f"{path} was trained with the votes"

    # every candidate becomes another image: the votes stand, and still teach (from the pictures that people saw)
    edit_params(edited, {"degradation.noise": [0.0, 3.0]})
    run_stages(edited, "degrade", "restore", "features", "pairs", "label", "frm")
    assert json.loads((edited / "metrics/svm.json").read_text())["human_votes"] == counts
    used = tables.read_frame(tables.VOTES, edited / "data/votes").query("annotator_kind == 'human'")
    assert set(used.event_id) == set(mine.event_id)
    again = tables.read_frame(tables.ANNOTATIONS, edited / "data/annotations").set_index("pair_id")
    assert again.loc[first.pair_id, "winner"].equals(labels.loc[first.pair_id, "winner"])
    assert json.loads((edited / "metrics/frm.json").read_text())["labels"] == "human+simulated"
    model = "data/frm/reward/model.safetensors"
    assert (edited / model).read_bytes() != after[model]
