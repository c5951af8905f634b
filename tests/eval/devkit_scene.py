# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores a result file on the tiny data set with nuscenes-devkit, in whose environment there is no Kestrel.

Reads the folder of the data set and the result file from the command line and prints the metrics as JSON.
"""

import json
import sys
import tempfile
from pathlib import Path

from nuscenes import NuScenes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval

VERSION = "v1.0-mini"
NOT_READ_BY_KESTREL = {
    "visibility": [],
    "log": [{"token": "log", "location": "here"}],
    "map": [{"token": "map", "log_tokens": ["log"], "filename": "map.png"}],
}


def main(root: Path, results: str) -> None:
    """Score and print; scene-0061 is one of the split mini_train."""
    (root / "map.png").touch()
    for name, rows in NOT_READ_BY_KESTREL.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    data_set = NuScenes(VERSION, str(root), verbose=False)
    config = config_factory("detection_cvpr_2019")
    with tempfile.TemporaryDirectory() as out:
        scored = DetectionEval(data_set, config, results, "mini_train", output_dir=out, verbose=False)
        metrics, _ = scored.evaluate()
    print(json.dumps(metrics.serialize()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
