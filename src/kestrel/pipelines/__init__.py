# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One object per task with one obvious method, the same on-line and off-line."""

from kestrel.pipelines.augment import Augmenter
from kestrel.pipelines.bevfusion import BEVFusionDetector
from kestrel.pipelines.detector import Detector, load_detector
from kestrel.pipelines.fusion import FusionDetector
from kestrel.pipelines.released_segmenter import ReleasedSegmenter
from kestrel.pipelines.segmentation import PointSegmenter
from kestrel.pipelines.segmenter import Segmenter, load_segmenter
from kestrel.pipelines.video import VideoUnderstanding

__all__ = [
    "Augmenter",
    "BEVFusionDetector",
    "Detector",
    "FusionDetector",
    "PointSegmenter",
    "ReleasedSegmenter",
    "Segmenter",
    "VideoUnderstanding",
    "load_detector",
    "load_segmenter",
]
