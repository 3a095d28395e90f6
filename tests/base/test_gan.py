"""GAN training of the base GFPGAN: the discriminator's losses, resume, what is written, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from pipeline import tables
from pipeline.base import gan
from pipeline.base.gan import Adversary, DiscriminatorParams, GanObjective, GanParams, train_gfpgan
from pipeline.images import encode_png
from pipeline.params import UserError
from pipeline.restorers.load import load
from pipeline.training import images_of
from stages import gan as stage
from tests import tiny

SIZE = 32  # px; ST-LPIPS needs 16 at least
DISCRIMINATOR = {"channels": [4, 8], "learning_rate": 1e-2, "r1": 1.0}
PARAMS = {
    "pretrained": None,
    "checkpoint_every": 2,
    "validation_batch": 4,
    "network": {"num_style_feat": 8, "channel_multiplier": 1, "narrow": 1 / 64},
    "discriminator": DISCRIMINATOR,
    "weights": {"pixel": 1.0, "perceptual": 1.0, "adversarial": 0.1},
    "perceptual_net": "alex",
    "train": {
        "steps": 6,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "validate_every": 3,
    },
}


def params(**train: object) -> GanParams:
    return GanParams.model_validate(PARAMS | {"train": PARAMS["train"] | train})  # type: ignore[operator]


def train(folder: Path, split: str = "train", **changes: object):  # type: ignore[no-untyped-def]
    faces, val = tiny.dataset(split, 6, SIZE), tiny.dataset("val", 3, SIZE)
    return train_gfpgan(params(**changes), 0, SIZE, faces, val, folder / "out", folder / "scratch", torch.device("cpu"))


def adversary(**changes: object) -> Adversary:
    return Adversary(DiscriminatorParams.model_validate(DISCRIMINATOR | changes), torch.device("cpu"), 0)


def test_the_discriminators_step_is_the_gradient_of_its_closed_form() -> None:
    """softplus(−D(real)) + softplus(D(fake)) + r1/2·|∂D/∂real|², the last by finite differences of a linear D."""
    one = adversary(r1=3.0)
    one.network.convs = torch.nn.ModuleList([torch.nn.Conv2d(3, 1, 1, bias=False)])  # D is linear: ∂D/∂x is w / (H·W)
    weight = one.network.convs[0].weight
    one.optimizer = torch.optim.SGD([weight], lr=1.0)
    real, fake = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    w = weight.detach().clone().requires_grad_(True)
    of_real, of_fake = ((x * w[0][None]).sum(1) for x in (real, fake))
    penalty = 16 * (w.flatten() / 16).square().sum()
    loss = softplus(-of_real).mean() + softplus(of_fake).mean() + 1.5 * penalty
    (expected,) = torch.autograd.grad(loss, w)
    before = weight.detach().clone()
    one.update(real, fake, rate=1 / one.params.learning_rate)  # the step's learning rate is then 1
    torch.testing.assert_close(before - weight.detach(), expected)


def test_the_discriminator_learns_to_tell_and_the_restorers_loss_leaves_it_alone() -> None:
    one, rng = adversary(), torch.Generator().manual_seed(0)
    real = torch.rand(8, 3, 16, 16, generator=rng)
    fake = (-real).requires_grad_(True)
    for _ in range(30):
        one.update(real, fake, 1.0)
    assert fake.grad is None
    assert float((one.network(real) - one.network(fake)).detach().mean()) > 0.5
    assert float(one.loss(fake).detach()) > float(one.loss(real).detach())
    before = [p.detach().clone() for p in one.network.parameters()]
    grads = [p.grad.clone() for p in one.network.parameters() if p.grad is not None]
    one.loss(fake).backward()
    assert float(fake.grad.abs().sum()) > 0
    assert all(torch.equal(a, p) for a, p in zip(before, one.network.parameters(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, one.network.parameters(), strict=True))


def test_training_lowers_the_validation_loss(tmp_path: Path) -> None:
    _, first = train(tmp_path / "first", steps=1)
    _, trained = train(tmp_path / "trained", steps=30, validate_every=30, learning_rate=5e-3, ema_decay=0.0)
    assert trained[-1]["val_loss"] < 0.8 * first[-1]["val_loss"]


def test_the_adversarial_term_counts() -> None:
    faces = images_of(tiny.dataset("train", 6, SIZE))
    values = []
    for weight in (0.0, 1.0):
        restorer = tiny.gfpgan(SIZE)
        settings = PARAMS | {"weights": {"pixel": 0.0, "perceptual": 0.0, "adversarial": weight}}
        objective = GanObjective(restorer, GanParams.model_validate(settings), 0)
        loss = objective.loss(faces, params().train, 0)(0)
        loss.backward()
        values.append(float(restorer.encoder.conv_body_first.weight.grad.abs().sum()))
    assert values[0] == 0
    assert values[1] > 0


def test_a_killed_training_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, curve = train(tmp_path / "whole")
    real = Adversary.update
    calls = []

    def dies(self: Adversary, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 6:  # after the checkpoint at step 4, in the middle of the sixth step
            raise KeyboardInterrupt
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Adversary, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed")
    monkeypatch.setattr(Adversary, "update", real)
    again, resumed = train(tmp_path / "killed")
    assert curve == resumed
    ours, theirs = whole.official_state(), again.official_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("gfpgan.safetensors", "discriminator.safetensors"):
        assert (tmp_path / "whole/out" / name).read_bytes() == (tmp_path / "killed/out" / name).read_bytes()


def test_the_discriminator_is_taken_up_again(tmp_path: Path) -> None:
    train(tmp_path)
    one, fresh = adversary(), adversary()
    assert one.load(tmp_path / "out")
    images = torch.rand(2, 3, SIZE, SIZE)
    assert not torch.equal(one.network(images), fresh.network(images))
    assert not fresh.load(tmp_path)


def test_a_discriminator_that_halves_the_side_too_often_is_refused(tmp_path: Path) -> None:
    deep = params().model_copy(
        update={"discriminator": DiscriminatorParams(channels=[4] * 7, learning_rate=1e-3, r1=1.0)}
    )
    faces, val = tiny.dataset("train", 6, SIZE), tiny.dataset("val", 3, SIZE)
    with pytest.raises(UserError, match=r"gan\.discriminator\.channels: .*too many for 32 px"):
        train_gfpgan(deep, 0, SIZE, faces, val, tmp_path / "out", tmp_path / "scratch", torch.device("cpu"))


@pytest.mark.parametrize("narrow", [0.001, 0.006])  # no channel; an odd number of them, which can't be halved
def test_a_network_that_can_not_run_is_refused_and_drawing_nothing(narrow: float) -> None:
    state = torch.get_rng_state()
    thin = PARAMS | {"network": {"num_style_feat": 8, "channel_multiplier": 1, "narrow": narrow}}
    with pytest.raises(UserError, match=r"^gan\.network: no such network works for 32 px: \S"):
        GanParams.model_validate(thin).must_fit(SIZE)
    params().must_fit(SIZE)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_train_faces_are_accepted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refuses faces of split `test`"):
        train(tmp_path, split="test")


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="gfpgan: a base restorer trains in one process"):
        train(tmp_path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Faces of splits train and val, and tiny params."""
    rng = np.random.default_rng(0)
    faces, degraded = [], []
    drawn = {"blur_kind": "iso", "blur_sigma_x": 1.0, "blur_sigma_y": 1.0, "blur_angle": 0.0, "scale": 1.0}
    drawn |= {"noise_sigma": 0.0, "jpeg_quality": 90, "seed": 0}
    for index in range(8):
        name = f"f{index}"
        image = tables.image_cell(encode_png(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)), name)
        faces.append({
            "face_id": name, "image": image, "width": SIZE, "height": SIZE, "source": name, "group_id": name,
            "caption": "", "split": "val" if index > 5 else "train",
        })  # fmt: skip
        degraded.append({"face_id": name, "image": image} | drawn)
    tables.write(tables.FACES, tmp_path / "data/faces", faces)
    tables.write(tables.DEGRADED, tmp_path / "data/degraded", degraded)
    runtime = {"device": "cpu", "threads": 1, "num_workers": 1, "joblib_backend": "loky", "progress": False}
    content = {"seed": 0, "image_size": SIZE, "gan": PARAMS, "runtime": runtime}
    (tmp_path / "params.yaml").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_stage_writes_restorer_curve_and_figures(project: Path) -> None:
    stage.main()
    assert load(project / "data/base/gfpgan", torch.device("cpu")).native_size == SIZE
    lines = (project / "plots/base_gan.csv").read_text().splitlines()
    assert lines[0] == "restorer,step,train_loss,val_loss"
    assert [line.split(",")[:2] for line in lines[1:]] == [["gfpgan", "3"], ["gfpgan", "6"]]
    metrics = json.loads((project / "metrics/base_gan.json").read_text())
    assert set(metrics["val"]) == {"lq", "gfpgan"}
    assert metrics["val"]["lq"]["stlpips_vgg"] == 0  # this test's LQ is the HQ
    assert metrics["val"]["gfpgan"]["stlpips_vgg"] > 0
    assert set(metrics["flattening"]) == {"gfpgan"}
    assert metrics["impostor"]["id_dlib"]["n"] == 2  # faces of split val


def test_another_recipe_is_trained_not_taken_up(project: Path) -> None:
    made = []
    for rate in (2e-3, 4e-3):
        content = json.loads((project / "params.yaml").read_text())
        content["gan"]["train"]["learning_rate"] = rate
        (project / "params.yaml").write_text(json.dumps(content))
        stage.main()
        made.append((project / "data/base/gfpgan/gfpgan.safetensors").read_bytes())
    assert made[0] != made[1]


def test_official_weights_of_another_size_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((project / "params.yaml").read_text())
    content["gan"]["pretrained"] = "weights/GFPGANv1.4.pth"
    (project / "params.yaml").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        stage.main()
    assert "gan.pretrained restores 512 px, image_size is 32" in capsys.readouterr().err
    monkeypatch.setattr(gan, "OFFICIAL", tiny.gfpgan(SIZE).size)
    with pytest.raises(SystemExit):
        stage.main()
    assert "weights/GFPGANv1.4.pth: missing" in capsys.readouterr().err


def test_the_stage_takes_official_weights_as_they_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((project / "params.yaml").read_text())
    content["gan"]["pretrained"] = "weights/GFPGANv1.4.pth"
    (project / "params.yaml").write_text(json.dumps(content))
    monkeypatch.setattr(stage, "from_official", lambda path: tiny.gfpgan(SIZE))
    monkeypatch.setattr(gan, "OFFICIAL", tiny.gfpgan(SIZE).size)
    stage.main()
    saved, given = load(project / "data/base/gfpgan", torch.device("cpu")), tiny.gfpgan(SIZE)
    assert torch.equal(saved.decoder.constant_input.weight, given.decoder.constant_input.weight)
    assert not (project / "data/base/gfpgan/discriminator.safetensors").exists()
    _, row = (project / "plots/base_gan.csv").read_text().splitlines()
    assert row.startswith("gfpgan,,,")  # no step, no training loss: the report shows the validation loss
    assert json.loads((project / "metrics/base_gan.json").read_text())["flattening"] == {}  # nothing was trained
