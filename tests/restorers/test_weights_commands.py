"""`diffusionreward weights`: official files in, and out again with a model card."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from typer.testing import CliRunner

from pipeline.params import UserError
from pipeline.restorers import commands
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.gfpgan import from_official
from pipeline.restorers.load import load
from tests import tiny
from tests.restorers import official

ROOT = Path(__file__).resolve().parents[2]
RUNNER = CliRunner()


def run(*arguments: str | Path) -> tuple[int, list[str]]:
    done = RUNNER.invoke(commands.weights_app, [str(one) for one in arguments])
    return done.exit_code, done.output.splitlines()


def test_official_diffbir_in_and_out(tmp_path: Path) -> None:
    controlnet = official.random_weights(official.controlnet_shapes(), 3)
    torch.save({"state_dict": official.stable_diffusion()}, tmp_path / "sd.ckpt")
    torch.save(controlnet, tmp_path / "v1_face.pth")
    torch.save(official.swinir_weights(), tmp_path / "swinir.ckpt")
    code, lines = run(
        *("import", "--stable-diffusion", tmp_path / "sd.ckpt", "--out", tmp_path / "models", "--size", 64),
        *("--diffbir", tmp_path / "v1_face.pth", "--cleaner", tmp_path / "swinir.ckpt"),
    )
    assert (code, lines) == (0, [str(tmp_path / "models" / name) for name in ("denoiser", "diffbir")])
    code, lines = run(
        *("export", tmp_path / "models/diffbir", "--out", tmp_path / "out"),
        *("--params", ROOT / "profiles/paper.yaml"),
    )
    assert code == 0, lines
    again = torch.load(tmp_path / "out/controlnet.pth", weights_only=True)
    assert again.keys() == controlnet.keys()
    assert all(torch.equal(again[key], controlnet[key]) for key in controlnet)
    diffusers_own = ControlNetModel.from_pretrained(tmp_path / "out/controlnet").eval()
    restorer = load(tmp_path / "models/diffbir", torch.device("cpu"))
    assert isinstance(restorer, DiffBIR)
    inputs = torch.randn(1, 8, 8, 8), 1, torch.randn(1, 77, diffusers_own.config.cross_attention_dim)
    with torch.no_grad():  # its hint block is zero: any hint will do
        theirs = diffusers_own(*inputs, controlnet_cond=torch.rand(1, 3, 64, 64), return_dict=False)
        ours = restorer.controlnet(*inputs, controlnet_cond=inputs[0][:, :4], return_dict=False)
    torch.testing.assert_close(theirs, ours)
    card = (tmp_path / "out/README.md").read_text()
    weights = sum(value.numel() for value in controlnet.values())
    assert f"{weights:,} weights: a ControlNet of DiffBIR" in card
    for said in (
        "stable_diffusion: weights/v2-1_512-ema-pruned.ckpt",  # the base model
        "DDIM, 50 steps, eta 1, conditioned on the LQ cleaned by SwinIR",
        "at most 70,000 faces of a folder",
        "| Preference labels | not given |",
        "CreativeML Open RAIL++-M",
        "your faces: see the terms",
        "weights: {reward: 0.005, lowpass: 0.005, perceptual: 0.01, regulariser: 0.0001}",  # the params
    ):
        assert said in card
    assert "DigiFace" not in card
    code, lines = run(
        *("import", "--stable-diffusion", tmp_path / "sd.ckpt", "--out", tmp_path / "other", "--size", 64),
        *("--diffbir", tmp_path / "out/controlnet", "--cleaner", tmp_path / "swinir.ckpt"),
    )
    assert (code, lines) == (2, [f"error: {tmp_path / 'out/controlnet'}: is a folder; name the file in it"])
    assert not any((tmp_path / "other").iterdir())


def test_a_card_of_params_that_lack_things_says_so(tmp_path: Path) -> None:
    tiny.denoiser().save(tmp_path / "denoiser")
    tiny.osediff(tmp_path / "denoiser").save(tmp_path / "osediff")
    (tmp_path / "params.yaml").write_text("seed: 0\nfaces: {source: folder}\nrefl:\ngan:\n")
    params = ("--params", tmp_path / "params.yaml")
    code, lines = run("export", tmp_path / "osediff", "--out", tmp_path / "out", *params)
    assert code == 0, lines
    assert "not given" in (tmp_path / "out/README.md").read_text()


def test_a_small_osediff_out_with_figures(tmp_path: Path) -> None:
    tiny.denoiser().save(tmp_path / "denoiser")
    tiny.osediff(tmp_path / "denoiser").save(tmp_path / "osediff")
    (tmp_path / "m.json").write_text(json.dumps({"kept": {"step": 120, "val_id_dlib": 0.504098}, "a|b": 2}))
    code, lines = run("export", tmp_path / "osediff", "--out", tmp_path / "out", "--metrics", tmp_path / "m.json")
    assert code == 0
    assert lines[0].startswith("osediff.pkl is left out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "unet_default_encoder.safetensors",
        "unet_default_decoder.safetensors",
        "unet_default_others.safetensors",
        "unet_conv_in.safetensors",
        "README.md",
    }
    card = (tmp_path / "out/README.md").read_text()
    assert "| kept.val_id_dlib | 0.504098 |" in card
    assert r"| a\|b | 2 |" in card  # as in frm.json's pairs of settings; unescaped it would be three cells
    assert "| Base model | a small denoiser trained from scratch" in card
    assert "CreativeML" not in card
    assert all(said in card for said in ("DigiFace-1M", "your faces"))  # no params: either may be true


def test_a_small_gfpgan_out_is_the_authors_format(tmp_path: Path) -> None:
    restorer = tiny.gfpgan()
    restorer.save(tmp_path / "gfpgan")
    code, lines = run(
        *("export", tmp_path / "gfpgan", "--out", tmp_path / "out"), *("--params", ROOT / "profiles/ci.yaml")
    )
    assert (code, lines) == (0, [str(tmp_path / "out/gfpgan.pth"), str(tmp_path / "out/README.md")])
    again = from_official(tmp_path / "out/gfpgan.pth", restorer.size)
    lq = torch.rand(1, 3, restorer.native_size, restorer.native_size) * 2 - 1
    assert torch.equal(again.restore(lq, [""], ["a"], 0), restorer.restore(lq, [""], ["a"], 0))
    card = (tmp_path / "out/README.md").read_text()
    weights = sum(parameter.numel() for parameter in restorer.parameters())
    for said in (
        f"{weights:,} weights: a whole GFPGANv1Clean",
        "trained from scratch by stage `gan`",
        "discriminator:",
        "DigiFace-1M",
    ):
        assert said in card
    assert "your faces" not in card


def test_official_gfpgan_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = tiny.gfpgan()
    torch.save({"params_ema": restorer.official_state()}, tmp_path / "GFPGANv1.4.pth")
    small = partial(from_official, size=restorer.size)
    monkeypatch.setattr(commands, "from_official", small)
    command = ("import", "--gfpgan", tmp_path / "GFPGANv1.4.pth", "--out", tmp_path / "models")
    assert run(*command) == (0, [str(tmp_path / "models/gfpgan")])
    code, _ = run(
        *("export", tmp_path / "models/gfpgan", "--out", tmp_path / "out"), *("--params", ROOT / "profiles/paper.yaml")
    )
    terms = (tmp_path / "out/README.md").read_text().partition("## Terms")[2].partition("## Parameters")[0]
    assert (code, "GFPGAN: Apache-2.0" in terms) == (0, True)
    assert not any(other in terms for other in ("Stable Diffusion", "SwinIR", "OSEDiff"))  # there is none of them in it
    loaded = load(tmp_path / "models/gfpgan", torch.device("cpu"))
    assert all(torch.equal(value, loaded.official_state()[name]) for name, value in restorer.official_state().items())
    code, _ = run(*command, "--osediff", tmp_path / "osediff.pkl")
    assert code == 2
    (tmp_path / "GFPGANv1.4.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"GFPGANv1\.4\.pth: not a readable PyTorch file \(EOFError"):
        small(tmp_path / "GFPGANv1.4.pth")


def test_an_import_leaves_nothing_where_one_of_its_files_is_bad(tmp_path: Path) -> None:
    torch.save({"state_dict": official.stable_diffusion()}, tmp_path / "sd.ckpt")
    (tmp_path / "bad.pkl").write_bytes(b"an error page")
    command = ("import", "--stable-diffusion", tmp_path / "sd.ckpt", "--out", tmp_path / "models", "--size", 64)
    code, (line,) = run(*command, "--osediff", tmp_path / "bad.pkl")
    assert code == 2
    assert line.startswith(f"error: {tmp_path / 'bad.pkl'}")
    assert not list((tmp_path / "models").iterdir())
    assert run(*command) == (0, [str(tmp_path / "models/denoiser")])
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["denoiser"]
    refused = run(*command[:-1], 500)
    assert refused == (2, ["error: --size 500: autoencoder and UNet halve it six times; choose a multiple of 64"])
    before = (tmp_path / "models/denoiser/unet/config.json").stat().st_mtime_ns
    said = f"error: {tmp_path / 'models/denoiser'}: already exists; remove it, or name another --out"
    assert run(*command) == (2, [said])
    assert (tmp_path / "models/denoiser/unet/config.json").stat().st_mtime_ns == before


def test_a_folder_in_use_and_a_missing_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(SystemExit) as stopped:
        commands.export(tmp_path / "no", tmp_path / "used")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'used'}: is a file or not empty; name a new folder\n"
    with pytest.raises(SystemExit):
        commands.export(tmp_path / "no", tmp_path / "new")
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'no/restorer.json'}: missing")


def test_a_model_whose_weights_are_missing_or_cut_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.diffbir(source=tmp_path / "denoiser").denoiser.save(tmp_path / "denoiser")
    tiny.diffbir(source=tmp_path / "denoiser").save(tmp_path / "model")
    weights = tmp_path / "model/controlnet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    for step in (lambda: None, weights.unlink):
        step()
        with pytest.raises(SystemExit) as stopped:
            commands.export(tmp_path / "model", tmp_path / "new")
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path / 'model'}")
        assert ("can't be loaded" if weights.exists() else "diffusion_pytorch_model.safetensors: missing") in said
        assert said.count("\n") == 1
