# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the documentation repeats of the code is true, and its links lead somewhere."""

from __future__ import annotations

import importlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from kestrel.classes import DETECTION_CLASSES, EVENTS, MAP_LAYERS, POINT_CLASSES
from kestrel.models.checkpoints import convert
from kestrel.models.spvcnn import SPVCNN
from kestrel.sim.rig import load_rig
from kestrel.weights import Manifest, save

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


PYTHON = (ROOT / "docs/python.md").read_text()


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with the files that the examples read, all of them small."""
    generator = np.random.default_rng(0)
    points = generator.uniform((-20, -20, -1.8, 0), (20, 20, 1, 1), (3000, 4)).astype(np.float32)
    points.tofile(tmp_path / "000000.bin")
    picture = generator.integers(0, 255, (128, 352, 3), np.uint8)
    PIL.Image.fromarray(picture).save(tmp_path / "front.jpg")
    network = SPVCNN(19, channels=(8, 8, 16, 16, 16, 16, 16, 8, 8))
    found = convert(network.state_dict(), "file", network="SPVCNN")
    manifest = Manifest("spvcnn", found.network, found.config, found.classes)
    save(tmp_path / "spvcnn.safetensors", found.state, manifest)
    monkeypatch.chdir(tmp_path)


EXAMPLES = {
    heading: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for heading, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PYTHON, re.DOTALL | re.MULTILINE)
}


def run(heading: str) -> dict[str, Any]:
    """Return what the only example of a section has defined when it is done."""
    (example,) = EXAMPLES[heading]
    defined: dict[str, Any] = {}
    exec(compile(example, f"docs/python.md, {heading}", "exec"), defined)
    return defined


@pytest.mark.usefixtures("own_data")
def test_the_example_of_a_cloud_labels_every_point() -> None:
    labels = run("Segment a cloud")["labels"]
    assert labels.class_names == POINT_CLASSES
    assert len(labels.label) == 3000


@pytest.mark.usefixtures("own_data")
def test_the_example_of_a_frame_answers_with_boxes_and_a_map() -> None:
    defined = run("Detect objects")
    assert defined["frame"].modality == "camera+lidar"
    assert defined["boxes"].class_names == DETECTION_CLASSES
    assert defined["bev"].layer_names == MAP_LAYERS


@pytest.mark.usefixtures("own_data")
def test_the_example_of_a_converted_network_labels_every_point() -> None:
    defined = run("A converted checkpoint")
    assert isinstance(defined["network"], SPVCNN)
    assert defined["label"].shape == (3000,)


def test_the_example_of_an_operator_has_gradients() -> None:
    defined = run("An operator in a network of your own")
    for name in ("features", "weight"):
        assert torch.count_nonzero(defined[name].grad) > 0


def test_every_example_is_run() -> None:
    run_above = {"Segment a cloud", "Detect objects", "A converted checkpoint"}
    run_above.add("An operator in a network of your own")
    assert {heading for heading, examples in EXAMPLES.items() if examples} == run_above


PUBLIC = [
    (part, re.findall(r"`([\w.]+)`", names))
    for part, names in re.findall(r"^\| `(kestrel[\w.]*)` \| (.*) \|$", PYTHON, re.MULTILINE)
]


@pytest.mark.parametrize(("part", "names"), PUBLIC, ids=[part for part, _ in PUBLIC])
def test_public_names_are_there(part: str, names: list[str]) -> None:
    module = importlib.import_module(part)
    if part == "kestrel.pipelines":
        assert set(names) == set(module.__all__)
    assert names
    for name in names:
        assert hasattr(module, name.removeprefix(f"{part}.")), name
