"""One way to restore many faces: in batches, by the empty prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pipeline.images import Pixels, to_tensor, to_uint8
from pipeline.restorers.protocol import Restores
from pipeline.runtime import progress


def restore_all(
    restorer: Restores,
    lq: Sequence[Pixels],
    ids: Sequence[str],
    seed: int,
    batch_size: int,
    shown: str = "",
    **setting: float,
) -> Iterator[Pixels]:
    """Restored uint8 images of uint8 LQs, in their order; `shown` names a progress bar.

    The prompt is empty, as for anybody's photo and in the published evaluation: a caption of the original would tell a
    restorer what no user could. (Captions are the reward's to read.)
    """
    for start in progress(range(0, len(ids), batch_size), shown, shown=bool(shown)):
        part = slice(start, start + batch_size)
        names = list(ids[part])
        with torch.no_grad():
            images = restorer.restore(to_tensor(lq[part]), [""] * len(names), names, seed, **setting)
        yield from to_uint8(images)
