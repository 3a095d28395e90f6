"""Names of variants: what each switches off, and with which seed it is drawn."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.params import UserError
from pipeline.refl.params import MORE_BASE, VARIANTS, RolloutParams, Variant, parse_variant


def test_the_variants_add_the_parts_of_the_method_one_by_one() -> None:
    """Structure alone, + reward, + regulariser, + dynamic reward; no_reward is full without what the reward brings."""
    parts = {name: (v.reward, v.regulariser, v.dynamic) for name, v in VARIANTS.items()}
    assert parts == {
        "structure": (False, False, False),
        "reward": (True, False, False),
        "static": (True, True, False),
        "full": (True, True, True),
        "no_reward": (False, True, False),
    }


@pytest.mark.parametrize("name", [*VARIANTS, MORE_BASE])
def test_every_variant_can_be_trained_with_another_seed(name: str) -> None:
    kind, variant = parse_variant(name)
    assert (kind, variant) == (name, VARIANTS.get(name, Variant()))
    assert variant.seed == 0
    kind, again = parse_variant(f"{name}_seed12")
    assert kind == name
    assert again.seed == 12
    assert (again.reward, again.regulariser, again.dynamic) == (variant.reward, variant.regulariser, variant.dynamic)


@pytest.mark.parametrize(
    "name",
    ["", "ful", "full_seed", "full_seed0", "full_seed01", "full_seedx", "full_seed1_seed2", "seed1", "full seed1"],
)
def test_an_unknown_variant_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"refl\.variants: unknown variant .*; known: full, static, .*full_seed1"):
        parse_variant(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eta": (0.9, 0.1)}, "eta is a range, the smaller value first"),
        ({"eta": (0.0, 1.5)}, "less than or equal to 1"),
        ({"eta": (-0.5, 1.0)}, "greater than or equal to 0"),
        ({"gradient_window": 4}, "gradient_window must not exceed steps"),
    ],
)
def test_impossible_rollouts_are_refused(changes: dict[str, object], said: str) -> None:
    good: dict[str, object] = {"steps": 3, "gradient_window": 3, "eta": (0.0, 1.0), "renoise": 1}
    RolloutParams.model_validate(good)
    with pytest.raises(ValidationError, match=said):
        RolloutParams.model_validate(good | changes)
