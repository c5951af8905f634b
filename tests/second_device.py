# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A second device on a machine that has none: it says "cuda:0", computes on the CPU, and refuses mixtures.

A tensor of it holds a tensor of the CPU. Each operator of torch runs on what is held, after a check that
torch itself makes on a GPU: all tensors are on one device, but for what torch allows (a single number that
lies on the CPU, indices, copies). Operators of Kestrel run what they have registered for a GPU, without
Triton. So a tensor that was forgotten on the CPU is an error here as it is there, and answers are comparable.

What a GPU rounds differently, and Triton, are not seen here (tests/ops/gpu has the latter).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kestrel.ops.backend import DISPATCH_VARIABLE, TORCH_LEVEL, triton_installed

SECOND: Final = torch.device("cuda:0")
CPU: Final = torch.device("cpu")

AUTOCAST: Final = torch.autocast
"""As torch has it."""

aten = torch.ops.aten

COPIES: Final = {
    *(aten.copy_, aten._to_copy, aten.to, aten.lift, aten.lift_fresh, aten.lift_fresh_copy),
    aten._has_compatible_shallow_copy_type,
}
"""Operators that may take tensors of several devices."""

INDEXING: Final = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
"""Operators whose indices may lie on the CPU."""

NUMBERS: Final = {aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_put_, aten.index_put}
"""Operators beside those that work number by number in which one number may lie on the CPU."""


class SecondTensor(torch.Tensor):
    """A tensor that says it is on the second device; ``held`` is what it really is."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> SecondTensor:
        # Of the device "meta", since a torch without CUDA guards no other that does not exist. What is a view
        # of a tensor of before inference mode is none of that mode.
        with torch.inference_mode(held.is_inference()):
            if held.layout == torch.strided:
                shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
            else:
                shape = torch.empty(held.shape, dtype=held.dtype, device="meta")
            return torch.Tensor._make_subclass(cls, shape, False, device_for_backend_keys=SECOND)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:
        return SECOND

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: object, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype, device=SECOND)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"SecondTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(func, args, dict(kwargs or {}))


class SecondDevice(TorchDispatchMode):
    """While it is entered, the second device is there. narrow: whether autocast is on for it."""

    narrow = False

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(func, args, dict(kwargs or {}), self)


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any], mode: SecondDevice | None = None) -> Any:
    """Run one operator on what its tensors hold; raise RuntimeError for tensors of several devices."""
    there = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, SecondTensor)]
    wanted = _device_of(kwargs, args) or (SECOND if there else CPU)
    if there:
        _check(func, args, kwargs)
    if there and func.namespace == "kestrel":
        return _of_kestrel(func, args, kwargs, mode)
    # Behind this mode torch has left autocast already.
    with AUTOCAST(CPU.type, torch.bfloat16) if there and SecondDevice.narrow else nullcontext():
        result = func(*_each(_held, args), **_each(_held, kwargs))
    return result if wanted.type == CPU.type else _known(result, there)


def _device_of(kwargs: dict[str, Any], args: Sequence[Any]) -> torch.device | None:
    given = [kwargs.get("device"), *args]
    return next((each for each in given if isinstance(each, torch.device)), None)


def _each(change: Callable[[Any], Any], given: Any) -> Any:
    """Return lists, tuples and dictionaries of what ``change`` makes of all in them; torch's own is slow."""
    if isinstance(given, list | tuple):
        return type(given)(_each(change, each) for each in given)
    if isinstance(given, dict):
        return {name: _each(change, each) for name, each in given.items()}
    return change(given)


def _leaves(given: Any) -> list[Any]:
    found: list[Any] = []
    _each(found.append, given)
    return found


def _held(leaf: Any) -> Any:
    if isinstance(leaf, SecondTensor):
        return leaf.held
    return CPU if isinstance(leaf, torch.device) else leaf


def _known(result: Any, there: list[SecondTensor]) -> Any:
    """Return a result as tensors of the device, the same ones where an operator returns what it was given."""

    def known(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        same = next((each for each in there if each.held is leaf), None)
        return SecondTensor(leaf) if same is None else same

    return _each(known, result)


def _check(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    operator = func.overloadpacket
    if operator in COPIES:
        return
    checked = (args[0], args[2:]) if operator in INDEXING else args
    numbers = torch.Tag.pointwise in func.tags or operator in NUMBERS
    for leaf in _leaves((checked, kwargs)):
        foreign = isinstance(leaf, Tensor) and not isinstance(leaf, SecondTensor)
        if foreign and not (numbers and leaf.ndim == 0):
            shape = tuple(leaf.shape)
            raise RuntimeError(f"{func}: expected all tensors on {SECOND}, found one {shape} on the CPU")


def _of_kestrel(func: Any, args: Sequence[Any], kwargs: dict[str, Any], mode: SecondDevice | None) -> Any:
    """Run what an operator of Kestrel has registered for a GPU, or else for any device."""
    known = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CUDA")
    key = "CUDA" if known else "CPU"
    kernel = torch.library.get_kernel(func, key)
    with mode or SecondDevice():
        return kernel.call_boxed(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)), *args, **kwargs)


@contextmanager
def _autocast(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
    """Let what is held be cast as the CPU casts; a GPU has other lists of operators for it."""
    if device_type == CPU.type:
        with AUTOCAST(CPU.type, dtype, enabled):
            yield
        return
    before, SecondDevice.narrow = SecondDevice.narrow, enabled
    try:
        yield
    finally:
        SecondDevice.narrow = before


@contextmanager
def second_device(*, bfloat16: bool = False) -> Iterator[None]:
    """Let torch find the second device, which has arithmetic in bfloat16 or not."""
    device = SecondDevice()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "_lazy_init", lambda: None)
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr(torch.cuda, "device_count", lambda: 1)
        patched.setattr(torch, "autocast", _autocast)
        patched.setattr(torch.cuda, "device", lambda _: nullcontext())
        patched.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)
        patched.setenv(DISPATCH_VARIABLE, TORCH_LEVEL)
        triton_installed.cache_clear()
        lifting = torch._C._only_lift_cpu_tensors()
        overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with device:
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifting)
            torch.__future__.set_overwrite_module_params_on_conversion(overwriting)
            triton_installed.cache_clear()
