"""What others trained, brought by the user: files under weights/hub, and pyiqa's metrics loaded from there alone."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pipeline.params import UserError

HUB = Path("weights/hub")  # in the layout of torch.hub's folder


def missing(files: Sequence[str]) -> list[Path]:
    """Which of these files (relative to HUB) are not on the disk."""
    return [HUB / name for name in files if not (HUB / name).is_file()]


def load_tensors(path: Path) -> dict[str, Any]:
    """A checkpoint's plain tensors, on the CPU. Raises UserError for a file that is something else."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the weights expected here ({str(error).splitlines()[0]})") from None


def load_into(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Fill `module`, strictly, from a state dict whose keys may carry `module.`; freeze it in evaluation mode.

    Raises UserError naming `path` where keys or shapes differ.
    """
    try:
        module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights expected here ({str(error).splitlines()[-1].strip()})") from None
    module.requires_grad_(False).eval()


@cache
def pyiqa_model(name: str, options: tuple[tuple[str, object], ...], device: str) -> tuple[Any, tuple[Path, ...]]:
    """pyiqa's metric with weights from HUB only, never from the network, and the files that it read there.

    Files are loaded as plain tensors, whatever pyiqa asks for. Raises UserError naming what is not on the disk.
    """
    with offline() as used:
        import pyiqa

        return pyiqa.create_metric(name, device=torch.device(device), **dict(options)), tuple(used)


@contextmanager
def offline() -> Iterator[list[Path]]:
    """pyiqa and torch.hub look into HUB and nowhere else; yields the list of the files that they are given there."""
    import pyiqa.archs  # noqa: F401  its modules are loaded before their way to the network is replaced
    from huggingface_hub import constants
    from pyiqa.utils import download_util

    used: list[Path] = []
    true_load = torch.load

    def noted(file: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(file, (str, Path)) and Path(file).resolve().is_relative_to(HUB.resolve()):
            used.append(Path(file))
        return true_load(file, *rest, **options)

    def refuse(url: Any, target: Any = "", *_: Any, **__: Any) -> Any:
        wanted = Path(str(target) or str(getattr(url, "full_url", url))).name
        raise UserError(f"its weights are not on disk: {wanted}")

    replaced = [
        (torch, "load", noted),
        (torch.hub, "download_url_to_file", refuse),
        (download_util, "download_url_to_file", refuse),
        (download_util, "DEFAULT_CACHE_DIR", str(HUB / "pyiqa")),
        (urllib.request, "urlopen", refuse),
        (constants, "HF_HUB_OFFLINE", True),  # timm's backbones
        (socket, "create_connection", refuse),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    forced = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    environment, hub = os.environ.get(forced), torch.hub.get_dir()
    os.environ[forced] = "1"
    torch.hub.set_dir(str(HUB))
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield used
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        torch.hub.set_dir(hub)
        if environment is None:
            del os.environ[forced]
        else:
            os.environ[forced] = environment
