from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file

from pipeline.images import to_tensor
from pipeline.params import UserError
from pipeline.reward.model import FaceRewardModel, open_clip_config
from pipeline.reward.params import Architecture, RewardConfig
from tests.reward.toy import SIZE, architecture

# ViT-H-14 with every width and depth scaled down: the same names in its checkpoint
SCALED = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 28, "layers": 4, "width": 40, "head_width": 20, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
}


@pytest.fixture
def model(config: RewardConfig) -> FaceRewardModel:
    torch.manual_seed(0)
    return FaceRewardModel.from_config(config).eval().requires_grad_(False)


def pictures(count: int, size: int = SIZE) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return list(generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def test_reward_is_the_cosine_of_open_clip_features(model: FaceRewardModel) -> None:
    images = pictures(3)
    normalise = open_clip.image_transform(SIZE, is_train=False).transforms[-1]
    inputs = torch.stack([normalise(torch.from_numpy(i).permute(2, 0, 1) / 255) for i in images])
    text = model.clip.encode_text(open_clip.tokenizer.SimpleTokenizer()(["a smile"], 16), normalize=True)
    expected = (model.clip.encode_image(inputs, normalize=True) @ text.T)[:, 0]
    reward = model(to_tensor(images), model.text_features(["a smile"] * 3))
    torch.testing.assert_close(reward, expected)


def test_reward_has_gradients_in_images_of_any_size(model: FaceRewardModel) -> None:
    images = to_tensor(pictures(2, size=48)).requires_grad_()
    model(images, model.text_features(["", ""])).sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().amax(1) > 0).all()


def test_gradient_is_the_derivative_of_the_reward(model: FaceRewardModel) -> None:
    image, text = to_tensor(pictures(1, size=48)), model.text_features([""])
    wanted = image.requires_grad_()
    (gradient,) = torch.autograd.grad(model(wanted, text).sum(), wanted)
    direction = gradient / gradient.norm()
    step = 0.05
    up, down = (model(image.detach() + sign * step * direction, text).item() for sign in (1, -1))
    assert (up - down) / (2 * step) == pytest.approx(gradient.norm().item(), rel=0.02)


def test_score_doesnt_depend_on_batches_or_mode(model: FaceRewardModel) -> None:
    images, captions = pictures(5), ["", "a smile", "", "a frown", "a smile"]
    one = model.score(images, captions, batch_size=1)
    model.train()
    all_at_once = model.score(images, captions, batch_size=5)
    assert model.training
    np.testing.assert_allclose(one, all_at_once, atol=1e-6)
    assert len(set(one.round(6))) == 5


def test_default_caption_stands_for_an_empty_one(model: FaceRewardModel) -> None:
    assert torch.equal(model.text_features([""]), model.text_features(["a face"]))
    assert not torch.equal(model.text_features([""]), model.text_features(["a house"]))


def test_a_captions_features_do_not_depend_on_what_was_asked_before(config: RewardConfig) -> None:
    torch.manual_seed(0)
    first = FaceRewardModel.from_config(config).eval().requires_grad_(False)
    second = copy.deepcopy(first)  # after a resume it knows no caption
    first.text_features(["one", "two"])
    assert torch.equal(first.text_features(["one", "three"]), second.text_features(["one", "three"]))


def test_text_is_encoded_once_while_frozen_and_again_after_it_changed(
    model: FaceRewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = model.clip.encode_text
    monkeypatch.setattr(model.clip, "encode_text", lambda tokens: (encoded.append(len(tokens)), encode(tokens))[1])
    before = model.text_features(["one", "two", "one"])
    model.text_features(["two"])
    assert encoded == [1, 1]
    with torch.no_grad():
        model.clip.token_embedding.weight.add_(torch.randn_like(model.clip.token_embedding.weight))
    assert not torch.equal(model.text_features(["one", "two", "one"]), before)


def test_saved_model_scores_the_same(model: FaceRewardModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "frm")
    assert sorted(path.name for path in (tmp_path / "frm").iterdir()) == ["config.json", "model.safetensors"]
    loaded = FaceRewardModel.from_pretrained(tmp_path / "frm")
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = pictures(2)
    np.testing.assert_array_equal(loaded.score(images, ["", ""], 2), model.score(images, ["", ""], 2))
    assert loaded.config.default_caption == "a face"


def test_saved_bytes_are_the_same_twice(model: FaceRewardModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_missing_folder_says_what_to_rerun(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing; rerun `dvc repro frm`"):
        FaceRewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b"{", "config.json: not JSON"),
        ("config.json", b"{}", "config.json.architecture: "),
        ("model.safetensors", b"cut", "model.safetensors: not this architecture's weights"),
    ],
)
def test_a_damaged_model_is_one_clear_error(
    model: FaceRewardModel, tmp_path: Path, file: str, content: bytes, said: str
) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        FaceRewardModel.from_pretrained(tmp_path)


def test_kept_caption_features_are_never_in_half_precision(config: RewardConfig) -> None:
    torch.manual_seed(0)
    model = FaceRewardModel.from_config(config).eval().requires_grad_(False)
    other = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        asked_first = model.text_features(["one"])
    assert torch.equal(asked_first, other.text_features(["one"]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_checkpoint_is_loaded(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(1)
    official = CLIP(**SCALED).eval()
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 1, "state_dict": {prefix + k: v for k, v in official.state_dict().items()}}, path)
    config = RewardConfig.model_validate({"architecture": SCALED, "default_caption": "a face"})
    model = FaceRewardModel.from_config(config).eval()
    model.load_official(path)
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    expected = official.encode_image(((images + 1) / 2 - model.mean) / model.std, normalize=True)
    torch.testing.assert_close(model.image_features(images), expected)
    assert float(model.logit_scale) == pytest.approx(float(official.logit_scale.exp()))


def test_missing_checkpoint_names_file_source_and_place(config: RewardConfig) -> None:
    model = FaceRewardModel.from_config(config)
    with pytest.raises(UserError, match=r"weights/HPS_v2_compressed\.pt is missing.*HPSv2 project.*put it there"):
        model.load_official("weights/HPS_v2_compressed.pt")


def test_checkpoint_of_another_architecture_is_refused(config: RewardConfig, tmp_path: Path) -> None:
    torch.save({"state_dict": CLIP(**SCALED).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: \d+ weights don't fit this architecture"):
        FaceRewardModel.from_config(config).load_official(tmp_path / "other.pt")
    torch.save({"params": {}}, tmp_path / "none.pt")
    with pytest.raises(UserError, match="no `state_dict`"):
        FaceRewardModel.from_config(config).load_official(tmp_path / "none.pt")


def blocks(prefix: str, count: int, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a transformer's residual blocks in an OpenCLIP checkpoint."""
    one: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **{f"ln_{index}.{kind}": (width,) for index in (1, 2) for kind in ("weight", "bias")},
    }
    return {f"{prefix}.{index}.{name}": shape for index in range(count) for name, shape in one.items()}


def test_vit_h_14_has_the_official_keys_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in CLIP(**open_clip_config("ViT-H-14")).state_dict().items()}
    assert shapes == {
        "logit_scale": (),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "token_embedding.weight": (49408, 1024),
        "ln_final.weight": (1024,),
        "ln_final.bias": (1024,),
        **blocks("transformer.resblocks", 24, 1024),
        "visual.class_embedding": (1280,),
        "visual.positional_embedding": (257, 1280),
        "visual.proj": (1280, 1024),
        "visual.conv1.weight": (1280, 3, 14, 14),
        **{f"visual.ln_{place}.{kind}": (1280,) for place in ("pre", "post") for kind in ("weight", "bias")},
        **blocks("visual.transformer.resblocks", 32, 1280),
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 986_109_441


def test_vit_h_14_is_loaded_from_a_file_of_the_real_shapes(tmp_path: Path) -> None:
    """Half precision as published; each weight is one random row repeated, of which torch saves the row alone."""
    config = RewardConfig.model_validate({"architecture": "ViT-H-14", "default_caption": "a face"})
    with torch.device("meta"):
        model = FaceRewardModel(CLIP(**open_clip_config("ViT-H-14")), config)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape[-1:], generator=generator).half().expand(value.shape)
        for name, value in model.clip.state_dict().items()
    }
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": state}, path)
    assert path.stat().st_size < 10 * 2**20
    model.to_empty(device="cpu").load_official(path)
    loaded = model.clip.state_dict()
    assert loaded.keys() == state.keys()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert [name for name, value in loaded.items() if not torch.equal(value, state[name].float())] == []


def test_a_text_tower_of_a_model_hub_is_refused_before_it_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"frm\.reward\.architecture: its text tower comes from a model hub"):
        open_clip_config("xlm-roberta-base-ViT-B-32", "frm.reward")


@pytest.mark.parametrize("changes", [{"vocab_size": 32000}, {"hf_tokenizer_name": "bert-base-uncased"}])
def test_a_text_tower_of_other_tokens_is_refused(changes: dict[str, Any]) -> None:
    """Captions are turned into CLIP's: others would be an index out of range, or nonsense."""
    content = architecture().model_dump()
    content["text_cfg"] |= changes
    with pytest.raises(UserError, match="its text tower reads other tokens than CLIP's 49408"):
        open_clip_config(Architecture.model_validate(content))
    with pytest.raises(UserError, match="other tokens"):
        open_clip_config("ViT-H-14-CLIPA")


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(UserError, match="no model `ViT-Q-14`"):
        open_clip_config("ViT-Q-14")
    with pytest.raises(UserError, match="no `widht`"):
        open_clip_config(architecture(widht=3))


def test_unlock_counts_groups_from_the_end(config: RewardConfig) -> None:
    model = FaceRewardModel.from_config(config)
    model.unlock(image_groups=2, text_layers=0)
    trained = {name for name, parameter in model.clip.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 1)[0] for name in trained if "ln_post" in name} == {"visual.ln_post"}
    assert "visual.proj" in trained
    assert any(name.startswith("visual.transformer.resblocks.1.") for name in trained)
    assert not any(name.startswith(("visual.transformer.resblocks.0.", "transformer.", "token_")) for name in trained)
    model.unlock(image_groups=None, text_layers=None)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_group_of_a_timm_tower_leaves_nothing_of_it_to_train(config: RewardConfig) -> None:
    tower = {"image_size": 32, "timm_model_name": "test_nfnet", "timm_pool": "avg", "timm_proj": "linear"}
    shape = config.architecture.model_copy(update={"vision_cfg": tower})  # type: ignore[union-attr]
    model = FaceRewardModel.from_config(config.model_copy(update={"architecture": shape}))
    model.unlock(image_groups=0, text_layers=None)
    assert not any(parameter.requires_grad for parameter in model.clip.visual.parameters())
    model.unlock(image_groups=1, text_layers=None)
    assert all(parameter.requires_grad for parameter in model.clip.visual.head.parameters())


def test_partly_locked_resnet_is_refused() -> None:
    config = RewardConfig(
        architecture=architecture(layers=[1, 1, 1, 1], width=8, patch_size=16), default_caption="a face"
    )
    with pytest.raises(UserError, match="unlocked_image_groups"):
        FaceRewardModel.from_config(config).unlock(2, 0)


def test_a_cut_checkpoint_is_one_clear_error(model: FaceRewardModel, tmp_path: Path) -> None:
    whole, cut = tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "cut.pt"
    torch.save({"state_dict": model.clip.state_dict()}, whole)
    for content in (whole.read_bytes()[:-500], b"no checkpoint"):
        cut.write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.pt: not a whole checkpoint"):
            model.load_official(cut)


def test_pretrained_weights_load_by_tensor_name(model: FaceRewardModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert "clip.visual.proj" in load_file(tmp_path / "model.safetensors")
