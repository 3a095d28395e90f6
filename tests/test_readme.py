"""The README's links lead somewhere, its commands exist and its profiles are there."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx
from dvc.repo import Repo

from bench import tables
from pipeline import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL))


def test_relative_links_and_pictures_are_there() -> None:
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)", TEXT)]
    local = [target for target in targets if target and not target.startswith("http")]
    assert local
    assert not [target for target in local if not (ROOT / target).exists()]


def test_make_targets_and_profiles_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(?:\.venv/bin/)?make ([a-z]+)", SHELL, flags=re.MULTILINE))
    assert {"repro", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    assert all((ROOT / f"profiles/{name}.yaml").is_file() for name in re.findall(r"PROFILE=([\w-]+)", TEXT))


def test_commands_of_the_console_script_exist() -> None:
    named = set(re.findall(r"diffusionreward\s+([a-z]+)", TEXT))
    assert named
    assert named <= {*cli.COMMANDS, "stage"}


def test_the_drawing_is_the_dag_without_arrows_that_others_imply() -> None:
    drawn: set[tuple[str, str]] = set()
    for line in TEXT.partition("flowchart LR\n")[2].partition("```")[0].splitlines():
        drawn |= set(pairwise(re.sub(r"\[.*\]", "", stage).strip() for stage in line.split("-->")))
    dag = networkx.DiGraph()
    with Repo(str(ROOT)) as repo:
        for stage, needed in repo.index.graph.edges:  # of the files under annotations/, too, which are no stages
            names = [one.addressing.partition("@")[0] for one in (needed, stage)]
            if not any("/" in name for name in names):
                dag.add_edge(*names)
    assert drawn == set(networkx.transitive_reduction(dag).edges)


def test_the_measured_numbers_are_those_of_the_metrics() -> None:
    benchmark = json.loads((ROOT / "metrics/benchmark.json").read_text(encoding="utf-8"))
    means, differences = tables.means(benchmark, "test"), tables.differences(benchmark, "test")
    assert len(means.splitlines()) == 2 + 14
    assert "diffbir: full-no_reward" in differences
    assert means in TEXT
    assert differences in TEXT


def test_the_numbers_in_the_text_are_those_of_the_metrics() -> None:
    text = " ".join(TEXT.split())
    metrics = {
        name: json.loads((ROOT / f"metrics/{name}.json").read_text())
        for name in ("benchmark", "frm", "frm_learning", "svm")
    }

    def share(value: float) -> str:
        return f"{100 * value:.1f} %"

    def with_interval(entry: dict[str, Any]) -> str:
        low, high = (f"{100 * value:.1f}" for value in entry["ci95"])
        return f"{share(entry['accuracy'])} [{low}, {high}]"

    def points(entry: dict[str, Any], unit: str = "") -> str:
        mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (entry["mean"], *entry["ci95"]))
        return f"{mean}{unit} [{low}, {high}]"

    frm, svm = metrics["frm"], metrics["svm"]
    assert f"on {with_interval(frm['headline'])} of {frm['headline']['n']} held-out pairs" in text
    assert f"The held-out one agrees on {with_interval(frm['heldout']['headline'])}" in text
    blind = frm["best_blind_feature"]
    assert blind["name"] == "sharpness"
    assert blind["higher_is_better"] is False
    lead = points(blind["frm_minus"], " points")
    assert f"best single blind feature ({share(blind['accuracy'])}: *less* sharpness; difference {lead})" in text
    rival = f"nor above the SVM ({share(frm['svm']['accuracy'])} of the same pairs; {points(frm['svm']['frm_minus'])})"
    assert rival in text
    for one in (blind, frm["svm"]):
        assert one["frm_minus"]["ci95"][0] < 0 < one["frm_minus"]["ci95"][1]
    blurred, swapped = (frm["heldout"]["robustness"][harm]["reward"] for harm in ("blur", "identity_swap"))
    assert blurred[1] > blurred[0] > blurred[-1], "the README says that it likes a light blur alone"
    assert swapped[1] > swapped[0], "the README says that it likes another's inner face"
    chance = metrics["benchmark"]["impostor"]["id_dlib"]
    assert f"{chance['mean']:.3f} apart on average, 5th percentile {chance['p5']:.3f}" in text
    learnt = {one["share"]: one for one in metrics["frm_learning"]["shares"]}
    for part, said in (
        (0.25, "give {}, and {} with the labels"),
        (0.5, "half of the faces {} and {}"),
        (1.0, "all {} and {}"),
    ):
        alone, both = (share(learnt[part][labels]["accuracy"]) for labels in ("votes", "votes+svm"))
        assert said.format(alone, both) in text
        assert points(learnt[part]["gain"]) in text
        assert learnt[part]["gain"]["ci95"][0] > 0
    fit = svm["out_of_fold"]
    assert f"its answers are right on {share(fit['accuracy_answered'])}, less than its target" in text
    assert fit["target_reached"] is False
    alone = frm["single_features"]["reference"]
    assert f"SSIM alone agrees with them on {share(alone['ssim']['accuracy'])}, PSNR on" in text
    assert f"PSNR on {share(alone['psnr']['accuracy'])}" in text
    assert alone["stlpips_alex"]["higher_is_better"] is True  # the farther one is preferred
    assert f"*farther* from the original on {share(alone['stlpips_alex']['accuracy'])}" in text
    assert f"it is right on {with_interval(svm)} of its answers at {share(svm['coverage'])} coverage" in text

    comparisons = metrics["benchmark"]["comparisons"]["test"]
    judged = {pair: {r: comparisons[r][pair]["reward_heldout"] for r in comparisons} for pair in comparisons["diffbir"]}
    added = judged["full-no_reward"]
    adds = {r: f"{entry['delta']:+.4f}" for r, entry in added.items()}
    assert f"surely over these faces ({adds['diffbir']} and {adds['gfpgan']})" in text
    assert added["diffbir"]["better"]
    assert added["gfpgan"]["better"]
    none = f"{adds['osediff']} [{added['osediff']['ci95'][0]:+.4f}, {added['osediff']['ci95'][1]:+.4f}]".replace(
        "-", "−"
    )
    assert f"and nothing for OSEDiff ({none})" in text
    own = comparisons["osediff"]["full-no_reward"]["reward_frm"]
    assert f"OSEDiff's own reward rises by {own['delta']:.3f} over `no_reward`" in text
    for metric in ("id_dlib", "lmd_68"):
        entries = [comparisons[r]["full-no_reward"][metric] for r in comparisons]
        assert not any(entry["better"] or entry["worse"] for entry in entries), "nothing measurable for any"
    against = {r: f"{entry['delta']:+.4f}".replace("-", "−") for r, entry in judged["full-base"].items()}
    assert f"rises for DiffBIR and GFPGAN** ({against['diffbir']} and {against['gfpgan']})" in text
    assert f"*falls* for OSEDiff ({against['osediff']})" in text
    alex = {r: share(abs(comparisons[r]["full-base"]["stlpips_alex"]["relative"])) for r in comparisons}
    assert (
        f"DiffBIR gains {alex['diffbir']}, OSEDiff {alex['osediff']}, and GFPGAN gets {alex['gfpgan']} *worse*" in text
    )
    spread = metrics["benchmark"]["diversity"]["test"]["scores"]
    less = {r: 100 * (1 - spread[r]["refl"]["mean"] / spread[r]["base"]["mean"]) for r in spread}
    assert f"by {less['diffbir']:.0f} % less" in text
    assert f"and {less['gfpgan']:.0f} % less for GFPGAN" in text
    assert f"(OSEDiff: {-less['osediff']:.0f} % more)" in text

    against_base = text.partition("**ReFL against its base:")[2].partition("The aim of 15 %")[0]
    for restorer, name in {"diffbir": "DiffBIR", "osediff": "OSEDiff", "gfpgan": "GFPGAN"}.items():
        change = metrics["benchmark"]["comparisons"]["test"][restorer]["full-base"]
        said = against_base.partition(f"{name}: ")[2].partition(";")[0]
        measured = [change[metric] for metric in ("id_dlib", "lmd_68", "stlpips_vgg")]
        assert all(entry["better"] for entry in measured)
        assert re.findall(r"[\d.]+ %", said) == [share(-entry["relative"]) for entry in measured]
        steps = (ROOT / f"plots/refl/{restorer}-more_base.csv").read_text().splitlines()[-1].partition(",")[0]
        assert f"{int(steps):,}" in text.partition("ReFL's compute equals")[2].partition("holds for")[0]
