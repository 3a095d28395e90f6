"""Where a run can be watched while it goes on: JSON lines, pictures, TensorBoard, DVCLive. No output of any stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from pipeline.images import Pixels, encode_png
from pipeline.runtime import LogParams, write_bytes, write_text


class Sink(Protocol):
    """One place that is written to; what it holds of steps after `resume(step)` is taken back first."""

    def resume(self, step: int) -> None: ...

    def numbers(self, step: int, figures: Mapping[str, float]) -> None: ...

    def picture(self, step: int, pixels: Pixels) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`log.jsonl`, a line a step and a line an evaluation, and `pictures/`."""

    def __init__(self, folder: Path) -> None:
        self.file, self.pictures = folder / "log.jsonl", folder / "pictures"

    def resume(self, step: int) -> None:
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True) if self.file.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill can cut the last one
        write_text(self.file, "".join(line for line in whole if json.loads(line)["step"] <= step))

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, **figures}) + "\n")

    def picture(self, step: int, pixels: Pixels) -> None:
        write_bytes(self.pictures / f"step-{step:06d}.png", encode_png(pixels))

    def close(self) -> None:
        pass


class TensorBoard:
    """Events in the run's folder: `tensorboard --logdir .scratch/logs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resume(self, step: int) -> None:
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, pixels: Pixels) -> None:
        self.writer.add_image("faces: LQ, output, HQ", pixels, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class DvcLive:
    """DVCLive's files under `dvclive/`; it touches neither dvc.yaml nor the experiments of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "dvclive"

    def resume(self, step: int) -> None:
        from dvclive.live import Live

        for file in (self.folder / "plots/metrics").rglob("*.tsv"):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            head, *rows = [line for line in lines if line.endswith("\n") and line.strip()] or [""]  # a kill can cut one
            if "step" not in (names := head.rstrip("\n").split("\t")):
                file.unlink()
                continue
            place = names.index("step")
            kept = (row for row in rows if int(row.split("\t")[place]) <= step)
            write_text(file, "".join([head, *kept]))
        # without resume it would empty the folder, without dvcyaml=None write a dvc.yaml
        self.live: Any = Live(str(self.folder), resume=True, dvcyaml=None, save_dvc_exp=False, monitor_system=False)

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        self.live.step = step
        for name, value in figures.items():
            self.live.log_metric(name, value)
        self.live.make_summary()

    def picture(self, step: int, pixels: Pixels) -> None:
        self.live.step = step
        self.live.log_image(f"step-{step:06d}.png", pixels)

    def close(self) -> None:
        self.live.end()


class Log:
    """All sinks of one run; without any, nothing is written."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)

    def resume(self, step: int) -> None:
        """Begin after `step` (−1: a new run)."""
        for sink in self.sinks:
            sink.resume(step)

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step or an evaluation."""
        for sink in self.sinks:
            sink.numbers(step, figures)

    def picture(self, step: int, pixels: Pixels | None) -> None:
        """What an evaluation shows."""
        if pixels is not None:
            for sink in self.sinks:
                sink.picture(step, pixels)

    def close(self) -> None:
        """Write what is still held back."""
        for sink in self.sinks:
            sink.close()


def open_log(name: str, settings: LogParams) -> Log:
    """The log of run `name` (a path below `settings.folder`) as the `runtime` group has it."""
    folder = Path(settings.folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = [JsonLines(folder)]
    if settings.tensorboard:
        sinks.append(TensorBoard(folder))
    if settings.dvclive:
        sinks.append(DvcLive(folder))
    return Log(sinks)
