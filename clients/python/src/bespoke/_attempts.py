"""When a call that failed is tried again. gRPC's own retries do not know how long the server asks to wait."""

from __future__ import annotations

import random
import time

from bespoke.errors import BespokeError, Unavailable

RETRIES_MAX = 4
# A server that drains is replaced, and one that restarts is back, within seconds: 0.2 + 0.4 + 0.8 + 1.6 s and what the
# server asks for.
BACKOFF_SECONDS = 0.2
# Callers that failed together do not come back together.
SHARE_MIN = 0.5


class Attempts:
    """The attempts of one call, which share its deadline."""

    def __init__(self, retries: int, timeout: float | None) -> None:
        self._left = retries
        self._backoff = BACKOFF_SECONDS
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def timeout(self) -> float | None:
        """Returns what is left of the deadline, in seconds."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def delay(self, failure: BespokeError) -> float | None:
        """Returns the seconds to wait before the next attempt; None where there is none."""
        if self._left == 0 or not isinstance(failure, Unavailable):
            return None
        seconds = (failure.retry_after or 0.0) + self._backoff * random.uniform(SHARE_MIN, 1.0)
        left = self.timeout()
        if left is not None and seconds >= left:
            return None
        self._left -= 1
        self._backoff *= 2
        return seconds
