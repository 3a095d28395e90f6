"""Behind `make repro`, `make profile` and `make ablation`: `dvc repro`, in the checkout or in the run of a profile.

A run is `.runs/NAME`, a git worktree at HEAD with `profiles/NAME.yaml` as its params.yaml and the checkout's DVC cache:
the checkout stays as it is. Beside the code it holds `.head` and `.params` (the commit and the params that were put
there), `.faces` and `.weights` (what those folders held when they were taken in) and, while its code moves to another
commit, `.kept`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import yaml

from pipeline.faces.params import FacesParams
from pipeline.listing import listing
from pipeline.params import PARAMS_FILE, UserError, load, read, value
from pipeline.runtime import one_line_errors, write_bytes, write_text

RUNS = Path(".runs")
RESULTS = ("dvc.lock", "metrics", "plots")  # a run's own
ANNOTATIONS = "annotations"  # votes exported in a run are its own as well, until they are committed
IGNORED = f"{ANNOTATIONS}/rounds/.gitignore"  # in it DVC lists the rounds' folders
FACES, WEIGHTS = "faces", "weights"  # links in a run

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

DVC = (sys.executable, "-m", "dvc")
Profile = Annotated[str, typer.Option(help="A file of profiles/, without its .yaml")]
Folder = Annotated[str, typer.Option(help="A folder; empty: the one given last")]
Stages = Annotated[list[str] | None, typer.Argument(help="Stages that `dvc repro` is to reach; none: all")]


@app.command()
@one_line_errors
def repro(stages: Stages = None, profile: Profile = "", faces: Folder = "", weights: Folder = "") -> None:
    """`dvc repro` in the run of a profile, in the checkout where none is named."""
    if not profile:
        reproduce(Path(), stages or [])
        return
    with alone(profile) as run:
        set_up(run, Path(f"profiles/{profile}.yaml"), faces, weights)
        reproduce(run, stages or [])


@app.command()
@one_line_errors
def profile(profile: Profile, faces: Folder = "", weights: Folder = "") -> None:
    """Set the run of a profile up, and run nothing."""
    with alone(profile) as run:
        set_up(run, Path(f"profiles/{profile}.yaml"), faces, weights)


@app.command()
@one_line_errors
def ablation(variants: str, restorers: str = "") -> None:
    """`dvc repro` in `.runs/ablation`, of params.yaml with other variants, and other restorers, of ReFL."""
    refl = value("refl") | {"variants": variants.split()}
    if restorers:
        refl["restorers"] = restorers.split()
    content = read() | {"refl": refl}
    with alone("ablation") as run:
        params = RUNS / "ablation.yaml"
        write_text(params, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        set_up(run, params)
        reproduce(run, [])


@contextmanager
def alone(name: str) -> Iterator[Path]:
    """The folder of a run, for one `make` at a time: a second one would move its code while stages run.

    Raises UserError for a name that is none, and where another `make` has the run.
    """
    if Path(name).name != name:
        raise UserError(f"PROFILE={name}: give the name of a file of profiles/, without folder and .yaml")
    RUNS.mkdir(exist_ok=True)
    run = RUNS / name
    with (RUNS / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run} is in use by another `make`; wait until it has ended") from None
        yield run


def reproduce(root: Path, stages: Sequence[str]) -> None:
    """Check params.yaml, prepare faces anew where their folder has changed (DVC watches none), then `dvc repro`.

    Ends the process with the exit code of what failed.
    """
    _run([sys.executable, "-m", "pipeline.cli", "check"], root)
    faces = load("faces", FacesParams, root / PARAMS_FILE)
    if faces.source == "folder" and faces.folder and (root / faces.folder).is_dir():
        present, prepared = listing(root / faces.folder), root / ".faces"
        known = prepared.exists() and prepared.read_bytes() == present
        # known or not: another run's faces, of a folder of the same name, must not come out of the cache of runs
        how = "--no-run-cache" if known else "--force"
        if not known:
            prepared.unlink(missing_ok=True)
        _run([*DVC, "repro", how, "--single-item", "prepare"], root)
        write_bytes(prepared, present)
    _run([*DVC, "repro", *stages], root)


def set_up(run: Path, params: Path, faces: str = "", weights: str = "") -> None:
    """Make the run, or bring it to the checkout's HEAD: its own results and votes stay, nobody's work is overwritten.

    Raises UserError for a missing or broken profile, folders that are none, and what would be lost in the run.
    """
    if not params.is_file():
        there = " ".join(sorted(path.name for path in params.parent.glob("*.yaml")))
        raise UserError(f"{params} is missing; there are: {there}")
    own = load("faces", FacesParams, params)
    for option, folder in (("FACES", faces), ("WEIGHTS", weights)):
        if folder and not os.path.isdir(folder):  # unlike Path.is_dir also where it may not be looked at
            raise UserError(f"{option}={folder} is no folder")
    if faces and (own.source, own.folder) != ("folder", FACES):
        wanted = f"it needs faces.source: folder and faces.folder: {FACES}"
        raise UserError(f"FACES is given, but {params} takes its faces from elsewhere: {wanted}")
    if not _same("HEAD", "--", "pipeline", "stages", "dvc.yaml", ANNOTATIONS):
        print(f"note: {run} runs the committed code and votes (HEAD), not your uncommitted edits", flush=True)
    head = _git("rev-parse", "HEAD")
    _git("worktree", "prune")
    if run.exists():
        _require_nothing_lost(run, params, head)
    else:
        _git("worktree", "add", "--quiet", "--no-checkout", "--detach", str(run), head)
    _move(run, head, _votes(run, head))
    write_text(run / ".head", head + "\n")
    asked = subprocess.run([*DVC, "cache", "dir"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise UserError(f"dvc cache dir: {' '.join(asked.stderr.split())}")
    _run([*DVC, "config", "--local", "cache.dir", str(Path(asked.stdout.strip()).resolve())], run)
    if rounds := sorted(str(path.relative_to(run)) for path in run.glob(f"{ANNOTATIONS}/rounds/*.dvc")):
        listed = run / IGNORED
        lines = listed.read_text().splitlines() if listed.exists() else []
        folders = [f"/{Path(one).stem}" for one in rounds]  # the run's, too, or git would take their pictures
        write_text(listed, "\n".join([*lines, *(one for one in folders if one not in lines)]) + "\n")
        _run([*DVC, "checkout", *rounds], run)
    for name in (PARAMS_FILE, Path(".params")):
        shutil.copyfile(params, run / name)
    if faces:
        _link(run / FACES, Path(faces))
    if weights:
        _link(run / WEIGHTS, Path(weights))
        present, taken_in = listing(run / WEIGHTS), run / ".weights"
        if not taken_in.exists():
            write_bytes(taken_in, present)
        elif taken_in.read_bytes() != present:
            said = "are others than those taken in, and DVC does not watch them: docs/weights.md says what to do"
            print(f"note: the files of WEIGHTS {said}", flush=True)


def _require_nothing_lost(run: Path, params: Path, head: str) -> None:
    """Raises UserError where the folder is no run of this checkout, or holds what moving it to `head` would lose:
    somebody's edits, commits or new files."""
    worktrees = _git("worktree", "list", "--porcelain").splitlines()
    if f"worktree {run.resolve()}" not in worktrees:
        raise UserError(
            f"{run} is no git worktree of this checkout (was it moved?); delete {run}, its results are in the DVC cache"
        )
    own = _git("rev-parse", "HEAD", at=run)
    branches = _git("branch", "--all", "--contains", own, "--format", "%(refname)").splitlines()
    # at `head` already: a call before was killed on the way there
    if own not in (_base(run), head) and not any(name.startswith("refs/") for name in branches):
        raise UserError(
            f"{run} has commits that no branch holds and that would be lost; keep them: git branch NAME {own}"
        )
    kept = [f":(exclude){name}" for name in (*RESULTS, ANNOTATIONS, PARAMS_FILE)]
    edited = _names("--diff-filter=d", "HEAD", "--", ".", *kept, at=run)
    written, there = run / ".params", run / PARAMS_FILE
    if written.exists() and there.exists() and written.read_bytes() != there.read_bytes():
        edited = _names("HEAD", "--", str(PARAMS_FILE), at=run) + edited  # none: a call that was killed left git's own
    new = set(_git("ls-files", "--others", "--exclude-standard", "-z", at=run).split("\0"))
    brought = set(_git("ls-tree", "-r", "--name-only", "-z", head).split("\0"))
    new = {name for name in new & brought - {"", IGNORED} if name.split("/")[0] not in RESULTS}  # those stay anyway
    edited += [name for name in sorted(new) if not _same_file(run / name, head, name)]
    if edited and not (run / ".kept").exists():  # with it, a killed call left git half-way
        raise UserError(
            f"edits in {run} would be lost: {' '.join(edited)} - put params into {params} and code into this checkout, "
            "and delete these files there"
        )


def _same_file(path: Path, commit: str, name: str) -> bool:
    """Whether a file has the content that the commit has under `name`."""
    there = subprocess.run(["git", "show", f"{commit}:{name}"], capture_output=True, check=False)
    return there.returncode == 0 and there.stdout == path.read_bytes()


def _base(run: Path) -> str:
    """The commit that the run's code was last brought to, its HEAD where that is not known."""
    noted = run / ".head"
    commit = noted.read_text().strip() if noted.exists() else ""
    asked = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]  # a history that was rewritten may have lost it
    known = not subprocess.run(asked, capture_output=True, check=False).returncode
    return commit if known else _git("rev-parse", "HEAD", at=run)


def _votes(run: Path, head: str) -> list[str]:
    """Annotations that were exported in the run. Raises UserError where HEAD has got other ones under their name."""
    base, aside = _base(run), run / ".kept"
    if aside.exists():  # a killed call put them there
        place = aside
        exported = [str(path.relative_to(aside)) for path in (aside / ANNOTATIONS).rglob("*") if path.is_file()]
    else:
        place = run
        exported = [name for name in _names("--diff-filter=AM", base, "--", ANNOTATIONS, at=run) if name != IGNORED]
    for name in exported:
        if not _same(base, head, "--", name) and not _same_file(place / name, head, name):
            raise UserError(
                f"{name}: the checkout has committed other votes than those exported in {run}; to keep the run's, copy "
                f"{place / name} into the checkout and commit it; to keep the checkout's, delete {place / name}"
            )
    return exported


def _move(run: Path, head: str, votes: Sequence[str]) -> None:
    """Check `head` out in the run; its own results and these votes stay. A killed move is taken up by the next call."""
    aside, unfinished = run / ".kept", run / ".kept.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    if not aside.exists():
        unfinished.mkdir()
        for name in (*RESULTS, *votes):
            if (run / name).is_dir():
                shutil.copytree(run / name, unfinished / name)
            elif (run / name).exists():
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(run / name, unfinished / name)
        unfinished.rename(aside)
    _git("reset", "--quiet", at=run)
    _git("checkout", "--quiet", "--force", "--detach", head, at=run)
    for name in RESULTS:  # the checkout's results are not this run's
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        else:
            (run / name).unlink(missing_ok=True)
    shutil.copytree(aside, run, dirs_exist_ok=True)
    aside.rename(unfinished)
    shutil.rmtree(unfinished)


def _link(link: Path, folder: Path) -> None:
    """Let `link` lead to `folder`, whatever it led to before. Raises UserError where it is no link."""
    if link.is_dir() and not link.is_symlink():
        raise UserError(f"{link} is a folder where a link belongs; move it away")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve())


def _git(*arguments: str, at: Path = Path()) -> str:
    """What git answers. Raises UserError with its own words where it fails."""
    done = subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {' '.join(arguments[:2])} in {at.resolve()}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def _same(*arguments: str, at: Path = Path()) -> bool:
    """Whether `git diff` finds no difference."""
    return not subprocess.run(["git", "diff", "--quiet", *arguments], cwd=at, check=False).returncode


def _names(*arguments: str, at: Path) -> list[str]:
    """Names of the files that `git diff` finds."""
    return [name for name in _git("diff", "--name-only", "-z", *arguments, at=at).split("\0") if name]


def _run(command: Sequence[str], root: Path) -> None:
    """Run a command in `root`; where it fails, end with its exit code: it has said why."""
    with subprocess.Popen(command, cwd=root) as process:  # without the lock: DVC forks daemons that outlive it
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # it got the same, and ends in its own way
                continue
    if code:
        raise typer.Exit(code if code > 0 else 1)


if __name__ == "__main__":
    app()
