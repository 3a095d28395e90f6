"""The whole report from a synthetic run: what it says, that it needs nothing but itself, and its bytes."""

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline import tables
from pipeline.params import UserError
from pipeline.report import formats, further
from pipeline.report import tables as report_tables
from pipeline.report.content import downloads, gather, tiles
from pipeline.report.params import ReportParams
from pipeline.report.provenance import dvc_md5
from pipeline.report.render import render
from pipeline.report.text import change, value_text
from stages import report
from tests.report.example import REPORT, write_run

FACES = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    write_run(root, FACES, size=32)
    return root


@pytest.fixture(scope="module")
def page(run) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        report.main()
    return (run / "data/report/report.html").read_text()


def test_the_page_needs_nothing_but_itself(page):
    addresses = re.findall(r"""\s(?:src|href|action|poster|srcset)\s*=\s*["']([^"']*)""", page)
    assert addresses
    assert {a.split(":")[0] for a in addresses if not a.startswith("#")} == {"data"}
    for reaching_out in ("http://", "https://", "url(", "@import", "fetch(", "XMLHttpRequest", "import("):
        assert reaching_out not in page


def test_the_same_data_gives_the_same_bytes(run, page, monkeypatch):
    monkeypatch.chdir(run)
    report.main()
    assert (run / "data/report/report.html").read_text() == page


def test_every_restorers_full_run_has_a_curve_and_no_run_of_an_earlier_matrix(run, page):
    (run / "plots/refl/diffbir-of_old.csv").write_text("of a variant that the benchmark doesn't know")
    (run / "metrics/refl/diffbir-of_old.json").write_text("")
    try:
        context = gather(run, ReportParams.model_validate(REPORT))
    finally:
        (run / "plots/refl/diffbir-of_old.csv").unlink()
        (run / "metrics/refl/diffbir-of_old.json").unlink()
    assert [one["restorer"] for one in context["training"]] == ["diffbir", "osediff", "gfpgan"]
    for one in context["training"]:
        assert "series-full" in str(one["hacking"][0]["svg"])
        assert not any("of_old" in label for _, label in one["legend"])


def test_what_was_tuned_is_said_beside_scores_and_evidence(page):
    for note, after in (
        ("These recipes were tuned on val.", "<h2>Scores"),
        ("These pairs were in view.", "Does the reward"),
    ):
        assert page.index(after) < page.index(note)


def test_bad_news_comes_first(page):
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.S).group(1)
    assert "worse than the untouched input on identity" in lead.replace("Worse", "worse")
    order = [
        page.index(text)
        for text in (
            lead,
            '<details class="detail printed"><summary>Identity of every model</summary>',
            "Different people are 0.660 apart on average",
            "Against its own base, ReFL",
            "What the reward itself adds",
            "Surely less for DiffBIR (",
            "All 1,200 preference votes are simulated (4 annotators)",
            'class="tiles"',
        )
    ]
    assert order == sorted(order)


def test_first_faces_are_the_first_by_id_and_the_worst_are_the_worst(run, page):
    ids = sorted(tables.read_frame(tables.FACES, run / "data/faces", ["face_id"])["face_id"])
    shown = re.findall(r'data-face="(\w+)"', page)
    assert shown[:20] == ids[:20]
    scores = tables.read_frame(tables.SCORES, run / "data/scores")
    full = scores[scores["model"].str.endswith("/full")].groupby("face_id")["id_dlib"].mean()
    assert shown[20:] == list(full.sort_values(ascending=False).index[:10])


def test_pictures_are_the_images_of_the_tables_unchanged(run, page):
    ids = sorted(tables.read_frame(tables.FACES, run / "data/faces", ["face_id"])["face_id"])
    face = tables.read(tables.FACES, run / "data/faces").to_pylist()[0]
    strip = re.search(rf'data-face="{ids[0]}"[^>]*>(.*?)</div>', page, re.S).group(1)
    models = re.findall(r'data-model="([^"]+)"', strip)
    own = [f"{r}/{v}" for r in ("diffbir", "osediff", "gfpgan") for v in ("base", "full")]
    assert models == ["lq", *own, "codeformer/base", "hq"]
    last = re.findall(r'src="data:image/png;base64,([^"]+)"', strip)[-1]
    assert base64.b64decode(last) == face["image"]["bytes"]


def test_every_mean_is_in_the_table_with_its_interval(run, page):
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())
    table = re.search(r'<table class="scores">(.*?)</table>', page, re.S).group(1)
    entry = benchmark["scores"]["test"]["osediff"]["refl"]["id_dlib"]
    row = re.search(r"<tr[^>]*><th[^>]*>OSEDiff · ReFL \(full\)</th>(.*?)</tr>", table, re.S).group(1)
    assert f"{entry['mean']:.3f}" in row
    assert f"{entry['ci95'][0]:.3f} … {entry['ci95'][1]:.3f}" in row
    assert "0.660" in table  # different faces: the chance level of identity
    assert "0.544" in table
    models = re.findall(r'<th scope="row">(.*?)</th>', table)
    assert models[0] == "LQ input"
    assert models[1:-3] == [f"{r} · {v}" for r in ("DiffBIR", "OSEDiff", "GFPGAN") for v in ("base", "ReFL (full)")]
    assert models[-3:] == ["codeformer", "HQ original", "Different people"]


def test_the_ablation_judges_every_variant_against_full(run, page):
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())
    table = re.search(r'aria-label="Ablation of GFPGAN">(.*?)</table>', page, re.S).group(1)
    rows = re.findall(r'<tr class="[^"]*"><th scope="row">(.*?)</th>(.*?)</tr>', table, re.S)
    assert [label for label, _ in rows] == [
        *("LQ input", "base", "base, trained longer", "ReFL without reward", "structure losses only"),
        *("structure + reward", "ReFL with a static FRM", "ReFL (full)", "Different people"),
    ]
    parts = {label: re.findall(r'class="part( on)?">(\w)', cells) for label, cells in rows}
    assert [letter for on, letter in parts["ReFL with a static FRM"] if on] == ["S", "R", "K"]
    assert [letter for on, letter in parts["structure losses only"] if on] == ["S"]
    assert parts["base"] == []
    by_label = dict(rows)
    for label, comparison in (
        ("LQ input", "full-lq"),
        ("base", "full-base"),
        ("ReFL without reward", "full-no_reward"),
    ):
        judged = benchmark["comparisons"]["test"]["gfpgan"][comparison]
        assert by_label[label].count("▼") == sum(entry["better"] for entry in judged.values())  # full is better
        assert by_label[label].count("▲") == sum(entry["worse"] for entry in judged.values())
    assert not re.search("[▲▼]", by_label["ReFL (full)"])


def test_doubtful_verdicts_are_marked_wherever_they_are_shown(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())
    for name, compared in benchmark["comparisons"]["test"]["gfpgan"].items():
        for entry in compared.values():
            sure = entry["better"] or entry["worse"]
            entry["p_holm"] = 0.5 if sure == (name == "full-base") else 0.001  # only full-base is doubtful throughout
            entry["p"] = 0.777
    (tmp_path / "metrics/benchmark.json").write_text(json.dumps(benchmark))
    monkeypatch.chdir(tmp_path)
    report.main()
    page = (tmp_path / "data/report/report.html").read_text()
    count = len(benchmark["comparisons"]["test"]["gfpgan"]["full-base"])
    table = re.search(r'aria-label="Ablation of GFPGAN">(.*?)</table>', page, re.S).group(1)
    rows = dict(re.findall(r'<tr class="[^"]*"><th scope="row">(.*?)</th>(.*?)</tr>', table, re.S))
    assert {label: row.count("†") for label, row in rows.items() if "†" in row} == {"base": count}
    forest = re.search(r"GFPGAN: ReFL against its base</summary>(.*?)</table>", page, re.S).group(1)
    assert forest.count("†") == count
    written = (tmp_path / "data/report/comparisons.md").read_text().splitlines()
    marked = [line for line in written if "GFPGAN" in line and "†" in line]
    assert len(marked) == sum("GFPGAN | ReFL against its base" in line for line in written) == count
    assert r"$\dagger$" in (tmp_path / "data/report/comparisons.tex").read_text()
    assert "0.777" not in "".join(written) + page, "people read the corrected p"
    assert page.count('id="doubt"') == 1


def test_rungs_that_differ_by_the_reward_alone_follow_the_key_comparison(page):
    labels = re.findall(r'<details class="comparison printed"><summary>DiffBIR: (.*?)</summary>', page)
    assert labels[:3] == [
        "ReFL with a static FRM against the same without it: one switch, the reward",
        "Structure + reward against the structure losses only: one switch, the reward",
        "ReFL against its base",
    ]


def test_tables_travel_in_the_page_as_the_files_beside_it(run, page):
    links = dict(re.findall(r'<a download="([^"]+)" href="data:[^"]*;base64,([^"]+)"', page))
    beside = {path.name: path.read_bytes() for path in (run / "data/report").iterdir() if path.suffix != ".html"}
    assert sorted(beside.pop(formats.WRITTEN).decode().split()) == sorted(beside)
    assert {name: base64.b64decode(uri) for name, uri in links.items()} == beside
    names = "means ablation comparisons frechet win_rates diversity seeds".split()
    assert set(beside) == {f"{name}.{kind}" for name in names for kind in ("csv", "tex", "md")}
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())
    for row in csv.DictReader(io.StringIO(beside["means.csv"].decode())):
        entry = benchmark["scores"][row["dataset"]][row["restorer"]][row["variant"]][row["metric"]]
        assert float(row["mean"]) == pytest.approx(entry["mean"], rel=1e-5)
        assert (float(row["lo"]), float(row["hi"])) == pytest.approx(tuple(entry["ci95"]), rel=1e-5)
        assert (int(row["n"]), int(row["dropped"])) == (entry["n"], entry["dropped"])
        assert ("held_out" in row["roles"]) == (row["metric"] in ("id_dlib", "reward_heldout"))
    for row in csv.DictReader(io.StringIO(beside["comparisons.csv"].decode())):
        entry = benchmark["comparisons"][row["dataset"]][row["restorer"]][row["comparison"]][row["metric"]]
        wanted = (entry["delta"], *entry["ci95"], entry["relative"], entry["p"], entry["p_holm"])
        assert [float(row[name]) for name in "delta lo hi relative p p_holm".split()] == pytest.approx(wanted, rel=1e-5)
    ablation = list(csv.DictReader(io.StringIO(beside["ablation.csv"].decode())))
    switches = {
        row["variant"]: "".join(row[p] for p in ("structure", "reward", "regulariser", "dynamic")) for row in ablation
    }
    assert switches["refl"] == "1111"
    assert (switches["static"], switches["reward"], switches["structure"]) == ("1110", "1100", "1000")
    assert (switches["no_reward"], switches["more_base"], switches["lq"]) == ("1010", "0000", "0000")


def test_tables_of_whole_sets_judges_and_diversity_hold_the_metrics_numbers(run):
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())

    def records(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((run / f"data/report/{name}.csv").read_text())))

    frechet = benchmark["frechet"]["test"]["frechet_dlib"]
    found = {(row["restorer"], row["variant"]): row for row in records("frechet")}
    assert len(found) == len(records("frechet")) == sum(map(len, frechet["scores"].values()))
    for (restorer, variant), row in found.items():
        assert float(row["value"]) == pytest.approx(frechet["scores"][restorer][variant]["value"])
        assert (float(row["floor"]), row["n_reference"], row["roles"]) == (frechet["floor"], "24", "held_out")
    judges = benchmark["bradley_terry"]
    assert {(row["dataset"], row["judge"]) for row in records("win_rates")} == {
        ("test", "reward_heldout"),
        ("preference", "simulated"),
    }
    for row in records("win_rates"):
        entry = judges[row["dataset"]][row["judge"]]["models"][row["model"]]
        numbers = (float(row["win_rate"]), float(row["strength"]), float(row["lo"]), float(row["hi"]))
        assert numbers == pytest.approx((entry["win_rate"], entry["strength"], *entry["ci95"]), rel=1e-5)
    assert {row["labels"] for row in records("win_rates")} == {"simulated"}
    written = (run / "data/report/comparisons.md").read_text().splitlines()[2:]
    assert all(("simulated labels" in line) == ("| Reward (" in line) for line in written)
    learnt = {row["metric"] for row in records("means") if row["labels"] == "simulated"}
    assert learnt == {"reward_frm", "reward_heldout"}
    for row in records("diversity"):
        entry = benchmark["diversity"]["test"]["scores"][row["restorer"]][row["variant"]]
        assert (float(row["mean"]), row["samples"]) == (pytest.approx(entry["mean"]), "3")
    for row in records("seeds"):
        entry = benchmark["seeds"][row["dataset"]][row["restorer"]][row["variant"]][row["metric"]]
        assert (float(row["mean"]), float(row["std"])) == pytest.approx((entry["mean"], entry["std"]))
        assert [float(value) for value in row["values"].split()] == entry["values"]
    assert len(records("seeds")) == 2
    shown = (run / "data/report/win_rates.md").read_text().splitlines()
    assert len(shown) == 2 + len(records("win_rates"))
    assert shown[2].startswith("| test | Reward (held-out FRM), simulated labels | DiffBIR · base | 70.0")
    assert "two random halves of the originals" in (run / "data/report/frechet.tex").read_text()


def test_every_dataset_has_tables_and_every_table_names_the_protocol(run, tmp_path):
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())
    parts = ("scores", "comparisons", "improvement", "n")
    for part in parts:
        benchmark[part]["LFW.Test"] = benchmark[part]["gone"] = benchmark[part]["test"]
    benchmark["metrics"]["id_dlib"]["protocols"] = ["standard", "VQFR-compatible"]
    formats.write(tmp_path, benchmark, "test")
    assert (tmp_path / "means-gone.md").is_file()
    for part in parts:
        del benchmark[part]["gone"]
    formats.write(tmp_path, benchmark, "test")
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {name for name in written if "-" in name} == {
        f"{name}-LFW.Test.{kind}" for name in ("means", "comparisons") for kind in ("md", "tex")
    }
    for name in ("means.md", "means-LFW.Test.md", "ablation.tex", "comparisons.md"):
        assert "(held out, standard / VQFR-compatible)" in written[name]
    for name in ("means", "comparisons", "ablation"):
        for row in csv.DictReader(io.StringIO(written[f"{name}.csv"])):
            assert ("VQFR-compatible" in row["protocols"]) == (row["metric"] == "id_dlib")
            assert row["labels"] == ("simulated" if row["metric"].startswith("reward") else "")
    assert set(downloads(benchmark, "test")) >= {"means-LFW.Test", "comparisons-LFW.Test"}


def test_what_a_run_lacks_leaves_no_trace_and_what_it_has_is_shown(tmp_path, page, monkeypatch):
    section = re.search(r'<section id="further">(.*?)</section>', page, re.S).group(1)
    titles = re.findall(r"<h3>([^<]*?) ?(?:<|$)", section)
    assert titles == [
        "Fréchet distance of whole sets",
        "Who wins, judged by: Reward (held-out FRM)",
        "Who wins, judged by: simulated annotators",
        *("Diversity across seeds", "Training again with other seeds", "Size of the restorers"),
    ]
    assert "two random halves of the originals" in section
    assert re.search(r"DiffBIR · ReFL \(full\)</th><td>24.25</td>", section)
    assert re.search(r"DiffBIR · ReFL − base · Identity[^<]*</th><td>−0.0499 ± 0.0041</td>", section)
    assert re.search(r"DiffBIR · ReFL \(full\)</th><td>0.123</td><td>0.111 … 0.135</td>", section)
    write_run(tmp_path, 20, size=32, with_further=False)
    monkeypatch.chdir(tmp_path)
    bare = render(gather(tmp_path, ReportParams(**REPORT | {"notes": {}})))
    assert 'id="further"' not in bare
    assert "#further" not in bare


def test_held_out_is_said_of_nothing_else(page):
    head = re.search(r'<table class="scores">.*?</thead>', page, re.S).group(0)
    marked = re.findall(r'<span class="metric">([^<]*?) [↑↓]</span>((?: <span class="role[^>]*>[^<]*</span>)*)', head)
    held_out = [label for label, roles in marked if "held out" in roles]
    assert held_out == ["Identity distance (dlib ResNet)", "Reward (held-out FRM)"]


def test_provenance_and_absent_metrics_are_shown(run, page):
    assert "valid from 192 px" in page
    assert dvc_md5(run / "data/scores") in page
    assert "first_faces: 20" in page
    assert "progress: false" not in page  # how it was run is no part of what was computed
    assert "Example CPU" in page


def test_data_hashes_are_those_of_dvc_lock(run):
    hashing = pytest.importorskip("dvc_data.hashfile.build")
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import localfs

    folder = str((run / "data/scores").resolve())
    _, _, built = hashing.build(HashFileDB(localfs, str(run / "odb")), folder, localfs, "md5", dry_run=True)
    assert dvc_md5(run / "data/scores") == built.hash_info.value


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("metrics/frm.json", "dvc repro frm"),
        ("metrics/svm.json", "dvc repro label"),
        ("metrics/frm_learning.json", "dvc repro learning"),
        ("data/scores", "dvc repro benchmark"),
        ("metrics/benchmark.json", "benchmark"),
    ],
)
def test_a_missing_input_names_the_stage(run, tmp_path, broken, message, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(run, root)
    target = root / broken
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=message):
        gather(root, ReportParams(**REPORT))


def test_large_images_stay_small(tmp_path, monkeypatch):
    write_run(tmp_path, 20, size=400)
    monkeypatch.chdir(tmp_path)
    html = render(gather(tmp_path, ReportParams(**REPORT)))
    assert "data:image/jpeg" in html
    assert len(html) < 8_000_000


def test_shares_of_better_faces_and_counts_of_kernels_are_those_of_the_tables(run, page):
    scores = tables.read_frame(tables.SCORES, run / "data/scores")
    for metric in REPORT["headline"]:
        wide = scores.pivot(index="face_id", columns="model", values=metric)
        for other, said in (("diffbir/base", "base"), ("lq", "LQ"), ("diffbir/no_reward", "ReFL without reward")):
            share = (wide["diffbir/full"] < wide[other]).mean()  # lower is better for all three
            assert f"DiffBIR: ReFL − {said}. Better on {share:.1%} of faces".replace("%", "\u00a0%") in page
    kinds = tables.read_frame(tables.DEGRADED, run / "data/degraded")["blur_kind"].value_counts()
    said = re.search(r"blur kernels: ([^.]*)\.", page).group(1)
    assert {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", said)} == kinds.to_dict()


def test_somebodys_results_go_by_their_own_name_everywhere(run, page):
    assert "codeformer: against the untouched input" in page
    assert not re.search(r"codeformer(?: ·)? [Bb]ase", page)
    table = (run / "data/report/comparisons.md").read_text()
    assert "| codeformer | against the untouched input |" in table
    assert "codeformer | Base" not in table


def test_fid_against_published_statistics_claims_no_number_of_images_and_the_floor_is_of_the_originals():
    shared = {"features": "Inception", "dims": 2048, "roles": [], "protocols": ["standard"], "note": ""}
    own = shared | {"label": "FID", "against": "the originals", "n_reference": 24, "floor": 3.0}
    published = shared | {"label": "FID (VQFR)", "against": "FFHQ-512 statistics", "n_reference": 0, "floor": None}
    scores = {"scores": {"lq": {"base": {"value": 9.0, "n": 24}}, "mine": {"base": {"value": 5.0, "n": 24}}}}
    found = {"Set": {"fid": own | scores, "fid_vqfr": published | scores}}
    [part] = further.frechet(found, "Set")
    assert [label for label, _ in part["rows"]][:2] == ["LQ input", "mine"]
    assert part["rows"][-1] == (
        "two random halves of the originals (n = 12 each, so no yardstick for the rows above)",
        ["3.000", "–"],
    )
    assert "against FFHQ-512 statistics. " in f"{part['intro']} "


def test_where_faces_share_people_both_are_counted():
    models = {name: {"strength": 0.0, "ci95": [-0.1, 0.1], "win_rate": 0.5} for name in ("a/base", "lq")}
    judge = {"n": 2, "faces": 6, "comparisons": 6, "ties": 0, "models": models}
    [part] = further.win_rates({"bradley_terry": {"Set": {"reward_frm": judge}}, "scores": {"Set": {}}})
    assert part["intro"].startswith("6 comparisons on 6 faces (of 2 people) of Set")


def test_tiles_say_what_changed_from_base_to_refl_beside_the_rewards_own_share_and_the_input(run):
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())
    [dataset] = benchmark["scores"]
    scores, compared = benchmark["scores"][dataset], benchmark["comparisons"][dataset]
    found = tiles(benchmark, dataset, ["id_dlib", "psnr"])
    places = [(one, metric) for one in ("diffbir", "osediff", "gfpgan") for metric in ("id_dlib", "psnr")]
    for (restorer, metric), tile in zip(places, found, strict=True):
        means, entries = scores[restorer], compared[restorer]
        assert (tile["from"], tile["to"]) == tuple(value_text(means[one][metric]["mean"]) for one in ("base", "refl"))
        assert tile["change"] == change(metric, entries["full-base"][metric])
        beside = {"reward’s own share": "full-no_reward", "against the untouched input": "full-lq"}
        assert [(one["label"], one["change"]) for one in tile["beside"]] == [
            (label, change(metric, entries[name][metric])) for label, name in beside.items()
        ]
    assert len({tile["change"] for tile in found} | {one["change"] for tile in found for one in tile["beside"]}) > 4


def test_a_forest_plot_points_right_where_the_model_is_better(run):
    benchmark = json.loads((run / "metrics/benchmark.json").read_text())
    [dataset] = benchmark["scores"]
    seen = set()
    for comparison in report_tables.comparisons(
        benchmark, dataset, tables.read_frame(tables.SCORES, run / "data/scores")
    ):
        for row in comparison["rows"]:
            if row["verdict"] == "none":
                continue
            zero = float(re.search(r'class="zero" x1="([\d.]+)"', str(row["svg"])).group(1))
            left, right = re.search(r'class="whisker \w+" x1="([\d.]+)".* x2="([\d.]+)"', str(row["svg"])).groups()
            assert (float(left) >= zero) if row["verdict"] == "better" else (float(right) <= zero)
            seen.add((row["verdict"], benchmark["metrics"][row["name"]]["higher_is_better"]))
    assert seen == {(verdict, higher) for verdict in ("better", "worse") for higher in (True, False)}
