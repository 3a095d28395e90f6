"""Bradley–Terry strengths of models from pairwise wins, with intervals over faces.

P(i beats j) = e^{s_i} / (e^{s_i} + e^{s_j}); a tie is half a win for both. Sources: Bradley & Terry 1952; Hunter 2004
for the minorise–maximise iteration. Every pair that was compared starts with `PRIOR` wins for each side, so that a
model that always wins has a finite strength.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.statistics import resampled_counts

PRIOR = 0.5
ITERATIONS, TOLERANCE = 2_000, 1e-9
_ROWS = 500  # resamples fitted at once: bounds memory, has no effect on the result
Wins = NDArray[np.float64]


def from_scores(scores: NDArray[np.float64]) -> tuple[Wins, int]:
    """Scores [faces, models], higher is better → wins [faces, models, models] of row over column, and the ties."""
    first, second = scores[:, :, None], scores[:, None, :]
    wins = (first > second) + 0.5 * (first == second)
    wins[:, np.arange(scores.shape[1]), np.arange(scores.shape[1])] = 0
    ties = int(np.triu((first == second).sum(axis=0), k=1).sum())
    return wins, ties


def grouped(wins: Wins, people: NDArray[np.str_]) -> Wins:
    """Wins [faces, M, M] → summed over the faces of each person [people, M, M], so that people are resampled."""
    names, member_of = np.unique(people, return_inverse=True)
    total = np.zeros((len(names), *wins.shape[1:]))
    np.add.at(total, member_of, wins)
    return total


def strengths(wins: Wins, compared: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Strengths [..., M] in logits, mean 0, of wins [..., M, M]; `compared` [M, M]: the pairs that could be won.

    Raises ValueError for models that no chain of comparisons connects: their strengths mean nothing.
    """
    if not connected(compared):
        raise ValueError("some models were never compared with the others")
    won = wins + PRIOR * compared
    games = won + np.swapaxes(won, -1, -2)
    total = won.sum(axis=-1)
    power = np.ones_like(total)
    for _ in range(ITERATIONS):
        fresh = total / (games / (power[..., :, None] + power[..., None, :])).sum(axis=-1)
        fresh /= np.exp(np.log(fresh).mean(axis=-1, keepdims=True))
        moved = np.abs(np.log(fresh / power)).max()
        power = fresh
        if moved < TOLERANCE:
            break
    return np.log(power)


def ranking(
    names: Sequence[str], wins: Wins, ties: int, seed: int, resamples: int, confidence: float = 0.95
) -> dict[str, Any]:
    """What wins [faces, M, M] say: strength, interval and win rate of each model, strongest first, as plain data.

    The interval resamples whole faces (or people: `grouped`). `win_rate`: expected share of wins against one of the
    other models.
    """
    total = wins.sum(axis=0)
    games = total + total.T
    found = strengths(total, games > 0)
    generator = np.random.default_rng(seed)
    faces = len(wins)
    flat = wins.reshape(faces, -1)
    drawn = []
    for start in range(0, resamples, _ROWS):
        counts = resampled_counts(generator, faces, min(_ROWS, resamples - start))
        drawn.append(strengths((counts @ flat).reshape(-1, len(names), len(names)), games > 0))
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    chance = 1 / (1 + np.exp(found[None, :] - found[:, None]))
    rate = (chance.sum(axis=1) - 0.5) / (len(names) - 1)  # 0.5: against itself
    return {
        "n": faces,
        "comparisons": round(float(np.triu(games, k=1).sum())),
        "ties": ties,
        "models": {
            names[place]: {
                "strength": float(found[place]),
                "ci95": [float(lo[place]), float(hi[place])],
                "win_rate": float(rate[place]),
            }
            for place in np.argsort(-found, kind="stable")
        },
        "wins": {name: _shares(names, total[row], games[row]) for row, name in enumerate(names)},
    }


def _shares(names: Sequence[str], won: NDArray[np.float64], games: NDArray[np.float64]) -> Mapping[str, float]:
    return {name: float(w / g) for name, w, g in zip(names, won, games, strict=True) if g}


def connected(compared: NDArray[np.bool_]) -> bool:
    """Whether a chain of comparisons leads from the first model to every other."""
    reached = np.zeros(len(compared), dtype=bool)
    reached[:1] = True
    for _ in range(len(compared)):
        reached |= compared[reached].any(axis=0)
    return bool(reached.all())
