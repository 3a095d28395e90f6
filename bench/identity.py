"""dlib's identity network as dlib computes it and in torch: milliseconds a face on one core, and the difference.

`python -m bench.identity [--count 64]`. Chips of noise: time does not depend on what they show. Both load before the
clock starts; each takes all chips, dlib in one call, torch in the batches of `pipeline.metrics.identity`.
"""

from __future__ import annotations

import dlib
import numpy as np
import torch
import typer

from bench.benchmark import clocked
from pipeline import runtime
from pipeline.compat import dlib_weights
from pipeline.metrics.dlib_resnet import SIDE, FaceResNet
from pipeline.metrics.identity import BATCH


@runtime.stage
def main(count: int = 64) -> None:
    """Print milliseconds a face of both, the ratio and the largest difference."""
    path = dlib_weights("dlib_face_recognition_resnet_model_v1.dat")
    chips = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    theirs, ours = dlib.face_recognition_model_v1(str(path)), FaceResNet(path)
    with runtime.one_thread(), torch.inference_mode():
        before, expected = clocked(lambda: theirs.compute_face_descriptor(list(chips)))
        after, found = clocked(lambda: torch.cat([ours(batch) for batch in torch.from_numpy(chips).split(BATCH)]))
    print(f"{count} faces, ms a face: dlib {1000 * before / count:.1f}, torch {1000 * after / count:.1f}")
    difference = np.abs(found.numpy() - np.asarray(expected)).max()
    print(f"ratio {before / after:.1f}, largest difference {difference:.1e}")


if __name__ == "__main__":
    typer.run(main)
