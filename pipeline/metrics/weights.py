"""What others trained, brought by the user: files under weights/hub, and pyiqa's metrics loaded from there alone."""

from __future__ import annotations

import io
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pipeline.params import UserError, one_line

HUB = Path("weights/hub")  # in the layout of torch.hub's folder


def missing(files: Sequence[str]) -> list[Path]:
    """Which of these files (relative to HUB) are not on the disk."""
    return [HUB / name for name in files if not (HUB / name).is_file()]


DAMAGED = (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, TypeError)  # what a damaged file raises


def _refused(path: Path | str, error: Exception) -> UserError:
    return UserError(f"{path}: not the weights expected here ({one_line(error)})")


def load_tensors(path: Path) -> dict[str, Any]:
    """A checkpoint's plain tensors, on the CPU. Raises UserError for a file that is something else."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except DAMAGED as error:
        raise _refused(path, error) from None


def load_into(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Fill `module`, strictly, from a state dict whose keys may carry `module.`; freeze it in evaluation mode.

    Raises UserError naming `path` where keys or shapes differ.
    """
    try:
        module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise _refused(path, error) from None
    module.requires_grad_(False).eval()


@cache
def pyiqa_model(name: str, options: tuple[tuple[str, object], ...], device: str) -> tuple[Any, tuple[Path, ...]]:
    """pyiqa's metric with weights from HUB only, never from the network, and the files that it read there.

    Files are loaded as plain tensors, whatever pyiqa asks for. Raises UserError naming what is not on the disk, or
    damaged there.
    """
    with offline() as used:
        import pyiqa

        return pyiqa.create_metric(name, device=torch.device(device), **dict(options)), tuple(used)


def reads_hub(name: str, options: tuple[tuple[str, object], ...]) -> bool:
    """Whether pyiqa's metric finds any of its files under HUB, even where another one is missing or broken."""
    import pyiqa

    said = io.StringIO()  # "Downloading …", which nothing does
    with redirect_stdout(said), redirect_stderr(said), offline() as used, suppress(Exception):
        pyiqa.create_metric(name, device=torch.device("cpu"), **dict(options))
    return bool(used)


@contextmanager
def offline() -> Iterator[list[Path]]:
    """pyiqa and torch.hub look into HUB and nowhere else; yields the list of the files that they are given there."""
    import pyiqa.archs  # noqa: F401  its modules are loaded before their way to the network is replaced
    import scipy.io
    from huggingface_hub import constants
    from pyiqa.utils import download_util

    used: list[Path] = []

    def noting(load: Callable[..., Any]) -> Callable[..., Any]:
        def noted(file: Any, *rest: Any, **options: Any) -> Any:
            # not resolved: HUB, or files in it, may be links to where they were downloaded
            if isinstance(file, (str, Path)) and Path(file).absolute().is_relative_to(HUB.absolute()):
                used.append(Path(file))
                try:
                    return load(file, *rest, **options)
                except DAMAGED as error:
                    raise _refused(file, error) from None
            return load(file, *rest, **options)

        return noted

    def refuse(url: Any, target: Any = "", *_: Any, **__: Any) -> Any:
        wanted = Path(str(target) or str(getattr(url, "full_url", url))).name
        raise UserError(f"its weights are not on disk: {wanted}")

    replaced = [
        (torch, "load", noting(torch.load)),
        (scipy.io, "loadmat", noting(scipy.io.loadmat)),
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
