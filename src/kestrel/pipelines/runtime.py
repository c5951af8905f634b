# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What all pipelines share: networks from weights, arithmetic of the machine, the check of their answers."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from kestrel.engine.device import CPU
from kestrel.errors import ConfigError, ModelError, describe
from kestrel.models.kestrel_augment import AugmentConfig, KestrelAugment
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.models.kestrel_seg import KestrelSeg, SegConfig
from kestrel.models.kestrel_video import KestrelVideo, VideoConfig
from kestrel.ops import dispatch_level, int8_is_fast
from kestrel.weights import Manifest, assign, load

NetworkT = TypeVar("NetworkT", bound=nn.Module)

NETWORKS: Final[dict[type[nn.Module], type[Any]]] = {
    KestrelSeg: SegConfig,
    KestrelFusion: FusionConfig,
    KestrelVideo: VideoConfig,
    KestrelAugment: AugmentConfig,
}
"""Networks that can be built from a manifest, and the dataclass of their arguments."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEEPING: Final = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 64 << 20}
"""Arguments of mallopt, see malloc.h: blocks of any size come from the heap, which never shrinks and grows in
steps of 64 MiB."""

_threads_before: Final[list[int]] = []
"""What `set_threads` found before it changed anything; empty while it has not."""

Precision = Literal["auto", "float32", "bfloat16", "int8"]
"""What the convolutions of a pipeline multiply; int8 is quantized on its way (ADR 6)."""

ChosenPrecision = Literal["float32", "bfloat16", "int8"]


def chosen_precision(
    precision: Precision, auto: Sequence[ChosenPrecision], device: torch.device = CPU
) -> ChosenPrecision:
    """Return what convolutions shall multiply.

    Args:
        precision: what is asked for.
        auto: what a pipeline takes by itself, the best first; without instructions for any it is float32.
        device: where; a GPU multiplies no bytes here.

    Raises:
        ConfigError: another precision, or one that the processor, or this GPU, does not multiply.
    """
    if precision not in get_args(Precision):
        raise ConfigError(describe("precision", expected=f"one of {get_args(Precision)}", found=precision))
    if device.type != "cpu":
        return _precision_of_gpu(precision, auto, device)
    if precision == "int8" and not int8_is_fast():
        expected = "a processor with AVX-512 VNNI, and compiled kernels that use it"
        raise ConfigError(describe("precision int8", expected=expected, found=dispatch_level()))
    if precision != "auto":
        return precision
    fast = {"float32": True, "bfloat16": has_fast_bfloat16(), "int8": int8_is_fast()}
    return next((each for each in auto if fast[each]), "float32")


def _precision_of_gpu(
    precision: Precision, auto: Sequence[ChosenPrecision], device: torch.device
) -> ChosenPrecision:
    with torch.cuda.device(device):
        narrow = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bfloat16" if narrow and "bfloat16" in auto else "float32"
    if precision == "int8" or (precision == "bfloat16" and not narrow):
        expected = "float32, bfloat16 or auto on a GPU" if narrow else "float32 or auto on this GPU"
        raise ConfigError(describe("precision", expected=expected, found=f"{precision} on {device}"))
    return precision


def build(network: type[NetworkT], config: dict[str, Any], source: str | Path) -> NetworkT:
    """Return an untrained network from the ``config`` of a manifest.

    Raises:
        ModelError: the config holds an argument that the network does not know.
    """
    kind = NETWORKS[network]
    known = {entry.name for entry in fields(kind)}
    if set(config) - known:
        raise ModelError(
            describe(f"{source} config", expected=f"only {sorted(known)}", found=sorted(set(config) - known))
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return network(kind(**values))


def load_network(
    network: type[NetworkT], weights: str | Path, classes: tuple[str, ...], device: torch.device = CPU
) -> tuple[NetworkT, Manifest]:
    """Return a network with its weights on a device, ready to answer.

    Raises:
        ModelError: the weights are missing, damaged, for another network or for other classes.
    """
    state, manifest = load(weights)
    if manifest.network != network.__name__:
        raise ModelError(describe(f"network of {weights}", expected=network.__name__, found=manifest.network))
    if manifest.classes != classes:
        raise ModelError(describe(f"classes of {weights}", expected=classes, found=manifest.classes))
    built = build(network, manifest.config, weights)
    assign(built, state, weights)
    return ready(built, device), manifest


def untrained_network(make: Callable[[], NetworkT], seed: int, device: torch.device = CPU) -> NetworkT:
    """Return a network on a device with random weights that depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ready(make(), device)


def ready(network: NetworkT, device: torch.device) -> NetworkT:
    """Put a network, and the memory of this process, into the state in which it answers fastest there."""
    if device.type == "cpu":
        keep_freed_memory()
    network.eval().requires_grad_(False)
    # To mypy no memory format can be given beside a device.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next answer; nothing happens with another C library.

    Every answer needs the same large, short-lived tensors. Given back to the system and fetched again, which
    is what happens otherwise, they cost a tenth of the processor time of Kestrel-Seg in page faults. The
    process stays as large as it ever was. Who set glibc's own variables keeps his choice.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in _KEEPING.items():
            library.mallopt(parameter, value)


def give_memory_back() -> None:
    """Give what is freed back to the system and to other users of the GPU: no answer will need it soon."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):  # a GPU that was lost has nothing to give
            torch.cuda.empty_cache()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def keep_what_is_loaded() -> None:
    """Leave what there is by now out of later garbage collections.

    Of torch's objects alone a full one takes 0.03 s, during which a sweep waits for its answer.
    """
    gc.collect()
    gc.freeze()


def set_threads(threads: int | None) -> None:
    """Limit the threads of torch in this process; None takes back what this function has changed."""
    if threads is not None:
        if not _threads_before:
            _threads_before.append(torch.get_num_threads())
        torch.set_num_threads(threads)
    elif _threads_before:
        torch.set_num_threads(_threads_before.pop())


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fast_arithmetic() -> AbstractContextManager[None]:
    """Return the context in which dense networks run: bfloat16 where the CPU has it, else float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_fast_bfloat16())


def check_finite(name: str, output: Tensor) -> Tensor:
    """Return ``output``; raise ModelError when the network produced NaN or Inf."""
    # A finite sum proves finite values in a fraction of the time; one that overflows is looked into.
    if not torch.isfinite(output.sum()) and not torch.isfinite(output).all():
        broken = int((~torch.isfinite(output)).sum())
        raise ModelError(
            describe(
                f"output of {name}",
                expected="finite values",
                found=f"{broken} of {output.numel()} not finite",
            )
        )
    return output
