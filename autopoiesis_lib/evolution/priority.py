"""How much CPU time a control plane and its workers take from others on the same machine.

Linux schedules every session as one group (autogroup, `man 7 sched`). The idle class counts within a session, where it gives way
at once. Beside other sessions the whole group has a full share, unless it is given a niceness of its own, and gives way in slices
of milliseconds. So workers stay in the session of the process that starts them.
"""

import os
from contextlib import suppress
from pathlib import Path

from .errors import EvolutionError

__all__ = ["give_way"]

AUTOGROUP = Path("/proc/self/autogroup")
LOWEST = "19"


def give_way() -> None:
    """Run this process, and the workers it starts from now on, in the kernel's idle class; and its session, if it leads one.

    Raises:
        EvolutionError: there is no such class here, or not for us.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:
        raise EvolutionError(f"this system has no idle scheduling class for us ({error}); leave out --idle") from None
    if os.getsid(0) == os.getpid():  # any other session holds processes that did not ask for this
        with suppress(OSError):  # a kernel without autogroups
            AUTOGROUP.write_text(LOWEST)
