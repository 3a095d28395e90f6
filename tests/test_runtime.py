"""Seeds, atomic files, errors and devices: what every stage leans on."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import runtime
from pipeline.base.measure import Likeness
from pipeline.metrics import compute, embeddings
from pipeline.params import UserError
from tests import tiny
from tests.metrics.faces import face

RUNTIME = "runtime: {device: %s, threads: 2, num_workers: 1, joblib_backend: loky, progress: false}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(RUNTIME % "cpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_seeds_are_known_values_and_differ_by_each_part() -> None:
    """Known, so the same in every process (no salted hash); a change would silently change every published number."""
    assert runtime.stable_seed(0, "degrade", "abc") == 6318528062629830883
    assert len({runtime.stable_seed(*parts) for parts in [(0, "a"), (1, "a"), (0, "b"), ("a", 0), ("0a",)]}) == 5
    assert 0 <= runtime.stable_seed("x") < 2**63


def test_parts_do_not_run_into_each_other() -> None:
    assert runtime.stable_hash("ab", "c") != runtime.stable_hash("a", "bc")


def test_noise_of_an_id_does_not_depend_on_its_batch() -> None:
    together = runtime.noise_like_ids(["a", "b", "c"], (3, 4, 4), 7, "rollout")
    apart = torch.cat([runtime.noise_like_ids([one], (3, 4, 4), 7, "rollout") for one in "cab"])
    assert torch.equal(together, apart[[1, 2, 0]])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, runtime.noise_like_ids(["a", "b", "c"], (3, 4, 4), 8, "rollout"))


def test_generators_repeat() -> None:
    assert runtime.rng(1, "x").random() == runtime.rng(1, "x").random()
    first, second = (torch.randn(3, generator=runtime.torch_rng(1, "x")) for _ in range(2))
    assert torch.equal(first, second)


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.bin"
    with runtime.atomic(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError), runtime.atomic(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.bin"]
    longest = path.with_name(f"{'長' * 83}.png")  # 253 of the 255 bytes that a name may have
    runtime.write_bytes(longest, b"new")
    assert longest.read_bytes() == b"new"


def test_json_is_rounded_ordered_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    content = {"b": np.float64(1 / 3), "a": [np.int64(2), np.bool_(True), 123456789.0], 3: (1.0,)}
    runtime.write_json(path, content)
    assert path.read_text().endswith("}\n")
    assert list(json.loads(path.read_text()).items()) == [("b", 0.333333), ("a", [2, True, 123457000.0]), ("3", [1.0])]
    with pytest.raises(ValueError, match="not JSON compliant"):
        runtime.write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text())["b"] == 0.333333


def test_a_fingerprint_follows_bytes_names_and_parameters(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = runtime.fingerprint("lr 0.1", folder)
    assert before == runtime.fingerprint("lr 0.1", folder)
    assert before != runtime.fingerprint("lr 0.2", folder)
    (folder / "a").write_text("2")
    assert before != runtime.fingerprint("lr 0.1", folder)
    (folder / "a").rename(folder / "b")
    (folder / "b").write_text("1")
    assert before != runtime.fingerprint("lr 0.1", folder)


def test_a_users_mistake_is_one_line_and_exit_code_2(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @runtime.stage
    def command() -> None:
        raise UserError("data/faces: empty; run `dvc repro prepare`")

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: data/faces: empty; run `dvc repro prepare`\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), "error: data/x: can't be written (No space left"),
        (OSError(errno.EROFS, "Read-only file system"), "can't be written (Read-only file system)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has …"), "lower the batch sizes"),
    ],
)
def test_a_full_disk_and_a_full_gpu_are_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    @runtime.stage
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_our_own_mistakes_keep_their_traceback(project: Path) -> None:
    @runtime.stage
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()


def test_a_stage_sets_the_thread_count_of_the_runtime_group(project: Path) -> None:
    before = torch.get_num_threads()
    (project / "params.yaml").write_text((RUNTIME % "cpu").replace("threads: 2", "threads: 1"))
    seen: list[int] = []
    runtime.stage(lambda: seen.append(torch.get_num_threads()))()
    torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize("tf32", [True, False])
def test_a_stage_rounds_as_the_runtime_group_says(project: Path, tf32: bool) -> None:
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn
    before, threads = [kind.allow_tf32 for kind in kinds], torch.get_num_threads()
    (project / "params.yaml").write_text(
        (RUNTIME % "cpu").replace("threads: 2", f"threads: 2, tf32: {str(tf32).lower()}")
    )
    seen: list[list[bool]] = []

    def look() -> None:
        seen.append([kind.allow_tf32 for kind in kinds])

    def work() -> None:
        look()
        with runtime.whole_fp32():
            look()
        look()

    runtime.stage(work)()
    for kind, kept in zip(kinds, before, strict=True):
        kind.allow_tf32 = kept
    torch.set_num_threads(threads)
    assert seen == [[tf32, tf32], [False, False], [tf32, tf32]]


def test_no_metric_reward_or_likeness_is_computed_by_tf32(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, seen = (torch.backends.cuda.matmul, torch.backends.cudnn), {}
    faces = [face(seed) for seed in range(2)]

    def spied(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def look(*given: Any) -> Any:
            seen[name] = [kind.allow_tf32 for kind in kinds]
            return work(*given)

        return look

    monkeypatch.setitem(compute.BLIND, "noise", spied("metric", compute.BLIND["noise"]))
    reward = tiny.frm()
    monkeypatch.setattr(reward, "_encode_text", spied("caption", reward._encode_text))
    monkeypatch.setattr(reward, "forward", spied("reward", reward.forward))
    likeness = Likeness(faces, torch.device("cpu"), 2)
    monkeypatch.setattr(likeness.perceptual, "forward", spied("likeness", likeness.perceptual.forward))
    arcface = replace(
        embeddings.EMBEDDERS["arcface"], embed=spied("vectors", lambda images, _: np.ones((len(images), 2)))
    )
    monkeypatch.setitem(embeddings.EMBEDDERS, "arcface", arcface)
    with runtime.whole_fp32():  # gives back what was set before
        for kind in kinds:
            kind.allow_tf32 = True
        compute.score(["noise"], faces)
        reward.text_features(["asked in training"])
        reward.score(faces, ["", ""])
        likeness(faces)
        monkeypatch.setattr(runtime, "device", lambda: torch.device("cuda"))
        embeddings.embed("arcface", faces)
    assert sorted(seen) == ["caption", "likeness", "metric", "reward", "vectors"]
    assert all(flags == [False, False] for flags in seen.values())


@pytest.mark.parametrize(("wanted", "found"), [("auto", "cpu"), ("cpu", "cpu")])
def test_the_device_without_a_gpu(project: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (project / "params.yaml").write_text(RUNTIME % wanted)
    assert runtime.device() == torch.device(found)


def test_a_device_that_is_not_there_is_an_error_not_a_fallback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (project / "params.yaml").write_text(RUNTIME % "cuda")
    with pytest.raises(UserError, match=r"device `cuda`: torch sees no CUDA device; .*runtime\.device, --device"):
        runtime.device()
    (project / "params.yaml").write_text(RUNTIME % "tpu")
    with pytest.raises(UserError, match=r"runtime\.device"):
        runtime.device()


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pipeline.runtime import atomic\n"
        "with atomic(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_a_folder_that_takes_no_results_is_named_with_its_option(tmp_path: Path) -> None:
    runtime.require_writable(tmp_path / "new/deep", "--out")
    assert not list((tmp_path / "new/deep").iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below", Path("/proc/no"), Path("/proc")):
        with pytest.raises(UserError, match=rf"^--out {folder}: can't be written into \(.+\); name another folder$"):
            runtime.require_writable(folder, "--out")
