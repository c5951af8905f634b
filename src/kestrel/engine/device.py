# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where networks compute: on the CPU, or on a GPU that this torch can use."""

from __future__ import annotations

from typing import Final

import torch

from kestrel.errors import ConfigError, KestrelError, describe

CPU: Final = torch.device("cpu")
AUTO: Final = "auto"

_OF_A_GPU: Final = ("cuda", "cudnn", "cublas", "hip error", "triton", "tensorrt")
"""What the text of an error names, in small letters, where a library of a GPU raised it."""


def chosen_device(device: str) -> torch.device:
    """Return the device that a network is to compute on.

    Args:
        device: cpu; cuda, the first GPU; cuda:N; or auto, the first GPU where there is one, else the CPU.

    Raises:
        ConfigError: another word, or a GPU that this torch cannot use.
    """
    if device == "cpu":
        return CPU
    word, _, number = device.partition(":")
    if device != AUTO and (word != "cuda" or device.endswith(":") or not (number or "0").isdecimal()):
        raise ConfigError(describe("device", expected="cpu, cuda, cuda:N or auto", found=repr(device)))
    gpu = torch.device("cuda", int(number or 0))
    problem = gpu_problem(gpu)
    if problem is None:
        return gpu
    if device == AUTO:
        return CPU
    expected = f"{device}, a GPU that this torch can use"
    raise ConfigError(describe("device", expected=expected, found=problem))


def gpu_problem(gpu: torch.device) -> str | None:
    """Return why torch cannot use a GPU, None if it can, which it has to show by an addition."""
    if torch.version.cuda is None and torch.version.hip is None and not torch.cuda.is_available():
        return f"torch {torch.__version__}, which is built for the CPU alone"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (gpu.index or 0) >= count:
        return f"{count} GPUs that torch {torch.__version__} finds"
    try:
        torch.ones(1, device=gpu).add(1).item()
    except RuntimeError as error:
        return _first_line(error)
    return None


def gpu_failure(error: BaseException) -> str | None:
    """Return what a GPU failed with, such as a lack of memory; None for an error that is not of one."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return _first_line(error)
    text = f"{type(error).__module__} {error}".lower()
    of_a_gpu = not isinstance(error, KestrelError) and any(word in text for word in _OF_A_GPU)
    return _first_line(error) if of_a_gpu else None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
