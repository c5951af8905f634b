# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The augment node: synthetic camera pictures with their labels, from label images or on request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from kestrel_msgs.srv import RenderImages
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header

from kestrel.data.picture_reader import read_labels
from kestrel.errors import InputError, describe
from kestrel.pipelines.augment import Augmenter
from kestrel.types import UInt8Array
from kestrel_nodes.base import KestrelNode
from kestrel_nodes.on_device import device_parameter
from kestrel_nodes.parameters import NodeParameters, parameter
from kestrel_nodes.picture_folder import PictureFolder, read_label_file
from kestrel_nodes.qos import RELIABILITY, input_qos
from kestrel_nodes.ros_arrays import image_message

SEEDS = 1 << 63
PROCEDURAL = "scene"


@dataclass(frozen=True)
class AugmentParameters(NodeParameters):
    """What the augment node can be told."""

    weights: str = parameter(
        "kestrel-augment",
        "Name of shipped weights, or path of a .safetensors file written by `kestrel train`.",
    )
    threads: int = parameter(0, "Threads of the network; 0 lets torch choose.", minimum=0, maximum=256)
    device: str = device_parameter()
    labels_reliability: str = parameter(
        "best_effort", "Reliability of the label image input.", choices=RELIABILITY
    )
    labels_depth: int = parameter(2, "Queue depth of the label image input.", minimum=1, maximum=100)
    seed: int = parameter(
        0,
        "Random seed of noise and weather for the label image input; constant, so that a stream does not "
        "flicker.",
        minimum=0,
    )
    frame_id: str = parameter("camera_synthetic_optical", "frame_id of the images that a request asked for.")
    max_count: int = parameter(64, "Maximum number of images per request.", minimum=1, maximum=10_000)
    max_pixels: int = parameter(
        2_000_000, "Label images with more pixels are rejected.", minimum=64, maximum=64_000_000
    )
    label_folder: str = parameter("", "Folder of the label PNGs that requests may read; empty: none.")
    output_root: str = parameter("", "Folder below which requests may write; empty: nowhere.")
    max_folder_mb: int = parameter(
        1000, "Size at which nothing more is written to an output folder.", minimum=1, maximum=1_000_000
    )


class AugmentNode(KestrelNode[AugmentParameters]):
    """Label images in, or a request; pictures with their labels out, published or written."""

    parameters_type = AugmentParameters

    def load(self, device: str) -> Augmenter:
        """Return the pipeline."""
        return Augmenter(self.params.weights, self.params.threads or None, device)

    def start(self, device: str) -> Augmenter:
        """Return the pipeline, warmed up."""
        augmenter = self.load(device)
        self.show_model(augmenter.manifest, augmenter.device)
        augmenter.render(augmenter.scene_labels(0), 0)
        return augmenter

    def setup(self) -> None:
        """Load and warm up the network; offer the outputs and the service."""
        self.model = self.add_model(self.params.device, self.start)
        self.image = self.add_output("image", ImageMessage)
        self.labels = self.add_output("labels", ImageMessage)
        qos = input_qos(self.params.labels_reliability, self.params.labels_depth)
        self.add_input("labels", ImageMessage, self.augment, qos=qos, required=False)
        self.add_service(RenderImages, "render", self.render)

    def augment(self, message: ImageMessage) -> None:
        """Answer one label image."""
        labels = self._bounded(read_labels(message))
        self._publish(self._picture(labels, self.params.seed), labels, message.header)

    async def render(
        self, request: RenderImages.Request, response: RenderImages.Response
    ) -> RenderImages.Response:
        """Answer one request; every picture is a job of its own, so that label images get their turn."""
        if not 1 <= request.count <= self.params.max_count:
            raise InputError(describe("count", expected=f"1 .. {self.params.max_count}", found=request.count))
        folder, activation = self._folder(request.output_folder), self.activations
        for index in range(request.count):
            seed = (request.seed + index) % SEEDS
            work = partial(self._render_one, request, seed, folder)
            await self.in_worker("render", work, activation=activation)
            response.rendered = index + 1
        response.success = True
        response.message = f"written to {folder.path}" if folder else "published"
        return response

    def _render_one(self, request: RenderImages.Request, seed: int, folder: PictureFolder | None) -> None:
        labels = self._labels(request.label_source, seed)
        picture = self._picture(labels, seed)
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self.params.frame_id)
        self._publish(picture, labels, header)
        if folder is not None:
            folder.write(f"{seed:020d}", picture, labels)

    def _picture(self, labels: UInt8Array, seed: int) -> UInt8Array:
        return self.model.ask(lambda augmenter: augmenter.render(labels, seed))

    def _labels(self, source: str, seed: int) -> UInt8Array:
        if source in ("", PROCEDURAL):
            return self.model.pipeline.scene_labels(seed)
        return self._bounded(read_label_file(self.params.label_folder, source))

    def _bounded(self, labels: UInt8Array) -> UInt8Array:
        if labels.size > self.params.max_pixels:
            raise InputError(
                describe(
                    "label image", expected=f"at most {self.params.max_pixels} pixels", found=labels.shape
                )
            )
        return labels

    def _folder(self, name: str) -> PictureFolder | None:
        if not name:
            return None
        return PictureFolder(self.params.output_root, name, limit_bytes=self.params.max_folder_mb << 20)

    def _publish(self, picture: UInt8Array, labels: UInt8Array, header: Header) -> None:
        if self.image.wanted:
            self.image.publish(image_message(picture, header))
        if self.labels.wanted:
            self.labels.publish(image_message(labels, header))
