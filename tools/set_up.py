# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Make the environment that Kestrel runs in: `.venv` with the library, its kernels, ROS 2 and the nodes.

Runs on the system's Python with the standard library alone. Every step is skipped when nothing it depends on
has changed since it last succeeded, so a second run takes a second. As root, missing system packages are
installed; otherwise the command that installs them is printed and the run ends.
"""

from __future__ import annotations

import argparse
import ctypes.util
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "kestrel-setup.json"
LOG = VENV / "kestrel-setup.log"
WORKSPACE = ROOT / "ros_ws"

DEFAULT_TORCH = "torch>=2.13"
SUPPORTED = ((3, 11), (3, 12))
LEAST_FREE_GB = 4.5
"""What `.venv` takes with torch's CPU build, and the downloads beside it."""

OPEN3D_LIBRARIES = {"usb-1.0": "libusb-1.0-0", "GL": "libgl1", "gomp": "libgomp1"}
ROS_FROM_WHEELS = "interfaces/vision_msgs", "interfaces/tf2_msgs"
OWN_INTERFACES = ("kestrel_msgs",)


class SetUpError(Exception):
    """A step failed; the text says which and what to do."""


def main() -> int:
    """Run all steps; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--torch", default=DEFAULT_TORCH, help="requirement and pip options of torch")
    parser.add_argument("--extras", default="", help="extras of the library besides those that it needs")
    options = parser.parse_args()
    try:
        check_python()
        check_system()
        make_environment(options.torch, options.extras)
    except SetUpError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


def check_python() -> None:
    """Raise SetUpError unless this Python is one that Kestrel and the ROS 2 wheels support."""
    if sys.version_info[:2] not in SUPPORTED:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
        found = sys.version.split()[0]
        raise SetUpError(
            f"Python: expected {wanted}, found {found}; choose one: `make setup PYTHON=python3.12`"
        )


def check_system() -> None:
    """Install the system packages that are missing (root), or raise SetUpError with the command to type."""
    missing = missing_packages()
    if not missing:
        return
    install = ["apt-get", "install", "-y", *missing]
    command = f"apt-get update && {shlex.join(install)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetUpError(f"system packages are missing; type\n    sudo sh -c '{command}'\nand run this again")
    say(f"system packages: {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], install):
        if subprocess.run(step, stdout=subprocess.DEVNULL, env=environment, check=False).returncode != 0:
            raise SetUpError(f"`{shlex.join(step)}` failed; run it by hand to see why")


def missing_packages() -> list[str]:
    """Return the Debian names of the packages that this machine lacks."""
    missing = [
        package for library, package in OPEN3D_LIBRARIES.items() if ctypes.util.find_library(library) is None
    ]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python{version}-venv")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append(f"libpython{version}-dev")
    if shutil.which("g++") is None or shutil.which("gcc") is None:
        missing.append("build-essential")
    return missing


def make_environment(torch: str, more: str = "") -> None:
    """Create `.venv` and bring every part of it up to date.

    Args:
        torch: requirement and pip options of torch.
        more: extras of the library besides those that the demo and the tests need, between commas.
    """
    check_interpreter()
    check_disk()
    if not (PYTHON.exists() and (VENV / "bin" / "pip").exists()):  # pip comes last, if nothing interrupts
        say("environment in .venv")
        if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode != 0:
            raise SetUpError(f"`{sys.executable} -m venv {VENV}` failed; the reason stands above")
    stamps = read_stamps()
    extras = ",".join(("sim,show,train,ros,ros-build,dev", *filter(None, [more])))
    constraints = WORKSPACE / "constraints-jazzy.txt"
    pyproject = ROOT / "pyproject.toml"

    def step(
        name: str, inputs: Iterable[Path], action: Callable[[], None], *, salt: str = "", without: str = ""
    ) -> None:
        """Run a step unless it has succeeded with these inputs; ``without``: what follows if it may fail."""
        stamp = fingerprint(inputs, salt)
        if stamps.get(name) == stamp:
            return
        started = time.monotonic()
        say(name)
        try:
            action()
        except SetUpError as error:
            if not without:
                raise
            say(f"{name}: failed; {without}; the next set-up tries again. {error}")
            return
        say(f"{name}: done in {time.monotonic() - started:.0f} s")
        stamps[name] = stamp
        STAMPS.write_text(json.dumps(stamps, indent=1))

    step("pip", [], lambda: pip("--upgrade", "pip>=25"))
    step("torch", [], lambda: pip(*shlex.split(torch)), salt=torch)
    step(
        "libraries, ROS 2 and the kestrel library",
        [pyproject, constraints],
        lambda: pip("--constraint", str(constraints), "--editable", f"{ROOT}[{extras}]"),
        salt=more,
    )
    step(
        "kernels",
        files(ROOT / "kernels"),
        install_kernels,
        without="Kestrel runs on the reference operators, which are slower",
    )
    interfaces = [*OWN_INTERFACES, *ROS_FROM_WHEELS]
    sources = [path for name in interfaces for path in files(WORKSPACE / "src" / name)]
    step("ROS 2 interfaces", sources, lambda: colcon(interfaces))
    nodes = WORKSPACE / "src" / "kestrel_nodes"
    # Installed as a link: what describes the package matters, not its modules.
    step(
        "ROS 2 nodes",
        [nodes / "setup.py", nodes / "setup.cfg", nodes / "package.xml"],
        lambda: pip("--no-deps", "--editable", str(nodes)),
    )


def check_interpreter() -> None:
    """Raise SetUpError if `.venv` is there and of another Python than this one."""
    settings = VENV / "pyvenv.cfg"
    if not settings.exists():
        return
    pairs = dict(line.partition("=")[::2] for line in settings.read_text().splitlines())
    found = next((value.strip() for name, value in pairs.items() if name.strip() == "version"), "")
    wanted = "{}.{}".format(*sys.version_info)
    if found and ".".join(found.split(".")[:2]) != wanted:
        raise SetUpError(
            f"{VENV}: expected Python {wanted}, found {found}; remove the folder to change the interpreter"
        )


def check_disk() -> None:
    """Raise SetUpError if nothing is installed yet and there is no room for it."""
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if not STAMPS.exists() and free_gb < LEAST_FREE_GB:
        raise SetUpError(
            f"disk of {ROOT}: expected {LEAST_FREE_GB} GB free for .venv, found {free_gb:.1f} GB"
        )


def install_kernels() -> None:
    """Build the kernels.

    Raises:
        SetUpError: they are not there; where they cannot be built, pip installs their package without them.
    """
    pip(str(ROOT / "kernels"))
    use = [str(PYTHON), "-c", "import kestrel_kernels.native"]
    done = subprocess.run(use, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise SetUpError(f"not built ({reason}); `{PYTHON} -m pip install -v {ROOT / 'kernels'}` shows why")


def pip(*arguments: str) -> None:
    """Run pip in the environment; its progress is shown on a terminal and logged."""
    run([str(PYTHON), "-m", "pip", "install", *arguments])


def colcon(packages: Iterable[str]) -> None:
    """Build interface packages of the workspace into the environment."""
    environment = {
        **{
            key: value for key, value in os.environ.items() if not key.startswith(("AMENT", "COLCON", "ROS_"))
        },
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(VENV),
        "AMENT_PREFIX_PATH": str(VENV),
        "CMAKE_PREFIX_PATH": str(VENV),
    }
    run(
        [
            str(VENV / "bin" / "colcon"),
            *("--log-base", str(VENV / "colcon" / "log")),
            "build",
            *("--base-paths", *(str(WORKSPACE / "src" / name) for name in packages)),
            *("--build-base", str(VENV / "colcon" / "build")),
            *("--install-base", str(VENV)),
            "--merge-install",
            "--cmake-args",
            "-DBUILD_TESTING=OFF",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_PROJECT_INCLUDE={WORKSPACE / 'wheel_targets.cmake'}",
            f"-DPython3_EXECUTABLE={PYTHON}",
        ],
        environment,
    )


def run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command; its output goes to the terminal if there is one, otherwise to the log."""
    if sys.stdout.isatty():
        code = subprocess.run(command, env=environment, check=False).returncode
        where = "above"
    else:
        with LOG.open("a") as log:
            log.write(f"\n$ {shlex.join(command)}\n")
            log.flush()
            code = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
        where = f"in {LOG}, which ends with\n{tail(LOG)}"
    if code != 0:
        raise SetUpError(f"`{shlex.join(command)}` failed; the reason stands {where}")


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a text file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def files(folder: Path) -> list[Path]:
    """Return all source files below a folder, sorted; what a build leaves there does not count."""
    made = {"__pycache__", "build"}
    return sorted(path for path in folder.rglob("*") if path.is_file() and not made & set(path.parts))


def fingerprint(inputs: Iterable[Path], salt: str) -> str:
    """Return a hash of the files' contents, the interpreter and ``salt``."""
    digest = hashlib.sha256(f"{sys.version}{salt}".encode())
    for path in inputs:
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamps() -> dict[str, str]:
    """Return the fingerprints of the steps that have succeeded so far; none if their file is cut off."""
    try:
        return dict(json.loads(STAMPS.read_text())) if STAMPS.exists() else {}
    except ValueError:
        return {}


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"set-up: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
