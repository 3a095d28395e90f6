"""What every metric is, as data: what it needs, which way is better, from which size it is valid, who has used it.

Roles say what a metric may still prove: "held_out" is only what no loss, label, SVM or selection has seen. Left out of
pyiqa on purpose: `mad`, 0.0 for plainly noisy pairs at 64 px, and `maniqa`, which scores random crops and fetches a
backbone from a model hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.params import UserError

Needs = Literal["blind", "lq", "reference"]
ROLES = frozenset({"in_loss", "in_labels", "in_svm", "selects", "held_out"})


@dataclass(frozen=True)
class Metric:
    """One metric. `needs`: the image alone, the degraded input, or the original (HQ)."""

    name: str
    label: str
    higher_is_better: bool
    needs: Needs
    min_size: int = 16  # px of the shorter side
    roles: frozenset[str] = frozenset()
    pyiqa: str | None = None  # its name in pyiqa, where pyiqa computes it
    options: tuple[tuple[str, object], ...] = ()  # of pyiqa, where its default is not what the label says
    weights: tuple[str, ...] = ()  # files under weights/hub, in torch.hub's layout, that must be there

    @property
    def reference(self) -> bool:
        """Whether it needs the original (HQ)."""
        return self.needs == "reference"


def _metric(name: str, label: str, better: str, needs: Needs, roles: str = "", **more: object) -> Metric:
    return Metric(name, label, better == "higher", needs, roles=frozenset(roles.split()), **more)  # type: ignore[arg-type]


_VGG16 = "checkpoints/vgg16-397923af.pth"
_ALL = (
    # identity and landmarks
    _metric("id_dlib", "Identity distance (dlib ResNet)", "lower", "reference", "held_out", min_size=32),
    _metric("lmd_68", "Landmark distance, px (68 points)", "lower", "reference", "selects", min_size=32),
    # perceptual distance
    _metric("stlpips_vgg", "ST-LPIPS (VGG)", "lower", "reference", "in_loss", min_size=32),
    _metric("stlpips_alex", "ST-LPIPS (AlexNet)", "lower", "reference", min_size=32),
    _metric(
        *("lpips_vgg", "LPIPS (VGG)", "lower", "reference"),
        min_size=32,
        pyiqa="lpips-vgg",
        weights=(_VGG16, "pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"),
    ),
    _metric(
        *("lpips_alex", "LPIPS (AlexNet)", "lower", "reference"),
        min_size=64,
        pyiqa="lpips",
        weights=("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"),
    ),
    _metric(
        *("dists", "DISTS", "lower", "reference"),
        min_size=64,
        pyiqa="dists",
        weights=(_VGG16, "pyiqa/DISTS_weights-f5e65c96.pth"),
    ),
    # signal fidelity to the original
    _metric("psnr", "PSNR, dB (RGB)", "higher", "reference"),
    _metric("ssim", "SSIM (RGB)", "higher", "reference"),
    _metric(
        *("ms_ssim", "MS-SSIM (RGB)", "higher", "reference"),
        min_size=161,
        pyiqa="ms_ssim",
        options=(("test_y_channel", False),),
    ),
    _metric("cw_ssim", "CW-SSIM (Y)", "higher", "reference", min_size=32, pyiqa="cw_ssim"),
    _metric("gmsd", "GMSD (Y)", "lower", "reference", pyiqa="gmsd"),
    _metric("nlpd", "NLPD (Y)", "lower", "reference", min_size=64, pyiqa="nlpd"),
    _metric("fsim", "FSIM (colour)", "higher", "reference", min_size=32, pyiqa="fsim"),
    _metric("vsi", "VSI", "higher", "reference", min_size=32, pyiqa="vsi"),
    _metric("vif", "VIF (Y)", "higher", "reference", min_size=48, pyiqa="vif"),
    # fidelity to the degraded input: the one thing that is known about a photo from the wild
    _metric("lq_l1", "Down-consistency with the LQ (L1)", "lower", "lq", "in_svm"),
    _metric("lq_psnr", "Down-consistency with the LQ, dB (PSNR)", "higher", "lq", "in_svm"),
    _metric("lq_ssim", "SSIM with the LQ (RGB)", "higher", "lq", "in_svm"),
    _metric("lq_gmsd", "GMSD from the LQ (Y)", "lower", "lq", "in_svm", pyiqa="gmsd"),
    _metric("lq_nlpd", "NLPD from the LQ (Y)", "lower", "lq", "in_svm", min_size=64, pyiqa="nlpd"),
    # blind quality
    _metric("sharpness", "Sharpness (log variance of the Laplacian)", "higher", "blind", "in_svm"),
    _metric("sharpness_eyes", "Sharpness of the eyes", "higher", "blind", "in_svm", min_size=32),
    _metric("sharpness_mouth", "Sharpness of the mouth", "higher", "blind", "in_svm", min_size=32),
    _metric("sharpness_skin", "Sharpness of the cheeks' skin", "higher", "blind", "in_svm", min_size=32),
    _metric("noise", "Noise, of 255 (Immerkær)", "lower", "blind", "in_svm"),
    _metric("blockiness", "Blockiness (8 × 8 grid)", "lower", "blind", "in_svm"),
    _metric("colourfulness", "Colourfulness (Hasler & Süsstrunk)", "higher", "blind", "in_svm"),
    _metric("entropy", "Entropy, bit (luma)", "higher", "blind", "in_svm"),
    _metric("piqe", "PIQE", "lower", "blind", "in_svm", min_size=32, pyiqa="piqe"),
    _metric("niqe", "NIQE (basicsr's parameters)", "lower", "blind", "in_svm", min_size=192),  # two 96 px blocks a side
    _metric(
        *("brisque", "BRISQUE", "lower", "blind", "in_svm"),
        min_size=32,
        pyiqa="brisque",
        weights=("pyiqa/brisque_svm_weights.pth",),
    ),
    _metric(
        *("ilniqe", "IL-NIQE", "lower", "blind", "in_svm"), pyiqa="ilniqe", weights=("pyiqa/ILNIQE_templateModel.mat",)
    ),
    _metric(
        *("musiq", "MUSIQ (KonIQ)", "higher", "blind", "in_svm"),
        min_size=32,
        pyiqa="musiq",
        weights=("pyiqa/musiq_koniq_ckpt-e95806b9.pth",),
    ),
    _metric(
        *("topiq_nr", "TOPIQ (KonIQ)", "higher", "blind", "in_svm"),
        min_size=64,
        pyiqa="topiq_nr",
        options=(("backbone_pretrain", False),),  # the checkpoint holds the backbone as well
        weights=("pyiqa/cfanet_nr_koniq_res50-9a73138b.pth",),
    ),
    _metric(
        *("topiq_face", "TOPIQ for faces (CGFIQA)", "higher", "blind", "in_svm"),
        min_size=64,
        pyiqa="topiq_nr-face",
        options=(("backbone_pretrain", False), ("align_crop_face", False)),  # the crops are aligned already
        weights=("pyiqa/topiq_nr_cgfiqa_res50-0a8b8e4f.pth",),
    ),
    _metric(
        *("clipiqa", "CLIP-IQA", "higher", "blind", "in_svm"), min_size=64, pyiqa="clipiqa", weights=("clip/RN50.pt",)
    ),
    _metric(
        *("dbcnn", "DBCNN (KonIQ)", "higher", "blind", "in_svm"),
        min_size=64,
        pyiqa="dbcnn",
        weights=(_VGG16, "pyiqa/DBCNN_scnn-7ea73d75.pth", "pyiqa/DBCNN_KonIQ10k-2de81c0a.pth"),
    ),
    # rewards: computed by the reward models, beside the rest in the tables
    _metric("reward_frm", "Reward (FRM)", "higher", "blind", "in_loss"),
    _metric("reward_heldout", "Reward (held-out FRM)", "higher", "blind", "held_out"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
REWARDS = ("reward_frm", "reward_heldout")


def known(names: Iterable[str], where: str) -> list[Metric]:
    """The metrics of these names. Raises UserError, starting with `where`, for a name that is not in the catalogue."""
    names = list(names)
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"{where}: unknown metric `{unknown[0]}`; known: {', '.join(METRICS)}")
    return [METRICS[name] for name in names]
