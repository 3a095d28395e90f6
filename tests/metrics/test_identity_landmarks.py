from collections.abc import Callable
from pathlib import Path

import cv2
import dlib
import numpy as np
import pytest
import torch

from pipeline.compat import dlib_weights
from pipeline.metrics import identity, landmarks, regions
from pipeline.metrics.dlib_resnet import FaceResNet
from pipeline.params import UserError
from tests.metrics.faces import blurred, face, sample_faces

SAMPLE = sample_faces()


def misread(data: bytes) -> bytes:
    """The count of the bytes of a tensor's first size, larger than it is."""
    place = data.index(b"con_4\x01\x02") + 7
    return data[:place] + b"\xc8" + data[place + 1 :]


def test_landmarks_scale_with_the_crop_and_lmd_counts_pixels() -> None:
    large, small = landmarks.landmarks_68([face(0, 256)]), landmarks.landmarks_68([face(0, 64)])
    assert large.shape == (1, 68, 2)
    assert landmarks.lmd((small + 0.5) * 4 - 0.5, large) < 6  # px of 256
    assert landmarks.lmd(large, large + np.array([3.0, 4.0])) == pytest.approx(5.0)
    eyes = large[0, 36:48].mean(axis=0)
    assert np.abs(eyes - [128, 122]).max() < 14  # where the face was drawn, in (x, y)


def test_fixed_boxes_agree_with_dlibs_own_detection() -> None:
    predictor = dlib.shape_predictor(str(dlib_weights("shape_predictor_68_face_landmarks.dat")))
    for image in SAMPLE:
        large = landmarks.enlarge(image)
        found, scores, _ = dlib.get_frontal_face_detector().run(large, 0, 0.0)
        box = found[int(np.argmax(scores))]
        detected = np.array([(point.x, point.y) for point in predictor(large, box).parts()])
        ours = landmarks.landmarks_68([large])[0]
        apart = np.linalg.norm(ours - detected, axis=1).mean() / np.linalg.norm(detected[36] - detected[45])
        assert apart < 0.06


def test_landmarks_are_the_mean_over_moved_and_grown_starts() -> None:
    predictor = dlib.shape_predictor(str(dlib_weights("shape_predictor_68_face_landmarks.dat")))
    image = landmarks.enlarge(SAMPLE[0])
    moved = [(x, y, grow) for x in (-4, 4) for y in (-4, 4) for grow in (-4, 4)]
    boxes = [(42 + x - grow, 72 + y - grow, 214 + x + grow, 244 + y + grow) for x, y, grow in moved]
    each = [[(point.x, point.y) for point in predictor(image, dlib.rectangle(*box)).parts()] for box in boxes]
    assert landmarks.landmarks_68([image])[0] == pytest.approx(np.mean(each, axis=0))
    assert np.std(each, axis=0).max() > 0.5  # px: one start alone is that uncertain


def test_identity_is_near_under_blur_and_far_between_faces() -> None:
    embeddings = identity.embed(SAMPLE)
    assert embeddings.shape == (4, 128)
    same = identity.distance(embeddings, identity.embed([blurred(one, 0.8) for one in SAMPLE]))
    assert same.max() < 0.45 < identity.impostors(embeddings)["mean"]
    assert identity.distance(embeddings, embeddings).max() == 0


def test_identity_is_dlibs_descriptor_of_the_aligned_chip_in_rgb() -> None:
    network = dlib.face_recognition_model_v1(str(dlib_weights("dlib_face_recognition_resnet_model_v1.dat")))
    image = landmarks.enlarge(SAMPLE[1])
    points = [dlib.point(round(x), round(y)) for x, y in landmarks.landmarks_68([image])[0]]
    shape = dlib.full_object_detection(dlib.rectangle(42, 72, 214, 244), points)
    expected = np.asarray(network.compute_face_descriptor(image, shape))  # dlib cuts the chip itself
    assert identity.embed([SAMPLE[1]])[0] == pytest.approx(expected, abs=2e-6)
    flipped = np.asarray(network.compute_face_descriptor(np.ascontiguousarray(image[..., ::-1]), shape))
    assert np.linalg.norm(flipped - expected) > 0.05  # the order of the colours shows


def test_the_network_in_torch_is_dlibs_own() -> None:
    path = dlib_weights("dlib_face_recognition_resnet_model_v1.dat")
    faces = [cv2.resize(one, (150, 150)) for one in SAMPLE]
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    chips = [*faces, noise, np.zeros_like(noise)]
    expected = np.asarray(dlib.face_recognition_model_v1(str(path)).compute_face_descriptor(chips))
    drawn = torch.random.get_rng_state()
    network = FaceResNet(path)
    assert torch.equal(torch.random.get_rng_state(), drawn)  # loading it moves no training
    np.testing.assert_allclose(network(torch.from_numpy(np.stack(chips))).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[30_000:], misread]
)
def test_another_file_in_the_networks_place_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "network.dat"
    path.write_bytes(damage(dlib_weights("dlib_face_recognition_resnet_model_v1.dat").read_bytes()))
    with pytest.raises(UserError, match=r"network\.dat: not dlib's face recognition network, or damaged"):
        FaceResNet(path)


def test_identity_of_a_face_is_the_same_whatever_is_measured_beside_it() -> None:
    images = [blurred(one, sigma) for sigma in (0.5, 1.0, 1.5) for one in SAMPLE]
    together = identity.embed(images)
    for place in (0, 5, 11):
        np.testing.assert_array_equal(identity.embed([images[place]])[0], together[place])


def test_impostors_are_all_pairs_of_different_rows() -> None:
    rows = np.zeros((3, 128))
    rows[1, 0], rows[2, 0] = 1.0, 3.0  # distances 1, 3, 2
    assert identity.impostors(rows) == pytest.approx({"mean": 2.0, "p5": 1.1, "n": 3})
    assert identity.impostors(rows[:1]) == {}
    assert identity.impostors(rows, ["b", "a", "b"]) == {"mean": 1.0, "p5": 1.0, "n": 2}  # the first of each person


def test_a_picture_without_a_face_still_has_landmarks_and_identity() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.isfinite(landmarks.landmarks_68([noise])).all()
    assert np.isfinite(identity.embed([noise])).all()


def test_regions_stay_inside_the_image_whatever_the_landmarks() -> None:
    wild = np.random.default_rng(0).uniform(-40, 100, (20, 68, 2))
    for points in [*wild, np.zeros((68, 2)), np.full((68, 2), 63.0)]:
        for found in regions.boxes(points, (64, 64)).values():
            for left, top, right, bottom in found:
                assert 0 <= left <= right - regions.LEAST
                assert right <= 64
                assert 0 <= top <= bottom - regions.LEAST
                assert bottom <= 64
