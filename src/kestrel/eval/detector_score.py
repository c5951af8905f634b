# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector answers at the moments of recordings that have truth, scored without ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
from rich import progress
from rich.console import Console

from kestrel.classes import MAP_LAYERS
from kestrel.data.nuscenes_samples import MAP_FRAME
from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters
from kestrel.errors import InputError, describe
from kestrel.eval.lidar_frame import leaning_from_base, moved_boxes, moved_frame
from kestrel.eval.nuscenes_results import Entries, sample_results, write_results
from kestrel.eval.overlap import MapOverlap
from kestrel.eval.recorded_frames import RecordedFrames
from kestrel.eval.recording import Recording, read_recording
from kestrel.eval.score import add_map, box_values, layer_values
from kestrel.pipelines import BEVFusionDetector
from kestrel.pipelines.detector import Detector
from kestrel.report import Figure
from kestrel.types import BevMap, Boxes3D, Float64Array, SensorFrame

SENSORS: Final = frozenset(("camera", "lidar"))
LIDAR_FRAME: Final = "lidar"


class DetectorScore:
    """Scores one detector on any number of recordings.

    Args:
        detector: answers with boxes, map layers or both; it begins every recording anew.
        sensors: those of SENSORS that take part, as far as the network knows them.
        results: whether results of samples are kept for the devkit.
        rig: what the fusion node is told of the sensors.
    """

    def __init__(
        self,
        detector: Detector,
        sensors: Collection[str] = SENSORS,
        *,
        results: bool = False,
        rig: RigParameters = ALL_THERE_IS,
    ) -> None:
        self._detector, self._rig = detector, rig
        known = frozenset(detector.network.encoders) if isinstance(detector, BEVFusionDetector) else SENSORS
        self._sensors = known.intersection(sensors)
        if not self._sensors:
            raise InputError(
                describe("sensors of the network", expected=sorted(sensors), found=sorted(known))
            )
        self._used: set[str] = set()
        self._moments, self._took_part = 0, Counter[str]()
        self._keeps_results = results
        self._results: dict[str, Entries] = {}
        self._truth: list[Boxes3D] = []
        self._found: list[Boxes3D | None] = []
        self._overlap, self._maps = MapOverlap(len(MAP_LAYERS)), 0

    def add(self, path: Path) -> None:
        """Answer and score the moments of a recording that have truth of what the detector answers.

        Raises:
            InputError: there is none, no sensor has measured then, a message is malformed, or the file is
                damaged; or results were asked for and it does not say which samples of nuScenes it holds.
            CalibrationError: it is not known where a sensor sits, or, for results, where the vehicle is.
        """
        recording = read_recording(path)
        recording.raise_if_damaged()
        if self._keeps_results and not recording.samples:
            expected = "those that `kestrel import nuscenes` keeps"
            raise InputError(describe(f"samples of nuScenes in {path}", expected=expected, found="none"))
        stamps = self._stamps(recording)
        frames = RecordedFrames(recording, sorted(stamps), self._detector, self._sensors, self._rig)
        if not len(frames):
            expected = f"{' or '.join(sorted(self._sensors))} of the {len(stamps)} moments with truth"
            raise InputError(describe(f"sensor data in {path}", expected=expected, found="none"))
        self._moments += len(stamps)
        self._took_part.update(frames.took_part)
        self._answer(recording, frames)

    def _stamps(self, recording: Recording) -> set[int]:
        """Return the moments that are to be answered."""
        truth, asked = recording.truth, ["/truth/objects"] * bool(self._detector.classes)
        stamps = {*truth.objects} if self._detector.classes else set()
        if self._detector.layers:
            stamps |= {*truth.maps}
            asked.append("/truth/map/... of all layers")
        if self._keeps_results and self._detector.classes:
            stamps |= {*recording.samples}
        if not stamps:
            raise InputError(
                describe(f"truth in {recording.path}", expected=" or ".join(asked), found="none")
            )
        return stamps

    def _answer(self, recording: Recording, frames: RecordedFrames) -> None:
        objects: dict[int, Boxes3D] = {}
        leaning = None
        if recording.samples and isinstance(self._detector, BEVFusionDetector):
            leaning = leaning_from_base(frames.transforms.mount(LIDAR_FRAME, frames.stamps[0]))
        self._detector.reset()
        tracked = progress.track(
            frames, recording.path.name, len(frames), console=Console(stderr=True), transient=True
        )
        for frame in tracked:
            self._used.update(frame.modality.split("+"))
            boxes, bev = self._detect(frame, leaning)
            objects[frame.stamp_ns] = boxes
            own = {} if leaning is None else recording.truth.lidar_maps
            self._add_map(own.get(frame.stamp_ns, recording.truth.maps.get(frame.stamp_ns)), bev)
            sample = recording.samples.get(frame.stamp_ns)
            if self._keeps_results and sample is not None:
                if sample.token in self._results:
                    expected = "no sample of another recording"
                    raise InputError(describe(str(recording.path), expected=expected, found=sample.token))
                pose = frames.transforms.pose(frame.stamp_ns, MAP_FRAME)
                self._results[sample.token] = sample_results(sample.token, boxes, pose)
        if self._detector.classes:
            for stamp, truth in sorted(recording.truth.objects.items()):
                sample, found = recording.samples.get(stamp), objects.get(stamp)
                self._truth.append(truth if sample is None else sample.counted(truth))
                self._found.append(found if sample is None or found is None else sample.counted(found))

    def _detect(self, frame: SensorFrame, to_leaning: Float64Array | None) -> tuple[Boxes3D, BevMap]:
        """Return boxes and map in base_link; seen from above a map that leans is nearly the same."""
        if to_leaning is None:
            return self._detector.detect(frame)
        boxes, bev = self._detector.detect(moved_frame(frame, to_leaning))
        return moved_boxes(boxes, np.asarray(np.linalg.inv(to_leaning), np.float64)), bev

    def _add_map(self, truth: BevMap | None, found: BevMap) -> None:
        if truth is not None and found.layer_names:
            add_map(self._overlap, truth, found)
            self._maps += 1

    def figures(self) -> dict[str, Figure]:
        """Return the scores over all recordings so far, named as those of `kestrel eval`."""
        values = box_values(self._truth, self._found) if self._truth else {}
        values |= layer_values(self._overlap, self._maps)
        return {name: Figure(value, unit) for name, (value, unit) in values.items()}

    def missing_sensors(self) -> str | None:
        """Return which sensors did not take part in all moments so far, and in how many they did; or None."""
        seldom = {name: count for name, count in self._took_part.items() if count < self._moments}
        if not seldom:
            return None
        told = ", ".join(f"{name} in {count}" for name, count in seldom.items())
        return f"sensors that took part in fewer than all {self._moments} moments: {told}"

    def write_results(self, path: Path) -> None:
        """Write the results of all samples so far for nuscenes-devkit.

        Raises:
            InputError: the file cannot be written, or the network answers with no boxes.
        """
        if not self._detector.classes:
            raise InputError(describe("results of the network", expected="boxes", found="map layers"))
        write_results(path, self._results, self._used)
