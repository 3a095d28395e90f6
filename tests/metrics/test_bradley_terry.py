"""Bradley–Terry against closed forms and a maximum of the likelihood found by scipy."""

import numpy as np
import pytest
from scipy import optimize

from pipeline.metrics import bradley_terry
from pipeline.metrics.bradley_terry import PRIOR, from_scores, ranking, strengths

ALL = ~np.eye(3, dtype=bool)


def test_two_models_are_their_log_odds() -> None:
    wins = np.array([[0.0, 30.0], [10.0, 0.0]])
    low, high = strengths(wins, wins > 0)[::-1]
    assert high - low == pytest.approx(np.log((30 + PRIOR) / (10 + PRIOR)))
    assert high + low == pytest.approx(0)


def test_three_models_maximise_the_likelihood() -> None:
    wins = np.array([[0.0, 12.0, 25.0], [8.0, 0.0, 17.0], [3.0, 9.0, 0.0]])
    won = wins + PRIOR * ALL

    def loss(values: np.ndarray) -> float:
        s = np.append(values, -values.sum())
        return float((won * np.logaddexp(0, s[None, :] - s[:, None])).sum())

    best = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    np.testing.assert_allclose(strengths(wins, ALL), [*best, -best.sum()], atol=1e-4)
    stacked = strengths(np.stack([wins, wins.T]), ALL)  # several at once, each for itself
    np.testing.assert_allclose(stacked[0], [*best, -best.sum()], atol=1e-4)
    np.testing.assert_allclose(stacked[1], -stacked[0], atol=1e-6)


def test_scores_become_wins_and_ties() -> None:
    wins, ties = from_scores(np.array([[3.0, 1.0, 1.0], [0.0, 2.0, 1.0]]))
    assert wins[0].tolist() == [[0, 1, 1], [0, 0, 0.5], [0, 0.5, 0]]
    assert wins[1].tolist() == [[0, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert ties == 1


def test_a_ranking_says_who_wins_how_often_and_how_surely() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(200, 3)) + np.array([0.0, 1.0, 3.0])
    wins, ties = from_scores(scores)
    found = ranking(["a", "b", "c"], wins, ties, seed=0, resamples=300)
    assert list(found["models"]) == ["c", "b", "a"]
    assert found["n"] == 200
    assert found["comparisons"] == 600
    assert found["wins"]["c"]["a"] == pytest.approx((scores[:, 2] > scores[:, 0]).mean())
    assert sum(one["win_rate"] for one in found["models"].values()) == pytest.approx(1.5)
    for one in found["models"].values():
        assert one["ci95"][0] < one["strength"] < one["ci95"][1]
    assert found["models"]["b"]["ci95"][1] < found["models"]["c"]["ci95"][0]
    assert found == ranking(["a", "b", "c"], wins, ties, seed=0, resamples=300)


def test_one_that_always_wins_is_finite_and_equal_ones_are_level() -> None:
    wins, ties = from_scores(np.array([[1.0, 0.0]] * 20))
    found = ranking(["up", "down"], wins, ties, 0, 100)
    assert found["models"]["up"]["strength"] == pytest.approx(np.log(20.5 / 0.5) / 2)
    wins, ties = from_scores(np.ones((10, 2)))
    found = ranking(["a", "b"], wins, ties, 0, 100)
    assert ties == 10
    assert found["models"]["a"]["strength"] == pytest.approx(0)
    assert found["models"]["a"]["win_rate"] == pytest.approx(0.5)


def test_models_that_never_met_are_refused() -> None:
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 5
    assert not bradley_terry.connected(wins + wins.T > 0)
    with pytest.raises(ValueError, match="never compared"):
        strengths(wins, wins + wins.T > 0)
