"""Two processes of `accelerate launch` (gloo): the same training as one with twice the accumulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.closure import ROOT
from tests.refl import run_tiny

RECIPE: dict[str, object] = {
    "double": True,
    "steps": 5,
    "checkpoint_every": 5,
    "evaluate_every": 2,
    "learning_rate": 1e-3,
}


def launched(folder: Path, recipe: dict[str, object], resumes: bool = False) -> list[dict[str, torch.Tensor]]:
    """What `run_tiny` in two processes leaves behind, by process."""
    # --multi_gpu: accelerate's launcher of several processes on one machine, which Accelerator(cpu=True) then takes off
    # the GPU; without it, and with --cpu, accelerate starts one process and waits for MPI to start the other
    machine = ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *machine]
    script = ["-m", "tests.refl.run_tiny", str(folder), json.dumps(recipe)]
    done = subprocess.run([*launch, *script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("goes on from" in done.stdout) == resumes
    return [torch.load(folder / f"weights-{process}.pt", weights_only=True) for process in (0, 1)]


def test_two_processes_go_on_from_their_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    recipe: dict[str, object] = {**RECIPE, "keep": "last"}
    whole = launched(tmp_path / "whole", recipe)
    launched(tmp_path / "stopped", recipe | {"steps": 3})  # the learning rate is constant, so this is the first part
    resumed = launched(tmp_path / "stopped", recipe, resumes=True)
    for before, after in zip(whole, resumed, strict=True):
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_two_processes_equal_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    """Restorer and Face Reward Model (updated at steps 2 and 4), to rounding of float64."""
    alone = run_tiny.run(tmp_path / "alone", accumulation=2, **RECIPE).weights
    two = tmp_path / "two"
    states = launched(two, {"accumulation": 1, **RECIPE})
    for name, value in alone.items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value, atol=1e-9, rtol=1e-7)
    start = {f"restorer.{name}": p for name, p in tiny.diffbir().controlnet.state_dict().items()}
    start |= {f"frm.{name}": p for name, p in tiny.frm().state_dict().items()}
    for part, least in (("restorer.", 1e-3), ("frm.", 1e-4)):
        assert max(float((alone[name] - start[name]).abs().max()) for name in alone if name.startswith(part)) > least
    # the first process alone writes: one checkpoint, each step logged once, one evaluation every second step
    assert {path.name for path in two.iterdir()} == {"tiny.pt", "log.jsonl", "weights-0.pt", "weights-1.pt"}
    rows = [json.loads(line) for line in (two / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    alone_rows = [json.loads(line) for line in (tmp_path / "alone/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in alone_rows]
    for one, other in zip(rows, alone_rows, strict=True):
        assert one == pytest.approx(other, rel=1e-5)  # figures are averaged in float32
