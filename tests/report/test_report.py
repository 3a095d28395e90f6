"""The whole report from a synthetic run: what it says, that it needs nothing but itself, and its bytes."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline import tables
from pipeline.params import UserError
from pipeline.report.content import Inputs, gather
from pipeline.report.params import ReportParams
from pipeline.report.provenance import dvc_md5
from pipeline.report.render import render
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
    addresses = re.findall(r"""(?:src|href|action|poster|srcset)\s*=\s*["']([^"']*)""", page)
    assert addresses
    assert {a.split(":")[0] for a in addresses if not a.startswith("#")} == {"data"}
    for reaching_out in ("http://", "https://", "url(", "@import", "fetch(", "XMLHttpRequest", "import("):
        assert reaching_out not in page


def test_the_same_data_gives_the_same_bytes(run, page, monkeypatch):
    monkeypatch.chdir(run)
    report.main()
    assert (run / "data/report/report.html").read_text() == page


def test_bad_news_comes_first(page):
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.S).group(1)
    assert "worse than the untouched input on identity" in lead
    assert "DiffBIR ReFL" in lead
    assert page.index(lead) < page.index("ReFL against its own base")
    assert page.index("ReFL against its own base") < page.index("the reward itself adds")
    assert page.index("the reward itself adds") < page.index("All 1,200 preference votes are simulated (4 simulated")


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
    strip = re.search(rf'data-face="{ids[0]}">(.*?)</div>', page, re.S).group(1)
    models = re.findall(r'data-model="([^"]+)"', strip)
    assert models == ["lq", "diffbir/base", "diffbir/full", "osediff/base", "osediff/full", "hq"]
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
    assert models[1:5] == [
        f"DiffBIR · {v}" for v in ("base", "base, trained longer", "ReFL without reward", "ReFL (full)")
    ]


def test_held_out_is_said_of_nothing_else(page):
    head = re.search(r'<table class="scores">.*?</thead>', page, re.S).group(0)
    marked = re.findall(r'<span class="metric">([^<]*?) [↑↓]</span>((?:<span class="role[^>]*>[^<]*</span>)*)', head)
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
        gather(Inputs(root), ReportParams(**REPORT))


def test_large_images_stay_small(tmp_path, monkeypatch):
    write_run(tmp_path, 20, size=400)
    monkeypatch.chdir(tmp_path)
    html = render(gather(Inputs(tmp_path), ReportParams(**REPORT)))
    assert "data:image/jpeg" in html
    assert len(html) < 8_000_000
