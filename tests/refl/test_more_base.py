"""The control at equal compute: the same parameters as ReFL, by the base objective."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline import params as files
from pipeline.base.gan import Adversary, GanParams
from pipeline.base.params import BaseParams, TrainParams
from pipeline.params import UserError
from pipeline.refl import more_base
from pipeline.refl.params import VARIANTS, RolloutParams
from pipeline.refl.trainer import ReFL
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.gfpgan import GFPGAN
from pipeline.training import Images, count_flops, images_of
from tests import tiny
from tests.refl.recipe import for_one, params
from tests.refl.test_loop import scripted

CI = Path(__file__).resolve().parents[2] / "profiles/ci.yaml"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Continue the base training of a tiny GFPGAN for two steps."""
    monkeypatch.setattr(more_base, "equal_steps", lambda *arguments: 2)
    faces, val = images_of(tiny.dataset(size=64)), images_of(tiny.dataset("val", 2, size=64))
    base, gan = files.load("base", BaseParams, CI), files.load("gan", GanParams, CI)

    def continue_base(folder: Path, scratch: Path) -> tuple[GFPGAN, list[dict[str, float]], GanParams]:
        restorer, watch = tiny.gfpgan(64), scripted(iter([2.0, 1.0]))
        curve = more_base.continue_base(
            restorer, tiny.frm(), for_one(restorer), base, gan, folder, faces, val, 0, scratch, watch
        )
        return restorer, curve, gan

    return continue_base


def test_gfpgan_goes_on_with_its_decoder_and_its_discriminator(run, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    start = tiny.gfpgan(64)
    restorer, curve, gan = run(tmp_path / "none", tmp_path / "a")
    assert "has no discriminator" in capsys.readouterr().out
    assert [row["step"] for row in (curve[0], curve[-1])] == [0, 2]
    assert [row["val_lmd_68"] for row in (curve[0], curve[-1])] == [2.0, 1.0]  # watched before and after
    for name, before in start.official_state().items():
        after = restorer.official_state()[name]
        assert torch.equal(before, after) or name.startswith("stylegan_decoder."), name
    assert not torch.equal(start.decoder.constant_input.weight, restorer.decoder.constant_input.weight)

    (tmp_path / "base").mkdir()
    adversary = Adversary(gan.discriminator, torch.device("cpu"), 0)
    tiny.shaken(adversary.network)
    adversary.save(tmp_path / "base")
    _, again, _ = run(tmp_path / "base", tmp_path / "b")
    assert "has no discriminator" not in capsys.readouterr().out
    assert again[-1]["train_loss"] != curve[-1]["train_loss"]  # another discriminator judged it


def test_half_precision_and_cuda_graphs_change_nothing_of_diffbirs_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, val = images_of(tiny.dataset(size=64)), images_of(tiny.dataset("val", 2, size=64))
    base, gan = files.load("base", BaseParams, CI), files.load("gan", GanParams, CI)
    start = DiffBIR.start_training

    def replayed(*inputs: torch.Tensor) -> torch.Tensor:
        raise AssertionError("what a graph replays is not counted")

    def with_graph(restorer: DiffBIR) -> None:
        start(restorer)
        restorer.graph = replayed  # type: ignore[assignment]

    monkeypatch.setattr(DiffBIR, "start_training", with_graph)
    curves = []
    for precision in ("fp32", "bf16"):
        recipe = params(steps=1, accumulation=1, precision=precision)
        curves.append(
            more_base.continue_base(
                tiny.diffbir(),
                tiny.frm(),
                recipe,
                base,
                gan,
                tmp_path,
                faces,
                val,
                0,
                tmp_path / precision,
                scripted(iter([2.0, 1.0])),
            )
        )
    assert curves[0][-1]["step"] > 1
    assert curves[0] == curves[1]


def test_rollouts_are_counted(tmp_path: Path) -> None:
    faces = images_of(tiny.dataset(size=64))
    base, gan = files.load("base", BaseParams, CI), files.load("gan", GanParams, CI)
    found = []
    for steps in (2, 3, 4):
        restorer = tiny.diffbir()
        part = more_base.continued(restorer, base, gan, tmp_path, faces, faces, 0)
        rollout = RolloutParams(steps=steps, gradient_window=1, eta=(0.0, 1.0), renoise=1)
        recipe = params(steps=300, accumulation=1, rollout=rollout)
        found.append(more_base.equal_steps(restorer, tiny.frm(), recipe, faces, part.loss(part.recipe), 0))
    assert found[0] < found[1]
    assert found[2] - found[1] == pytest.approx(found[1] - found[0], abs=1)


def test_the_control_costs_what_refl_costs() -> None:
    faces = images_of(tiny.dataset(size=64))
    rollout = RolloutParams(steps=1, gradient_window=1, eta=(0.0, 1.0), renoise=1)
    recipe = params(steps=300, accumulation=2, rollout=rollout, cache_mb=0)
    trainer = ReFL(tiny.diffbir(), tiny.frm(), recipe, VARIANTS["full"], faces, 0, Accelerator(cpu=True))
    outputs = trainer.step(0)[1]  # fills the cache of text features
    spent = count_flops(lambda: trainer.step(1)) + count_flops(lambda: trainer.update_reward(outputs)) / 2  # every 2
    weight, x = torch.ones(256, 256, requires_grad=True), torch.ones(256, 256)
    steps = more_base.equal_steps(tiny.diffbir(), tiny.frm(), recipe, faces, lambda _: (weight @ x).sum(), 0)
    assert steps == pytest.approx(300 * spent / (4 * 256**3), rel=0.01)  # forward, and backward to the weight


def test_a_control_trains_at_least_one_step() -> None:
    faces = images_of(tiny.dataset(size=64))
    large = torch.ones(20_000, 20_000, device="meta", requires_grad=True)  # counted, not computed

    def dear(_: int) -> torch.Tensor:
        return (large @ large).sum()

    recipe = params(steps=1, accumulation=1)
    assert more_base.equal_steps(tiny.diffbir(), tiny.frm(), recipe, faces, dear, 0) == 1


def test_rollouts_drawn_from_a_window_count_with_their_mean_length(tmp_path: Path) -> None:
    faces = images_of(tiny.dataset(size=64))
    base, gan = files.load("base", BaseParams, CI), files.load("gan", GanParams, CI)

    def steps(length: int, window: int) -> int:
        restorer = tiny.diffbir()
        part = more_base.continued(restorer, base, gan, tmp_path, faces, faces, 0)
        rollout = RolloutParams(steps=length, gradient_window=window, eta=(0.0, 1.0), renoise=1)
        recipe = params(steps=3000, accumulation=1, rollout=rollout)
        return more_base.equal_steps(restorer, tiny.frm(), recipe, faces, part.loss(part.recipe), 0)

    # of 5 steps, the gradient at any of them: 0 to 4 rollout steps, 2 on average, as 3 steps always have
    assert steps(5, 5) == pytest.approx(steps(3, 1), abs=1)


@pytest.mark.parametrize("build", [tiny.diffbir, tiny.osediff, lambda: tiny.gfpgan(64)])
def test_the_control_trains_refls_part_at_its_own_rate_on_train_faces(build, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """And it validates on val, with checkpoints as often as ReFL makes them."""
    seen: dict[str, object] = {}
    drawn, looked_at = Images.pick, []

    def pick(self: Images, rows, mirrored):  # type: ignore[no-untyped-def]
        looked_at.append(len(self.ids))
        return drawn(self, rows, mirrored)

    def fit(module, loss, validate, settings, every, scratch, name, also):  # type: ignore[no-untyped-def]
        seen.update(module=module, settings=settings, every=every)
        looked_at.clear()
        loss(0)
        seen["drawn"] = set(looked_at)
        looked_at.clear()
        validate()
        seen["validated"] = set(looked_at)
        return [{"step": settings.steps, "train_loss": 1.0, "val_loss": 1.0}]

    monkeypatch.setattr(Images, "pick", pick)
    monkeypatch.setattr(more_base, "fit", fit)
    monkeypatch.setattr(more_base, "equal_steps", lambda *arguments: 1)
    base, gan = files.load("base", BaseParams, CI), files.load("gan", GanParams, CI)
    train, val = images_of(tiny.dataset(count=6, size=64)), images_of(tiny.dataset("val", 3, size=64))
    restorer = build()
    recipe = for_one(restorer, more_base_learning_rate=3e-4, checkpoint_every=7)
    more_base.continue_base(
        restorer, tiny.frm(), recipe, base, gan, tmp_path, train, val, 0, tmp_path, scripted(iter([2.0, 1.0]))
    )
    settings = seen["settings"]
    assert isinstance(settings, TrainParams)
    assert (settings.learning_rate, settings.steps, seen["every"]) == (3e-4, 1, 7)
    assert settings.warmup_steps == 1  # the recipe's own would be longer
    assert seen["module"] is restorer.trained()
    assert (seen["drawn"], seen["validated"]) == ({6}, {3})


def test_the_discriminators_update_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = images_of(tiny.dataset(size=64))
    base, gan = files.load("base", BaseParams, CI), files.load("gan", GanParams, CI)

    def cost() -> int:
        part = more_base.continued(tiny.gfpgan(64), base, gan, tmp_path, faces, faces, 0)
        return count_flops(lambda: part.loss(part.recipe)(0).backward())

    whole = cost()
    discriminator = Adversary(gan.discriminator, torch.device("cpu"), 0)
    hq, _ = faces.pick(list(range(gan.train.batch_size)), [False] * gan.train.batch_size)
    update = count_flops(lambda: discriminator.update(hq, -hq, 1.0))
    monkeypatch.setattr(Adversary, "update", lambda *_: None)
    assert update > 0
    assert whole - cost() == update


def test_a_rate_that_is_too_high_is_named_by_its_own_param(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*_: object) -> list[dict[str, float]]:
        raise UserError("gfpgan-more_base: loss nan; lower the learning rate")

    monkeypatch.setattr(more_base, "fit", diverges)
    monkeypatch.setattr(more_base, "equal_steps", lambda *arguments: 3)
    base, gan = files.load("base", BaseParams, CI), files.load("gan", GanParams, CI)
    faces, restorer = images_of(tiny.dataset(size=64)), tiny.gfpgan(64)
    with pytest.raises(UserError, match=r"lower the learning rate \(here refl\.gfpgan\.more_base_learning_rate\)"):
        more_base.continue_base(
            restorer, tiny.frm(), for_one(restorer), base, gan, tmp_path, faces, faces, 0, tmp_path,
            scripted(iter([2.0, 1.0])),
        )  # fmt: skip
