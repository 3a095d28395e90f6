"""What every stage needs around its work: errors for people, stable seeds, atomic files, devices, progress."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from pipeline.params import PARAMS_FILE, Params, UserError, load

T = TypeVar("T")
P = ParamSpec("P")
Device = Literal["auto", "cpu", "cuda", "mps"]
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a full disk, a spent quota, a read-only one


class LogParams(Params):
    """Where a long training can be watched; nothing of it is an output of a stage."""

    folder: str = ".scratch/logs"
    tensorboard: bool = True
    dvclive: bool = False
    pictures: int = Field(8, ge=1)  # faces shown at each evaluation


class RuntimeParams(Params):
    """How to run, never what to compute: the `runtime` group is no DVC dependency of any stage."""

    device: Device = "auto"
    threads: int = Field(2, ge=1, le=256)  # CPU threads of one process; recorded in provenance
    num_workers: int = Field(2, ge=1, le=256)  # processes for CPU-heavy stages
    joblib_backend: Literal["loky", "dask"] = "loky"
    tf32: bool = False  # on a GPU, fp32 products and convolutions by TF32: faster, with three digits; never in metrics
    checkpoint_decoder: bool = False  # ReFL decodes with gradient checkpointing: 4 GiB less on the GPU at 512 px
    progress: bool = True
    logs: LogParams = LogParams()


def runtime_params() -> RuntimeParams:
    """The `runtime` group; its defaults outside a project, where commands such as `benchmark` work too."""
    return load("runtime", RuntimeParams) if PARAMS_FILE.exists() else RuntimeParams()


def stage(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap the Typer command of a stage: `one_line_errors`, the `runtime` group's threads, deterministic kernels."""

    @one_line_errors
    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        configure(load("runtime", RuntimeParams))
        try:
            command(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            said = " ".join(str(error).split(". ")[:2])
            raise UserError(
                f"the GPU's memory is too small ({said}); lower the batch sizes of this stage's params, or set "
                "runtime.device: cpu"
            ) from None

    return run


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a Typer command: a `UserError`, or a disk that takes nothing more, ends the process with exit code 2 and one
    clear line, no traceback.

    Every other exception is ours and keeps its traceback.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            print(f"error: {error.filename or Path.cwd()}: can't be written ({error.strerror})", file=sys.stderr)
            sys.exit(2)

    return run


def configure(runtime: RuntimeParams) -> None:
    """Set what makes two runs on one CPU model byte-identical: thread count and deterministic kernels."""
    torch.set_num_threads(runtime.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # nothing here reads memory that it hasn't written, so filling it would only cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = runtime.tf32


@contextmanager
def whole_fp32() -> Iterator[None]:
    """No TF32, whatever the `runtime` group says: metrics stand beside those that others publish."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def device(name: Device | None = None) -> torch.device:
    """The named device, by default that of the `runtime` group; `auto` is CUDA when there is one, the CPU otherwise."""
    name = name or runtime_params().device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device `cuda`: torch sees no CUDA device; choose `auto` or `cpu` (runtime.device, --device)")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device `mps`: torch sees no such device; choose `auto` or `cpu` (runtime.device, --device)")
    return torch.device(name)


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes share the cores, so threads would only fight; and sums round alike for any number of processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stable_hash(*parts: object) -> str:
    """SHA-256 (hex) of the parts' text: the same in every process, on every machine, in any order of work."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def stable_seed(*parts: object) -> int:
    """A 63-bit seed made from params and stable ids, e.g. `stable_seed(seed, "degrade", face_id)`."""
    return int(stable_hash(*parts)[:16], 16) >> 1


def rng(*parts: object) -> np.random.Generator:
    """A numpy generator seeded by `stable_seed(*parts)`."""
    return np.random.default_rng(stable_seed(*parts))


def torch_rng(*parts: object) -> torch.Generator:
    """A CPU torch generator seeded by `stable_seed(*parts)`; noise is drawn on the CPU, so it is the same on a GPU."""
    return torch.Generator().manual_seed(stable_seed(*parts))


def noise_like_ids(ids: list[str], shape: tuple[int, ...], *parts: object) -> torch.Tensor:
    """Standard normal noise [len(ids), *shape], each row from its own id: independent of batching and order."""
    return torch.stack([torch.randn(shape, generator=torch_rng(*parts, one)) for one in ids])


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it into place, on error remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path, option: str) -> None:
    """Make the folder that `option` names, before work whose results it is to take.

    Raises UserError where it is a file, or can't be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option} {folder}: can't be written into ({error.strerror}); name another folder") from None


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write bytes atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, keys in the order given, floats rounded to 6 digits so that diffs stay readable."""
    write_text(path, json.dumps(_rounded(value), indent=2, allow_nan=False) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.6g}")
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    return value


def file_hash(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(*parts: object) -> str:
    """16 hex digits that key resumable scratch state; a `Path` part stands for the bytes of the file or folder."""
    resolved: list[object] = []
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            resolved += [f"{f.name}:{file_hash(f)}" for f in files]
        else:
            resolved.append(part)
    return stable_hash(*resolved)[:16]


def progress(items: Iterable[T], description: str, total: int | None = None, shown: bool = True) -> tqdm[T]:
    """A tqdm bar (hidden by `runtime.progress: false`); call `set_postfix` on it with the figures that matter."""
    shown = shown and runtime_params().progress
    return tqdm(items, desc=description, total=total, disable=not shown, dynamic_ncols=True, mininterval=1.0)
