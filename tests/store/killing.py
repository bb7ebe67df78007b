"""Ending a process at any moment, as a user or the system would."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def killed(action: Callable[[], object], seconds: float) -> bool:
    """Runs an action in a forked process that is killed after some time. False if it was done before."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True
