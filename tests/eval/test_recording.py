# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A recording made by hand, with known answers, scores what it must."""

import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.data import messages, sensor_messages
from kestrel.data.bag import BagReader, BagWriter
from kestrel.errors import InputError
from kestrel.eval.recording import Answers, read_recording
from kestrel.eval.score import figures, map_values, unanswered
from kestrel.eval.timing import node_timings
from kestrel.report import Figure
from tests.eval.made_recording import EPOCH, MS, WALL, road, values, write


def test_every_score_is_what_the_recording_was_made_for(tmp_path):
    scores = values(write(tmp_path / "out.mcap"))
    # Three of eight cars are found and nothing else: precision 1 up to recall 3/8.
    assert scores["detection/car/AP_2m"] == pytest.approx((37 - 11 + 1) / 90)
    assert scores["detection/translation_error"] == pytest.approx(0.5, abs=1e-6)
    assert scores["points/mIoU"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert scores["map/drivable_area"] == pytest.approx(0.5, abs=1e-6)
    assert scores["event/accuracy"] == pytest.approx(2 / 3)
    assert scores["event/majority"] == pytest.approx(1.0)
    assert scores["replay/rate"] == pytest.approx(0.25)


def with_events(path, *, truth, answers):
    """Two pictures per camera at the same stamps; the truth says clear, the answers are given by camera."""
    with BagWriter(path) as bag:
        for index in range(2):
            stamp = EPOCH + index * 100 * MS
            clear = messages.classification_message({"clear": 1.0}, stamp, f"{truth}_optical")
            bag.write("/truth/event", clear, stamp)
            for camera, event in answers.items():
                answer = messages.classification_message({event: 1.0}, stamp, f"{camera}_optical")
                bag.write(f"/video/output/{camera}/event", answer, stamp)
    return path


@pytest.mark.parametrize("camera", ["front", "forward"])
def test_events_are_those_of_the_camera_that_the_truth_is_about(tmp_path, camera):
    answers = {"back": "cut_in", camera: "clear", "left": "cut_in"}
    scores = values(with_events(tmp_path / "out.mcap", truth=camera, answers=answers))
    assert scores["event/frames"] == 2
    assert scores["event/accuracy"] == 1.0


def test_where_no_answer_is_about_the_camera_of_the_truth_it_is_said_and_not_scored(tmp_path):
    path = with_events(tmp_path / "out.mcap", truth="front", answers={"back": "clear", "left": "clear"})
    assert not [name for name in values(path) if name.startswith("event/")]
    result = run(path)
    assert "events are not scored: expected answers to pictures" in result.stderr
    assert "['front_optical'], found answers to others, of ['back_optical', 'left_optical']" in result.stderr
    assert "events are not scored" not in run(write(tmp_path / "whole.mcap")).stderr


def test_only_classes_that_the_truth_has_are_scored(tmp_path):
    scores = values(write(tmp_path / "out.mcap"))
    assert not [name for name in scores if name.startswith("detection/truck")]
    assert not [name for name in scores if name.startswith("map/walkway")]
    assert scores["detection/mAP"] == scores["detection/car/AP"]


def test_lost_frames_and_latency_are_those_of_each_node(tmp_path):
    scores = values(write(tmp_path / "out.mcap", latency_ms=40))
    for node in ("fusion", "segmentation", "video"):
        assert scores[f"{node}/answered"] == 0.75
        assert scores[f"{node}/lost"] == 1
        assert scores[f"{node}/latency_p50"] == pytest.approx(40.0)


def test_a_message_is_answered_by_all_outputs_that_it_asks_for_and_those_that_lack_are_named(tmp_path):
    path = write(tmp_path / "out.mcap", sweeps=4, answered=3)
    partly = tmp_path / "partly.mcap"
    lost = {("/fusion/output/map/walkway", EPOCH), ("/fusion/output/map/divider", EPOCH + 100 * MS)}
    with BagWriter(partly) as bag:
        for message in BagReader(path).messages():
            source = messages.source_of(message.msgtype, message.raw)
            if source is None or (message.topic, source.stamp_ns) not in lost:
                bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
    recording = read_recording(partly)
    found = figures(recording)
    assert (found["fusion/answered"].value, found["fusion/lost"].value) == (0.25, 3)
    assert found["fusion/objects/answered"] == Figure(0.75, "of 4")
    assert found["fusion/map/walkway/answered"] == Figure(0.5, "of 4")
    assert found["segmentation/answered"].value == 0.75
    lacking = "fusion (map/divider, map/walkway): asked 4 by /lidar/points, answered 2"
    assert lacking in unanswered(recording)
    assert "segmentation (points): asked 4 by /lidar/points, answered 3" in unanswered(recording)
    assert f"not answered in full: {lacking}\n" in run(partly).stderr


def test_where_every_output_answered_everything_nothing_is_named(tmp_path):
    path = write(tmp_path / "out.mcap", answered=4)
    assert values(path)["fusion/answered"] == 1
    assert unanswered(read_recording(path)) == []
    assert run(path).stderr == ""


def with_cameras(bag, count=3):
    """Pictures of two cameras; the events of one are answered."""
    for index in range(count):
        stamp = EPOCH + index * 100 * MS
        for camera in ("front", "back"):
            picture = sensor_messages.compressed_image(
                np.zeros((2, 2, 3), np.uint8), stamp, f"{camera}_optical", jpeg_quality=None
            )
            bag.write(f"/camera/{camera}/image/compressed", picture, stamp)
        event = messages.classification_message({"clear": 1.0}, stamp, "front_optical")
        bag.write("/video/output/front/event", event, stamp + MS)


def test_outputs_that_were_recorded_and_never_came_are_named(tmp_path):
    classification, cloud = "vision_msgs/msg/Classification", "sensor_msgs/msg/PointCloud2"
    with BagWriter(tmp_path / "out.mcap") as bag:
        with_cameras(bag)
        bag.announce("/video/output/back/event", classification)
        bag.announce("/video/output/side/event", classification)  # there is no such camera
        bag.announce("/video/output/summary", classification)
        bag.announce("/video/output/classes", classification, latched=True)
        bag.announce("/video/output/marks", "visualization_msgs/msg/MarkerArray")  # of no stamp
        bag.announce("/segmentation/output/points", cloud)  # nobody knows whether it was asked anything
    recording = read_recording(tmp_path / "out.mcap")
    assert unanswered(recording) == [
        "video (back/event): asked 3 by /camera/back/image/compressed, answered 0",
        "video (summary): asked 3 by /camera/front/image/compressed, answered 0",
    ]
    found = values(tmp_path / "out.mcap")
    assert (found["video/answered"], found["video/lost"]) == (0, 6)
    assert found["video/front/event/answered"] == 1
    assert found["video/back/event/answered"] == 0
    assert found["video/latency_p50"] == pytest.approx(1.0)


def diagnostics(node, answered=0, unwanted=0, **received):
    """What a node says of its inputs; those that are to be answered count answers."""
    pair = partial(messages.new, "diagnostic_msgs/msg/KeyValue")
    statuses = [
        messages.new(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=0,
            name=f"{node}: input/{name}",
            message="OK",
            hardware_id=f"/{node}",
            values=[pair(key="received", value=str(count))]
            + ([] if name == "tf" else [pair(key="answered", value=str(answered))])
            + ([] if name == "tf" else [pair(key="unwanted", value=str(unwanted))]),
        )
        for name, count in received.items()
    ]
    return messages.new(
        "diagnostic_msgs/msg/DiagnosticArray", header=messages.header(EPOCH, ""), status=statuses
    )


def test_a_node_that_never_answered_is_known_by_what_it_says_that_it_received(tmp_path):
    with BagWriter(tmp_path / "out.mcap") as bag:
        with_cameras(bag)
        for time, count in ((EPOCH, 10), (EPOCH + 500 * MS, 17)):  # it ran before
            bag.write("/diagnostics", diagnostics("segmentation", points=count, tf=5 * count), time)
            bag.write("/diagnostics", diagnostics("fusion", points=count, front=3 * count), time)
            bag.write("/diagnostics", diagnostics("augment", labels=4), time)
            bag.write("/diagnostics", diagnostics("other", front=count, back=count), time)
            bag.write("/diagnostics", diagnostics("video", front=count), time)
    assert unanswered(read_recording(tmp_path / "out.mcap")) == [
        "segmentation: asked 7, answered 0",
        "fusion: asked 7, answered 0",
        "other: asked 14, answered 0",
    ]
    found = values(tmp_path / "out.mcap")
    assert (found["segmentation/answered"], found["segmentation/lost"]) == (0, 7)
    assert found["video/answered"] == 1
    assert "augment/answered" not in found
    assert not [name for name in found if name.startswith("segmentation/latency")]


def test_what_nobody_wanted_or_recorded_was_not_left_unanswered(tmp_path):
    with BagWriter(tmp_path / "out.mcap") as bag:
        with_cameras(bag)
        for time, count in ((EPOCH, 10), (EPOCH + 500 * MS, 17)):
            bag.write("/diagnostics", diagnostics("excluded", unwanted=count - 5, points=count), time)
            bag.write("/diagnostics", diagnostics("late", unwanted=min(count, 14), points=count), time)
            bag.write("/diagnostics", diagnostics("shown", answered=count - 2, points=count), time)
    assert unanswered(read_recording(tmp_path / "out.mcap")) == ["late: asked 3, answered 0"]


def test_a_node_that_began_anew_counts_what_it_received_before_and_since(tmp_path):
    with BagWriter(tmp_path / "out.mcap") as bag:
        with_cameras(bag)
        for number, count in enumerate((10, 17, 2, 6)):
            bag.write("/diagnostics", diagnostics("segmentation", points=count), EPOCH + number * 500 * MS)
    assert unanswered(read_recording(tmp_path / "out.mcap")) == ["segmentation: asked 13, answered 0"]


def test_sweep_without_answer_counts_against_the_detections(tmp_path):
    all_answered = values(write(tmp_path / "a.mcap", answered=4))["detection/car/AP_2m"]
    one_lost = values(write(tmp_path / "b.mcap", answered=3))["detection/car/AP_2m"]
    assert one_lost < all_answered


def test_a_map_on_another_grid_is_compared_where_its_cells_are():
    truth = road(1, 5.0)
    shifted = replace(
        truth,
        lower=(-49.056, -53.0),
        probability=np.roll(
            truth.probability, 6, axis=2
        ),  # the same road, its cells 3 m further to the right
    )
    finer = replace(truth, resolution=0.25, probability=truth.probability.repeat(2, axis=1).repeat(2, axis=2))
    for found, rows in ((truth, 200), (finer, 200), (shifted, 198)):
        values = map_values(Answers(maps={1: truth}), Answers(maps={1: found}))
        assert values["map/drivable_area"][0] == pytest.approx(rows / 200)  # what it does not reach is missed


def test_detections_in_another_frame_are_refused(tmp_path):
    with pytest.raises(InputError, match="base_link"):
        read_recording(write(tmp_path / "out.mcap", frame="odom"))


def test_cameras_with_equal_stamps_are_told_apart():
    sent = {
        f"/camera/{name}/image/compressed": {
            messages.Source(10, f"camera_{name}_optical"): 5,
            messages.Source(20, f"camera_{name}_optical"): 25,
        }
        for name in ("front", "back")
    }
    received = {
        "/video/output/front/event": {messages.Source(10, "camera_front_optical"): 5 + 3 * MS},
        "/video/output/back/event": {messages.Source(20, "camera_back_optical"): 25 + 9 * MS},
    }
    timing = node_timings(sent, received)["/video"]
    assert (timing.sent, timing.answered, timing.lost) == (4, 2, 2)
    assert sorted(timing.latency_ms) == [3.0, 9.0]


def test_what_was_sent_to_a_node_alone_is_its_input():
    front = {messages.Source(stamp, "camera_front_optical"): stamp for stamp in (10, 20, 30)}
    labels = {messages.Source(20, "camera_front_optical"): 20}
    sent = {"/camera/front/image/compressed": front, "/augment/input/labels": labels}
    received = {
        "/augment/output/image": {messages.Source(20, "camera_front_optical"): 20 + 2 * MS},
        "/video/output/event": {messages.Source(20, "camera_front_optical"): 20 + 5 * MS},
    }
    timings = node_timings(sent, received)
    assert timings["/augment"].inputs == ("/augment/input/labels",)
    assert (timings["/augment"].sent, timings["/augment"].answered) == (1, 1)
    assert timings["/video"].inputs == ("/camera/front/image/compressed",)
    assert (timings["/video"].sent, timings["/video"].answered) == (3, 1)


def test_latched_output_with_a_stamp_of_its_own_has_no_cause():
    sent = {"/lidar/points": {messages.Source(10, "lidar"): 5}}
    received = {"/segmentation/output/label_info": {messages.Source(11, "base_link"): 6}}
    assert node_timings(sent, received) == {}


def run(*arguments):
    return CliRunner().invoke(build_app(), ["eval", *map(str, arguments)])


def test_json_is_one_object_with_every_figure(tmp_path):
    result = run(write(tmp_path / "out.mcap"), "--json", "--baseline")
    report = json.loads(result.stdout)
    assert report["command"] == "eval"
    figure = report["figures"]["map/drivable_area"]
    assert figure["against"].startswith("baseline")
    assert figure["ratio"] == pytest.approx(0.5)
    assert report["figures"]["event/accuracy"]["against"].startswith("majority")


def test_a_drive_without_answers_shows_what_the_baseline_has_and_says_that_no_node_answered(tmp_path):
    path = write(tmp_path / "out.mcap", answered=0)
    result = run(path, "--json", "--baseline")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["figures"]
    assert found["baseline/map/drivable_area"]["value"] == pytest.approx(1.0)
    assert {"baseline/detection/mAP", "baseline/points/mIoU"} <= found.keys()
    assert not [name for name in found if name.startswith(("map/", "detection/", "points/"))]
    assert "out.mcap: expected answers of nodes to score" in result.stderr
    assert "answers of nodes" in run(path).stderr
    answered = run(write(tmp_path / "answered.mcap"), "--baseline", "--json")
    assert "answers of nodes" not in answered.stderr
    assert "baseline/map/drivable_area" not in json.loads(answered.stdout)["figures"]


def test_damaged_recording_is_scored_as_far_as_it_goes_and_fails(tmp_path):
    path = write(tmp_path / "out.mcap", sweeps=30, answered=30)
    os.truncate(path, path.stat().st_size // 2)
    result = run(path, "--json")
    assert isinstance(result.exception, InputError)
    assert json.loads(result.stdout)["figures"]["detection/frames"]["value"] > 2


def test_recording_without_anything_to_score_is_an_error(tmp_path):
    with BagWriter(tmp_path / "out.mcap") as bag:
        bag.write("/tf_static", messages.tf_message([]), WALL)
    assert isinstance(run(tmp_path / "out.mcap").exception, InputError)
