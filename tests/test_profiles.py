"""Every profile is a complete, valid alternative to params.yaml, and its run leaves the checkout clean."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import params
from pipeline.check import MODELS, check
from tests import closure

ROOT = closure.ROOT
PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))]
IDS = [path.stem for path in PROFILES]


def keys_read() -> set[str]:
    """Every key that any stage reads by `load` or `value`, `runtime` included."""
    return {"runtime", *(key for stage in closure.stages(dag()) for key in closure.groups(stage))}


def dag() -> dict[str, Any]:
    import yaml

    content: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return content


def models() -> dict[str, type[params.Params]]:
    """The pydantic model of each `load("key", Model)` in the code; a computed part of the key is `*`."""
    found: dict[str, type[params.Params]] = {}
    modules = {module for stage in closure.stages(dag()) for module in closure.closure(stage)}
    for module in sorted(modules - {Path("pipeline/params.py")}):
        for node in ast.walk(closure.tree(module)):
            if not (isinstance(node, ast.Call) and len(node.args) >= 2 and isinstance(node.args[1], ast.Name)):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "load" and (key := closure.text(node.args[0])):
                loaded = importlib.import_module(".".join(module.with_suffix("").parts))
                found[key] = getattr(loaded, node.args[1].id)
    return found


def test_check_knows_every_group_that_the_code_reads() -> None:
    assert models() == MODELS


def test_check_names_every_wrong_key_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(whole)
    Path("small").mkdir()
    Image.new("RGB", (32, 32)).save("small/face.png")
    check()

    def complaint(*changes: tuple[str, str]) -> str:
        content = whole
        for right, wrong in changes:
            assert right in content
            content = content.replace(right, wrong)
        Path("params.yaml").write_text(content)
        with pytest.raises(SystemExit):
            check()
        return capsys.readouterr().err

    said = complaint(("  resamples: 10000 # of the paired", "  resample: 1 # "), ("more_base]", "nothing]"))
    assert "benchmark.resample: Extra inputs" in said
    assert "unknown variant 'nothing'" in said
    said = complaint(("[full, no_reward, more_base]", "[no_reward, static_seed1]"))
    assert "refl.variants lacks `full`" in said
    assert "has `static_seed1` but not `static`" in said
    for right, wrong, problem in (
        ("image_size: 64", "image_size: 96", "image_size: 96 is no power of two"),
        ("  restorers: [diffbir, osediff, gfpgan]", "  restorers: null", "refl.restorers: must be a list of names"),
        ("[full, no_reward, more_base]", "[full, no_reward, full]", "refl.variants: names one of"),
        ("block: 2, scaling", "block: 3, scaling", "image_size: 64 px can't be halved"),
        ("channels: [16, 32, 64]", "channels: [4, 4, 4, 4, 4, 4, 4]", "gan.discriminator.channels"),
        ("osediff: {restorer: osediff, samples: 2}", "osediff: {restorer: osediff, samples: 2, eta: 1.0}", "DiffBIR's"),
        ("  worst_by: id_dlib", "  worst_by: id_dlb", "report.worst_by: Value error, metrics: unknown metric `id_dlb`"),
        ("  gfpgan:\n    steps", "  codeformer:\n    steps", "refl.codeformer: unknown"),
        ("{restorer: osediff, samples: 2}", "{restorer: osedif, samples: 2}", "unknown restorer `osedif`"),
        ("    - lmd_98\n", "    - lmd_99\n", "benchmark.metrics: unknown metric `lmd_99`"),
        ("    annotators: [sim-6,", "    annotators: [sim-9,", "frm.heldout.annotators: `sim-9` is none of"),
        ("source: simulated #", "source: human #", "frm.heldout.annotators: `sim-6` is simulated"),
        ("  c: [0.01,", "  c: [0.0,", "svm.c.0: Input should be greater than 0"),
        ("  steps: 200 # of each training", "  steps: 20 # of each training", "learning.steps: 20 end within"),
        ("seed: 0\nimage", "image", "error: params.yaml: `seed` is missing\n"),
        (
            "{restorer: osediff, samples: 2}",
            "{restorer: external, samples: 1, folder: here}",
            "folder: here is no folder",
        ),
        ("    osediff: {restorer", "    smooth: {restorer", "restore.settings: Value error, `smooth`"),
        ("  external: {}", "  external: {diffbir: weights}", "diffbir is a restorer of the pipeline"),
        ("  external: {}", "  external: {..: weights}", "'..' can't name a row"),
        ("    - noise\n", "    - pyiqa:nosuch\n", "pyiqa:nosuch"),
        ("min_annotators: 3", "min_annotators: 4", "min_annotators: 4, but labels.votes.test_votes gives a pair 3"),
        ("rollout: null", "rollout: {steps: 2, gradient_window: 1, eta: [0, 1], renoise: 1}", "refl.osediff.rollout:"),
        ("normalise: false", "normalise: true", "refl.gfpgan.normalise: gfpgan has no timestep"),
        ("  datasets: {}", "  datasets: {LFW: {lq: small}}", "small: images are 32 × 32 px, the models' 64 × 64"),
        ("  external: {}", "  external: {theirs: nowhere}", "benchmark.external.theirs: nowhere is no folder"),
        ("  datasets: {}", "  datasets: {LFW: {lq: here, hq: .}}", "benchmark.datasets.LFW.lq: here is no folder"),
        ("scales: [1, 2, 4]", "scales: [1, 64]", "labels.scales: 64 leaves no gradient"),
        ("overlap_votes: 3", "overlap_votes: 9", "votes.overlap_votes: 5 annotators of panel main can't cast 9"),
        ("test_votes: 3", "test_votes: 8", "votes.test_votes: 5 annotators of panel main can't cast 8"),
        ("norm_num_groups: 16", "norm_num_groups: 7", "base.unet: no such network can be built"),
        ("narrow: 0.0625", "narrow: 0.001", "gan.network: no such network works for 64 px"),
        (
            "  pretrained: null # path",
            "  pretrained: no.pth # path",
            "gan.pretrained restores 512 px, image_size is",
        ),
        ("timm_model_name: test_nfnet", "timm_model_name: nfnet", "frm.reward.architecture: no such network"),
        ("    pretrained: null # an", "    pretrained: no.pt # an", "frm.reward: no.pt is missing: download HPS_v2"),
        ("    pretrained: null # an", "    pretrained: no.pt # an", "or set frm.reward.pretrained to null"),
    ):
        assert problem in complaint((right, wrong))
    said = complaint(("keep: last #", "keep: best #"), ("patience: null # evaluations", "patience: 3 # evaluations"))
    assert "refl.diffbir.patience: more_base spends the compute of all steps" in said


@pytest.mark.parametrize("profile", PROFILES, ids=IDS)
def test_check_takes_every_profile_once_its_files_are_there(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = profile.read_text(encoding="utf-8")
    Path("params.yaml").write_text(content, encoding="utf-8")
    files = set(re.findall(r"^ +\w+: (weights/\S+\.\w+)", content, flags=re.MULTILINE))
    assert bool(files) == (profile.stem == "paper")
    if files:
        with pytest.raises(SystemExit):
            check()
        said = capsys.readouterr().err
        assert all(f"{file}: missing" in said or f"{file} is missing" in said for file in files)
    for file in files:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    for folder in ("diffbir/full", "diffbir/full_seed9"):  # the latter of an earlier matrix
        Path("data/refl", folder).mkdir(parents=True)
    check()
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: data/refl/diffbir/full_seed9: it is no longer in refl.restorers")


def expand(key: str, content: dict[str, Any]) -> list[str]:
    """`refl.*` → refl.diffbir, refl.osediff: the computed part is one of the restorers."""
    return [key.replace("*", name) for name in content["refl"]["restorers"]] if "*" in key else [key]


@pytest.mark.parametrize("profile", PROFILES, ids=IDS)
def test_every_group_of_a_profile_is_valid(profile: Path) -> None:
    content = params.read(profile)
    for key, model in models().items():
        for one in expand(key, content):
            params.load(one, model, profile)
    for key in keys_read():
        for one in expand(key, content):
            params.value(one, profile)


@pytest.mark.parametrize("profile", PROFILES, ids=IDS)
def test_a_profile_holds_every_group_and_each_is_read(profile: Path) -> None:
    content = params.read(profile)
    assert set(content) == params.GROUPS
    assert {key.split(".")[0] for key in keys_read()} == params.GROUPS


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` with the environment of these tests instead of a new one (`-o venv`)."""
    command = ["make", "--old-file=venv", f"VENV={sys.prefix}", *arguments]
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)


def git(clone: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    git(ROOT, "clone", "--quiet", str(ROOT), str(tmp_path / "clone"))
    return tmp_path / "clone"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_faces_without_a_profile_and_a_path_with_a_space_are_refused(tmp_path: Path) -> None:
    spaced = tmp_path / "my faces"
    spaced.mkdir()
    shutil.copy(ROOT / "Makefile", spaced)
    for folder, argument, message in (
        (ROOT, f"FACES={tmp_path}", "FACES and WEIGHTS need a PROFILE"),
        (spaced, "help", "has a space in it"),
    ):
        done = subprocess.run(["make", "repro", argument], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_profile_runs_in_a_worktree_that_leaves_the_checkout_clean(clone: Path, tmp_path: Path) -> None:
    run = clone / ".runs/omi-cpu"
    faces = tmp_path / "my faces"
    faces.mkdir()
    weights = tmp_path / "my weights"
    weights.mkdir()
    done = make(clone, "profile", "PROFILE=omi-cpu", f"FACES={faces}", f"WEIGHTS={weights}")
    assert done.returncode == 0, done.stderr
    assert git(clone, "status", "--porcelain") == ""
    assert (run / "params.yaml").read_bytes() == (clone / "profiles/omi-cpu.yaml").read_bytes()
    assert (run / "faces").resolve() == faces.resolve()
    assert (run / "weights").resolve() == weights.resolve()
    assert not (run / "dvc.lock").exists()  # the default profile's results are not this run's
    cache = [
        subprocess.run([f"{sys.prefix}/bin/dvc", "cache", "dir"], cwd=at, capture_output=True, text=True).stdout
        for at in (clone, run)
    ]
    assert Path(cache[0].strip()).resolve() == Path(cache[1].strip()).resolve()

    # other faces than those prepared last: told by path, names, sizes and times of the files
    (run / ".faces.new").rename(run / ".faces")  # what `make repro` does once they are prepared
    assert make(clone, "profile", "PROFILE=omi-cpu", f"FACES={faces}").returncode == 0
    assert not (run / ".faces.new").exists()
    (tmp_path / "a picture").write_bytes(b"a picture")
    (faces / "linked.png").symlink_to(tmp_path / "a picture")
    assert make(clone, "profile", "PROFILE=omi-cpu", f"FACES={faces}").returncode == 0
    assert (run / ".faces.new").exists()
    (run / ".faces.new").rename(run / ".faces")
    (faces / "another.png").write_bytes(b"a picture")
    assert make(clone, "profile", "PROFILE=omi-cpu").returncode == 0  # through the link that is there
    assert (run / ".faces.new").exists()
    # other weights are said, for no stage watches them
    again = ("profile", "PROFILE=omi-cpu", f"WEIGHTS={weights}")
    done = make(clone, *again)
    assert done.returncode == 0
    assert "note: the files of WEIGHTS" not in done.stdout
    (weights / "model.pth").write_bytes(b"newer")
    for _ in range(2):  # until it was taken in
        done = make(clone, *again)
        assert done.returncode == 0
        assert "note: the files of WEIGHTS are others than those taken in" in done.stdout

    # a later call: new code, the run's own results kept
    (run / "dvc.lock").write_text("its own\n")
    (run / "metrics").mkdir(exist_ok=True)
    (run / "metrics/mine.json").write_text("{}\n")
    (run / "annotations/human.parquet").write_bytes(b"votes exported in the run")
    batch = clone / "annotations/rounds/0001-abc"
    batch.mkdir(parents=True)
    (batch / "round.json").write_text("{}\n")
    subprocess.run([f"{sys.prefix}/bin/dvc", "add", "-q", str(batch)], cwd=clone, check=True)
    git(clone, "add", "annotations")
    (clone / "pipeline/params.py").write_text((clone / "pipeline/params.py").read_text() + "# newer\n")
    git(clone, "commit", "-qam", "newer")
    done = make(clone, "profile", "PROFILE=omi-cpu")
    assert done.returncode == 0, done.stderr
    assert git(run, "rev-parse", "HEAD") == git(clone, "rev-parse", "HEAD")
    assert (run / "pipeline/params.py").read_text().endswith("# newer\n")
    assert (run / "dvc.lock").read_text() == "its own\n"
    assert [path.name for path in (run / "metrics").iterdir()] == ["mine.json"]
    assert (run / "annotations/human.parquet").read_bytes() == b"votes exported in the run"
    assert (run / "annotations/rounds/0001-abc/round.json").read_text() == "{}\n"  # the run can learn from its votes
    assert git(clone, "status", "--porcelain") == ""

    # a call that was stopped halfway: what it had put aside comes back
    subprocess.run(["tar", "-cf", ".kept.tar", "dvc.lock", "metrics", "annotations/human.parquet"], cwd=run, check=True)
    (run / "dvc.lock").write_text("the checkout's\n")
    (run / "annotations/human.parquet").write_bytes(b"the checkout's")
    assert make(clone, "profile", "PROFILE=omi-cpu").returncode == 0
    assert (run / "dvc.lock").read_text() == "its own\n"
    assert (run / "annotations/human.parquet").read_bytes() == b"votes exported in the run"
    assert not (run / ".kept.tar").exists()

    # edits that somebody made in the worktree are not overwritten
    for name in ("params.yaml", "pipeline/params.py"):
        before = (run / name).read_text()
        (run / name).write_text(before + "# mine\n")
        done = make(clone, "profile", "PROFILE=omi-cpu")
        assert done.returncode != 0
        assert f"error: edits in .runs/omi-cpu would be lost: {name} " in done.stderr
        assert (run / name).read_text() == before + "# mine\n"
        (run / name).unlink()  # as the message asks
        assert make(clone, "profile", "PROFILE=omi-cpu").returncode == 0
        assert (run / name).read_text() == before

    # commits that somebody made in the worktree are not left behind
    git(run, "commit", "-qam", "votes")
    done = make(clone, "profile", "PROFILE=omi-cpu")
    assert done.returncode != 0
    assert "error: .runs/omi-cpu has commits that no branch holds" in done.stderr
    git(clone, "branch", "from-omi-cpu", git(run, "rev-parse", "HEAD"))
    assert make(clone, "profile", "PROFILE=omi-cpu").returncode == 0
    assert (run / "annotations/human.parquet").read_bytes() == b"votes exported in the run"  # committed there, and kept
    git(clone, "commit", "--quiet", "--amend", "-m", "the checkout's own history may change")
    assert make(clone, "profile", "PROFILE=omi-cpu").returncode == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("arguments", "variants", "restorers"),
    [
        ([], "structure reward static full no_reward more_base", "diffbir osediff gfpgan"),
        (["VARIANTS=full full_seed1", "RESTORERS=osediff gfpgan"], "full full_seed1", "osediff gfpgan"),
    ],
)
def test_the_ablation_is_params_yaml_with_other_variants(
    clone: Path, tmp_path: Path, arguments: list[str], variants: str, restorers: str
) -> None:
    """With a dvc that only writes down what it is asked."""
    (tmp_path / "bin").mkdir()
    dvc = tmp_path / "bin/dvc"
    dvc.write_text(f'#!/bin/sh\necho "$PWD: $*" >> {tmp_path}/asked\n')
    dvc.chmod(0o755)
    (clone / "params.yaml").write_text((clone / "params.yaml").read_text().replace("seed: 0\n", "seed: 7\n", 1))
    before = git(clone, "status", "--porcelain")
    done = make(clone, f"VENV={tmp_path}", "ablation", *arguments)
    assert done.returncode == 0, done.stderr
    assert git(clone, "status", "--porcelain") == before
    assert (tmp_path / "asked").read_text().splitlines()[-1] == f"{clone}/.runs/ablation: repro"
    content, own = params.read(clone / ".runs/ablation/params.yaml"), params.read(clone / "params.yaml")
    for name, wanted in (("variants", variants), ("restorers", restorers)):
        assert content["refl"].pop(name) == wanted.split()
        del own["refl"][name]
    assert content == own
    assert content["seed"] == 7


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_folder_that_is_no_worktree_is_left_alone_and_so_is_the_checkout(clone: Path) -> None:
    (clone / ".runs/ci").mkdir(parents=True)
    (clone / "README.md").write_text("an edit of mine")
    done = make(clone, "profile", "PROFILE=ci")
    assert done.returncode != 0
    assert done.stderr.startswith("error: .runs/ci is no git worktree of this checkout")
    assert (clone / "README.md").read_text() == "an edit of mine"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["PROFILE=nope"], "error: profiles/nope.yaml is missing; there are: ci.yaml"),
        (["PROFILE=ci", "FACES=/no/such/folder"], "error: FACES=/no/such/folder is no folder"),
        (["PROFILE=ci", "FACES=/"], "error: FACES is given, but profiles/ci.yaml takes its faces from elsewhere"),
        (["PROFILE=ci", "WEIGHTS=/no/such/folder"], "error: WEIGHTS=/no/such/folder is no folder"),
    ],
)
def test_a_wrong_profile_or_folder_is_one_clear_line(clone: Path, arguments: list[str], said: str) -> None:
    done = make(clone, "profile", *arguments)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith(said)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_broken_profile_is_said_and_not_that_its_faces_lie_elsewhere(clone: Path, tmp_path: Path) -> None:
    profile = clone / "profiles/omi-cpu.yaml"
    profile.write_text(profile.read_text().replace("  count: 2000", "  counts: 2000"))
    done = make(clone, "profile", "PROFILE=omi-cpu", f"FACES={tmp_path}")
    assert done.returncode != 0
    assert done.stderr.startswith("error: params.yaml: faces.")
    assert "counts" in done.stderr.splitlines()[0]
    assert "elsewhere" not in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_ablation_of_a_profile_is_refused(clone: Path) -> None:
    done = make(clone, "ablation", "PROFILE=omi-cpu")
    assert done.returncode != 0
    assert done.stderr.startswith("error: make ablation is of params.yaml alone")
