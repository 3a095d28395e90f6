"""`diffusionreward`: the stage commands in one place, and what people use outside the DAG.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import typer

STAGES = {
    "prepare": "Faces of the sample generator or of a folder, aligned, checked, split by group.",
    "degrade": "Low-quality inputs by blur, down-sampling, noise and JPEG.",
    "base": "Train the restorers that ReFL starts from.",
    "restore": "Candidate restorations at several settings and seeds, and anchors.",
    "features": "Image features of every candidate.",
    "pairs": "Pairs of candidates of one face to be judged.",
    "label": "Votes, the SVM that labels the rest, and its evidence.",
    "frm": "Train the Face Reward Model and a second, held-out one.",
    "refl": "Reward-feedback learning of one restorer, and its controls.",
    "benchmark": "Scores on the test faces, paired intervals, comparisons with the controls.",
    "report": "One self-contained HTML file.",
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Blind face restoration with reward-feedback learning. The whole pipeline is `make repro` (or `dvc repro`).",
)
stage_app = typer.Typer(no_args_is_help=True, help="One stage of the DAG by hand; `dvc repro` runs what is needed.")
app.add_typer(stage_app, name="stage")


def _stage_command(name: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        stage = typer.Typer(add_completion=False)
        stage.command()(importlib.import_module(f"stages.{name}").main)
        stage(args=context.args, prog_name=f"diffusionreward stage {name}")

    return command


for _name, _help in STAGES.items():
    # the stage parses its own options, `--help` too
    _options = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    stage_app.command(_name, help=_help, context_settings=_options)(_stage_command(_name))


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
