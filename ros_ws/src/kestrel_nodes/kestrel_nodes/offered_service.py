# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A service that outlives the cleanup of its node for as long as a request is in work: it has an answer."""

from __future__ import annotations

from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.service import Service


class OfferedService:
    """Counts the requests in ``service`` from the call of its callback until the response is sent.

    Everything happens in the executor thread.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._in_work = 0
        self._callback, self._send = service.callback, service.send_response
        service.callback, service.send_response = self._called, self._sent

    @property
    def busy(self) -> bool:
        """Whether a request has been taken and not answered."""
        return self._in_work > 0

    async def _called(self, request: Any, response: Any) -> Any:
        self._in_work += 1
        return await self._callback(request, response)

    def _sent(self, *response: Any) -> None:
        try:
            self._send(*response)
        except InvalidHandle:  # the node was destroyed, which waits for no request
            pass
        finally:
            self._in_work -= 1
