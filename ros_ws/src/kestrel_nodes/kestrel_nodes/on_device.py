# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline of a node on the device that it was asked for, and what happens when a GPU fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

from kestrel.engine.device import AUTO, gpu_failure
from kestrel.errors import ModelError, describe
from kestrel.pipelines.runtime import give_memory_back
from kestrel_nodes.guard import UntimelyError
from kestrel_nodes.parameters import parameter

if TYPE_CHECKING:
    from kestrel_nodes.working import WorkingNode


def device_parameter() -> Any:
    """Return the parameter that every node with a network has."""
    text = (
        "Where the network runs: cpu; cuda (the first GPU); cuda:N; or auto, the first GPU if there is "
        "one, else the CPU, and the CPU once that GPU fails."
    )
    return parameter("cpu", text)


class Pipeline(Protocol):
    """What runs on a device."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""


PipelineT = TypeVar("PipelineT", bound=Pipeline)
AnswerT = TypeVar("AnswerT")


class OnDevice(Generic[PipelineT]):
    """A pipeline that answers; one that was to find its device itself does so on the CPU once a GPU failed.

    On the CPU it then stays until the node is configured anew, and says so in the concern ``model``.

    Args:
        node: whose pipeline it is.
        device: the parameter.
        start: makes the pipeline for a device and warms it up.

    Raises:
        ModelError: a GPU that was asked for by name failed at the start; else what ``start`` raises.
    """

    def __init__(self, node: WorkingNode[Any], device: str, start: Callable[[str], PipelineT]) -> None:
        self._node, self._concern, self._logger = node, node.health["model"], node.get_logger()
        self._device, self._start = device, start
        self._pipeline: PipelineT | None = None
        self._freed = False
        for problem in ("device", "pipeline"):  # of a configure before this one that failed
            self._concern.clear(problem)
        try:
            self._pipeline = start(device)
            return
        except Exception as error:
            if device == "cpu":
                raise
            failure = self._failure(error)
        self._move_to_cpu("GPU", failure)

    @property
    def pipeline(self) -> PipelineT:
        """The pipeline.

        Raises:
            UntimelyError: the node was cleaned up, which a message in work may outlast.
        """
        pipeline = self._pipeline  # once: a cleanup may go on in the other thread
        if pipeline is None:
            raise UntimelyError(describe("pipeline", expected="that of a configured node", found="none"))
        return pipeline

    def free(self) -> None:
        """Let go of the pipeline; a message in work that outlasts this keeps it until it is done."""
        self._freed = True  # before the pipeline goes: see _move_to_cpu
        self._pipeline = None
        give_memory_back()

    def ask(self, question: Callable[[PipelineT], AnswerT]) -> AnswerT:
        """Return what the pipeline answers; a question at which its GPU fails is asked once more on the CPU.

        Raises:
            ModelError: the GPU failed and was asked for by name; the next question goes to it again.
            UntimelyError: there is no pipeline any more, or the node was deactivated without waiting for the
                answer, which would come late in what is another activation by now.
        """
        self._node.refuse_outlasted()
        where = self.pipeline.device
        try:
            answer = question(self.pipeline)
        except Exception as error:
            if where.type == "cpu":
                raise
            failure = self._failure(error)
        else:
            self._node.refuse_outlasted()
            self._concern.clear("pipeline")
            return answer
        # Here and not above, where the error would keep what it met in the memory of the GPU.
        self._move_to_cpu(str(where), failure)
        answer = question(self.pipeline)
        self._node.refuse_outlasted()
        return answer

    def _failure(self, error: Exception) -> str:
        """Return what the GPU failed with; raise ``error`` if that is of none, ModelError if it must stay."""
        failure = gpu_failure(error)
        if failure is None:
            raise error
        if self._device == AUTO:
            # What a GPU is blamed for may be a mistake of ours, which the trace shows.
            self._logger.error("".join(traceback.format_exception(error)))
            return failure
        failed = ModelError(describe(f"inference on {self._device}", expected="a result", found=failure))
        # Requests of a service are not looked at by WorkingNode, which says this of messages.
        self._concern.error("pipeline", str(failed))
        raise failed from error

    def _move_to_cpu(self, gpu: str, failure: str) -> None:
        if self._freed:
            return
        self._logger.error(f"{gpu} failed, the CPU takes its place: {failure}")
        self._pipeline = self._start("cpu")
        if self._freed:  # meanwhile, by the thread of the executor
            self._pipeline = None
            return
        self._concern.warn("device", f"on the CPU since {gpu} failed: {failure}")
