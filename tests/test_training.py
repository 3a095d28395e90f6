"""Draws that the trainings share: seeded by step, both sides of a face alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.params import UserError
from pipeline.runtime import torch_rng
from pipeline.training import Checkpoint, count_flops, drawn_batch, drawn_rows, images_of, require_one_process
from tests import tiny


def test_both_sides_of_a_face_are_mirrored_together() -> None:
    faces = images_of(tiny.dataset())
    straight = faces.pick([1, 2], [False, False])
    for side, plain in zip(faces.pick([1, 2], [True, False]), straight, strict=True):
        assert torch.equal(side, torch.stack([plain[0].flip(-1), plain[1]]))
        assert not torch.equal(plain[0], plain[0].flip(-1))


def test_hq_comes_first_and_lq_second() -> None:
    faces, cpu = images_of(tiny.light_and_dark()), torch.device("cpu")
    batches = [both for _, *both in faces.in_batches(4, cpu)]
    for hq, lq in (faces.pick([0, 5], [False, True]), *batches, drawn_batch(faces, 4, 0, 0.5, cpu, 0)[:2]):
        assert hq.min() > 0 > lq.max()
    assert [len(hq) for hq, _ in batches] == [4, 2]


def test_a_batch_is_mirrored_by_halves_and_loses_the_share_of_prompts_asked_for() -> None:
    faces, rng = images_of(tiny.dataset(count=50)), torch.Generator().manual_seed(0)
    for dropout, lowest, highest in ((0.0, 0, 0), (0.1, 1, 15), (1.0, 50, 50)):
        rows, mirrored, prompts = drawn_rows(faces, 50, 0, dropout, rng, 0)
        assert 15 < sum(mirrored) < 35
        assert lowest <= prompts.count("") <= highest
        assert all(prompt in ("", faces.captions[row]) for row, prompt in zip(rows, prompts, strict=True))
    straight, _, _, _ = drawn_batch(faces, 50, 0, 0.0, torch.device("cpu"), 0)
    rows, mirrored, _ = drawn_rows(faces, 50, 0, 0.0, torch_rng(0, 0), 0)
    assert torch.equal(straight, faces.pick(rows, mirrored)[0])


def test_every_step_draws_anew_and_the_same_again() -> None:
    faces = images_of(tiny.dataset())
    seeds = [drawn_batch(faces, 4, step, 0.5, torch.device("cpu"), 0)[3].initial_seed() for step in (0, 1, 2, 0)]
    assert len(set(seeds[:3])) == 3
    assert seeds[3] == seeds[0]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_grouped_convolution_costs_no_more_backwards_than_forwards_twice(groups: int, transposed: bool) -> None:
    x, width = torch.ones(1, 16, 8, 8, requires_grad=True), 16 // groups
    weight = torch.ones(16, width, 3, 3, requires_grad=True)
    convolve = nn.functional.conv_transpose2d if transposed else nn.functional.conv2d
    forward = 2 * 16 * width * 3 * 3 * 8 * 8  # a multiply-add is two
    assert count_flops(lambda: convolve(x, weight, groups=groups, padding=1).sum().backward()) == 3 * forward
    with torch.no_grad():
        assert count_flops(lambda: convolve(x, weight, groups=groups, padding=1)) == forward


def test_what_a_kill_left_of_a_checkpoint_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer, path = nn.Linear(2, 2), tmp_path / "x.pt"
    Checkpoint(path, {"layer": layer}).save(step=3)
    (tmp_path / ".x.pt.abc").write_bytes(b"half of one")
    (tmp_path / ".y.pt.abc").write_bytes(b"of another training")
    again = nn.Linear(2, 2)
    assert Checkpoint(path, {"layer": again}).load() == {"step": 3}
    assert torch.equal(layer.weight, again.weight)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".y.pt.abc", "x.pt"]
    assert capsys.readouterr().out == f"goes on from {path}\n"


def test_what_was_loaded_does_not_hang_on_the_file(tmp_path: Path) -> None:
    def made() -> tuple[nn.Linear, torch.optim.AdamW]:
        layer = nn.Linear(64, 64)
        return layer, torch.optim.AdamW(layer.parameters())

    layer, optimizer = made()
    layer(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    path, best = tmp_path / "x.pt", {"weight": torch.arange(4096.0)}
    Checkpoint(path, {"layer": layer, "optimizer": optimizer}).save(best=best)
    again, restored = made()
    plain = Checkpoint(path, {"layer": again, "optimizer": restored}).load()
    path.write_bytes(bytes(path.stat().st_size))
    assert plain is not None
    assert torch.equal(plain["best"]["weight"], best["weight"])
    assert torch.equal(again.weight, layer.weight)
    moments = [one.state[one.param_groups[0]["params"][0]]["exp_avg"] for one in (optimizer, restored)]
    assert torch.equal(*moments)
    assert moments[0].abs().max() > 0


def test_one_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_one_process("base")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="base trains in one process; start the stage without `accelerate launch`"):
        require_one_process("base")
