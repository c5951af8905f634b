# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The video node: says what goes on in front of each camera."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header
from vision_msgs.msg import Classification, ObjectHypothesis

from kestrel.data.picture_reader import read_image
from kestrel.errors import ConfigError, describe
from kestrel.pipelines.video import VideoUnderstanding
from kestrel.types import ActionScores, Image
from kestrel_nodes.base import KestrelNode
from kestrel_nodes.on_device import device_parameter
from kestrel_nodes.parameters import NodeParameters, parameter
from kestrel_nodes.picture_watch import PictureWatch
from kestrel_nodes.ports import Input, Output
from kestrel_nodes.qos import RELIABILITY, input_qos

WARM_UP_SIZE = (256, 704, 3)


@dataclass(frozen=True)
class VideoParameters(NodeParameters):
    """What the video node can be told."""

    weights: str = parameter(
        "kestrel-video",
        "Name of shipped weights, or path of a .safetensors file written by `kestrel train`.",
    )
    threads: int = parameter(0, "Threads of the network; 0 lets torch choose.", minimum=0, maximum=256)
    device: str = device_parameter()
    cameras: tuple[str, ...] = parameter(("front",), "Camera names; one network serves all of them.")
    compressed: bool = parameter(
        True, "true: the cameras publish CompressedImage (JPEG, PNG); false: raw Image."
    )
    image_reliability: str = parameter("best_effort", "Reliability of the image inputs.", choices=RELIABILITY)
    image_depth: int = parameter(2, "Queue depth of each image input.", minimum=1, maximum=100)
    frozen_after: int = parameter(
        10,
        "This many identical images in a row are WARN: the camera is frozen; 0: never.",
        minimum=0,
        maximum=10000,
    )

    def check(self) -> None:
        """Raise ConfigError unless there is a camera and none is named twice."""
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(
                describe("parameter cameras", expected="one or more different names", found=self.cameras)
            )


class VideoNode(KestrelNode[VideoParameters]):
    """Images in, per camera the scores of what goes on out; every camera has its own past."""

    parameters_type = VideoParameters

    def load(self, device: str) -> VideoUnderstanding:
        """Return the pipeline."""
        return VideoUnderstanding(self.params.weights, self.params.threads or None, device)

    def start(self, device: str) -> VideoUnderstanding:
        """Return the pipeline, warmed up."""
        pipeline = self.load(device)
        self.show_model(pipeline.manifest, pipeline.device)
        pipeline.step(Image(np.zeros(WARM_UP_SIZE, np.uint8), 1, "warm-up"))
        pipeline.reset()
        return pipeline

    @property
    def pipeline(self) -> VideoUnderstanding:
        """The pipeline."""
        return self.model.pipeline

    def setup(self) -> None:
        """Load and warm up the network, then one input and one output per camera."""
        self.model = self.add_model(self.params.device, self.start)
        self.cameras: dict[str, str] = {}
        for camera in self.params.cameras:
            self._add_camera(camera)

    def _add_camera(self, camera: str) -> None:
        kind, ending = (CompressedImage, "/compressed") if self.params.compressed else (ImageMessage, "")
        output = self.add_output(f"{camera}/event", Classification)
        qos = input_qos(self.params.image_reliability, self.params.image_depth)
        topic = f"{camera}/image{ending}"
        watch = PictureWatch(self.health[f"input/{topic}"], self.params.frozen_after)
        handler = partial(self.understand, camera, output, watch)
        port = self.add_input(topic, kind, handler, qos=qos, outputs=(output,))
        self.cameras[port.topic] = camera

    def reset_pipeline(self, cause: str, source: Input | None) -> None:
        """Forget the past of the camera whose time jumped, or of all."""
        self.pipeline.reset(None if source is None else self.cameras[source.topic])

    def understand(self, camera: str, output: Output, watch: PictureWatch, message: Any) -> None:
        """Answer one image."""
        image = replace(read_image(message), frame_id=camera)
        watch.look(image.stamp_ns, message.data, image.data)
        scores = self.model.ask(lambda pipeline: pipeline.step(image))
        warming = None if scores.warm else f"{camera}: the network has not seen enough of the past yet"
        self.health["model"].check(f"warm-up {camera}", warming)
        output.publish(classification(scores, message.header))


def classification(scores: ActionScores, header: Header) -> Classification:
    """Return scores as a message, the most probable class first."""
    order = np.argsort(-scores.probability, kind="stable")
    results = [
        ObjectHypothesis(class_id=scores.class_names[i], score=float(scores.probability[i])) for i in order
    ]
    return Classification(header=header, results=results)
