# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the documentation repeats of the code is true, and its links lead somewhere."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
import yaml

from kestrel.classes import DETECTION_CLASSES, EVENTS, MAP_LAYERS, POINT_CLASSES
from kestrel.sim.rig import load_rig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def row(beginning: str) -> str:
    """Return the names that the table of outputs in docs/nodes.md has for what begins so."""
    section = (ROOT / "docs/nodes.md").read_text().partition("## What the outputs mean")[2]
    line = next(line for line in section.splitlines() if line.startswith(f"| {beginning}"))
    return line.split("|")[2]


@pytest.mark.parametrize(
    ("beginning", "names"),
    [("points", POINT_CLASSES), ("boxes", DETECTION_CLASSES), ("map", MAP_LAYERS), ("events", EVENTS)],
)
def test_names_of_the_outputs_are_those_of_the_code(beginning: str, names: tuple[str, ...]) -> None:
    assert tuple(re.findall(r"`(\w+)`", row(beginning))) == names


def test_ids_of_the_points_are_those_of_the_code() -> None:
    told = re.findall(r"(\d+) `(\w+)`", row("points"))
    assert [(int(number), name) for number, name in told] == list(enumerate(POINT_CLASSES))


def test_the_lens_on_the_page_of_the_simulator_fits_the_rig_that_it_names(tmp_path: Path) -> None:
    page = (ROOT / "docs/simulate.md").read_text()
    added = yaml.safe_load(page.partition("```yaml")[2].partition("```")[0])
    rig = yaml.safe_load((resources.files("kestrel.sim") / "rigs" / "nuscenes.yaml").read_text())
    rig["cameras"]["front"] |= added["cameras"]["front"]
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump(rig))
    front = next(camera for camera in load_rig(path).cameras if camera.name == "front")
    assert front.distortion_model == "equidistant"


def anchors(page: Path) -> set[str]:
    """Return what a link may name after #, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
