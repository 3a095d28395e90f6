"""A synthetic run in the formats of the contracts: every section of the report has something to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image, ImageDraw, ImageFilter

from pipeline import tables
from pipeline.evaluation.restoring import RESTORED, table_folder
from pipeline.evaluation.summary import Comparison, benchmark, restorer_comparisons
from pipeline.images import Pixels, encode_png
from pipeline.runtime import rng, stable_hash, write_json, write_text

FRM_MINUS = {"mean": 0.131, "ci95": [0.08, 0.18]}
VARIANTS = ("base", "full", "no_reward", "more_base", "structure", "reward", "static")
RESTORERS = ("diffbir", "osediff", "gfpgan")
EXTERNAL = "codeformer/base"  # somebody's results for the test faces: benchmark.external
REPORT = {
    "title": "DiffusionReward on drawn faces",
    "first_faces": 20,
    "worst_faces": 10,
    "worst_by": "id_dlib",
    "zoom_faces": 3,
    "headline": ["id_dlib", "lmd_68", "stlpips_vgg"],
    "smallest_loss": 0.005,
    "notes": {"scores": "These recipes were tuned on val.", "evidence": "These pairs were in view."},
}
# mean, spread over faces, and the shift of each variant from the LQ; an ablation that isn't named lies at `no_reward`
METRICS: dict[str, tuple[float, float, dict[str, float]]] = {
    "id_dlib": (0.55, 0.05, {"base": 0.06, "full": 0.01, "no_reward": 0.012, "more_base": 0.055}),
    "lmd_68": (1.10, 0.20, {"base": 0.0, "full": -0.14, "no_reward": -0.13, "more_base": -0.01}),
    "stlpips_vgg": (0.58, 0.06, {"base": -0.14, "full": -0.37, "no_reward": -0.34, "more_base": -0.15}),
    "psnr": (21.1, 1.5, {"base": -1.2, "full": -0.6, "no_reward": -0.5, "more_base": -1.1}),
    "reward_frm": (0.21, 0.03, {"base": 0.05, "full": 0.12, "no_reward": 0.07, "more_base": 0.05}),
    "reward_heldout": (0.18, 0.03, {"base": 0.04, "full": 0.08, "no_reward": 0.06, "more_base": 0.04}),
}


def draw_face(face_id: str, size: int = 64) -> Pixels:
    """A drawn face whose colours and proportions follow from its id."""
    draw_from = rng("face", face_id)
    skin = tuple(int(v) for v in draw_from.integers((150, 110, 90), (240, 190, 170)))
    image = Image.new("RGB", (size, size), tuple(int(v) for v in draw_from.integers(40, 220, 3)))
    pen, unit = ImageDraw.Draw(image), size / 64
    pen.ellipse([11 * unit, 8 * unit, 53 * unit, 62 * unit], fill=skin)
    eye = float(draw_from.uniform(3, 5)) * unit
    for x in (24 * unit, 40 * unit):
        pen.ellipse([x - eye, 30 * unit - eye / 2, x + eye, 30 * unit + eye / 2], fill="white")
        pen.ellipse([x - 1.6 * unit, 28.4 * unit, x + 1.6 * unit, 31.6 * unit], fill="#302018")
    pen.line([32 * unit, 30 * unit, 30 * unit, 40 * unit, 34 * unit, 40 * unit], fill="#80604c")
    pen.arc([24 * unit, 40 * unit, 40 * unit, 52 * unit], 20, 160, fill="#a02838", width=max(1, round(2 * unit)))
    return np.asarray(image)


def blurred(image: Pixels, sigma: float) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _shift(shifts: dict[str, float], variant: str) -> float:
    return shifts.get(variant, shifts["no_reward"] if variant in VARIANTS else 0.0)


def scores(ids: list[str]) -> list[dict[str, Any]]:
    rows = []
    faces = {name: rng("face level", name).normal(size=len(ids)) for name in METRICS}
    for model in ["lq", "hq", EXTERNAL, *(f"{r}/{v}" for r in RESTORERS for v in VARIANTS)]:
        variant = model.partition("/")[2]
        columns = {}
        for name, (mean, spread, shifts) in METRICS.items():
            own = rng("own", model, name).normal(size=len(ids)) * spread * 0.3
            columns[name] = mean + spread * faces[name] + own + _shift(shifts, variant)
            if model == "hq":
                columns[name] = columns[name] + 0.15 if name.startswith("reward") else np.full(len(ids), np.nan)
        for place, face_id in enumerate(ids):
            values = {name: float(column[place]) for name, column in columns.items()}
            rows.append({"dataset": "test", "model": model, "face_id": face_id, **values})
    return rows


def write_tables(root: Path, ids: list[str], size: int) -> list[dict[str, Any]]:
    cell = tables.image_cell
    hq = {face_id: draw_face(face_id, size) for face_id in ids}
    drawn = rng("degradation")
    tables.write(
        tables.FACES,
        root / "data/faces",
        [
            {"face_id": i, "image": cell(encode_png(hq[i]), i), "width": size, "height": size, "source": "drawn"}
            | {"group_id": i, "caption": "", "split": "test"}
            for i in ids
        ],
    )
    tables.write(
        tables.DEGRADED,
        root / "data/degraded",
        [
            {"face_id": i, "image": cell(encode_png(blurred(hq[i], size / 26)), i), "blur_kind": "iso"}
            | {"blur_sigma_x": drawn.uniform(0.2, 1.5), "blur_sigma_y": 1.0, "blur_angle": 0.0, "seed": 1}
            | {"scale": drawn.uniform(1, 3), "noise_sigma": drawn.uniform(0, 10)}
            | {"jpeg_quality": int(drawn.integers(50, 95))}
            for i in ids
        ],
    )
    sharpness = {"base": 38, "full": 90, "more_base": 42}
    for model in [EXTERNAL, *(f"{r}/{v}" for r in RESTORERS for v in VARIANTS)]:
        width = size / sharpness.get(model.partition("/")[2], 80)
        tables.write(
            RESTORED,
            table_folder(root / "data/restored", "test", model),
            [
                {
                    "model": model,
                    "face_id": i,
                    "sample": 0,
                    "seed": 1,
                    "image": cell(encode_png(blurred(hq[i], width)), i),
                }
                for i in ids
            ],
        )
    rows = scores(ids)
    tables.write(tables.SCORES, root / "data/scores", rows)
    tables.write(
        tables.VOTES,
        root / "data/votes",
        [
            {"event_id": f"{a}-{k}", "round_id": "", "pair_id": str(k), "annotator": f"sim-{a}", "winner": "a"}
            | {"annotator_kind": "simulated", "displayed_left": "a", "shown_reference": False, "response_ms": 0}
            | {"round": 0, "at": "", "undone_by": ""}
            for a in range(4)
            for k in range(300)
        ],
    )
    return rows


def further() -> dict[str, Any]:
    """The keys of metrics/benchmark.json that a run may lack."""
    by_model = {r: {"base": 31.5, "refl": 24.25} for r in RESTORERS}
    made_by = {"weights": {}, "library": {}}
    held_out = {"roles": ["held_out"], "protocols": ["standard"]}
    interval = {"mean": 0.123, "ci95": [0.111, 0.135], "n": 24}
    names = [f"{r}/{v}" for r in RESTORERS for v in ("base", "full")] + ["lq"]
    strengths = {
        m: {"strength": 0.5 - k / 4, "ci95": [0.4 - k / 4, 0.6 - k / 4], "win_rate": 0.7 - k / 12}
        for k, m in enumerate(names)
    }
    judge = {"n": 24, "faces": 24, "comparisons": 504, "ties": 3, "models": strengths, "wins": {}}
    return {
        "frechet": {
            "test": {
                "frechet_dlib": {
                    **{"label": "Fréchet distance (dlib ResNet)", "features": "dlib's 128-D embedding", "dims": 128},
                    **{"against": "the HQ test faces", "n_reference": 24, "floor": 3.125, "note": "n is small."},
                    "scores": {
                        **{r: {v: {"value": x, "n": 24} for v, x in one.items()} for r, one in by_model.items()},
                        "lq": {"base": {"value": 55.75, "n": 24}},
                    },
                    **held_out,
                    **made_by,
                }
            }
        },
        "diversity": {
            "test": {
                **{"metric": "stlpips_vgg", "label": "ST-LPIPS (VGG)", "samples": 3, "n": 24, **made_by},
                "scores": {r: {"base": interval, "refl": interval} for r in RESTORERS},
                "improvement": {
                    "diffbir": {"delta": -0.0421, "ci95": [-0.0512, -0.0333], "p": 0.001, "n": 24}
                    | {"better": False, "worse": True}
                },
            }
        },
        "bradley_terry": {
            "test": {"reward_heldout": judge | {"label": "Reward (held-out FRM)", "roles": ["held_out"]}},
            "preference": {"simulated": judge | {"label": "simulated annotators", "roles": ["in_labels"]}},
        },
        "seeds": {
            "test": {
                "diffbir": {
                    "refl": {"id_dlib": {"n": 2, "mean": 0.5612, "std": 0.0034, "values": [0.5588, 0.5636]}},
                    "refl-base": {
                        "id_dlib": {"n": 2, "mean": -0.0499, "std": 0.0041, "values": [-0.0528, -0.047]},
                    },
                }
            }
        },
        "restorers": {r: {"params": 1_834_211, "flops": 2_345_678_901, "size": 64} for r in RESTORERS},
    }


def write_metrics(root: Path, rows: list[dict[str, Any]], with_further: bool) -> None:
    result = benchmark(
        "test",
        pd.DataFrame(rows),
        [
            *(one for name in RESTORERS for one in restorer_comparisons(name, VARIANTS)),
            Comparison(EXTERNAL.partition("/")[0], "base-lq", EXTERNAL, "lq"),
        ],
        {"niqe": "valid from 192 px, these images have 64 px"},
        {"id_dlib": {"mean": 0.66, "p5": 0.544, "n": 24}},
        {
            "weights": {"id_dlib": {"dlib_face_recognition_resnet_model_v1.dat": "0123456789abcdef"}},
            "versions": {"torch": "2.15.0"},
            "cpu": "Example CPU",
            "threads": 2,
            "device": "cpu",
        },
        resamples=500,
        seed=0,
    )
    write_json(
        root / "metrics/benchmark.json",
        result
        | {"labels": dict.fromkeys(("reward_frm", "reward_heldout"), "simulated")}
        | (further() if with_further else {}),
    )
    for restorer in RESTORERS:
        for variant in VARIANTS[1:]:
            ends = {"val_reward": 0.25, "val_reward_heldout": 0.22, "val_id_dlib": 0.62, "val_lmd_68": 1.1}
            kept = {
                "step": 150.0,
                "val_reward": 0.31,
                "val_reward_heldout": 0.21,
                "val_id_dlib": 0.57,
                "val_lmd_68": 1.0,
            }
            report = {"first": {"step": 0.0, **ends}, "last": kept, "kept": kept}
            write_json(root / f"metrics/refl/{restorer}-{variant}.json", report)
    headline = {"accuracy": 0.872, "ci95": [0.83, 0.91], "n": 240, "faces": 36}
    write_json(
        root / "metrics/frm.json",
        {
            "headline": headline,
            "best_blind_feature": {"name": "sharpness_eyes", "accuracy": 0.741, "frm_minus": FRM_MINUS},
            "anchors": {"hq": {"accuracy": 0.97, "n": 120}},
            "robustness": {"blur": {"strength": [None, 0.5, 1.0], "reward": [0.4, 0.3, 0.2], "monotone": True}},
            "labels": "simulated",
        },
    )
    by_share = [
        {
            "share": part,
            "votes": headline | {"accuracy": 0.7 + part / 10, "pairs": round(900 * part), "fit_faces": 80},
            "votes+svm": headline | {"accuracy": 0.72 + part / 10, "pairs": round(1300 * part), "fit_faces": 80},
            "gain": {"mean": 0.02, "ci95": [0.004, 0.036]},
        }
        for part in (0.25, 1.0)
    ]
    write_json(
        root / "metrics/frm_learning.json", {"steps": 400, "seeds": 1, "labels": "simulated", "shares": by_share}
    )
    write_json(
        root / "metrics/svm.json",
        {"accuracy": 0.83, "coverage": 0.86, "ci95": [0.80, 0.86], "n": 900, "kernel": "linear"},
    )


def write_plots(root: Path) -> None:
    steps = np.arange(0, 210, 10)
    for restorer in RESTORERS:
        for variant in VARIANTS[1:]:
            noise = rng("curve", restorer, variant)
            frame = pd.DataFrame({"step": steps, "loss": np.exp(-steps / 80) + noise.normal(size=len(steps)) * 0.02})
            frame["reward"] = np.nan if variant == "more_base" else 0.25 + steps * 5e-4
            every = steps % 50 == 0
            pull = 0.6 if variant == "full" else 0.3
            frame["val_reward"] = np.where(every, 0.25 + pull * steps / 1000, np.nan)
            frame["val_reward_heldout"] = np.where(every, 0.22 + 0.5 * pull * steps / 1000, np.nan)
            frame["val_id_dlib"] = np.where(every, 0.62 - 0.06 * np.sqrt(steps / 200), np.nan)
            frame["val_lmd_68"] = np.where(every, 1.1 - 0.1 * np.sqrt(steps / 200), np.nan)
            write_text(root / f"plots/refl/{restorer}-{variant}.csv", frame.to_csv(index=False, float_format="%.5g"))
    frames = {
        "frm_training": [
            {"step": s, "loss": 0.7 - s / 2000, "select_accuracy": 0.5 + s / 1500, "model": m}
            for m in ("reward", "heldout")
            for s in range(0, 500, 50)
        ],
        "frm_calibration": [
            {"confidence": c, "agreement": c - 0.02, "n": 50, "model": "reward"} for c in (0.6, 0.75, 0.9)
        ],
        "frm_robustness": [
            {
                "damage": d,
                "level": level,
                "strength": level * 0.5 if level else "",
                "reward": 0.4 - level * 0.06,
                "model": m,
            }
            for m in ("reward", "heldout")
            for d in ("blur", "noise")
            for level in range(4)
        ],
        "frm_learning": [
            {"share": s, "labels": name, "accuracy": 0.7 + s / 10, "lo": 0.65, "hi": 0.85}
            for name in ("votes", "votes+svm")
            for s in (0.25, 1.0)
        ],
        "svm_importance": [
            {"feature": f, "importance": i, "lo": i - 0.01, "hi": i + 0.01}
            for f, i in (("sharpness_eyes", 0.09), ("noise", 0.04), ("lq_l1", 0.02))
        ],
        "base": [{"step": s, "model": m, "val_loss": 1 / (1 + s)} for m in RESTORERS for s in range(5)],
    }
    for name, rows in frames.items():
        write_text(root / f"plots/{name}.csv", pd.DataFrame(rows).to_csv(index=False))


def write_run(root: Path, faces: int = 24, size: int = 64, with_further: bool = True) -> None:
    """The outputs of a whole run under `root`, with a params.yaml; `with_further`: with every optional key."""
    ids = sorted(stable_hash("face", place)[:32] for place in range(faces))
    rows = write_tables(root, ids, size)
    write_metrics(root, rows, with_further)
    write_plots(root)
    runtime = {"device": "cpu", "threads": 1, "num_workers": 1, "joblib_backend": "loky", "progress": False}
    params = {"seed": 0, "report": REPORT, "runtime": runtime}
    write_text(root / "params.yaml", yaml.safe_dump(params))
