# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Fusion's camera branch in int8 from recorded frames, and what that changes on others.

The bird's-eye view stays in floating point: with its layers in int8, all or some, its outputs changed by far
more than TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters
from kestrel.data.undistorter import Undistorter
from kestrel.engine.int8 import TOLERANCE, Int8Models, check_installed, file_hash
from kestrel.errors import ConfigError, InputError, ModelError, describe
from kestrel.eval.recorded_frames import undistorted
from kestrel.eval.scene import Scene
from kestrel.files import appearing
from kestrel.models.kestrel_fusion_types import FusionInput, FusionOutput
from kestrel.pipelines import FusionDetector
from kestrel.pipelines.fusion_engine import CAMERA, FusionEngine
from kestrel.train import cache
from kestrel.train.progress import track
from kestrel.train.sensor_cases import sensor_frame, stamp_of
from kestrel.types import Image, PointCloud, SensorFrame

LIBRARIES: Final = ("openvino", "nncf", "torch")
OUTPUTS: Final = ("heatmap", "features", "map_logits", "depth")
"""Of FusionOutput, what is compared."""

HELD_OUT: Final = 5
"""One part in so many of the recording, its end, is only for measuring."""

Recorded = Callable[[], tuple[SensorFrame, ...]]
"""Reads a frame, and before it those that its pictures look back on."""

EntryT = TypeVar("EntryT")


def calibrate(
    weights: str | Path, source: Path, out: Path, frames: int, rig: RigParameters = ALL_THERE_IS
) -> Int8Models:
    """Write int8 models and their manifest.

    Args:
        weights: name of shipped weights of a Kestrel-Fusion or path.
        source: a bag (rosbag2 folder or .mcap), or a folder of drives by `kestrel train prepare`.
        out: folder to make.
        frames: so many, evenly over the first four fifths of the source, to calibrate with; a quarter of
            that number from the last fifth to measure with.
        rig: of a bag: what the fusion node is told of the sensors.

    Raises:
        InputError: ``out`` exists, or ``source`` has too few frames with pictures.
        ModelError: the weights cannot be used, or int8 differs by more than TOLERANCE: nothing is written.
        SetupError: the extra int8 is not installed.
    """
    with appearing(out, "--out") as unfinished:
        check_installed("openvino", "nncf")
        detector = FusionDetector(weights, engine="eager", precision="float32")
        assert detector.manifest is not None
        hop_s = detector.network.config.hop_s
        used, others = split(recorded_frames(source, detector.sweeps, hop_s, rig), frames, source)
        unfinished.mkdir()
        models = Int8Models(
            weights=detector.manifest.name,
            sha256=detector.manifest.sha256,
            models=_write_models(detector, used, unfinished),
            calibration={"source": str(source), "frames": len(used), "other_frames": len(others)},
            versions={name: version(name) for name in LIBRARIES},
            difference={},
            folder=unfinished,
        )
        models = replace(models, difference=difference(detector, models, others))
        check_tolerance(models.difference)
        models.write()
    return replace(models, folder=out)


def recorded_frames(
    source: Path, sweeps: int, hop_s: float, rig: RigParameters = ALL_THERE_IS
) -> list[Recorded]:
    """Return the frames of drives or of a bag in order, each of which is read when it is called.

    Args:
        source: the drives or the bag, whose frames have no earlier sweeps.
        sweeps: how many earlier ones a frame has.
        hop_s: how long before a frame the one lies that its pictures look back on; 0: on none.
        rig: of a bag: what the fusion node is told of the sensors.

    Raises:
        ConfigError: ``rig`` tells something and the source is no bag.
    """
    if any(source.glob(f"*/{cache.DONE}")):
        if rig != ALL_THERE_IS:
            expected = "none for drives, whose sensors were read when they were made"
            raise ConfigError(describe("--params", expected=expected, found=source))
        return [partial(_cached_frames, path, sweeps, hop_s) for path in cache.frame_files(source)]
    scene, undistort = Scene(source, rig), Undistorter()
    return [partial(_scene_frames, scene, stamp, hop_s, undistort) for stamp in scene.stamps]


def _cached_frames(path: Path, sweeps: int, hop_s: float) -> tuple[SensorFrame, ...]:
    files = [*(cache.earlier_frames(path, hop_s, 1) if hop_s else ()), path]
    return tuple(
        sensor_frame(cache.read(cache.CachedFrame, file), sweeps, stamp_ns=stamp_of(file)) for file in files
    )


def _scene_frames(
    scene: Scene, stamp_ns: int, hop_s: float, undistort: Undistorter
) -> tuple[SensorFrame, ...]:
    before = [stamp for stamp in scene.stamps if hop_s and stamp < stamp_ns]
    wanted = stamp_ns - hop_s * 1e9
    nearest = sorted(before, key=lambda stamp: abs(stamp - wanted))[:1]
    return tuple(scene_frame(scene, stamp, undistort) for stamp in (*nearest, stamp_ns))


def scene_frame(scene: Scene, stamp_ns: int, undistort: Undistorter) -> SensorFrame:
    """Return what the sensors of a recording saw at a stamp; cameras without a calibration are left out."""
    frame = scene.frame(stamp_ns)
    images, calibrations = {}, {}
    for view in frame.cameras:
        if view.calibration is not None:
            image = Image(view.picture, stamp_ns, view.name)
            images[view.name], calibrations[view.name] = undistorted(image, view.calibration, undistort)
    cloud = None if frame.points is None else PointCloud(frame.points, stamp_ns, "base_link")
    return SensorFrame(stamp_ns, "base_link", cloud, images, calibrations)


def split(recorded: Sequence[EntryT], frames: int, source: Path) -> tuple[list[EntryT], list[EntryT]]:
    """Return frames to calibrate with and others, from another stretch of the recording, to measure with.

    Raises:
        InputError: the recording is shorter than HELD_OUT frames.
    """
    if len(recorded) < HELD_OUT:
        expected = f"at least {HELD_OUT} frames"
        raise InputError(describe(f"recording {source}", expected=expected, found=len(recorded)))
    end = len(recorded) - len(recorded) // HELD_OUT
    return _evenly(recorded[:end], frames), _evenly(recorded[end:], -(-frames // 4))


def _evenly(recorded: Sequence[EntryT], count: int) -> list[EntryT]:
    places = np.linspace(0, len(recorded) - 1, min(count, len(recorded)))
    return [recorded[round(float(place))] for place in places]


def _write_models(detector: FusionDetector, used: Sequence[Recorded], folder: Path) -> dict[str, str]:
    """Quantize the camera branch and return the hash of each file."""
    import openvino

    from kestrel.engine.quantization import quantize

    network, pictures = detector.network, list[tuple[Tensor, ...]]()
    for read in track(used, "reading"):
        inputs = _inputs(detector, read())
        if len(inputs.images):
            pictures.append((inputs.images, *inputs.past))
    if not pictures:
        raise InputError(describe("frames to calibrate with", expected="calibrated cameras", found="none"))
    model = quantize(network.camera, pictures, dynamic_batch=True)
    openvino.save_model(model, folder / f"{CAMERA}.xml", compress_to_fp16=False)
    return {path.name: file_hash(path) for path in sorted(folder.glob(f"{CAMERA}.*"))}


def _inputs(detector: FusionDetector, frames: tuple[SensorFrame, ...]) -> FusionInput:
    """Return what the network sees of the last of ``frames`` after those before it."""
    detector.reset()
    for frame in frames[:-1]:
        detector.detect(frame)
    return detector.inputs(frames[-1])


def difference(detector: FusionDetector, models: Int8Models, frames: Sequence[Recorded]) -> dict[str, float]:
    """Return the mean relative error of each output of the network in int8 over frames with pictures."""
    rough = FusionEngine(detector.network, "int8", int8=models)
    found: list[dict[str, float]] = []
    with torch.inference_mode():
        for read in track(frames, "measuring"):
            inputs = _inputs(detector, read())
            if len(inputs.images):
                found.append(relative_errors(rough(inputs), detector.engine(inputs)))
    if not found:
        raise InputError(describe("frames to measure with", expected="calibrated cameras", found="none"))
    return {name: round(float(np.mean([each[name] for each in found])), 4) for name in found[0]}


def relative_errors(found: FusionOutput, exact: FusionOutput) -> dict[str, float]:
    """Return the norm of the difference divided by the norm of ``exact``, for each of OUTPUTS."""
    errors = {}
    for name in OUTPUTS:
        wanted, answer = getattr(exact, name), getattr(found, name)
        errors[name] = float(torch.linalg.vector_norm(answer - wanted) / torch.linalg.vector_norm(wanted))
    return errors


def check_tolerance(difference: dict[str, float]) -> None:
    """Raise ModelError if an output differs by more than TOLERANCE."""
    worst = max(difference, key=lambda name: difference[name])
    if not difference[worst] <= TOLERANCE:
        expected = f"a relative error in int8 of at most {TOLERANCE}"
        raise ModelError(describe(f"output {worst}", expected=expected, found=difference[worst]))
