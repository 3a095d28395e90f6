"""Links of README and docs lead somewhere, commands exist, profiles are there, and numbers are those of the metrics."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx
import pytest
import yaml
from dvc.repo import Repo

from bench import tables
from pipeline import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SIGMAS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["frm"]["evaluation"]["blur"]
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL))


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_pictures_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)", page.read_text(encoding="utf-8"))
    for path, _, heading in (one.partition("#") for one in targets if not one.startswith("http")):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not heading or heading in anchors(target), f"{path}#{heading}"


def test_what_the_page_on_extending_names_is_there() -> None:
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    assert all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\(([^)\s]+)", page))
    named = re.findall(r"`([\w/]+\.py)`(?: \(((?:`\w+`(?:, )?)+))?", " ".join(page.split()))
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
    assert len(means.splitlines()) == 2 + 14 + 1
    assert "diffbir: full-no_reward" in differences
    assert means in RESULTS
    assert differences in RESULTS
    assert tables.headline(benchmark, "test") in TEXT


def test_the_numbers_in_the_text_are_those_of_the_metrics() -> None:
    readme, results = (" ".join(page.split()) for page in (TEXT, RESULTS))
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
    blind = frm["best_blind_feature"]
    assert blind["name"] == "sharpness"
    assert blind["higher_is_better"] is False
    lead = points(blind["frm_minus"], " points")
    assert f"best single blind feature ({share(blind['accuracy'])}: *less* sharpness; difference {lead})" in results
    rival = f"nor above the SVM ({share(frm['svm']['accuracy'])} of the same pairs; {points(frm['svm']['frm_minus'])})"
    assert rival in results
    for one in (blind, frm["svm"]):
        assert one["frm_minus"]["ci95"][0] < 0 < one["frm_minus"]["ci95"][1]
    for model in (frm, frm["heldout"]):
        blurred, swapped = (model["robustness"][harm]["reward"] for harm in ("blur", "identity_swap"))
        assert swapped[1] > swapped[0], "another's inner face is rewarded"
        liked = [sigma for sigma, reward in zip(SIGMAS, blurred[1:], strict=True) if reward > blurred[0]]
        assert (liked[0], liked[-1]) == (0.5, 1.0 if model is frm else 1.5), "blur is rewarded up to there"
    single = frm["single_annotator"]
    assert f"the majority of the others on {share(single['annotator'])} of pairs" in results
    assert f"the FRM with the same majorities on {share(single['reward'])}" in results
    headline, every, kinds = frm["headline"], frm["all_restored"], frm["by_restorer_pair"]
    between = kinds["diffbir|osediff"]
    same = {
        name: f"{round(one['accuracy'] * one['n'])} of {one['n']}"
        for name in ("diffbir|diffbir", "osediff|osediff")
        for one in [kinds[name]]
    }
    for page in (readme, results):
        assert f"on {with_interval(headline)} of {headline['n']} held-out pairs of two restorations" in page
        assert f"with the majority on {with_interval(every)} of all {every['n']}" in page
        assert f"{share(between['accuracy'])} of {between['n']} pairs" in page
        assert same["osediff|osediff"] + " (OSEDiff)" in page
    assert f"on {same['diffbir|diffbir']} pairs (DiffBIR)" in readme
    assert f"on {same['diffbir|diffbir']} (DiffBIR)" in results
    few = kinds["diffbir|diffbir_few"]
    assert f"with four steps on {share(few['accuracy'])} of {few['n']}" in results
    held_out = frm["heldout"]
    assert f"The held-out one agrees on {with_interval(held_out['headline'])} of the {headline['n']}" in readme
    assert f"on {with_interval(held_out['headline'])} of the {headline['n']} and on" in results
    assert f"{with_interval(held_out['all_restored'])} of the {every['n']}" in results
    alone = frm["single_features"]["reference"]
    assert f"on the {headline['n']} pairs SSIM alone agrees with them on {share(alone['ssim']['accuracy'])}" in results
    assert f"PSNR on {share(alone['psnr']['accuracy'])}" in results
    assert alone["stlpips_alex"]["higher_is_better"] is True  # the farther one is preferred
    assert f"*farther* from the original on {share(alone['stlpips_alex']['accuracy'])}" in results
    learnt = {one["share"]: one for one in metrics["frm_learning"]["shares"]}
    assert metrics["frm_learning"]["seeds"] == 1, "in one training of each"
    for part, said in (
        (0.25, "give {}, and {} with the labels"),
        (0.5, "half of the faces {} and {}"),
        (1.0, "all {} and {}"),
    ):
        votes, both = (share(learnt[part][labels]["accuracy"]) for labels in ("votes", "votes+svm"))
        assert said.format(votes, both) in results
        assert points(learnt[part]["gain"]) in results
        assert (learnt[part]["gain"]["ci95"][0] > 0) == (part != 0.5), "in two of three comparisons"
    fit = svm["out_of_fold"]
    assert f"its answers are right on {share(fit['accuracy_answered'])}, less than its target" in results
    assert fit["target_reached"] is False
    assert f"it is right on {with_interval(svm)} of its answers at {share(svm['coverage'])} coverage" in results

    benchmark = metrics["benchmark"]
    chance, scores = benchmark["impostor"]["id_dlib"], benchmark["scores"]["test"]
    for page in (readme, results):
        assert f"{chance['mean']:.3f} apart on average, 5th percentile {chance['p5']:.3f}" in page
    assert f"the LQ is at {scores['lq']['base']['id_dlib']['mean']:.4f}" in readme
    comparisons = benchmark["comparisons"]["test"]
    base, added, lq = (
        {r: one[name] for r, one in comparisons.items()} for name in ("full-base", "full-no_reward", "full-lq")
    )
    assert not any(one["id_dlib"]["better"] for one in lq.values()), "no restorer beats the untouched LQ"
    assert not any(one["id_dlib"]["worse"] for one in lq.values()), "none differs measurably from it"
    below = {r: one["base-lq"]["id_dlib"] for r, one in comparisons.items()}
    assert [r for r, one in below.items() if one["worse"]] == ["diffbir", "gfpgan"]
    listed = {
        (restorer, name, metric): entry
        for restorer, named in comparisons.items()
        for name, found in named.items()
        for metric, entry in found.items()
        if metric in tables.METRICS
    }
    [doubtful] = [
        cell for cell, entry in listed.items() if (entry["better"] or entry["worse"]) != (entry["p_holm"] < 0.05)
    ]
    assert doubtful == ("diffbir", "full-base", "reward_heldout")
    assert f"DiffBIR's held-out reward against its base, p = {listed[doubtful]['p_holm']:.2f})" in readme
    traces = {metric: [one[metric] for one in added.values()] for metric in ("psnr", "ssim")}
    assert all(entry["worse"] for entries in traces.values() for entry in entries)
    psnr, ssim = ([f"{-one['delta']:.4f}" for one in entries] for entries in traces.values())
    trace = f"(by {psnr[0]}, {psnr[1]} and {psnr[2]} dB; by {ssim[0]}, {ssim[1]} and {ssim[2]})"
    assert f"PSNR and SSIM get worse by a trace for all three, surely over these faces {trace}" in results
    ranges = []
    for metric in ("id_dlib", "lmd_68", "stlpips_vgg"):
        measured = [base[restorer][metric] for restorer in ("diffbir", "osediff", "gfpgan")]
        assert all(entry["better"] and entry["p_holm"] < 0.05 for entry in measured)
        gains = [share(-entry["relative"]) for entry in measured]
        for page in (readme, results):
            assert f"by {gains[0]}, {gains[1]} and {gains[2]}" in page
        least, most = (share(pick(-entry["relative"] for entry in measured)) for pick in (min, max))
        ranges.append(f"{least} to {most}")
    assert f"in identity (by {ranges[0]}), landmarks ({ranges[1]}) and perceptual distance" in readme
    assert f"(ST-LPIPS with VGG, {ranges[2]})" in readme
    curves = [(ROOT / f"plots/refl/{restorer}-more_base.csv").read_text() for restorer in base]
    steps = [curve.splitlines()[-1].partition(",")[0] for curve in curves]
    order = dict(zip(base, steps, strict=True))
    assert f"for {order['diffbir']}, {order['osediff']} and {order['gfpgan']} steps" in results
    alex = {r: base[r]["stlpips_alex"] for r in base}
    assert [(r, one["better"], one["worse"]) for r, one in alex.items()] == [
        ("diffbir", True, False),
        ("osediff", True, False),
        ("gfpgan", False, True),
    ]
    won, more, lost = (share(abs(alex[r]["relative"])) for r in ("diffbir", "osediff", "gfpgan"))
    assert f"DiffBIR gains {won}, OSEDiff {more}, and GFPGAN gets {lost} *worse*" in results
    judged = {r: one["reward_heldout"] for r, one in added.items()}
    assert all(one["better"] for one in judged.values())
    adds = [signed(judged[r]["delta"]) for r in ("diffbir", "osediff", "gfpgan")]
    for page in (readme, results):
        assert f"({adds[0]}, {adds[1]} and {adds[2]} for DiffBIR, OSEDiff and GFPGAN" in page
    assert not any(one["id_dlib"]["better"] or one["id_dlib"]["worse"] for one in added.values())
    assert not any(one["lmd_68"]["better"] for one in added.values())
    assert [r for r, one in added.items() if one["lmd_68"]["worse"]] == ["gfpgan"]
    for page in (readme, results):
        assert f"it costs GFPGAN {delta(added['gfpgan']['lmd_68'])}" in page
    assert f"at most {signed(min(one['stlpips_vgg']['delta'] for one in added.values()))};" in results
    own = added["osediff"]["reward_frm"]["delta"]
    assert f"own reward rises by {own:.3f}, the held-out one by {judged['osediff']['delta']:.3f}" in results
    suspect = added["gfpgan"]
    assert f"GFPGAN**, whose own reward rises by {suspect['reward_frm']['delta']:.3f}" in results
    assert f"its landmarks get {share(suspect['lmd_68']['relative'])} worse than without" in results
    against = {r: one["reward_heldout"] for r, one in base.items()}
    assert [r for r, one in against.items() if one["better"]] == ["diffbir", "osediff"]
    assert against["gfpgan"]["worse"]
    rise, other, fall = (signed(against[r]["delta"]) for r in ("diffbir", "osediff", "gfpgan"))
    assert f"rises for DiffBIR ({rise}) and OSEDiff ({other};" in results
    assert f"*falls* for GFPGAN ({fall})" in results
    spent = {r: one["full-more_base"] for r, one in comparisons.items()}
    assert all(spent[r][metric]["better"] for r in ("diffbir", "gfpgan") for metric in ("id_dlib", "lmd_68"))
    assert spent["osediff"]["lmd_68"]["better"]
    level = spent["osediff"]["id_dlib"]
    assert not level["better"] | level["worse"], "about as much"
    assert f"OSEDiff's identity ({delta(level)})" in results
    rewards = [scores["lq"]["base"], scores["diffbir"]["base"], scores["hq"]["base"]]
    untouched, restored, original = (f"{one['reward_heldout']['mean']:.4f}" for one in rewards)
    assert f"the untouched LQ ({untouched}) more than DiffBIR's base ({restored}; originals: {original})" in results
    spread = benchmark["diversity"]["test"]["scores"]
    less = {r: 100 * (1 - spread[r]["refl"]["mean"] / spread[r]["base"]["mean"]) for r in spread}
    diffbir, gfpgan = (f"{less[r]:.0f} % less" for r in ("diffbir", "gfpgan"))
    for page in (readme, results):
        assert f"by {diffbir} after ReFL than before for DiffBIR and {gfpgan} for GFPGAN" in page
    assert f"OSEDiff's, which differ little, by {-less['osediff']:.0f} % more" in results
    without = [100 * (1 - spread[r]["no_reward"]["mean"] / spread[r]["base"]["mean"]) for r in ("diffbir", "gfpgan")]
    assert f"by {without[0]:.1f} % and {without[1]:.1f} %" in results
