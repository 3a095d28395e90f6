"""`diffusionreward`: the stage commands in one place, and what people use outside the DAG.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import runpy
import sys
from collections.abc import Callable
from functools import partial

import typer

STAGES = {
    "prepare": "Faces of the sample generator or of a folder, aligned, checked, split by group.",
    "degrade": "Low-quality inputs by blur, down-sampling, noise and JPEG.",
    "base": "Train the diffusion restorers that ReFL starts from.",
    "gan": "Train the GAN-class restorer that ReFL starts from, or take official weights.",
    "restore": "Candidate restorations at several settings and seeds, and anchors.",
    "features": "Image features of every candidate.",
    "pairs": "Pairs of candidates of one face to be judged.",
    "label": "Votes, the SVM that labels the rest, and its evidence.",
    "frm": "Train the Face Reward Model and a second, held-out one.",
    "learning": "How much the reward gains from more labels, and from the SVM's.",
    "refl": "Reward-feedback learning of one restorer, and its controls.",
    "benchmark": "Scores on the test faces, paired intervals, comparisons with the controls.",
    "report": "One self-contained HTML file.",
}

COMMANDS = {  # what people use outside the DAG: module, attribute, help
    "check": ("pipeline.check", "check", "Check params.yaml and what it names, as `make repro` does first."),
    "restore": ("pipeline.commands", "restore", "Restore the faces of your own photos with a trained restorer."),
    "benchmark": ("pipeline.evaluation.commands", "compare", "Compare folders of restored faces, with intervals."),
    "faces": ("pipeline.evaluation.commands", "faces", "Write the faces of a split as files: inputs and originals."),
    "score": ("pipeline.reward.commands", "score", "Score your own aligned faces with a trained reward model."),
    "annotate": ("pipeline.annotation.commands", "annotate", "Open the page on which people judge pairs."),
    "labels": ("pipeline.annotation.commands", "labels_app", "Rounds of pairs for people to judge, and their votes."),
    "weights": ("pipeline.restorers.commands", "weights_app", "Official weights in, trained weights out."),
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Blind face restoration with reward-feedback learning. The whole pipeline is `make repro` (or `dvc repro`).",
)
stage_app = typer.Typer(no_args_is_help=True, help="One stage of the DAG by hand; `dvc repro` runs what is needed.")


def _mount(on: typer.Typer, name: str, text: str, run: Callable[[list[str]], None]) -> None:
    """Add a command that hands all its arguments, `--help` too, to `run`."""

    def command(context: typer.Context) -> None:
        run(context.args)

    options = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    on.command(name, help=text, context_settings=options)(command)


def _call(name: str, module: str, attribute: str, args: list[str]) -> None:
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command()(target)
        target = single
    target(args=args, prog_name=f"diffusionreward {name}")


def _run_stage(name: str, args: list[str]) -> None:
    """`python -m stages.NAME`: what one of the two began to train, the other goes on with."""
    sys.argv[1:] = args
    runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)


for _name, (_module, _attribute, _text) in COMMANDS.items():
    _mount(app, _name, _text, partial(_call, _name, _module, _attribute))
app.add_typer(stage_app, name="stage")
for _name, _text in STAGES.items():
    _mount(stage_app, _name, _text, partial(_run_stage, _name))


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding than UTF-8 can't show every name
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
