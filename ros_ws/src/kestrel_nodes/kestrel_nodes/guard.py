# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Exceptions in callbacks: caught once, logged once, counted, shown; the node lives."""

from __future__ import annotations

import inspect
import re
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, Protocol

from kestrel.errors import InputError, KestrelError, SetupError
from kestrel_nodes.health import Concern

LOG_PERIOD_S = 5.0
"""The same text, whatever its numbers, is logged again only after this long; every occurrence is counted."""


_NUMBER: Final = re.compile(r"(?<![\w/])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
"""A number that belongs to no name."""


class UntimelyError(SetupError):
    """What was asked for cannot be done because the node is not, or no longer, active; it is sound."""


class Logger(Protocol):
    """The part of rclpy's logger that is used here."""

    def error(self, message: str) -> object:
        """Log ``message`` at ERROR."""

    def warning(self, message: str) -> object:
        """Log ``message`` at WARN."""

    def info(self, message: str) -> object:
        """Log ``message`` at INFO."""


def _without_traceback(error: Exception) -> Exception:
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


class Guard:
    """Calls functions that may raise.

    A KestrelError is bad data from outside and is logged in one line; anything else is a bug and logged with
    its traceback, counted as ``exceptions`` and shown in the concern until a later call succeeds.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()

    def call(self, function: Callable[[], object], concern: Concern) -> Exception | None:
        """Call ``function``; return what it raised, handled and without its traceback, or None.

        That holds all that the call had in memory, for as long as somebody has the error.
        """
        try:
            function()
        except KestrelError as error:
            self.log(error)
            return _without_traceback(error)
        except Exception as error:
            self._bug(error, concern)
            return _without_traceback(error)
        concern.clear("exception")
        return None

    def wrap(self, function: Callable[..., object], concern: Concern) -> Callable[..., None]:
        """Return ``function`` as a callback that never raises; a KestrelError is shown in ``concern``."""

        def guarded(*arguments: object) -> None:
            error = self.call(lambda: function(*arguments), concern)
            if isinstance(error, KestrelError):
                concern.error("exception", str(error))

        return guarded

    def wrap_service(
        self, callback: Callable[[Any, Any], Any], concern: Concern
    ) -> Callable[[Any, Any], Any]:
        """Return ``callback`` (a function or a coroutine function) as a service that never raises.

        After an error the response is sent as it is, with ``success`` False and the reason in ``message``
        where it has these fields.
        """

        async def guarded(request: Any, response: Any) -> Any:
            try:
                answer = callback(request, response)
                answer = await answer if inspect.isawaitable(answer) else answer
            except Exception as error:
                self._refuse(error, response, concern)
                return response
            concern.clear("service")
            return answer

        return guarded

    def _refuse(self, error: Exception, response: Any, concern: Concern) -> None:
        """Say why a request failed; of one that was wrong, or came at the wrong time, the node is healthy."""
        concern.count("refused_requests")
        if isinstance(error, KestrelError):
            self.log(error)
        else:
            self._bug(error, concern, key="service")
        if isinstance(error, KestrelError) and not isinstance(error, (InputError, UntimelyError)):
            concern.error("service", str(error))
        if hasattr(response, "success"):
            response.success = False
        if hasattr(response, "message"):
            response.message = str(error)

    def log(self, error: KestrelError) -> None:
        """Log bad data, the same text at most every few seconds."""
        self.warn(str(error))

    def warn(self, text: str) -> None:
        """Log ``text`` at WARN, at most every few seconds."""
        if self._due(text):
            self._logger.warning(text)

    def inform(self, text: str) -> None:
        """Log ``text`` at INFO, at most every few seconds."""
        if self._due(text):
            self._logger.info(text)

    def _due(self, text: str) -> bool:
        """Whether ``text`` is to be logged now; called from the executor and the worker thread."""
        key, now = _NUMBER.sub("#", text), time.monotonic()
        with self._lock:
            if now - self._logged.get(key, -LOG_PERIOD_S) < LOG_PERIOD_S:
                return False
            self._logged = {old: then for old, then in self._logged.items() if now - then < LOG_PERIOD_S}
            self._logged[key] = now
        return True

    def _bug(self, error: Exception, concern: Concern, key: str = "exception") -> None:
        text = f"{type(error).__name__}: {error}"
        concern.count("exceptions")
        concern.error(key, text)
        if self._due(text):
            self._logger.error("".join(traceback.format_exception(error)).rstrip())
