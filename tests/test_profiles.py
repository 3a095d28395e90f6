"""Every profile is a complete, valid alternative to params.yaml; its run leaves the checkout clean; `make` works."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pipeline import params, profiles
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


def git(clone: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone, in which we are."""
    git(ROOT, "clone", "--quiet", str(ROOT), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def refused(capsys: pytest.CaptureFixture[str], profile: str, **folders: str) -> str:
    """The one line with which a run is not set up."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        profiles.profile(profile, **folders)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_a_profile_runs_in_a_worktree_that_leaves_the_checkout_clean(
    clone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = clone / ".runs/omi-cpu"
    faces, weights = tmp_path / "my faces", tmp_path / "my weights"
    faces.mkdir()
    weights.mkdir()
    profiles.profile("omi-cpu", faces=str(faces), weights=str(weights))
    assert git(clone, "status", "--porcelain") == ""
    assert (run / "params.yaml").read_bytes() == (clone / "profiles/omi-cpu.yaml").read_bytes()
    assert (run / "faces").resolve() == faces.resolve()
    assert (run / "weights").resolve() == weights.resolve()
    assert (run / "pipeline/params.py").is_file()
    assert not (run / "dvc.lock").exists()  # the default profile's results are not this run's
    assert not (run / "metrics").exists()
    cache = [
        subprocess.run([*profiles.DVC, "cache", "dir"], cwd=at, capture_output=True, text=True).stdout.strip()
        for at in (clone, run)
    ]
    assert Path(cache[0]).resolve() == Path(cache[1]).resolve()
    # other weights are said, for no stage watches them
    capfd.readouterr()
    profiles.profile("omi-cpu", weights=str(weights))
    assert "note: the files of WEIGHTS" not in capfd.readouterr().out
    (weights / "model.pth").write_bytes(b"newer")
    for _ in range(2):  # until it was taken in
        profiles.profile("omi-cpu", weights=str(weights))
        assert "note: the files of WEIGHTS are others than those taken in" in capfd.readouterr().out
    elsewhere = tmp_path / "other faces"
    elsewhere.mkdir()
    profiles.profile("omi-cpu", faces=str(elsewhere))
    assert (run / "faces").resolve() == elsewhere.resolve()


def test_a_run_moves_to_new_code_with_its_own_results_and_votes(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = clone / ".runs/omi-cpu"
    profiles.profile("omi-cpu")
    (run / "dvc.lock").write_text("its own\n")
    (run / "metrics").mkdir()
    (run / "metrics/mine.json").write_text("{}\n")
    votes = run / "annotations/human.parquet"
    votes.write_bytes(b"votes exported in the run")
    batch = clone / "annotations/rounds/0001-abc"
    batch.mkdir(parents=True)
    (batch / "round.json").write_text("{}\n")
    subprocess.run([*profiles.DVC, "add", "-q", str(batch)], cwd=clone, check=True)
    git(clone, "add", "annotations")
    (clone / "pipeline/params.py").write_text((clone / "pipeline/params.py").read_text() + "# newer\n")
    git(clone, "commit", "-qam", "newer")

    def moved() -> None:
        assert git(run, "rev-parse", "HEAD") == git(clone, "rev-parse", "HEAD")
        assert (run / "pipeline/params.py").read_text().endswith("# newer\n")
        assert (run / "dvc.lock").read_text() == "its own\n"
        assert [path.name for path in (run / "metrics").iterdir()] == ["mine.json"]
        assert votes.read_bytes() == b"votes exported in the run"
        assert not list(run.glob(".kept*"))

    # killed where it hurts most: the checkout's files are there, the run's own not yet back
    copytree = shutil.copytree

    def killed(source: Path, target: Path, **options: bool) -> None:
        if source.name == ".kept":
            raise KeyboardInterrupt
        copytree(source, target, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            profiles.profile("omi-cpu")
    assert votes.read_bytes() != b"votes exported in the run"
    for _ in range(2):
        profiles.profile("omi-cpu")
        moved()
    assert (run / "annotations/rounds/0001-abc/round.json").read_text() == "{}\n"  # the run can learn from its votes
    assert git(clone, "status", "--porcelain") == ""

    # edits that somebody made in the worktree are not overwritten
    for name in ("params.yaml", "pipeline/params.py"):
        before = (run / name).read_text()
        (run / name).write_text(before + "# mine\n")
        assert refused(capsys, "omi-cpu").startswith(f"edits in .runs/omi-cpu would be lost: {name} ")
        assert (run / name).read_text() == before + "# mine\n"
        (run / name).unlink()  # as the message asks
        profiles.profile("omi-cpu")
        assert (run / name).read_text() == before

    # commits that somebody made in the worktree are not left behind
    git(run, "commit", "-qam", "votes")
    assert refused(capsys, "omi-cpu").startswith(".runs/omi-cpu has commits that no branch holds")
    git(clone, "branch", "from-omi-cpu", git(run, "rev-parse", "HEAD"))
    profiles.profile("omi-cpu")
    assert votes.read_bytes() == b"votes exported in the run"  # committed there, and kept
    git(clone, "commit", "--quiet", "--amend", "-m", "the checkout's own history may change")
    profiles.profile("omi-cpu")

    # a round that the run made of its own stays ignored by git
    pointer = (run / "annotations/rounds/0001-abc.dvc").read_text().replace("0001-abc", "0002-def")
    (run / "annotations/rounds/0002-def.dvc").write_text(pointer)
    profiles.profile("omi-cpu")
    ignored = (run / "annotations/rounds/.gitignore").read_text().splitlines()
    assert {"/0001-abc", "/0002-def"} <= set(ignored)
    assert len(ignored) == len(set(ignored))

    # nor is a new file there that the checkout has got, too, with another content
    (run / "notes.md").write_text("mine")
    for name in ("notes.md", "metrics/mine.json"):  # the latter is a result, and the run's stays
        (clone / name).write_text("the checkout's")
        git(clone, "add", name)
    git(clone, "commit", "-qm", "notes")
    assert refused(capsys, "omi-cpu").startswith("edits in .runs/omi-cpu would be lost: notes.md ")
    (run / "notes.md").unlink()
    profiles.profile("omi-cpu")
    assert (run / "notes.md").read_text() == "the checkout's"

    # votes that the checkout has got since are neither overwritten nor ignored
    (clone / "annotations/human.parquet").write_bytes(b"other votes")
    git(clone, "commit", "-qam", "other votes")
    said = refused(capsys, "omi-cpu")
    assert said.startswith("annotations/human.parquet: the checkout has committed other votes than those exported in")
    assert votes.read_bytes() == b"votes exported in the run"
    votes.unlink()  # as the message says
    profiles.profile("omi-cpu")
    assert votes.read_bytes() == b"other votes"
    votes.write_bytes(b"newer votes")
    (clone / "annotations/human.parquet").write_bytes(b"newer votes")  # the other way that it names
    git(clone, "commit", "-qam", "the run's votes")
    profiles.profile("omi-cpu")
    assert votes.read_bytes() == b"newer votes"


def test_a_set_up_that_was_killed_before_its_first_checkout_starts_again(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(profiles, "_move", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            profiles.profile("omi-cpu")
    assert (clone / ".runs/omi-cpu").exists()
    profiles.profile("omi-cpu")
    assert (clone / ".runs/omi-cpu/dvc.yaml").is_file()
    assert not (clone / ".runs/omi-cpu/dvc.lock").exists()


def test_one_make_at_a_time_has_a_run(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with profiles.alone("omi-cpu"):
        assert refused(capsys, "omi-cpu").startswith(".runs/omi-cpu is in use by another `make`")
        with profiles.alone("ci"):
            pass
    with profiles.alone("omi-cpu"):
        pass


def test_faces_are_prepared_anew_when_their_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout or a run; told by where the folder lies, and by names, sizes and times of its files."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    fails = False

    def run(command: list[str], root: Path) -> None:
        asked.append(" ".join(command[3:]))
        if fails:
            raise SystemExit(1)

    monkeypatch.setattr(profiles, "_run", run)
    sample = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(sample)
    check, forced = "check", "repro --force --single-item prepare"
    again = "repro --no-run-cache --single-item prepare"

    def commands(*stages: str) -> list[str]:
        asked.clear()
        profiles.reproduce(Path(), stages)
        return list(asked)

    assert commands() == [check, "repro"]  # the sample generator reads no folder
    Path("params.yaml").write_text(
        sample.replace("source: sample", "source: folder").replace("folder: null", "folder: mine")
    )
    (tmp_path / "there").mkdir()
    Path("mine").symlink_to(tmp_path / "there")
    Path("mine").unlink()
    assert commands() == [check, "repro"]  # all of it pulled: no stage needs the folder; prepare says what is missing
    Path("mine").symlink_to(tmp_path / "there")
    assert commands("frm", "gan") == [check, forced, "repro frm gan"]
    assert commands() == [check, again, "repro"]
    (tmp_path / "a picture").write_bytes(b"a picture")
    (tmp_path / "there/linked.png").symlink_to(tmp_path / "a picture")
    fails = True  # nothing is taken in
    with pytest.raises(SystemExit):
        commands()
    fails = False
    for change in (
        lambda: None,
        lambda: (tmp_path / "a picture").write_bytes(b"a larger picture"),
        lambda: (tmp_path / "there/another.png").write_bytes(b"a picture"),
        lambda: os.utime(tmp_path / "there/another.png", ns=(1, 1)),
        lambda: (tmp_path / "there/another.png").unlink(),
        lambda: (tmp_path / "there").rename(tmp_path / "elsewhere"),
    ):
        change()
        if not Path("mine").exists():
            Path("mine").unlink()
            Path("mine").symlink_to(tmp_path / "elsewhere")
        assert commands() == [check, forced, "repro"]
        assert commands() == [check, again, "repro"]


@pytest.mark.parametrize(
    ("variants", "restorers"), [("structure full more_base", ""), ("full full_seed1", "osediff gfpgan")]
)
def test_the_ablation_is_params_yaml_with_other_variants(
    clone: Path, monkeypatch: pytest.MonkeyPatch, variants: str, restorers: str
) -> None:
    reproduced: list[Path] = []
    monkeypatch.setattr(profiles, "reproduce", lambda run, stages: reproduced.append(run))
    (clone / "params.yaml").write_text((clone / "params.yaml").read_text().replace("seed: 0\n", "seed: 7\n", 1))
    before = git(clone, "status", "--porcelain")
    profiles.ablation(variants, restorers)
    assert git(clone, "status", "--porcelain") == before
    assert reproduced == [Path(".runs/ablation")]
    content, own = params.read(clone / ".runs/ablation/params.yaml"), params.read(clone / "params.yaml")
    for name, wanted in (("variants", variants), ("restorers", restorers)):
        assert content["refl"].pop(name) == (wanted.split() or own["refl"][name])
        del own["refl"][name]
    assert content == own
    assert content["seed"] == 7


def test_a_folder_that_is_no_worktree_is_left_alone_and_so_is_the_checkout(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / ".runs/ci").mkdir(parents=True)
    (clone / "README.md").write_text("an edit of mine")
    assert refused(capsys, "ci").startswith(".runs/ci is no git worktree of this checkout")
    assert (clone / "README.md").read_text() == "an edit of mine"


@pytest.mark.parametrize(
    ("profile", "folders", "said"),
    [
        ("nope", {}, "profiles/nope.yaml is missing; there are: ci.yaml"),
        ("profiles/ci", {}, "PROFILE=profiles/ci: give the name of a file of profiles/"),
        ("ci", {"faces": "/no/such/folder"}, "FACES=/no/such/folder is no folder"),
        ("ci", {"faces": "/"}, "FACES is given, but profiles/ci.yaml takes its faces from elsewhere"),
        ("ci", {"weights": "/no/such/folder"}, "WEIGHTS=/no/such/folder is no folder"),
    ],
)
def test_a_wrong_profile_or_folder_is_one_clear_line(
    clone: Path, capsys: pytest.CaptureFixture[str], profile: str, folders: dict[str, str], said: str
) -> None:
    assert refused(capsys, profile, **folders).startswith(said)
    assert not (clone / f".runs/{profile}").exists()


def test_a_broken_profile_is_said_and_not_that_its_faces_lie_elsewhere(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = clone / "profiles/omi-cpu.yaml"
    broken.write_text(broken.read_text().replace("  count: 2000", "  counts: 2000"))
    said = refused(capsys, "omi-cpu", faces="/")
    assert said.startswith("profiles/omi-cpu.yaml: faces.count")
    assert "counts" in said


def make(at: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` with a Python and a dvc that only write down what they are asked, and no new environment (`-o venv`)."""
    (at / "bin").mkdir(exist_ok=True)
    for name in ("python", "dvc"):
        (at / "bin" / name).write_text(f'#!/bin/sh\nfor one in "$@"; do echo "$one"; done > {at}/asked\n')
        (at / "bin" / name).chmod(0o755)
    command = ["make", "--old-file=venv", f"VENV={at}", *arguments]
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_hands_over_what_it_is_given(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    losses = "structure reward static full no_reward more_base"
    for arguments, asked in (
        (["repro"], ["repro", "--profile", "", "--faces", "", "--weights", ""]),
        (
            ["repro", "PROFILE=paper", "FACES=/my faces", "WEIGHTS=/w", "STAGES=frm gan"],
            ["repro", "frm", "gan", "--profile", "paper", "--faces", "/my faces", "--weights", "/w"],
        ),
        (["profile", "PROFILE=omi"], ["profile", "--profile", "omi", "--faces", "", "--weights", ""]),
        (["ablation"], ["ablation", losses, "--restorers", ""]),
        (["ablation", "VARIANTS=full", "RESTORERS=a b"], ["ablation", "full", "--restorers", "a b"]),
    ):
        done = make(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "asked").read_text().split("\n")[:-1] == ["-m", "pipeline.profiles", *asked]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_what_can_not_work(tmp_path: Path) -> None:
    spaced = tmp_path / "my faces"
    spaced.mkdir()
    for folder in (spaced, tmp_path):
        shutil.copy(ROOT / "Makefile", folder)
    for folder, arguments, message in (
        (tmp_path, ["repro", f"FACES={tmp_path}"], "FACES and WEIGHTS need a PROFILE"),
        (spaced, ["help"], "has a space in it"),
        (tmp_path, ["ablation", "PROFILE=omi-cpu"], "error: make ablation is of params.yaml alone"),
    ):
        done = make(folder, *arguments)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[0]
        assert not (tmp_path / "asked").exists()


def test_the_commands_take_what_make_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(profiles, "set_up", lambda *given: seen.append(given))
    monkeypatch.setattr(profiles, "reproduce", lambda *given: seen.append(given))
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    run = CliRunner().invoke
    for arguments, calls in (
        (["repro", "--profile", "", "--faces", "", "--weights", ""], [(Path(), [])]),
        (
            ["repro", "frm", "gan", "--profile", "paper", "--faces", "/my faces", "--weights", "/w"],
            [
                (Path(".runs/paper"), Path("profiles/paper.yaml"), "/my faces", "/w"),
                (Path(".runs/paper"), ["frm", "gan"]),
            ],
        ),
        (
            ["profile", "--profile", "omi", "--faces", "", "--weights", ""],
            [(Path(".runs/omi"), Path("profiles/omi.yaml"), "", "")],
        ),
        (
            ["ablation", "full", "--restorers", ""],
            [(Path(".runs/ablation"), Path(".runs/ablation.yaml")), (Path(".runs/ablation"), [])],
        ),
    ):
        seen.clear()
        assert run(profiles.app, arguments).exit_code == 0
        assert seen == calls


def test_a_command_that_fails_ends_the_call_with_its_exit_code(tmp_path: Path) -> None:
    profiles._run(["true"], tmp_path)
    with pytest.raises(typer.Exit) as ended:
        profiles._run(["sh", "-c", "exit 7"], tmp_path)
    assert ended.value.exit_code == 7
