"""How much CPU time workers and control planes take from others on the same machine.

Linux schedules every session as one group (autogroup, `man 7 sched`). A process's idle class or niceness counts within its
session only; the session as a whole has a full share beside other sessions, unless it is given a niceness of its own.
"""

import os
import time
from pathlib import Path

from .errors import EvolutionError

__all__ = ["give_way", "lead_session"]

AUTOGROUP = Path("/proc/self/autogroup")
LOWEST = 19
TRIES = 50
"""The kernel takes one such wish in a tenth of a second from all users without privileges together."""


def lead_session() -> None:
    """Begin a session of this process alone, which has the priority of this process and not a full share."""
    os.setsid()
    _share_of_session()


def give_way() -> None:
    """Run this process, and the workers it starts from now on, in the kernel's idle class.

    Raises:
        EvolutionError: there is none here, or not for us.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:
        raise EvolutionError(f"this system has no idle scheduling class for us ({error})") from None
    if os.getsid(0) == os.getpid():  # any other session holds processes that did not ask for this
        _share_of_session()


def _share_of_session() -> None:
    idle = hasattr(os, "SCHED_IDLE") and os.sched_getscheduler(0) == os.SCHED_IDLE
    niceness = LOWEST if idle else os.getpriority(os.PRIO_PROCESS, 0)
    for _ in range(TRIES if niceness else 0):
        try:
            AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # a kernel without autogroups, or a wish for more than we may have
            return
        else:
            return
