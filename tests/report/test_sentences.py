"""The summary's sentences: bad news first, doubt marked, nothing claimed that was not measured."""

from typing import Any

import pytest

from pipeline.report import evidence, sentences, text

LABELS = {
    "id_dlib": ("Identity distance (dlib ResNet)", False, ["held_out"]),
    "reward_heldout": ("Reward (held-out FRM)", True, ["held_out"]),
    "reward_frm": ("Reward (FRM)", True, ["in_loss"]),
    "stlpips_vgg": ("ST-LPIPS (VGG)", False, ["in_loss"]),
    "ssim": ("SSIM (RGB)", True, []),
    "lmd_68": ("Landmark distance, px (68 points)", False, ["selects"]),
}
METRICS = {n: {"label": label, "higher_is_better": up, "roles": roles} for n, (label, up, roles) in LABELS.items()}


def entry(how: str, delta: float, p_holm: float | None = None) -> dict[str, Any]:
    width = abs(delta) / 2 if how != "none" else abs(delta) * 2
    ci95 = [delta - width, delta + width]
    judged = {"better": how == "better", "worse": how == "worse"}
    p_holm = p_holm if p_holm is not None else 0.5 if how == "none" else 0.001
    return {"delta": delta, "ci95": ci95, "relative": delta / 0.5, "p_holm": p_holm} | judged


def benchmark(**comparisons: dict[str, dict[str, Any]]) -> dict[str, Any]:
    means = {v: {"id_dlib": {"mean": m}} for v, m in (("base", 0.508), ("refl", 0.502))}
    scores = dict.fromkeys(comparisons, means) | {"lq": {"base": {"id_dlib": {"mean": 0.483}}}}
    return {
        "metrics": METRICS,
        "comparisons": {"test": comparisons},
        "scores": {"test": scores},
        "impostor": {"id_dlib": {"mean": 0.671, "p5": 0.554}},
    }


def against_input(base: str, full: str) -> dict[str, Any]:
    return {"base-lq": {"id_dlib": entry(base, 0.02)}, "full-lq": {"id_dlib": entry(full, 0.02)}}


@pytest.mark.parametrize(
    ("base", "full", "lead"),
    [
        ("worse", "worse", "Every restorer is worse than the untouched input on identity."),
        ("worse", "none", "Worse than the untouched input on identity: DiffBIR base."),
        ("none", "better", "No restorer is measurably worse than the untouched input on identity."),
    ],
)
def test_identity_lost_against_doing_nothing_is_the_lead(base: str, full: str, lead: str) -> None:
    made = benchmark(diffbir=against_input(base, full))
    assert sentences.identity_lead(made, "test") == lead
    detail = sentences.identity_detail(made, "test")
    assert "untouched input 0.483" in detail
    assert "Different people are 0.671 apart on average" in detail
    assert "0.554" in detail  # the 5th percentile


def test_what_the_reward_adds_is_said_even_if_it_is_nothing() -> None:
    nothing = {"full-no_reward": {"id_dlib": entry("none", 0.001), "stlpips_vgg": entry("better", -0.1)}}
    said = sentences.reward_sentence(benchmark(diffbir=nothing), "test")
    assert said.startswith("Nothing measurable on held-out measures")
    assert "ST-LPIPS" not in said  # trained on: no evidence
    assert "Identity distance: nothing measurable for DiffBIR (+0.2\u00a0%)." in said
    mixed = {"full-no_reward": {"id_dlib": entry("better", -0.0035), "reward_heldout": entry("worse", -0.0083)}}
    said = sentences.reward_sentence(benchmark(diffbir=mixed), "test")
    assert said == (
        "Identity distance: a gain for DiffBIR (−0.7\u00a0%). Held-out reward: a loss for DiffBIR (−0.0083)."
    )
    assert "not measured" in sentences.reward_sentence(benchmark(diffbir={}), "test")


def test_a_reward_that_rises_while_a_held_out_measure_falls_is_suspected() -> None:
    hacked = {"full-no_reward": {"reward_frm": entry("better", 0.045), "reward_heldout": entry("worse", -0.0083)}}
    honest = {"full-no_reward": {"reward_frm": entry("better", 0.045), "reward_heldout": entry("better", 0.001)}}
    said = sentences.hacking_sentence(benchmark(osediff=hacked, diffbir=honest), "test", 0.005)
    assert said == (
        "Suspected for OSEDiff, whose own reward rises (+0.045) while it loses on held-out reward (−0.0083). "
        "No sign of it for DiffBIR."
    )
    assert sentences.hacking_sentence(benchmark(diffbir=honest), "test", 0.005) == "No sign of it for DiffBIR."
    striped = {"full-no_reward": honest["full-no_reward"] | {"ssim": entry("worse", -0.0188)}}
    assert "while it loses on SSIM" in sentences.hacking_sentence(benchmark(osediff=striped), "test", 0.005)
    said = sentences.hacking_sentence(benchmark(osediff=striped), "test", 0.05)
    assert said == "No sign of it for OSEDiff (SSIM −0.019: a trifle)."
    unsure = {"full-no_reward": honest["full-no_reward"] | {"ssim": entry("worse", -0.0188, p_holm=0.09)}}
    assert "(SSIM −0.019†: a trifle)" in sentences.hacking_sentence(benchmark(osediff=unsure), "test", 0.05)
    moved = {"full-no_reward": honest["full-no_reward"] | {"lmd_68": entry("worse", 0.02)}}
    assert "while it loses on landmark distance" in sentences.hacking_sentence(benchmark(osediff=moved), "test", 0.005)
    # a reward's zero means nothing, so neither does a share of it: any sure loss of the held-out reward counts
    assert sentences.hacking_sentence(benchmark(osediff=hacked), "test", 0.5).startswith("Suspected for OSEDiff")


def test_an_own_reward_that_rises_alone_is_said() -> None:
    alone = {"reward_frm": entry("better", 0.081), "reward_heldout": entry("none", -0.0007)}
    shared = {"reward_frm": entry("better", 0.045), "reward_heldout": entry("better", 0.003)}
    said = sentences.hacking_sentence(
        benchmark(osediff={"full-no_reward": alone}, diffbir={"full-no_reward": shared}), "test", 0.005
    )
    assert said == (
        "The own reward rises and the held-out one does not for OSEDiff (own +0.081, held-out −0.0007). "
        "No sign of it for DiffBIR."
    )
    striped = {"full-no_reward": alone | {"ssim": entry("worse", -0.0017)}}
    said = sentences.hacking_sentence(benchmark(osediff=striped), "test", 0.05)
    assert "(own +0.081, held-out −0.0007; SSIM −0.0017: a trifle)" in said
    unmeasured = {"full-no_reward": {"reward_frm": entry("better", 0.081)}}
    said = sentences.hacking_sentence(benchmark(osediff=unmeasured), "test", 0.005)
    assert said == "Not judged for OSEDiff: nothing beside the reward was measured."


def test_a_loss_against_the_base_is_said_beside_the_same_training_without_the_reward() -> None:
    kept = {"reward_frm": entry("better", 0.05), "reward_heldout": entry("better", 0.015)}
    lost = {
        "reward_frm": entry("better", 0.06),
        "reward_heldout": entry("worse", -0.018),
        "id_dlib": entry("none", 0.1),
    }
    made = benchmark(osediff={"full-no_reward": kept, "full-base": lost})
    made["scores"]["test"]["osediff"] = {
        variant: {"reward_heldout": {"mean": mean}} for variant, mean in (("base", 0.14), ("no_reward", 0.107))
    }
    assert sentences.hacking_sentence(made, "test", 0.005) == (
        "No sign of it for OSEDiff. Against the base, the own reward rises and yet there is a loss: "
        "OSEDiff on held-out reward (−0.018; without the reward −0.033)."
    )
    without = benchmark(osediff={"full-base": lost})
    assert sentences.hacking_sentence(without, "test", 0.005).startswith("Suspected for OSEDiff")


@pytest.mark.parametrize(
    ("how", "p_holm", "mark"),
    [("better", 0.049, ""), ("worse", 0.05, "†"), ("none", 0.05, ""), ("none", 0.049, "†")],
)
def test_where_interval_and_corrected_p_disagree_stands_a_dagger(how: str, p_holm: float, mark: str) -> None:
    found = entry(how, 0.02, p_holm)
    assert text.doubt(found) == mark
    assert text.change("id_dlib", found) == f"+4.0\u00a0%{mark}"
    made = benchmark(diffbir={"base-lq": {"id_dlib": entry("worse", 0.02)}, "full-lq": {"id_dlib": found}})
    assert f"DiffBIR ReFL{mark} 0.502 ({text.VERDICTS[how]})" in sentences.identity_detail(made, "test")


def test_diversity_that_is_lost_is_said_with_the_control_beside_it() -> None:
    def means(**values: float) -> dict[str, Any]:
        return {variant: {"mean": mean} for variant, mean in values.items()}

    found = {
        "scores": {
            "gfpgan": means(base=0.2, refl=0.21),
            "osediff": means(base=0.2, refl=0.25, no_reward=0.2),
            "diffbir": means(base=0.4, refl=0.02, no_reward=0.04, more_base=0.4),
            "mine": means(base=0.0, refl=0.0),
        },
        "improvement": {
            "gfpgan": {"better": False, "worse": False},
            "osediff": {"better": True, "worse": False},
            "diffbir": {"better": False, "worse": True},
            "mine": {"better": False, "worse": False},
        },
    }
    assert sentences.diversity_sentence({"diversity": {"test": found}}, "test") == (
        "Surely less for DiffBIR (−95.0\u00a0%; without the reward −90.0\u00a0%); "
        "surely more for OSEDiff (+25.0\u00a0%; without the reward +0.0\u00a0%); "
        "not measurably different for GFPGAN (+5.0\u00a0%) and mine (0.000)."
    )
    assert sentences.diversity_sentence({"diversity": {"test": {}}}, "test") == ""
    assert sentences.diversity_sentence({}, "test") == ""


def test_metric_by_metric_losses_stand_before_gains() -> None:
    compared = {"stlpips_vgg": entry("better", -0.05), "id_dlib": entry("worse", 0.006, p_holm=0.06)}
    other = compared | {"id_dlib": entry("none", 0.001)}
    made = benchmark(osediff={"full-base": compared}, diffbir={"full-base": other})
    assert sentences.base_sentence(made, "test", ["stlpips_vgg", "id_dlib"]) == (
        "VGG’s ST-LPIPS: better for all. Identity distance: worse for OSEDiff†, not measurably different for DiffBIR."
    )


def test_what_is_wrong_with_the_held_out_judge_is_said() -> None:
    made = benchmark(diffbir={})
    for name, mean in (("lq", -0.019), ("hq", -0.018)):
        made["scores"]["test"][name] = {"base": {"reward_heldout": {"mean": mean}}}
    ladders = {"blur": {"reward": [0.0, 0.1]}, "jpeg": {"reward": [0.0, -0.1]}, "identity_swap": {"reward": [0.0, 0.0]}}
    frm = {"heldout": {"headline": {"accuracy": 0.716}, "robustness": ladders}}
    assert evidence.witness_sentence(made, "test", frm) == (
        "The held-out reward is right on 71.6\u00a0% of unanimous pairs and gives originals no less when they are "
        "blurred or given another person’s inner face; it gives the inputs −0.019 and the originals −0.018."
    )
    assert evidence.witness_sentence(made, "test", {}) == ""
    del made["scores"]["test"]["hq"]
    assert evidence.witness_sentence(made, "test", frm) == ""


def test_the_report_says_over_how_many_trainings_it_speaks() -> None:
    made = benchmark(diffbir={})
    assert "of one training: how much another seed moves them was not measured" in sentences.training_sentence(
        made, "test"
    )
    made["seeds"] = {"test": {"diffbir": {"refl-base": {"psnr": {"n": 3}}, "refl": {"psnr": {"n": 3}}}}}
    assert sentences.training_sentence(made, "test").endswith("the table of seeds has 3 trainings.")
