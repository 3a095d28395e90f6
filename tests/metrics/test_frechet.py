"""Fréchet distances against closed forms and scipy's matrix root."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from pipeline.metrics import frechet, weights
from pipeline.metrics.frechet import Gaussian
from pipeline.params import UserError


def test_diagonal_gaussians_have_a_closed_form() -> None:
    a, b = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 2.25])
    one = Gaussian(np.array([1.0, 0.0, 0.0]), np.diag(a), 9)
    two = Gaussian(np.array([0.0, 2.0, 0.0]), np.diag(b), 9)
    assert frechet.distance(one, two) == pytest.approx(5 + np.square(np.sqrt(a) - np.sqrt(b)).sum())


def test_equals_the_matrix_root_of_the_product() -> None:
    generator = np.random.default_rng(0)
    one, two = (frechet.fit(generator.normal(size=(60, 6)) @ generator.normal(size=(6, 6))) for _ in range(2))
    root = linalg.sqrtm(one.covariance @ two.covariance).real
    expected = np.square(one.mean - two.mean).sum() + np.trace(one.covariance + two.covariance - 2 * root)
    assert frechet.distance(one, two) == pytest.approx(expected)
    assert frechet.distance(two, one) == pytest.approx(expected)


@pytest.mark.parametrize("count", [10, 300])  # fewer and more rows than dimensions
def test_identical_sets_are_at_zero_and_a_shift_at_its_square(count: int) -> None:
    rows = np.random.default_rng(1).normal(size=(count, 32))
    shift = np.zeros(32)
    shift[3], shift[7] = 3.0, 4.0
    assert frechet.distance(frechet.fit(rows), frechet.fit(rows[::-1])) == pytest.approx(0, abs=1e-5)
    assert frechet.distance(frechet.fit(rows), frechet.fit(rows + shift)) == pytest.approx(25.0, rel=1e-5)


def test_small_samples_of_one_distribution_are_apart_and_the_floor_says_so() -> None:
    rows = np.random.default_rng(2).normal(size=(40, 64))
    floor = frechet.floor(rows, 0)
    assert floor is not None
    assert floor > 10  # the same distribution: all of it is bias
    assert frechet.floor(np.concatenate([rows] * 50), 0) < floor
    assert frechet.floor(rows[:3], 0) is None
    assert "singular" in frechet.note(40, 64)
    assert "singular" not in frechet.note(100, 64)
    with pytest.raises(ValueError, match="two vectors"):
        frechet.fit(rows[:1])


def test_published_statistics_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    path = tmp_path / frechet.FFHQ
    path.parent.mkdir()
    for whole in (
        {"mean": np.arange(3.0), "cov": np.eye(3), "name": "FFHQ"},  # as BasicSR's script saves them
        {"mean": np.arange(3, dtype=np.float32), "cov": np.eye(3, dtype=np.float32)},
        {"mean": torch.arange(3.0), "cov": torch.eye(3)},
    ):
        torch.save(whole, path, _use_new_zipfile_serialization=False)
        found = frechet.ffhq()
        assert found.mean.tolist() == [0.0, 1.0, 2.0]
        assert np.array_equal(found.covariance, np.eye(3))
    torch.save({"mean": np.arange(3.0), "cov": np.eye(3)}, path, _use_new_zipfile_serialization=False)
    written = path.read_bytes().replace(b"numpy._core.", b"numpy.core.")  # as NumPy 1 names it
    assert b"numpy.core.multiarray" in written
    path.write_bytes(written)
    assert np.array_equal(frechet.ffhq().covariance, np.eye(3))
    torch.save({"mean": torch.arange(3.0)}, path)
    with pytest.raises(UserError, match="expected Inception statistics"):
        frechet.ffhq()
    torch.save({"mean": torch.arange(3.0), "cov": torch.eye(2)}, path)
    with pytest.raises(UserError, match="`mean` is"):
        frechet.ffhq()
