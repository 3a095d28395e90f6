"""Intervals and tests against closed forms and hand-computed cases."""

import numpy as np
import pytest

from pipeline.metrics.statistics import holm, paired_bootstrap, resampled_counts, wilcoxon_p


def test_interval_of_a_mean_matches_the_normal_theory():
    values = np.random.default_rng(1).normal(0.3, 2.0, size=400)
    mean, lo, hi = paired_bootstrap(values, seed=0, resamples=20_000)
    error = values.std() / np.sqrt(len(values))  # the bootstrap's standard error uses the plug-in variance
    assert mean == pytest.approx(values.mean())
    assert lo == pytest.approx(mean - 1.96 * error, abs=0.05 * error)
    assert hi == pytest.approx(mean + 1.96 * error, abs=0.05 * error)


def test_interval_of_two_values_is_exact():
    # means of two draws from {0, 1}: 0 (1/4), 0.5 (1/2), 1 (1/4); the 2.5 % and 97.5 % points are 0 and 1
    assert paired_bootstrap([0.0, 1.0], seed=3, resamples=2_000) == (0.5, 0.0, 1.0)
    mean, lo, hi = paired_bootstrap([0.0, 1.0], seed=3, resamples=2_000, confidence=0.4)
    assert (mean, lo, hi) == (0.5, 0.5, 0.5)


def test_a_constant_has_no_width_and_the_seed_decides():
    mean, lo, hi = paired_bootstrap([0.7] * 9, seed=5)
    assert (mean, lo, hi) == pytest.approx((0.7, 0.7, 0.7))
    values = np.random.default_rng(2).normal(size=50)
    assert paired_bootstrap(values, seed=1) == paired_bootstrap(values, seed=1)
    assert paired_bootstrap(values, seed=1) != paired_bootstrap(values, seed=2)


def test_coverage_is_about_nominal():
    generator = np.random.default_rng(11)
    inside = 0
    for trial in range(300):
        _, lo, hi = paired_bootstrap(generator.normal(size=60), seed=trial, resamples=600)
        inside += lo <= 0 <= hi
    assert 0.90 <= inside / 300 <= 0.98


def test_clusters_widen_the_interval_as_theory_says():
    faces = np.repeat(np.arange(40), 10)
    values = np.random.default_rng(4).normal(size=40)[faces]  # members of a face are copies: n is 40, not 400
    _, lo, hi = paired_bootstrap(values, seed=0, resamples=8_000, clusters=faces)
    error = values.std() / np.sqrt(40)
    assert hi - lo == pytest.approx(2 * 1.96 * error, rel=0.06)
    _, narrow_lo, narrow_hi = paired_bootstrap(values, seed=0, resamples=8_000)
    assert (hi - lo) / (narrow_hi - narrow_lo) == pytest.approx(np.sqrt(10), rel=0.08)


def test_clusters_of_different_sizes_keep_the_plain_mean():
    mean, lo, hi = paired_bootstrap([1.0, 1.0, 1.0, 5.0], seed=0, clusters=["a", "a", "a", "b"])
    assert (mean, lo, hi) == (2.0, 1.0, 5.0)  # draws: aa → 1, ab → 8/4, bb → 5


def test_chunking_does_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(2).normal(size=20)
    whole = paired_bootstrap(values, seed=1, resamples=500)
    monkeypatch.setattr("pipeline.metrics.statistics._CHUNK", 130)
    assert paired_bootstrap(values, seed=1, resamples=500) == whole


def test_resampled_counts_follow_the_multinomial_law():
    counts = resampled_counts(np.random.default_rng(0), 5, 40_000)
    assert counts.shape == (40_000, 5)
    assert (counts.sum(axis=1) == 5).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(5), abs=0.03)
    expected = np.full((5, 5), -1 / 5) + np.eye(5)  # n (diag p − p pᵀ)
    assert np.cov(counts.T) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("values", "message"), [([], "non-empty"), ([1.0, np.nan], "1 of 2"), ([[1.0, 2.0]], "one-dimensional")]
)
def test_unusable_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(values, seed=0)
    with pytest.raises(ValueError, match=message):
        wilcoxon_p(values)


def test_cluster_labels_must_match():
    with pytest.raises(ValueError, match="2 values but 1"):
        paired_bootstrap([1.0, 2.0], seed=0, clusters=["a"])


def test_wilcoxon_exact_small_case():
    # five positive differences: the most extreme of 2^5 sign patterns, two-sided p = 2/32
    assert wilcoxon_p([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
    # ranks 1..5, only rank 1 negative: W = 1 → patterns with W ≤ 1 are 2 of 32, twice
    assert wilcoxon_p([-1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(4 / 32)


def test_wilcoxon_of_no_difference_is_one():
    assert wilcoxon_p([0.0, 0.0, 0.0]) == 1.0
    assert wilcoxon_p([-1.0, 1.0, -2.0, 2.0]) == pytest.approx(1.0)


def test_holm_by_hand():
    # 0.01·4, max(0.04, 0.02·3), max(0.06, 0.03·2), max(0.06, 0.5)
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)
