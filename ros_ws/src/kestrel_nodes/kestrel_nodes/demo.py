# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The stack end to end, by the commands that people would type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console

from kestrel.errors import KestrelError
from kestrel_nodes import transport

NODES = ("video", "segmentation", "fusion", "augment")
"""Nodes that must be active before the replay begins."""
RIG = "nuscenes"
LABELS_OF = "front"
"""Camera whose label images the augment node gets."""
DRAWN = "/debug/overlay/|_image$|points_filtered$"
"""Outputs that the recording does without: pictures of what is in it anyway, half a gigabyte of them."""
STOP_TIMEOUT_S = 20.0
FREE_DOMAINS = range(60, 100)
"""ROS domains to choose from, so that the demo hears no other graph on this machine."""


@dataclass(frozen=True)
class Demo:
    """One run of the demo; everything it makes lies in ``out``."""

    out: Path
    seconds: float = 10.0
    town: str = "elm"
    seed: int = 7
    rate: str = "max"

    @property
    def drive(self) -> Path:
        """The bag of the drive."""
        return self.out / f"drive-{self.town}-{self.seed}-{self.seconds:g}s"

    def run(self) -> None:
        """Simulate (unless the drive is there), replay through the nodes, score, show.

        Raises:
            KestrelError: a step ended with an error; the text names it.
        """
        started = time.monotonic()
        choose_domain()
        self.simulate()
        recording, pictures = self.out / "recording.mcap", self.out / "pictures"
        recording.unlink(missing_ok=True)
        with running_nodes(self.out / "nodes.log"):
            waits = [option for node in NODES for option in ("--wait-for", node)]
            kestrel("replay", str(self.drive), "--rate", self.rate, "--record", str(recording),
                    "--labels", LABELS_OF, "--exclude", DRAWN, *waits)  # fmt: skip
        kestrel("eval", str(recording))
        kestrel("show", str(recording), "--out", str(pictures))
        self.say_where(recording, pictures, time.monotonic() - started)

    def simulate(self, output: TextIO | None = None) -> None:
        """Make the drive unless it is there; what is said of it goes to ``output``.

        Raises:
            KestrelError: the simulation ended with an error.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if not self.drive.exists():
            kestrel("sim", "--rig", RIG, "--scene", "urban", "--town", self.town,
                    "--seed", str(self.seed), "--seconds", f"{self.seconds:g}", "--lidar-hz", "10",
                    "--image-size", "704x256", "--out", str(self.drive), output=output)  # fmt: skip

    def say_where(self, recording: Path, pictures: Path, took_s: float) -> None:
        """Print what was made and how to look at it."""
        console = Console(highlight=False)
        console.print(f"\n[bold]Done in {took_s:.0f} s.[/] What the nodes saw:")
        for path in sorted(pictures.iterdir()):
            console.print(f"  {path}")
        rerun = next(pictures.glob("*.rrd"), None)
        if rerun is not None:
            viewer = Path(sys.executable).with_name("rerun")
            console.print(f"In the browser: [bold]{viewer} --web-viewer --bind 127.0.0.1 {rerun}[/]")
        tool = Path(sys.executable).with_name("kestrel")
        console.print(f"Score it again: [bold]{tool} eval {recording}[/]")


def choose_domain() -> None:
    """Take a ROS domain on this machine for this process and its children, unless variables say otherwise."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(FREE_DOMAINS[os.getpid() % len(FREE_DOMAINS)]))
    transport.keep_local()


def kestrel(*arguments: str, output: TextIO | None = None) -> None:
    """Run one command of the tool; it writes to ``output``, by default to standard output.

    Raises:
        KestrelError: it ended with an error.
    """
    Console(highlight=False, file=output).print(f"[bold]$ kestrel {' '.join(arguments)}[/]")
    command = [sys.executable, "-m", "kestrel", *arguments]
    code = subprocess.run(command, check=False, stdout=output).returncode
    if code != 0:
        raise KestrelError(f"kestrel {arguments[0]}: ended with exit code {code}")


@contextmanager
def running_nodes(log: Path) -> Iterator[int]:
    """Keep `kestrel up` running and yield its process id; its output goes to ``log``.

    It is stopped the way a user would: Ctrl-C. SIGTERM stops it too, and exits: it has a session of its own,
    so that nobody else would.

    Raises:
        KestrelError: it ended with an error, or did not stop in time.
    """
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield from _running_nodes(log)
    finally:
        signal.signal(signal.SIGTERM, before)


def _running_nodes(log: Path) -> Iterator[int]:
    with log.open("w") as sink:
        command = [sys.executable, "-m", "kestrel", "up", "--rig", RIG, "--use-sim-time"]
        nodes = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
        try:
            yield nodes.pid
        except KestrelError as error:
            if (code := nodes.poll()) is not None:
                raise KestrelError(f"kestrel up: ended with exit code {code}; see {log}") from error
            raise
        finally:
            nodes.send_signal(signal.SIGINT)
            try:
                code = nodes.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                nodes.kill()
                raise KestrelError(
                    f"kestrel up: did not stop within {STOP_TIMEOUT_S:.0f} s; see {log}"
                ) from None
    if code != 0:
        raise KestrelError(f"kestrel up: ended with exit code {code}; see {log}")
