"""The README's links lead somewhere, its commands exist and its profiles are there."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx
import yaml
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


def test_what_the_page_on_extending_names_is_there() -> None:
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    assert all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\(([^)\s]+)", page))
    named = re.findall(r"`([\w/]+\.py)`(?: \(((?:`\w+`(?:, )?)+)\))?", page)
    assert len(named) > 15
    for file, names in named:
        code = (ROOT / file).read_text(encoding="utf-8")
        assert not [name for name in re.findall(r"\w+", names) if not re.search(rf"\b{name}\b", code)], file
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key in re.findall(r"`((?:benchmark|features|labels|frm|refl|restore)\.[a-z_.]+)", page):
        part: Any = params
        for name in key.rstrip(".").split("."):
            assert name in part, key
            part = part[name]


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

    def signed(value: float, digits: int = 4) -> str:
        return f"{value:+.{digits}f}".replace("-", "−")

    def delta(entry: dict[str, Any]) -> str:
        return f"{signed(entry['delta'])} [{signed(entry['ci95'][0])}, {signed(entry['ci95'][1])}]"

    def with_interval(entry: dict[str, Any]) -> str:
        low, high = (f"{100 * value:.1f}" for value in entry["ci95"])
        return f"{share(entry['accuracy'])} [{low}, {high}]"

    def points(entry: dict[str, Any], unit: str = "") -> str:
        mean, low, high = (signed(100 * value, 1) for value in (entry["mean"], *entry["ci95"]))
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
    for model in (frm, frm["heldout"]):
        blurred, swapped = (model["robustness"][harm]["reward"] for harm in ("blur", "identity_swap"))
        assert blurred[1] > blurred[0], "the README says that a light blur is not punished"
        assert swapped[1] > swapped[0], "the README says that another's inner face is not punished"
    alone = frm["single_features"]["reference"]
    assert (
        f"on the {frm['headline']['n']} pairs SSIM alone agrees with them on {share(alone['ssim']['accuracy'])}" in text
    )
    assert f"PSNR on {share(alone['psnr']['accuracy'])}" in text
    assert alone["stlpips_alex"]["higher_is_better"] is True  # the farther one is preferred
    assert f"*farther* from the original on {share(alone['stlpips_alex']['accuracy'])}" in text
    learnt = {one["share"]: one for one in metrics["frm_learning"]["shares"]}
    for part, said in (
        (0.25, "give {}, and {} with the labels"),
        (0.5, "half of the faces {} and {}"),
        (1.0, "all {} and {}"),
    ):
        votes, both = (share(learnt[part][labels]["accuracy"]) for labels in ("votes", "votes+svm"))
        assert said.format(votes, both) in text
        assert points(learnt[part]["gain"]) in text
        assert (learnt[part]["gain"]["ci95"][0] > 0) == (part < 1), "where votes are few, says the README"
    fit = svm["out_of_fold"]
    assert f"its answers are right on {share(fit['accuracy_answered'])}, less than its target" in text
    assert fit["target_reached"] is False
    assert f"it is right on {with_interval(svm)} of its answers at {share(svm['coverage'])} coverage" in text

    benchmark = metrics["benchmark"]
    chance, scores = benchmark["impostor"]["id_dlib"], benchmark["scores"]["test"]
    assert f"{chance['mean']:.3f} apart on average, 5th percentile {chance['p5']:.3f}" in text
    comparisons = benchmark["comparisons"]["test"]
    base, added, lq = (
        {r: one[name] for r, one in comparisons.items()} for name in ("full-base", "full-no_reward", "full-lq")
    )
    assert not any(one["id_dlib"]["better"] for one in lq.values()), "no restorer beats the untouched LQ"
    assert not any(one["id_dlib"]["worse"] for one in lq.values()), "all are level with it"
    below = {r: one["base-lq"]["id_dlib"] for r, one in comparisons.items()}
    assert [r for r, one in below.items() if one["worse"]] == ["diffbir", "gfpgan"]
    for metric in ("id_dlib", "lmd_68", "stlpips_vgg"):
        measured = [base[restorer][metric] for restorer in ("diffbir", "osediff", "gfpgan")]
        assert all(entry["better"] and entry["p_holm"] < 0.05 for entry in measured)
        gains = [share(-entry["relative"]) for entry in measured]
        assert f"by {gains[0]}, {gains[1]} and {gains[2]}" in text
        assert metric != "id_dlib" or f"by little ({gains[1]} to {gains[2]} of identity)" in text
    for restorer in base:
        steps = (ROOT / f"plots/refl/{restorer}-more_base.csv").read_text().splitlines()[-1].partition(",")[0]
        assert f"{int(steps):,}" in text.partition("ReFL costs as much as")[2].partition("denoiser had")[0]
    alex = {r: base[r]["stlpips_alex"] for r in base}
    assert [(r, one["better"], one["worse"]) for r, one in alex.items()] == [
        ("diffbir", True, False),
        ("osediff", True, False),
        ("gfpgan", False, True),
    ]
    won, more, lost = (share(abs(alex[r]["relative"])) for r in ("diffbir", "osediff", "gfpgan"))
    assert f"DiffBIR gains {won}, OSEDiff {more}, and GFPGAN gets {lost} *worse*" in text
    judged = {r: one["reward_heldout"] for r, one in added.items()}
    assert all(one["better"] for one in judged.values())
    adds = [signed(judged[r]["delta"]) for r in ("diffbir", "osediff", "gfpgan")]
    assert f"for all three ({adds[0]}, {adds[1]} and {adds[2]} for DiffBIR, OSEDiff and GFPGAN)" in text
    assert not any(one["id_dlib"]["better"] or one["id_dlib"]["worse"] for one in added.values())
    assert not any(one["lmd_68"]["better"] for one in added.values())
    assert [r for r, one in added.items() if one["lmd_68"]["worse"]] == ["gfpgan"]
    assert f"it costs GFPGAN {delta(added['gfpgan']['lmd_68'])}" in text
    assert f"at most {signed(min(one['stlpips_vgg']['delta'] for one in added.values()))})" in text
    own = added["osediff"]["reward_frm"]["delta"]
    assert f"own reward rises by {own:.3f}, the held-out one by {judged['osediff']['delta']:.3f}" in text
    suspect = added["gfpgan"]
    assert f"GFPGAN**, whose own reward rises by {suspect['reward_frm']['delta']:.3f}" in text
    assert f"its landmarks get {share(suspect['lmd_68']['relative'])} worse than without" in text
    held_out = {r: one["reward_heldout"] for r, one in base.items()}
    assert [r for r, one in held_out.items() if one["better"]] == ["diffbir", "osediff"]
    assert all(judged[r]["delta"] > held_out[r]["delta"] / 2 for r in ("diffbir", "osediff"))
    assert held_out["gfpgan"]["worse"]
    rise, other, fall = (signed(held_out[r]["delta"]) for r in ("diffbir", "osediff", "gfpgan"))
    assert f"rises for DiffBIR ({rise}) and OSEDiff ({other})" in text
    assert f"*falls* for GFPGAN ({fall})" in text
    spent = {r: one["full-more_base"] for r, one in comparisons.items()}
    assert all(spent[r][metric]["better"] for r in ("diffbir", "gfpgan") for metric in ("id_dlib", "lmd_68"))
    assert spent["osediff"]["lmd_68"]["better"]
    level = spent["osediff"]["id_dlib"]
    assert not level["better"] | level["worse"], "about as much"
    assert f"OSEDiff's identity ({delta(level)})" in text
    rewards = [scores["lq"]["base"], scores["diffbir"]["base"], scores["hq"]["base"]]
    untouched, restored, original = (f"{one['reward_heldout']['mean']:.4f}" for one in rewards)
    assert f"the untouched LQ ({untouched}) more than DiffBIR's base ({restored}; originals: {original})" in text
    spread = benchmark["diversity"]["test"]["scores"]
    less = {r: 100 * (1 - spread[r]["refl"]["mean"] / spread[r]["base"]["mean"]) for r in spread}
    diffbir, gfpgan = (f"{less[r]:.0f} % less" for r in ("diffbir", "gfpgan"))
    assert f"by {diffbir} after ReFL than before for DiffBIR and {gfpgan} for GFPGAN" in text
    assert f"OSEDiff's, which differ little, by {-less['osediff']:.0f} % more" in text
