"""On a GPU alone: `python -m pytest tests/restorers/test_replay.py` there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.refl.params import VARIANTS
from pipeline.refl.trainer import ReFL
from pipeline.restorers.protocol import Rollout, RolloutSettings
from pipeline.training import images_of
from tests import tiny
from tests.refl.recipe import params

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def rolled(restorer: Any) -> Rollout:
    lq = tiny.dataset(size=64).lq[0]
    condition = restorer.condition(torch.from_numpy(lq.copy()).permute(2, 0, 1)[None].cuda() / 127.5 - 1)
    prompts, settings = restorer.encode_prompts([""]), RolloutSettings(steps=5, gradient_window=1, eta=(0.0, 1.0))
    return cast(Rollout, restorer.rollout(condition, prompts, settings, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_a_replayed_rollout_is_the_plain_one_and_follows_the_weights(half: torch.dtype | None) -> None:
    restorer = tiny.diffbir()
    restorer.cuda()
    restorer.start_training()
    assert restorer.graph is not None
    graph = restorer.graph
    for _ in range(2):
        with torch.autocast("cuda", half, enabled=half is not None):
            restorer.graph = graph
            replayed = rolled(restorer).latents
            restorer.graph = None
            torch.testing.assert_close(replayed, rolled(restorer).latents, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in restorer.controlnet.parameters():
                parameter.add_(0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_refl_trains_on_a_gpu_in_every_precision(precision: str) -> None:
    restorer, frm = tiny.diffbir(), tiny.frm().cuda()
    restorer.cuda()
    accelerator: Any = SimpleNamespace(device=torch.device("cuda"), num_processes=1, process_index=0)
    images = images_of(tiny.dataset(size=64))
    refl = ReFL(restorer, frm, params(precision=precision), VARIANTS["full"], images, 0, accelerator)
    before = [p.detach().clone() for p in refl.trained]
    for step in range(3):
        figures, outputs = refl.step(step)
    assert figures["loss"] > 0
    assert refl.update_reward(outputs) > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, refl.trained, strict=True))
    restored = restorer.restore(outputs[0][0].lq[:1], ["a face"], ["a"], 0)
    assert restored.isfinite().all()
    assert restored.dtype == torch.float32
