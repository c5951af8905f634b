# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How a function becomes an operator of torch: with its type, its kernels, and its gradient or none.

``torch.library.custom_op`` says the same in fewer lines. But the first call of what it makes imports torch's
compiler, whether anything is compiled or not: 0.7 s and 145 MiB in every process that runs a network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
KernelT = TypeVar("KernelT", bound=Callable[..., Any])

NAMESPACE: Final = "kestrel"
# To mypy nothing of it has a type.
_LIBRARY: Final[Any] = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


class Operator(Generic[P, R]):
    """``torch.ops.kestrel.NAME``, which is called like the function that it was made from."""

    def __init__(self, name: str, function: Callable[P, R]) -> None:
        self._name = name
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        self._overload = getattr(torch.ops.kestrel, name).default

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the kernel for the device of the arguments."""
        result: R = self._overload(*args, **kwargs)
        return result

    def register_cuda(self, kernel: KernelT) -> KernelT:
        """Let ``kernel`` run what is on a GPU."""
        _LIBRARY.impl(self._name, kernel, "CUDA")
        return kernel

    def register_fake(self, shapes: KernelT) -> KernelT:
        """Let ``shapes`` return empty results of the right size where there are no values."""
        torch.library.register_fake(self._qualified, shapes, lib=_LIBRARY)
        return shapes

    def register_autograd(
        self, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None
    ) -> None:
        """Let ``backward`` return the gradients, from what ``setup_context`` has kept."""
        torch.library.register_autograd(self._qualified, backward, setup_context=setup_context, lib=_LIBRARY)

    @property
    def _qualified(self) -> str:
        return f"{NAMESPACE}::{self._name}"


def differentiable(name: str) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Make an operator of a function without side effects, whose gradient is registered after it."""
    return lambda function: Operator(name, function)


def operator(name: str) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Make an operator of a function without side effects; to ask it for a gradient raises."""

    def refuse(_: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{NAMESPACE}::{name} passes no gradient on")

    def make(function: Callable[P, R]) -> Operator[P, R]:
        made = Operator(name, function)
        made.register_autograd(refuse)
        return made

    return make
