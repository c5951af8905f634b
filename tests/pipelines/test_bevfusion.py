# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Converted BEVFusion checkpoints as detectors: all tasks and sensors, frames, conventions, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.data.undistorter import Undistorter
from kestrel.errors import ConfigError, InputError, ModelError
from kestrel.models.bevfusion_released import CENTER_TASKS, released_config
from kestrel.models.checkpoints import STANDARD_BOXES
from kestrel.nn.boxes import DecodedBoxes
from kestrel.pipelines import BEVFusionDetector, FusionDetector, load_detector
from kestrel.pipelines.bevfusion_frame import BASE_FROM_NETWORK, picture_augmentation, read_frame
from kestrel.types import Calibration, Image, PointCloud, SensorFrame
from kestrel.weights import Manifest, save
from tests.models.test_bevfusion import small_config
from tests.pipelines.conftest import make_cloud, make_frame

VARIANTS = [(task, sensors) for task in ("det", "seg") for sensors in ("camera+lidar", "camera", "lidar")]
GROUPED = tuple(name for task in CENTER_TASKS for name in task)


def classes_of(task: str, sensors: str) -> tuple[str, ...]:
    if task == "seg":
        return MAP_LAYERS
    return GROUPED if sensors == "camera" else DETECTION_CLASSES


def detector(task: Any, sensors: Any, backbone: str = "swin-t", **options: Any) -> BEVFusionDetector:
    options = {"seed": 1, "score_threshold": 0.0} | options
    config = small_config(task, sensors, backbone)
    return BEVFusionDetector.untrained(config, classes_of(task, sensors), **options)


@pytest.fixture(scope="module")
def both() -> BEVFusionDetector:
    return detector("det", "camera+lidar")


@pytest.mark.parametrize(("task", "sensors"), VARIANTS)
def test_every_released_network_answers_in_its_engine_as_in_eager_torch(task: str, sensors: str) -> None:
    engines, plain = detector(task, sensors), detector(task, sensors, engine="eager")
    frame = make_frame()
    boxes, layers = engines.detect(frame)
    assert layers.layer_names == (MAP_LAYERS if task == "seg" else ())
    assert boxes.class_names == (() if task == "seg" else DETECTION_CLASSES)
    assert (len(boxes) > 0) == (task == "det")
    with torch.inference_mode():
        found, wanted = (dense(each.engine(each.inputs(frame))) for each in (engines, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_boxes_in_bfloat16_are_where_they_are_in_float32(tmp_path: Path) -> None:
    """On the released grid of 180 x 180 cells; compared is what became boxes, not the dense answers."""
    path = tmp_path / "det.safetensors"
    config = released_config("det", "lidar")
    config["decoder"]["backbone"]["layer_nums"] = [1, 1]
    points = np.random.default_rng(0).uniform((-54, -54, 0, 0), (54, 54, 3, 1), (20000, 4))
    cloud = PointCloud(points.astype(np.float32), 200_000_000, "base_link")
    frame = replace(make_frame(cameras=0), cloud=cloud, sweeps=())
    network = BEVFusionDetector.untrained(config, DETECTION_CLASSES, 1).network
    # As of a training on this frame: without, hardly a cell differs from the next.
    torch.manual_seed(0)  # of the dropout
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            part.momentum = 1.0
    network.train()(clouds=read_frame(frame, config).clouds)
    save(path, network.state_dict(), Manifest("det", "BEVFusion", {"network": config}, DETECTION_CLASSES))
    wanted, found = (
        BEVFusionDetector(path, 0.0, engine="folded", precision=precision).detect(frame)[0]
        for precision in ("float32", "bfloat16")
    )
    assert np.abs(wanted.center[:, :2]).max() > 40
    one_class = wanted.label[:, None] == found.label[None]
    offsets = np.linalg.norm(wanted.center[:, None] - found.center[None], axis=-1)
    nearest = np.where(one_class, offsets, np.inf).min(1)
    # A quarter of a cell, of which positions in bfloat16 miss half; by how much regressions differ depends on
    # the dropout above. Which of two equally high peaks is the last to become a box may change.
    assert (nearest < 0.15).mean() > 0.95


def test_depths_in_bfloat16_are_those_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, narrow = (detector("det", "camera+lidar", precision=name) for name in ("float32", "bfloat16"))
    seen: list[list[torch.Tensor]] = []
    for each in (exact, narrow):
        inner = each.engine._run_camera

        def run(*given: torch.Tensor, inner: Any = inner) -> Any:
            seen.append([given[1]])
            return inner(*given)

        view = each.network.encoders["camera"].vtransform

        def splat(depth: torch.Tensor, *rest: Any, inner: Any = view.splat) -> torch.Tensor:
            seen[-1].append(depth.sum(dim=1))
            return inner(depth, *rest)

        monkeypatch.setattr(each.engine, "_run_camera", run)
        monkeypatch.setattr(view, "splat", splat)
        with torch.inference_mode():
            each.engine(each.inputs(make_frame()))
    assert torch.equal(seen[0][0], seen[1][0])
    for _, sums in seen:
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


def test_the_first_lidar_layer_in_bfloat16_sees_what_it_sees_in_float32() -> None:
    seen: list[torch.Tensor] = []
    for precision in ("float32", "bfloat16"):
        made = detector("seg", "lidar", precision=precision)
        first = made.network.encoders["lidar"].backbone.conv_input
        first.register_forward_pre_hook(lambda *args: seen.append(args[1][0].features))
        made.detect(make_frame(cameras=0))
    assert torch.equal(*seen)


def test_resnet50_cameras_answer_in_their_engine_as_in_eager_torch() -> None:
    engines, plain = (
        detector("seg", "camera", "resnet50", precision="float32", engine=engine)
        for engine in ("folded", "eager")
    )
    frame = make_frame()
    found, wanted = (each.detect(frame)[1].probability for each in (engines, plain))
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def dense(answers: dict[str, Any]) -> torch.Tensor:
    """Return the answer of all cells: which proposals follow from it hangs on ties with random weights."""
    if "map" in answers:
        return answers["map"]
    boxes = answers["object"]
    return boxes[0]["heatmap"] if isinstance(boxes, list) else boxes["dense_heatmap"]


@pytest.mark.parametrize("frame", [make_frame(cameras=0), make_frame(lidar=False), make_frame(cameras=1)])
def test_a_missing_sensor_changes_the_answer_and_does_not_end_it(frame: SensorFrame) -> None:
    # What sensors add to the answers of random weights is less than a step of bfloat16.
    exact = detector("det", "camera+lidar", precision="float32")
    boxes, _ = exact.detect(frame)
    whole, _ = exact.detect(make_frame())
    assert len(boxes) > 0
    assert boxes.score.tolist() != whole.score.tolist()


def test_a_frame_without_a_sensor_of_the_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected lidar.*found camera"):
        detector("seg", "lidar").detect(make_frame(lidar=False))


@pytest.mark.parametrize(
    ("sensors", "cameras", "takes_part"),
    [("camera+lidar", 1, False), ("camera+lidar", 0, True), ("lidar", 1, True)],
)
def test_a_sweep_without_points_takes_part_only_where_no_picture_does(
    sensors: str, cameras: int, takes_part: bool
) -> None:
    frame = make_frame(cameras=cameras)
    assert frame.cloud is not None
    empty = replace(frame, cloud=replace(frame.cloud, points=np.zeros((0, 4), np.float32)))
    inputs = read_frame(empty, small_config("det", sensors))
    assert (inputs.clouds is not None) == takes_part


def test_earlier_sweeps_have_a_say_and_an_age() -> None:
    config = small_config("det", "lidar")
    frame = replace(make_frame(cameras=0), sweeps=(make_cloud(seed=1, stamp_ns=100_000_000),))
    clouds = read_frame(frame, config).clouds
    assert clouds is not None
    assert clouds[0][:, 4].unique().tolist() == [0, pytest.approx(0.1)]


def test_points_stand_where_the_lidar_of_the_training_would_see_them() -> None:
    ahead, left = [5.0, 0.0, 1.84, 0.5], [0.944, 3.0, 0.84, 1.0]
    cloud = PointCloud(np.array([ahead, left], np.float32), 200_000_000, "base_link")
    frame = replace(make_frame(cameras=0), cloud=cloud, sweeps=())
    clouds = read_frame(frame, small_config("det", "lidar")).clouds
    assert clouds is not None
    found = clouds[0][:2].numpy()
    np.testing.assert_allclose(found[0], [0, 4.056, 0, 127.5, 0], atol=1e-4)
    np.testing.assert_allclose(found[1], [-3, 0, -1, 255, 0], atol=1e-4)
    # Without earlier sweeps the newest takes the places of all nine, but for what is within a metre.
    assert len(clouds[0]) == 2 * 10


def test_pictures_of_nuscenes_are_cut_as_in_the_training() -> None:
    augmentation = picture_augmentation((900, 1600), (256, 704))
    assert augmentation.resize == pytest.approx(0.48)
    assert augmentation.crop == (32, 176)
    small = picture_augmentation((256, 704), (256, 704))
    assert (small.resize, small.crop) == (1.0, (0, 0))
    wide = picture_augmentation((256, 1600), (256, 704))
    assert wide.resize == 1.0, "a picture that is not high enough is not filled with black"


def test_pictures_are_normalised_as_in_the_training() -> None:
    frame = make_frame(lidar=False, cameras=2)
    shown = {
        name: replace(image, data=np.random.default_rng(number).integers(0, 256, image.data.shape, np.uint8))
        for number, (name, image) in enumerate(frame.images.items())
    }
    config = small_config("det", "camera")
    size = tuple(config["encoders"]["camera"]["vtransform"]["image_size"])
    images = read_frame(replace(frame, images=shown), config).images
    assert images is not None
    for found, image in zip(images[0], shown.values(), strict=True):
        pixels = picture_augmentation(image.data.shape[:2], size).apply(image.data) / 255
        expected = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=2e-6)


def test_a_pixel_of_the_network_is_where_the_camera_sees_it() -> None:
    """A point ahead of the vehicle, through the augmented projection, is where its pixel went."""
    matrix = np.array([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
    frame = make_frame(lidar=False, cameras=1)
    pose = frame.calibrations["camera0"].reference_from_camera
    picture = np.zeros((900, 1600, 3), np.uint8)
    base = np.array([12.0, 1.0, 1.2, 1.0])
    optical = np.linalg.inv(pose) @ base
    column, row = (matrix @ optical[:3] / optical[2])[:2].round().astype(int)
    picture[row - 4 : row + 5, column - 4 : column + 5] = 255
    frame = replace(
        frame,
        images={"camera0": Image(picture, frame.stamp_ns, "camera0")},
        calibrations={"camera0": Calibration(matrix, 1600, 900, pose)},
    )
    config = small_config("det", "camera")
    config["encoders"]["camera"]["vtransform"]["image_size"] = (256, 704)
    inputs = read_frame(frame, config)
    assert inputs.images is not None
    assert inputs.cameras is not None
    network = torch.from_numpy(np.linalg.inv(BASE_FROM_NETWORK) @ base).float()
    projected = inputs.cameras.image_from_reference[0, 0] @ network
    homogeneous = torch.tensor([projected[0] / projected[2], projected[1] / projected[2], 1.0, 1.0])
    pixel = inputs.cameras.image_augmentation[0, 0] @ homogeneous
    bright = (inputs.images[0, 0, 0] > 1).nonzero().float().mean(0)
    torch.testing.assert_close(pixel[:2].flip(0), bright, atol=1.0, rtol=0)


@pytest.mark.parametrize("released", [True, False])
def test_boxes_turn_with_the_frame(
    both: BEVFusionDetector, released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A car 10 m ahead that drives ahead and to the left, as the network says it."""
    heading = np.pi / 2 + 0.3  # in the axes of the network: x right, y ahead
    size = (1.9, 4.5) if released else (4.5, 1.9)
    yaw = -heading - np.pi / 2 if released else heading
    raw = torch.tensor([[0.0, 10.0, -1.84, *size, 1.6, yaw, -3.0, 8.0]])
    answer = [DecodedBoxes(raw, torch.tensor([0.9]), torch.tensor([0]))]
    monkeypatch.setattr(both.network, "decode", lambda _: answer)
    monkeypatch.setattr(both, "_released_boxes", released)
    boxes = both.detect(make_frame())[0]
    np.testing.assert_allclose(boxes.center[0], [10.944, 0, 0.8], atol=1e-4)
    np.testing.assert_allclose(boxes.size[0], [4.5, 1.9, 1.6], atol=1e-5)
    assert boxes.yaw[0] == pytest.approx(0.3, abs=1e-5)
    np.testing.assert_allclose(boxes.velocity[0], [8, 3], atol=1e-5)


def test_the_map_turns_with_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell ahead on the left is where a point ahead on the left would be."""
    network = detector("seg", "lidar")
    logits = torch.full((1, 6, 24, 24), -9.0)
    x, y = -4.2, 2.3  # of the network: left, ahead
    logits[0, 0, int((x + 6) / 0.5), int((y + 6) / 0.5)] = 9.0
    monkeypatch.setattr(type(network.engine), "__call__", lambda *_: {"map": logits})
    bev = network.detect(make_frame(cameras=0))[1]
    base = BASE_FROM_NETWORK @ (x, y, 0, 1)
    cell = np.floor((base[:2] - bev.lower) / bev.resolution).astype(int)
    assert np.argwhere(bev.probability[0] > 0.5).tolist() == [cell.tolist()]


def test_the_frame_is_that_of_the_nuscenes_lidar() -> None:
    # The calibration of one vehicle: a quarter turn about z and half a degree of lean.
    turn = Rotation.from_matrix(BASE_FROM_NETWORK[:3, :3])
    vehicle = Rotation.from_quat([-0.006492, 0.010646, -0.706307, 0.707796])
    assert np.degrees((turn.inv() * vehicle).magnitude()) < 1.5


def test_classes_of_the_camera_detector_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = detector("det", "camera")
    raw = torch.ones(1, 9)
    label = torch.tensor([GROUPED.index("bus")])
    monkeypatch.setattr(cameras.network, "decode", lambda _: [DecodedBoxes(raw, torch.tensor([0.9]), label)])
    boxes = cameras.detect(make_frame(lidar=False))[0]
    assert boxes.class_names[boxes.label[0]] == "bus"
    assert boxes.class_names == DETECTION_CLASSES


@pytest.mark.parametrize("order", [MAP_LAYERS, MAP_LAYERS[::-1], MAP_LAYERS[2:] + MAP_LAYERS[:2]])
def test_map_layers_are_named_as_the_weights_have_them(order: tuple[str, ...]) -> None:
    config = small_config("seg", "lidar")
    made, usual = (
        BEVFusionDetector.untrained(config, classes, 1, precision="float32").detect(make_frame(cameras=0))[1]
        for classes in (order, MAP_LAYERS)
    )
    assert made.layer_names == usual.layer_names == MAP_LAYERS
    assert len({float(layer.mean()) for layer in usual.probability}) == len(MAP_LAYERS)
    for name, layer in zip(order, usual.probability, strict=True):
        np.testing.assert_array_equal(made.probability[MAP_LAYERS.index(name)], layer)


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [("plumb_bob", [-0.3, 0.1, 0.0, 0.0, 0.0]), ("equidistant", [-0.02, 0.004, -0.002, 0.0003])],
)
def test_lens_distortion_is_removed(model: str, coefficients: list[float]) -> None:
    frame = make_frame(lidar=False)
    lenses = {
        name: replace(calibration, distortion_model=model, distortion=np.array(coefficients))
        for name, calibration in frame.calibrations.items()
    }
    bent = replace(frame, calibrations=lenses)
    straight = replace(
        frame,
        images={
            name: replace(image, data=Undistorter()(name, image.data, lenses[name]))
            for name, image in frame.images.items()
        },
    )
    cameras = detector("det", "camera")
    found, wanted, raw = (cameras.inputs(each).images for each in (bent, straight, frame))
    assert found is not None
    assert raw is not None
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, raw)
    again = cameras.inputs(bent).images
    assert again is not None
    assert torch.equal(again, found)
    assert cameras._undistort.built == 1, "both cameras have one lens, whose table is kept"
    torch.testing.assert_close(read_frame(bent, cameras.config).images, wanted)


def write_weights(path: Path, task: str, sensors: str, **training: str) -> BEVFusionDetector:
    """Write the weights of a small network as a conversion does, with its sizes; return its detector."""
    made = detector(task, sensors)
    config = {"task": task, "modality": sensors, "network": small_config(task, sensors)}
    manifest = Manifest(path.stem, "BEVFusion", config, classes_of(task, sensors), training=dict(training))
    save(path, made.network.state_dict(), manifest, exact=True)
    return made


def test_the_weights_file_says_which_network_runs(tmp_path: Path) -> None:
    path = tmp_path / "seg.safetensors"
    made = write_weights(path, "seg", "camera+lidar")
    loaded = load_detector(path, 0.0, engine="folded")
    assert isinstance(loaded, BEVFusionDetector)
    found, wanted = (each.detect(make_frame())[1].probability for each in (loaded, made))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert isinstance(load_detector("kestrel-fusion", engine="folded"), FusionDetector)


def test_int8_is_refused_for_a_bevfusion(tmp_path: Path) -> None:
    path = tmp_path / "seg.safetensors"
    write_weights(path, "seg", "camera+lidar")
    with pytest.raises(ConfigError, match="network for engine int8: expected KestrelFusion, found BEVFusion"):
        load_detector(path, engine="int8", int8=tmp_path)


def test_a_conversion_from_mmdetection3d_keeps_its_box_convention(tmp_path: Path) -> None:
    path = tmp_path / "det.safetensors"
    write_weights(path, "det", "lidar", boxes=STANDARD_BOXES)
    assert not BEVFusionDetector(path)._released_boxes


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ModelError, match=r"kestrel-fusion.*BEVFusion.*KestrelFusion"):
        BEVFusionDetector("kestrel-fusion")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "detection", "modality": "lidar"}, r"task.*found 'detection'"),
        ({"task": "det", "modality": ["lidar"]}, r"modality.*found \['lidar'\]"),
        ({"task": "det"}, r"config: expected an entry 'modality'"),
        ({"network": []}, r"network: expected an object.*found \[\]"),
        ({"network": {"encoders": None}}, r"network: encoders.*found None"),
    ],
)
def test_a_manifest_that_describes_no_network_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    path = tmp_path / "det.safetensors"
    save(path, {"weight": torch.zeros(1)}, Manifest("det", "BEVFusion", config, DETECTION_CLASSES))
    with pytest.raises(ModelError, match=rf"det\.safetensors.*{message}"):
        BEVFusionDetector(path)


def test_weights_of_another_grid_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "seg.safetensors"
    made = detector("seg", "camera")
    config = small_config("seg", "camera")
    for axis in ("xbound", "ybound"):
        config["encoders"]["camera"]["vtransform"][axis] = [-3.2, 3.2, 0.2]
    manifest = Manifest("seg", "BEVFusion", {"network": config}, MAP_LAYERS)
    save(path, made.network.state_dict(), manifest, exact=True)
    expected = r"vtransform\.dx.*expected \[0\.2, 0\.2, 20\.0\].*found \[0\.4, 0\.4, 20\.0\]"
    with pytest.raises(ModelError, match=expected):
        BEVFusionDetector(path)
