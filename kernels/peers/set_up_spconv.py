# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Make the environment of spconv, the library that the benchmarks of the sparse operators run against.

Runs on the system's Python with the standard library alone. spconv gets a torch of its own there and shares
nothing with Kestrel's environment. A second run does nothing unless the requirements have changed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPCONV = "spconv==2.3.8"
"""The newest release with wheels for a CPU; the same name is the build without CUDA."""

SUPPORTED = ((3, 9), (3, 13))
CHECK = "import spconv.pytorch, torch; print(f'spconv {spconv.__version__} on torch {torch.__version__}')"


def main() -> int:
    """Make or refresh the environment; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "peers" / "spconv")
    parser.add_argument("--torch", default="torch>=2.13", help="requirement and pip options of torch")
    options = parser.parse_args()
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        found = sys.version.split()[0]
        print(
            f"Python: spconv has wheels for 3.9 to 3.13, found {found}; choose one: `make peers PYTHON=...`"
        )
        return 1
    folder: Path = options.folder.resolve()
    python, stamp = folder / "bin" / "python", folder / "kestrel-peer.json"
    requirements = [*shlex.split(options.torch), SPCONV, "numpy>=2"]
    wanted = json.dumps(requirements)
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"spconv: environment in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        stamp.write_text(wanted)
    return subprocess.run([str(python), "-c", CHECK], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
