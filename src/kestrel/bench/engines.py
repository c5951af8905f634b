# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The dense parts of Kestrel-Fusion in every engine that is there, one against the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.bench.fusion_drive import FrameReader, recorded_drive
from kestrel.bench.timing import THREADS, Candidate, medians, timed
from kestrel.engine import EagerEngine, EngineName, has_onnxruntime, has_openvino, make_engine
from kestrel.pipelines.fusion import FusionDetector
from kestrel.pipelines.fusion_engine import run_stage
from kestrel.report import Figure

SWEEPS: Final = 16
CHOSEN: Final[EngineName] = "folded"
"""What "auto" is where nothing else competes."""


def engines() -> dict[str, Figure]:
    """Time the parts on the inputs that a frame of the benchmark fusion gives them."""
    torch.set_num_threads(THREADS)
    # Of this engine alone the parts are still modules, which say what they are given.
    detector = FusionDetector("kestrel-fusion", threads=THREADS, engine="eager")
    reader = FrameReader(recorded_drive(SWEEPS), detector)
    frame = reader.read(reader.numbers[-1], run_stage)
    detector.detect(frame)
    given: dict[str, tuple[Tensor, ...]] = {}
    modules: dict[str, nn.Module] = {}
    hooks = []
    for name, engine in detector.engine.parts.items():
        assert isinstance(engine, EagerEngine)
        modules[name] = part = engine.module
        note = partial(_note, given, name)
        hooks.append(part.register_forward_pre_hook(note))
    detector.detect(frame)
    for hook in hooks:
        hook.remove()
    bfloat16 = detector.precision == "bfloat16"
    figures: dict[str, Figure] = {}
    for name, module in modules.items():
        figures |= _race(name, module, given[name], bfloat16=bfloat16)
    return figures


def _note(given: dict[str, tuple[Tensor, ...]], name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    given[name] = inputs


def _race(part: str, module: nn.Module, inputs: Sequence[Tensor], *, bfloat16: bool) -> dict[str, Figure]:
    """Return the median time of every engine beside CHOSEN, and how long it took to make it."""
    names: list[EngineName] = ["eager", CHOSEN, "compiled"]
    names += ["openvino"] if has_openvino() else []
    names += ["onnxruntime"] if has_onnxruntime() else []
    made: dict[str, Candidate] = {}
    figures: dict[str, Figure] = {}
    with torch.inference_mode():
        for name in names:
            began = time.perf_counter()
            engine = make_engine(module, inputs, name, bfloat16=bfloat16)
            engine(*inputs)
            figures[f"{part}: {name}, to the first answer"] = Figure(time.perf_counter() - began, "s")
            made[name] = timed(partial(engine, *inputs))
        ms = medians(made)
    for name in names:
        figures[f"{part}: {name}"] = Figure(ms[name], "ms", ms[CHOSEN] / ms[name], CHOSEN)
    return figures
