"""How much CPU time a control plane and its workers take from others on the same machine.

Linux schedules every session as one group (autogroup, `man 7 sched`). The idle class counts within a session, where it gives way
at once. Beside other sessions the whole group has a full share, unless it is given a niceness of its own, and gives way in slices
of milliseconds. So workers stay in the session of the process that starts them.
"""

import os
import time
from pathlib import Path

from .errors import EvolutionError

__all__ = ["give_way"]

AUTOGROUP = Path("/proc/self/autogroup")
LOWEST = "19"
TRIES = 50
"""The kernel takes one such wish in a tenth of a second from all users without privileges together."""


def give_way() -> None:
    """Run this process, and the workers it starts from now on, in the kernel's idle class; and its session, if it leads one.

    Raises:
        EvolutionError: there is no such class here, or not for us.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:
        raise EvolutionError(f"this system has no idle scheduling class for us ({error})") from None
    leads = os.getsid(0) == os.getpid()  # any other session holds processes that did not ask for this
    for _ in range(TRIES if leads else 0):
        try:
            AUTOGROUP.write_text(LOWEST)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # a kernel without autogroups
            return
        else:
            return
