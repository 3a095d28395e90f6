import pyiqa
import pytest
import torch

from pipeline.images import to_tensor
from pipeline.metrics import compute
from pipeline.metrics.perceptual import Net, PerceptualDistance, weights_file
from tests.metrics.faces import blurred, face


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    faces = [face(seed) for seed in range(3)]
    return to_tensor(faces), to_tensor([blurred(one) for one in faces])


@pytest.mark.parametrize(("net", "name"), [("alex", "stlpips"), ("vgg", "stlpips-vgg")])
def test_equals_pyiqa_with_reference_features_kept(
    net: Net, name: str, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    hq, image = pair
    theirs = pyiqa.create_metric(name, pretrained_model_path=str(weights_file(net)), device=torch.device("cpu"))
    ours = PerceptualDistance(net)
    kept = ours.features(hq)
    expected = theirs((image + 1) / 2, (hq + 1) / 2).flatten()
    torch.testing.assert_close(ours.distance(kept, image), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(hq, image), expected, rtol=1e-5, atol=1e-6)
    assert ours(hq, hq).abs().max() == 0
    assert expected.min() > 0.01


def test_gradient_lowers_the_distance_and_stays_finite_on_flat_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    hq, image = pair
    model = PerceptualDistance("alex").train()  # a trainer that calls train() must not wake the dropout
    kept = model.features(hq)
    image = image.clone().requires_grad_()
    before = model.distance(kept, image)
    before.sum().backward()
    assert image.grad is not None
    step = image.detach() - 0.02 * image.grad / image.grad.abs().amax()
    assert bool((model.distance(kept, step) < before).all())
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    model.distance(model.features(hq[:1]), flat).sum().backward()
    assert flat.grad is not None
    assert bool(flat.grad.isfinite().all())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_slices_find_their_own_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "SLICE", 2)
    originals = [face(seed) for seed in range(3)]
    hq = [originals[which] for which in (0, 0, 0, 1, 2)]  # the first one in two slices, the last slice with one image
    images = [blurred(one, 0.5 + place) for place, one in enumerate(hq)]
    found = compute.score(["stlpips_alex"], images, hq)["stlpips_alex"]
    expected = PerceptualDistance("alex")(to_tensor(hq), to_tensor(images))
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=1e-4, atol=1e-6)


def test_the_metrics_of_this_name_are_these_distances_of_images_in_minus_one_to_one() -> None:
    hq = [face(seed) for seed in range(2)]
    images = [blurred(one) for one in hq]
    found = compute.score(["stlpips_vgg", "stlpips_alex"], images, hq)
    for net in ("vgg", "alex"):
        expected = PerceptualDistance(net)(to_tensor(hq), to_tensor(images))
        torch.testing.assert_close(torch.from_numpy(found[f"stlpips_{net}"]).float(), expected, rtol=1e-4, atol=1e-6)
