"""Stage refl: fine-tune one restorer by reward feedback, or one of its controls, on split `train`."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from accelerate import Accelerator, InitProcessGroupKwargs

from pipeline.base.gan import GanParams
from pipeline.base.params import BaseParams
from pipeline.evaluation.dataset import from_tables
from pipeline.params import UserError, load, value
from pipeline.refl.evaluation import Watcher
from pipeline.refl.logs import open_log
from pipeline.refl.loop import train
from pipeline.refl.more_base import continue_base
from pipeline.refl.params import MORE_BASE, VARIANTS, ReflParams, parse_variant
from pipeline.refl.trainer import ReFL
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.external import External
from pipeline.restorers.load import load as load_restorer
from pipeline.restorers.osediff import OSEDiff
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import RuntimeParams, device, stable_seed, stage, write_json, write_text
from pipeline.scratch import key
from pipeline.training import images_of, require_one_process, require_split

FACES, DEGRADED, BASE, FRM = Path("data/faces"), Path("data/degraded"), Path("data/base"), Path("data/frm")
WAIT = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # for the first process, while it evaluates


@stage
def main(
    restorer: Annotated[str, typer.Option(help="a restorer of stages base and gan")],
    variant: Annotated[str, typer.Option(help=f"{', '.join([*VARIANTS, MORE_BASE])}; full_seed1: another seed")],
) -> None:
    """Train, watch on split val, keep the last weights or those with the smallest landmark distance there."""
    kind, what = parse_variant(variant)
    if restorer == External.kind:
        raise UserError("refl.restorers: external results are images and can't be trained; take `external` out")
    params, base = load(f"refl.{restorer}", ReflParams), load("base", BaseParams)
    gan, seed, name = load("gan", GanParams), int(value("seed")), f"{restorer}-{variant}"
    runtime = load("runtime", RuntimeParams)
    if kind == MORE_BASE:
        require_one_process(f"refl {variant}: a base restorer")
    accelerator = Accelerator(cpu=device().type == "cpu", kwargs_handlers=[WAIT])
    if accelerator.mixed_precision not in ("no", params.precision) or accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"accelerate's own precision and accumulation are not used: leave them out of its config and set refl."
            f"{restorer}.precision and .accumulation"
        )
    training = from_tables(FACES, DEGRADED, "train")
    require_split(training, "train", "refl")
    faces = images_of(training)
    del training  # it holds every picture a second time
    held_out = images_of(from_tables(FACES, DEGRADED, "val"))
    model = load_restorer(BASE / restorer, accelerator.device)
    # not for more_base: it counts ReFL's operations, and what is merely recomputed is none of them
    if runtime.checkpoint_decoder and kind != MORE_BASE and isinstance(model, DiffBIR | OSEDiff):
        model.denoiser.checkpoint_decoder()
    main_process = accelerator.is_main_process  # it alone looks at the validation faces
    if main_process and accelerator.num_processes > 1:
        print(f"{accelerator.num_processes} processes train together")
    frm = FaceRewardModel.from_pretrained(FRM / "reward", accelerator.device if main_process else "cpu")
    # each process takes faces of its own: a checkpoint goes on with as many as it began with
    several = [accelerator.num_processes] if accelerator.num_processes > 1 else []
    scratch = Path(".scratch/refl") / key(name, params, base, gan, seed, BASE, FRM, FACES, DEGRADED, *several)
    watch = None
    if main_process:
        second = FaceRewardModel.from_pretrained(FRM / "heldout", accelerator.device)
        count, pictures = params.evaluation_faces, runtime.logs.pictures
        watch = Watcher(held_out, frm, second, count, seed, base.validation_batch, pictures)
    drawn = stable_seed(seed, what.seed) if what.seed else seed
    if kind == MORE_BASE:
        assert watch is not None  # it runs in one process
        data = faces, held_out
        curve = continue_base(model, frm, params, base, gan, BASE / restorer, *data, drawn, scratch, watch)
    else:
        log = open_log(f"refl/{name}/{scratch.name}", runtime.logs) if main_process else None
        curve = train(ReFL(model, frm, params, what, faces, drawn, accelerator), watch, scratch, name, log)
    if watch is None:
        return
    model.save(Path("data/refl") / restorer / variant)
    write_text(Path(f"plots/refl/{name}.csv"), pd.DataFrame(curve).to_csv(index=False, float_format="%.6g"))
    best = params.keep == "best" and kind != MORE_BASE
    kept = min(curve[1:], key=lambda row: row["val_lmd_68"]) if best else curve[-1]
    about = {"labels": frm.config.labels, "impostor": watch.impostor}
    write_json(Path(f"metrics/refl/{name}.json"), {**about, "first": curve[0], "last": curve[-1], "kept": kept})
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
