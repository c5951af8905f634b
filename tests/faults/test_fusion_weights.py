# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights that are missing, damaged or not finite, in the real fusion node."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rclpy.lifecycle import TransitionCallbackReturn

from kestrel import weights
from kestrel.pipelines.fusion import FusionDetector
from kestrel_nodes.fusion import FusionNode
from tests.ros.fusion_rig import ERROR, Rig
from tests.ros.graph import Graph

State = dict[str, torch.Tensor]


def save_changed(path: Path, change: Callable[[State, str], None]) -> str:
    """Write the shipped weights with one matrix changed; return the name of the matrix."""
    state, manifest = weights.load("kestrel-fusion")
    name = next(key for key, tensor in state.items() if tensor.ndim >= 2)
    change(state, name)
    weights.save(path, state, manifest)
    return name


def missing(path: Path) -> list[str]:
    return [f"weights {path}: expected a file or one of", f"found no file {path}"]


def truncated(path: Path) -> list[str]:
    save_changed(path, lambda state, name: None)
    path.write_bytes(path.read_bytes()[:-1000])
    return [f"{path} sha256: expected {weights.read_manifest(path).sha256}, found "]


def truncated_with_its_hash(path: Path) -> list[str]:
    """A file that was cut before its manifest was written."""
    truncated(path)
    hash_anew(path)
    return [f"{path}: expected a safetensors file"]


def hash_anew(path: Path) -> str:
    """Write the hash of the file, which is returned, into its manifest."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = replace(weights.read_manifest(path), sha256=digest)
    path.with_suffix(".json").write_text(manifest.to_json(), encoding="utf-8")
    return digest


def of_another_manifest(path: Path) -> list[str]:
    save_changed(path, lambda state, name: None)
    found = hash_anew(path)
    manifest = replace(weights.read_manifest(path), sha256="0" * 64)
    path.with_suffix(".json").write_text(manifest.to_json(), encoding="utf-8")
    return [f"{path} sha256: expected {'0' * 64}, found {found}"]


def of_another_shape(path: Path) -> list[str]:
    def narrow(state: State, name: str) -> None:
        state[name] = state[name][:, 1:].contiguous()

    name = save_changed(path, narrow)
    found = tuple(weights.load(path)[0][name].shape)
    wanted = (found[0], found[1] + 1, *found[2:])
    return [f"{path} {name}: expected {wanted}, found {found}"]


def not_finite(path: Path) -> list[str]:
    def spoil(state: State, name: str) -> None:
        state[name].view(-1)[0] = float("nan")

    name = save_changed(path, spoil)
    return [f"{path} {name}: expected finite values, found NaN or Inf"]


@pytest.mark.parametrize(
    "damage",
    [missing, truncated, truncated_with_its_hash, of_another_manifest, of_another_shape, not_finite],
    ids=lambda damage: damage.__name__,
)
def test_unusable_weights_fail_configure_with_path_expected_and_found(
    graph: Graph, tmp_path: Path, damage: Callable[[Path], list[str]]
) -> None:
    path = tmp_path / "some.safetensors"
    texts = damage(path)
    node = graph.add(FusionNode, "fusion", active=False, weights=str(path))
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    assert node.state_label == "unconfigured"
    graph.await_status(
        "fusion: life cycle",
        lambda view: view.level == ERROR and all(text in view.message for text in texts),
        f"{texts}",
    )


class Eager(FusionNode):
    """The real node around the real network, whose weights are read at every frame."""

    def load(self, device: str) -> FusionDetector:
        return FusionDetector.untrained(score_threshold=0.0, engine="eager", precision="float32")


def test_network_that_turns_to_nan_is_an_error_and_its_answer_is_kept_back(graph: Graph) -> None:
    rig = Rig(graph, Eager, cameras=["front"], score_threshold=0.0).ready()
    spoiled = list(rig.node.detector.network.parameters())[-1]
    good = spoiled.detach().clone()
    with torch.no_grad():
        spoiled.fill_(float("nan"))
    rig.sense(100)
    graph.await_status("fusion: model", lambda view: view.said("finite", ERROR), "ERROR")
    assert not rig.objects
    with torch.no_grad():
        spoiled.copy_(good)
    rig.sense(200)
    assert rig.answer(200).objects
    graph.await_status("fusion: model", lambda view: view.level < ERROR, "recovery")
