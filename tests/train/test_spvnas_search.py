# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The evolutionary search: its limit, its progress, its resumption, its result."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kestrel.classes import POINT_CLASSES
from kestrel.cli import build_app
from kestrel.errors import ConfigError, InputError
from kestrel.models.spvnas import SPVNAS
from kestrel.models.spvnas_space import NetConfig, SearchSpace
from kestrel.models.spvnas_supernet import SPVNASSuperNet
from kestrel.train import cache, spvnas_search
from kestrel.train.evolution import Candidate, SearchLog, SearchPlan, best, search
from kestrel.train.spvnas_search import Frame, recalibrate
from kestrel.weights import Manifest, load, save
from tests.models.points.test_networks import cloud

TINY = SearchSpace(widths=(4, 8, 12, 16, 24, 24, 16, 8, 8), least=(4, 4, 4, 8, 8, 8, 8, 4, 4), divisor=4)
PLAN = SearchPlan(latency_limit_ms=400.0, population=8, generations=5, parents=3, mutation_probability=0.2)


def size(config: NetConfig) -> float:
    """Stands for latency: the sum of all numbers of a configuration."""
    return float(sum(config["output_channels"]) + sum(v for v in config.values() if isinstance(v, int)))


def width(config: NetConfig) -> float:
    """Stands for accuracy, against latency."""
    return float(sum(config["output_channels"]))


class StopSearchError(Exception):
    pass


SETTING = {"network_sha256": "a", "frames": ["d0/frame_0000.npz b"], "machine": {"threads": 2}}


def run(
    path: Path, plan: SearchPlan = PLAN, stop_after: int | None = None, setting: dict[str, object] = SETTING
) -> tuple[list[Candidate], int]:
    """Search; return the candidates and how many were judged in this call."""
    judged = 0

    def accuracy(config: NetConfig) -> float:
        nonlocal judged
        judged += 1
        if stop_after is not None and judged > stop_after:
            raise StopSearchError
        return width(config)

    log = SearchLog(path, plan, TINY, setting)
    return list(search(TINY, plan, log, latency_ms=size, accuracy=accuracy)), judged


def test_no_candidate_is_slower_than_the_limit_and_the_slow_ones_are_not_judged(tmp_path):
    found, judged = run(tmp_path / "log")
    assert len(found) == judged == PLAN.candidates
    assert max(candidate.latency_ms for candidate in found) <= 400.0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[1:]]
    slow = [line for line in lines if line["accuracy"] is None]
    assert slow
    assert all(line["latency_ms"] > 400.0 for line in slow)


def test_evolution_finds_better_networks_than_its_random_first_generation(tmp_path):
    found, _ = run(tmp_path / "log")
    first = best(found[: PLAN.population], 1)[0]
    assert (best(found, 1)[0].accuracy or 0) > (first.accuracy or 0)


def test_an_interrupted_search_goes_on_and_ends_like_an_uninterrupted_one(tmp_path):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(StopSearchError):
        run(tmp_path / "log", stop_after=20)
    text = (tmp_path / "log").read_text()
    (tmp_path / "log").write_text(text + '{"number": 20, "dr')  # cut off while it was written
    resumed, judged = run(tmp_path / "log")
    assert judged == PLAN.candidates - 20
    assert resumed == whole
    assert run(tmp_path / "log") == (whole, 0)


def test_a_finished_search_can_be_made_longer_but_not_changed(tmp_path):
    run(tmp_path / "log")
    found, judged = run(tmp_path / "log", replace(PLAN, generations=6))
    assert judged == PLAN.population
    assert len(found) == PLAN.candidates + PLAN.population
    with pytest.raises(InputError, match="the log of a search"):
        run(tmp_path / "log", replace(PLAN, seed=1))


@pytest.mark.parametrize(
    "change",
    [
        {"network_sha256": "other"},
        {"frames": ["d1/frame_0000.npz b"]},
        {"frames": []},
        {"machine": {"threads": 4}},
    ],
)
def test_measurements_of_another_network_other_data_or_another_machine_are_not_taken_up(tmp_path, change):
    short = replace(PLAN, generations=0)
    run(tmp_path / "log", short)
    assert run(tmp_path / "log", short, setting={**SETTING})[1] == 0
    (name,) = change
    with pytest.raises(InputError) as caught:
        run(tmp_path / "log", short, setting={**SETTING, **change})
    told = str(caught.value)
    assert f"the log of a search with {change} (another search needs another --out)" in told
    assert told.endswith(f"found { {name: SETTING[name]} }")


def test_a_log_of_before_these_were_kept_is_refused(tmp_path):
    run(tmp_path / "log", replace(PLAN, generations=0))
    first, *others = (tmp_path / "log").read_text().splitlines(keepends=True)
    older = {name: value for name, value in json.loads(first).items() if name not in SETTING}
    (tmp_path / "log").write_text(json.dumps(older) + "\n" + "".join(others))
    with pytest.raises(InputError, match=r"found \{'network_sha256': None, "):
        run(tmp_path / "log", replace(PLAN, generations=0))


def test_a_last_line_of_any_bytes_that_was_not_finished_is_measured_again(tmp_path):
    whole, _ = run(tmp_path / "log")
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    for torn in (lines[-1][:-1], lines[-1][:-5], b"\xff\x00"):
        (tmp_path / "log").write_bytes(b"".join(lines[:-1]) + torn)
        assert run(tmp_path / "log")[0] == whole
        assert (tmp_path / "log").read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"",
        b"\xff\x00",
        b"7",
        b'{"number": 2, "draw": 0}',
        b'{"number": 2, "draw": 0, "config": [], "latency_ms": 1.0, "accuracy": null}',
        b'{"number": 2, "draw": 0, "config": {}, "latency_ms": 1.0, "accuracy": null}',
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_a_damaged_line_is_named_and_the_log_stays_as_it_is(tmp_path, damage, place):
    run(tmp_path / "log", replace(PLAN, generations=0))
    lines = (tmp_path / "log").read_bytes().splitlines()
    lines[place] = damage
    content = b"\n".join(lines) + b"\n"
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(InputError, match=rf"log( line {place + 1})?: expected"):
        run(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [{"latency_ms": "1"}, {"latency_ms": float("nan")}, {"accuracy": "1"}, {"draw": None}, {"more": 1}],
)
def test_a_candidate_with_a_value_of_another_kind_is_named(tmp_path, change):
    run(tmp_path / "log", replace(PLAN, generations=0))
    first, second, *others = (tmp_path / "log").read_text().splitlines(keepends=True)
    changed = json.dumps({**json.loads(second), **change}) + "\n"
    (tmp_path / "log").write_text("".join((first, changed, *others)))
    with pytest.raises(InputError, match="log line 2: expected a judged candidate"):
        run(tmp_path / "log")


def test_a_log_that_is_empty_or_a_folder_is_refused(tmp_path):
    (tmp_path / "log").touch()
    (tmp_path / "folder").mkdir()
    for name in ("log", "folder"):
        with pytest.raises(InputError, match=rf"{name}.*: expected .* of a search"):
            run(tmp_path / name)


def test_a_limit_that_no_network_keeps_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="latency limit"):
        run(tmp_path / "log", replace(PLAN, latency_limit_ms=1.0))


def test_a_plan_with_more_parents_than_candidates_is_refused():
    with pytest.raises(ConfigError, match="search plan"):
        SearchPlan(10.0, population=2, parents=3)


def drive(folder: Path) -> None:
    """A finished drive of two sweeps: low points are road, high ones manmade."""
    folder.mkdir(parents=True)
    for index in range(2):
        rng = np.random.default_rng(index)
        xyz = rng.uniform((-10, -10, 0), (10, 10, 4), (400, 3))
        road, manmade = POINT_CLASSES.index("driveable_surface"), POINT_CLASSES.index("manmade")
        none: dict[str, np.ndarray] = {
            "boxes": np.zeros((0, 9), np.float32),
            "box_label": np.zeros(0, np.int64),
            "box_points": np.zeros(0, np.int64),
            "box_attribute": np.zeros(0, np.int64),
            "map_bits": np.zeros(0, np.uint8),
            "pictures": np.zeros(0, np.uint8),
            "picture_ends": np.zeros(0, np.int64),
            "semantics": np.zeros(0, np.uint8),
            "semantic_ends": np.zeros(0, np.int64),
            "matrices": np.zeros((0, 3, 3)),
            "base_from_camera": np.zeros((0, 4, 4)),
            "base_from_picture": np.zeros((0, 4, 4)),
            "odom_from_base": np.eye(4),
        }
        frame = cache.CachedFrame(
            points=(xyz / cache.POSITION_STEP_M).astype(np.int16),
            intensity=np.zeros(400, np.uint8),
            sweep=np.zeros(400, np.uint8),
            ages=np.zeros(1, np.float32),
            label=np.where(xyz[:, 2] < 2, road, manmade).astype(np.uint8),
            **none,
        )
        cache.write(folder / f"frame_{index:04}.npz", frame)
    cache.finish(folder, {"format": cache.FORMAT})


def save_supernet(path: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = SPVNASSuperNet(16, TINY, pres=0.5, vres=0.5).train()
    for number in range(3):
        network(*cloud(300, seed=number), TINY.sample(random.Random(number)))
    config = {"num_classes": 16, "space": asdict(TINY), "pres": 0.5, "vres": 0.5}
    manifest = Manifest("super", "SPVNASSuperNet", config, POINT_CLASSES)
    save(path, network.state_dict(), manifest, exact=True)


def command(folder: Path, generations: int = 1) -> Any:
    arguments = ["search-spvnas", str(folder / "super.safetensors"), "--out", str(folder / "out")]
    arguments += ["--data", str(folder / "data"), "--latency-limit-ms", "10000"]
    arguments += ["--population", "2", "--generations", str(generations), "--parents", "2"]
    return CliRunner().invoke(build_app(), arguments)


def test_the_command_refuses_what_another_search_measured(tmp_path, monkeypatch):
    drive(tmp_path / "data" / "drive")
    save_supernet(tmp_path / "super.safetensors")
    assert command(tmp_path, generations=0).exit_code == 0
    before = (tmp_path / "out" / "search.jsonl").read_bytes()
    assert command(tmp_path, generations=0).exit_code == 0, "the same search goes on"
    assert (tmp_path / "out" / "search.jsonl").read_bytes() == before

    def refused(what: str) -> None:
        error = command(tmp_path, generations=0).exception
        assert isinstance(error, InputError)
        assert what in str(error).split("found")[1]
        assert (tmp_path / "out" / "search.jsonl").read_bytes() == before

    save_supernet(tmp_path / "super.safetensors", seed=1)
    refused("'network_sha256': ")
    save_supernet(tmp_path / "super.safetensors")
    frame = cache.read(cache.CachedFrame, tmp_path / "data" / "drive" / "frame_0001.npz")
    cache.write(tmp_path / "data" / "drive" / "frame_0001.npz", replace(frame, intensity=frame.intensity + 1))
    refused("'frames': ['drive/frame_0000.npz ")
    cache.write(tmp_path / "data" / "drive" / "frame_0001.npz", frame)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    refused("'machine': ")


@pytest.mark.parametrize("name", ["net.config", "candidates.md"])
def test_what_an_earlier_search_wrote_outlives_a_full_disk(tmp_path, monkeypatch, name):
    save_supernet(tmp_path / "super.safetensors")
    network, manifest = spvnas_search.load_supernet(tmp_path / "super.safetensors")
    winner = Candidate(0, 0, TINY.sample(random.Random(0)), 1.0, 0.5)
    sub = network.determinize(winner.config)
    out = tmp_path / "out"
    spvnas_search._write(sub, winner, [winner], manifest, PLAN, out)
    before = (out / name).read_text()
    plain = Path.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith(name):
            plain(path, data[:9])
            raise OSError("No space left on device")
        plain(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: full(path, text.encode()))
    with pytest.raises(InputError, match=rf"{name}: expected a file that can be written"):
        spvnas_search._write(sub, winner, [winner], manifest, PLAN, out)
    assert (out / name).read_text() == before


def test_the_command_writes_a_net_config_and_weights_that_belong_together(tmp_path):
    drive(tmp_path / "data" / "drive")
    save_supernet(tmp_path / "super.safetensors")
    result = command(tmp_path)
    assert result.exit_code == 0, result.output
    state, written = load(tmp_path / "out" / "subnet.safetensors")
    net_config = json.loads((tmp_path / "out" / "net.config").read_text())
    TINY.check(net_config)
    SPVNAS(**written.config).load_state_dict(state)
    assert written.config["net_config"] == {k: net_config[k] for k in written.config["net_config"]}
    assert len((tmp_path / "out" / "candidates.md").read_text().splitlines()) == 2 + 4
    assert 0 <= written.metrics["accuracy"] <= 1


@torch.no_grad()
def test_recalibration_gives_every_norm_the_statistics_of_its_own_network():
    torch.manual_seed(0)
    network = SPVNASSuperNet(5, TINY, pres=1.0, vres=1.0)
    alone = network.determinize(TINY.sample(random.Random(0))).eval()
    frame = Frame(*cloud(500), np.zeros(500, np.uint8), "frame")
    recalibrate(alone, [frame])
    seen: list[torch.Tensor] = []
    alone.point_transforms[0].net.conv.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.enable_grad():  # layers run one by one, so that the hook sees the norm's input
        alone(frame.positions, frame.features)
    norm = alone.point_transforms[0].net.bn
    mean = seen[0].mean(0)
    assert (norm.running_mean - mean).norm() < 0.05 * mean.norm()
    assert not norm.training
