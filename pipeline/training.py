"""What the trainings of bases, ReFL and FRM share: stateless draws, resumable checkpoints, FLOP counts.

Every draw of a step is seeded by (params seed, name, step), so a resumed run continues bit for bit from model,
optimiser and step number (and, where a network has dropout, torch's random state).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from pipeline.evaluation.dataset import Dataset
from pipeline.images import to_tensor
from pipeline.params import UserError
from pipeline.runtime import atomic, torch_rng

CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward
Loss = Callable[[int], torch.Tensor]  # of training step number n


def require_split(dataset: Dataset, split: str, who: str) -> None:
    """Refuse to train on anything but `split`. Raises UserError naming trainer and split."""
    if dataset.name != split:
        raise UserError(f"{who} trains on split `{split}` alone and refuses faces of split `{dataset.name}`")


def require_one_process(who: str) -> None:
    """Refuse to run as one of several processes of `accelerate launch`, which would all train the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{who} trains in one process; start the stage without `accelerate launch`")


def batch_indices(count: int, size: int, step: int, *seed: object) -> list[int]:
    """Rows of batch number `step`: an endless stream of seeded permutations of range(count), cut into batches."""
    rows: list[int] = []
    position = step * size
    while len(rows) < size:
        epoch, offset = divmod(position, count)
        order = torch.randperm(count, generator=torch_rng(*seed, "epoch", epoch)).tolist()
        taken = order[offset : offset + size - len(rows)]
        rows += taken
        position += len(taken)
    return rows


@dataclass(frozen=True)
class Images:
    """A split's faces as uint8 tensors [N, H, W, 3] in memory; batches become floats when they are used."""

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    hq: torch.Tensor
    lq: torch.Tensor
    people: tuple[str, ...] | None = None  # whose each face is, where some share a person

    def pick(self, rows: Sequence[int], mirrored: Sequence[bool]) -> tuple[torch.Tensor, torch.Tensor]:
        """HQ and LQ [n, 3, H, W] in [-1, 1] of these rows, mirrored left to right where asked."""
        hq, lq = to_tensor(self.hq[list(rows)].numpy()), to_tensor(self.lq[list(rows)].numpy())
        mirror = torch.tensor(list(mirrored))[:, None, None, None]
        return torch.where(mirror, hq.flip(3), hq), torch.where(mirror, lq.flip(3), lq)

    def in_batches(self, size: int, device: torch.device) -> Iterator[tuple[range, torch.Tensor, torch.Tensor]]:
        """Rows, HQ and LQ [n, 3, H, W] in [-1, 1] of all faces in their order, up to `size` at a time."""
        for start in range(0, len(self.ids), size):
            rows = range(start, min(start + size, len(self.ids)))
            hq, lq = self.pick(rows, [False] * len(rows))
            yield rows, hq.to(device), lq.to(device)


def images_of(dataset: Dataset) -> Images:
    """All images of a dataset of equal size. Raises UserError where it has no HQ."""
    if dataset.hq is None:
        raise UserError(f"{dataset.name}: training needs HQ images")
    hq, lq = (torch.from_numpy(np.stack(side)) for side in (dataset.hq, dataset.lq))
    return Images(dataset.ids, dataset.captions, hq, lq, dataset.people)


def drawn_batch(
    images: Images, size: int, step: int, prompt_dropout: float, device: torch.device, *seed: object
) -> tuple[torch.Tensor, torch.Tensor, list[str], torch.Generator]:
    """HQ, LQ, prompts and the step's generator: rows from seeded permutations, half of them mirrored."""
    rng = torch_rng(*seed, step)
    rows, mirrored, prompts = drawn_rows(images, size, step, prompt_dropout, rng, *seed)
    hq, lq = images.pick(rows, mirrored)
    return hq.to(device), lq.to(device), prompts, rng


def drawn_rows(
    images: Images, size: int, step: int, prompt_dropout: float, rng: torch.Generator, *seed: object
) -> tuple[list[int], list[bool], list[str]]:
    """Batch number `step`: rows from permutations seeded by `seed`; by `rng`, which are mirrored and have no prompt."""
    rows = batch_indices(len(images.ids), size, step, *seed)
    mirrored = (torch.rand(size, generator=rng) < 0.5).tolist()
    empty = (torch.rand(size, generator=rng) < prompt_dropout).tolist()
    return rows, mirrored, ["" if none else images.captions[row] for row, none in zip(rows, empty, strict=True)]


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def adamw(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, foreach: bool | None = None
) -> torch.optim.AdamW:
    """AdamW over what trains; no weight decay on biases, norms and other parameters of fewer than two dimensions
    (GFPGAN's biases have four, so they decay).

    `foreach` False: one parameter at a time, without a GPU's temporaries as large as the network.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, foreach=foreach)


class Stateful(Protocol):
    """Anything with `state_dict` and `load_state_dict`."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Trained:
    """`state_dict` of the parameters that train, and of those alone (a LoRA's UNet would be saved whole otherwise)."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies, on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Copy the values back. Raises KeyError where a parameter is missing."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])


class Checkpoint:
    """One resumable state in a scratch folder: written atomically, so a kill leaves the last whole one."""

    def __init__(self, path: Path, objects: dict[str, Stateful]) -> None:
        self.path = path
        self.objects = objects

    def save(self, **plain: Any) -> None:
        """Write every object's state and plain values (numbers, strings, lists, dicts)."""
        content = {name: thing.state_dict() for name, thing in self.objects.items()}
        with atomic(self.path) as temporary:
            torch.save({"objects": content, "plain": plain}, temporary)

    def load(self) -> dict[str, Any] | None:
        """Restore every object; the plain values, or None where there is no checkpoint.

        What a kill left of a checkpoint that was being written is removed: each is as large as the whole.
        """
        for unfinished in self.path.parent.glob(f".{self.path.name}.*"):
            unfinished.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        # mapped: several processes of one machine share its pages
        content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        for name, thing in self.objects.items():
            state = content["objects"][name]
            # an optimiser keeps what it is given, which would hold the mapped file, on NFS beyond its deletion
            thing.load_state_dict(copy.deepcopy(state) if isinstance(thing, torch.optim.Optimizer) else state)
        if os.environ.get("RANK", "0") == "0":
            print(f"goes on from {self.path}")
        return copy.deepcopy(content["plain"])  # a reward's best weights are among it


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of one call (matrix products and convolutions, forward and backward)."""
    with FlopCounterMode(display=False, custom_mapping={CONVOLUTION_BACKWARD: _of_gradients}) as counter:
        work()
    return counter.get_total_flops()


def _of_gradients(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], _bias: object, _stride: object, _padding: object,
    _dilation: object, transposed: bool, _output_padding: object, _groups: int, wanted: Sequence[bool], **_: object,
) -> int:  # fmt: skip
    """Of a convolution, from shapes: the gradients of input and weight each cost what the forward pass does.

    torch's own formula ignores groups, and takes the weights' gradient of GFPGAN's modulated convolutions (a group an
    image) for as many times what it costs as there are images.
    """
    return sum(wanted[:2]) * conv_flop_count(list(x), list(weight), list(gradient), transposed)
