from pathlib import Path

import dask
import distributed
import pytest
import yaml

from pipeline.parallel import map_chunks, parallel_map


def square(number: int) -> int:
    return number * number


def total(numbers: list[int]) -> list[int]:
    return [sum(numbers)] * len(numbers)


def configure(folder: Path, monkeypatch: pytest.MonkeyPatch, **runtime: object) -> None:
    monkeypatch.chdir(folder)
    Path("params.yaml").write_text(yaml.safe_dump({"runtime": {"progress": False, **runtime}}))


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_chunks_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    configure(tmp_path, monkeypatch, num_workers=workers)
    assert parallel_map(square, range(70), "") == [n * n for n in range(70)]
    chunks = map_chunks(total, list(range(70)), "")
    assert chunks == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32 + [sum(range(64, 70))] * 6


def test_dask_uses_the_configured_cluster_and_keeps_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path, monkeypatch, num_workers=2, joblib_backend="dask")
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        with dask.config.set({"scheduler-address": cluster.scheduler_address}):
            assert parallel_map(square, range(70), "") == [n * n for n in range(70)]
        assert len(cluster.scheduler.workers) == 1  # no second cluster was started
