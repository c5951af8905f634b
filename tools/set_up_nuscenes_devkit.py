# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Make the environment of nuscenes-devkit, whose metric Kestrel's own is compared with.

The devkit wants numpy below 2 and so shares nothing with Kestrel's environment. Only what its detection
metric and its maps import is installed. A second run does nothing unless the requirements have changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVKIT = "nuscenes-devkit==1.2.0"
IMPORTED = (
    "numpy<2",
    "cachetools",
    "descartes",
    "matplotlib",
    "opencv-python-headless<4.11",
    "pillow",
    "pyquaternion",
    "scikit-learn",
    "shapely>=2.0.3,<2.1",
    "tqdm",
)
CHECK = "import nuscenes.eval.detection.algo, numpy; print(f'nuscenes-devkit on numpy {numpy.__version__}')"


def main() -> int:
    """Make or refresh the environment; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "peers" / "nuscenes-devkit")
    folder: Path = parser.parse_args().folder.resolve()
    python, stamp = folder / "bin" / "python", folder / "kestrel-peer.json"
    wanted = json.dumps([DEVKIT, *IMPORTED])
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"nuscenes-devkit: environment in {folder}", flush=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*install, "--no-deps", DEVKIT], check=True)
        subprocess.run([*install, *IMPORTED], check=True)
        stamp.write_text(wanted)
    return subprocess.run([str(python), "-c", CHECK], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
