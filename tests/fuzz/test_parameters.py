# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kestrel.classes import DETECTION_CLASSES
from kestrel.errors import ConfigError
from kestrel_nodes.augment import AugmentParameters
from kestrel_nodes.box_selection import BoxSelection
from kestrel_nodes.fusion_parameters import FusionParameters
from kestrel_nodes.parameters import NodeParameters, build, specs
from kestrel_nodes.segmentation import SegmentationParameters
from kestrel_nodes.video import VideoParameters
from tests.fuzz.cases import ODD_WORDS, answer, cases

WORDS = st.lists(
    st.sampled_from(("car", "bus", "=", "@", "0.5", "1", "30", " ", "=", "@", *ODD_WORDS)), max_size=6
).map("".join)
LISTS = st.lists(WORDS | st.text(max_size=6), max_size=4)
KINDS = (FusionParameters, SegmentationParameters, VideoParameters, AugmentParameters)
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.binary(max_size=4) | LISTS
    | st.lists(st.floats() | st.integers(), max_size=8) | st.lists(st.none() | st.booleans(), max_size=3)
)  # fmt: skip


@cases(6)
@given(thresholds=LISTS, remap=LISTS, default=st.floats(0, 1))
def test_no_thresholds_raise_anything_but_a_config_error(
    thresholds: list[str], remap: list[str], default: float
) -> None:
    selection = answer(lambda: BoxSelection.parse(default, thresholds, remap), ConfigError)
    if selection is not None:
        assert 0 <= selection.lowest <= 1
        answer(lambda: selection.check_classes(DETECTION_CLASSES), ConfigError)


@cases(6)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_no_value_of_a_parameter_raises_anything_but_a_config_error(
    kind: type[NodeParameters], data: st.DataObject
) -> None:
    names = [spec.name for spec in specs(kind)]
    values = data.draw(st.dictionaries(st.sampled_from(names) | WORDS, VALUES, max_size=3))
    answer(lambda: build(kind, values), ConfigError)
