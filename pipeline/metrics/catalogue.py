"""What every metric is, as data: what it needs, which way is better, from which size it is valid, who has used it.

Beside these, `pyiqa:NAME` is any image metric of pyiqa by its own name, with pyiqa's defaults, and `pyiqa:blind` among
the features stands for every other blind one whose weights are on disk. Roles say what a metric may still prove:
"held_out" is only what is in no loss, label or SVM and has selected no checkpoint (recipes were compared on faces of
val and preference with it in view). ArcFace's angles are not: official GFPGAN was trained with that network in its
loss. Left out on purpose: pyiqa's `mad` and `maniqa` (`REFUSED`); an identity angle of dlib's embedding, which was
trained for Euclidean distances (`id_dlib`), not for angles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pipeline.params import UserError

Needs = Literal["blind", "lq", "reference", "set"]
ROLES = frozenset({"in_loss", "in_labels", "in_svm", "selects", "held_out"})
STANDARD, VQFR = "standard", "VQFR-compatible"  # protocols: ours, and that behind the published tables
PYIQA = "pyiqa:"  # prefix of metrics taken from pyiqa by name
PYIQA_BLIND = f"{PYIQA}blind"  # as a feature: all blind metrics of pyiqa with weights on disk that aren't named here
TWINS = {"stlpips": "stlpips_alex", "stlpips-vgg": "stlpips_vgg"}  # pyiqa's names of what is computed elsewhere here
REFUSED = {  # of pyiqa, by its names: what they say is wrong here
    "mad": "it gives 0.0 for plainly noisy pairs of 64 px",
    **dict.fromkeys(("maniqa", "maniqa-kadid", "maniqa-pipal"), "it fetches a backbone from a model hub"),
}


@dataclass(frozen=True)
class Metric:
    """One metric. `needs`: the image alone, the degraded input, the original (HQ), or a whole set of images."""

    name: str
    label: str
    higher_is_better: bool
    needs: Needs
    min_size: int = 16  # px of the shorter side
    roles: frozenset[str] = frozenset()
    pyiqa: str | None = None  # its name in pyiqa, where pyiqa computes it
    options: tuple[tuple[str, object], ...] = ()  # of pyiqa, where its default is not what the label says
    weights: tuple[str, ...] = ()  # files under weights/hub, in torch.hub's layout, that must be there
    obtain: str = ""  # where these files come from; empty: pyiqa fetches them on a machine with network
    protocols: tuple[str, ...] = (STANDARD,)
    drops: bool = False  # whether its protocol leaves out some images (NaN): counted, never silent

    @property
    def reference(self) -> bool:
        """Whether it needs the original (HQ)."""
        return self.needs == "reference"


def _metric(name: str, label: str, better: str, needs: Needs, roles: str = "", **more: object) -> Metric:
    return Metric(name, label, better == "higher", needs, roles=frozenset(roles.split()), **more)  # type: ignore[arg-type]


_VGG16 = "checkpoints/vgg16-397923af.pth"
_ARCFACE = "vqfr/resnet18_110.pth"
_ARCFACE_FROM = "put resnet18_110.pth of VQFR's metric weights there (or GFPGAN's arcface_resnet18.pth under its name)"
_ALL = (
    # identity and landmarks
    _metric("id_dlib", "Identity distance (dlib ResNet)", "lower", "reference", "held_out", min_size=32),
    _metric("lmd_68", "Landmark distance, px (68 points)", "lower", "reference", "selects", min_size=32),
    _metric(
        *("lmd_98", "Landmark distance, px (AWing, 98 points)", "lower", "reference"),
        min_size=32,
        weights=("facexlib/alignment_WFLW_4HG.pth",),
        obtain="put alignment_WFLW_4HG.pth of facexlib's release v0.1.0 there",
        protocols=(STANDARD, VQFR),
    ),
    _metric(
        *("deg_arcface", "Identity angle, degrees (ArcFace ResNet-18)", "lower", "reference"),
        min_size=32,
        weights=(_ARCFACE,),
        obtain=_ARCFACE_FROM,
    ),
    _metric(
        *("deg_arcface_vqfr", "Identity angle, degrees (pairs under 1° dropped)", "lower", "reference"),
        min_size=32,
        weights=(_ARCFACE,),
        obtain=_ARCFACE_FROM,
        protocols=(VQFR,),
        drops=True,
    ),
    # perceptual distance
    _metric("stlpips_vgg", "ST-LPIPS (VGG)", "lower", "reference", "in_loss", min_size=32),
    _metric("stlpips_alex", "ST-LPIPS (AlexNet)", "lower", "reference", "in_loss", min_size=32),
    _metric(
        *("lpips_vgg", "LPIPS (VGG)", "lower", "reference"),
        min_size=32,
        pyiqa="lpips-vgg",
        weights=(_VGG16, "pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"),
        protocols=(STANDARD, VQFR),  # pyiqa takes it from [0, 1] to the network's [-1, 1]
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
    # the mean square of pixels is what ReFL's low-pass loss is where it has no levels
    _metric("psnr", "PSNR, dB (RGB)", "higher", "reference", "in_loss"),
    _metric("ssim", "SSIM (RGB)", "higher", "reference"),
    _metric("psnr_vqfr", "PSNR, dB (RGB, colour statistics matched)", "higher", "reference", protocols=(VQFR,)),
    _metric("ssim_vqfr", "SSIM (RGB, colour statistics matched)", "higher", "reference", protocols=(VQFR,)),
    _metric(
        *("ms_ssim", "MS-SSIM (RGB)", "higher", "reference"),
        min_size=161,
        pyiqa="ms_ssim",
        options=(("test_y_channel", False),),
    ),
    _metric("cw_ssim", "CW-SSIM (Y)", "higher", "reference", min_size=64, pyiqa="cw_ssim"),  # four levels of a pyramid
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
_INCEPTION = "pyiqa/pt_inception-2015-12-05-6726825d.pth"
_SETS = (
    # one number for a whole set of images: a Fréchet distance between Gaussians fitted to features
    _metric("frechet_dlib", "Fréchet distance (dlib identity embedding)", "lower", "set", "held_out", min_size=32),
    _metric("fid", "FID (Inception, clean resizing)", "lower", "set", min_size=32, weights=(_INCEPTION,)),
    _metric(
        *("fid_vqfr", "FID against FFHQ-512 (Inception)", "lower", "set"),
        min_size=32,
        weights=(_INCEPTION, "vqfr/inception_FFHQ_512.pth"),
        obtain="put inception_FFHQ_512.pth of VQFR's metric weights there, and pyiqa's Inception weights",
        protocols=(VQFR,),
    ),
)
SET_METRICS: dict[str, Metric] = {metric.name: metric for metric in _SETS}


_OF_SETS = frozenset({"fid", "sfid", "fid_dinov2", "inception_score"})  # of pyiqa, among its metrics of images


def known(names: Iterable[str], where: str, beside: Collection[str] = ()) -> list[Metric]:
    """The metrics of these names. Raises UserError, starting with `where`, for a name that is not in the catalogue.

    `beside`: names of SET_METRICS that are valid there, too.
    """
    found = []
    for name in names:
        if name not in METRICS and name not in beside and not name.startswith(PYIQA):
            listed = ", ".join((*METRICS, *beside, f"{PYIQA}NAME"))
            raise UserError(f"{where}: unknown metric `{name}`; known: {listed}")
        found.append(get(name))
    return found


def get(name: str) -> Metric:
    """One metric, of an image or a set. Raises UserError for a `pyiqa:NAME` that pyiqa doesn't have, else KeyError."""
    if name.startswith(PYIQA):
        return _of_pyiqa(name.removeprefix(PYIQA))
    return METRICS[name] if name in METRICS else SET_METRICS[name]


def other_blind() -> list[str]:
    """`pyiqa:NAME` of every blind image metric that pyiqa has and this catalogue neither has nor refuses."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    ours = {metric.pyiqa for metric in _ALL} | set(METRICS) | set(REFUSED) | _OF_SETS
    names = [name for name, config in DEFAULT_CONFIGS.items() if config["metric_mode"] == "NR" and name not in ours]
    return [f"{PYIQA}{name}" for name in sorted(names)]


@cache
def _of_pyiqa(name: str) -> Metric:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if name in REFUSED:
        raise UserError(f"{PYIQA}{name} is left out: {REFUSED[name]}")
    config = DEFAULT_CONFIGS.get(name, {})
    if config.get("metric_mode") not in ("FR", "NR") or name in _OF_SETS:
        raise UserError(f"{PYIQA}{name}: pyiqa has no image metric `{name}`; `pyiqa -ls` lists its names")
    needs: Needs = "reference" if config["metric_mode"] == "FR" else "blind"
    same = (one.roles for one in METRICS.values() if one.pyiqa == name or one.name == TWINS.get(name))
    roles, higher = frozenset[str]().union(*same), not config.get("lower_better", False)
    # a checkpoint of TOPIQ's holds the backbone as well
    options = (("backbone_pretrain", False),) if name.startswith("topiq_") else ()
    return Metric(f"{PYIQA}{name}", f"pyiqa's {name}", higher, needs, roles=roles, pyiqa=name, options=options)
