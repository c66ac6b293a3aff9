"""CPU priority of a control plane and its workers relative to other processes on the same machine.

Linux schedules every session as one group (autogroup, `man 7 sched`). The idle class has an effect within a session,
where it yields immediately. Relative to other sessions, the whole group has a full share unless the group has its own
niceness, and it yields in slices of milliseconds. Workers therefore stay in the session of the process that starts
them.
"""

import os
from contextlib import suppress
from pathlib import Path

from .errors import EvolutionError

__all__ = ["give_way"]

AUTOGROUP = Path("/proc/self/autogroup")
LOWEST = "19"


def give_way() -> None:
    """Move this process, and the workers it starts from now on, into the kernel's idle class.

    If the process leads its session, the session also gets the lowest priority.

    Raises:
        EvolutionError: the system has no such class, or does not permit it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:
        raise EvolutionError(f"this system has no idle scheduling class for us ({error}); leave out --idle") from None
    if os.getsid(0) == os.getpid():  # any other session has processes that did not ask for this
        with suppress(OSError):  # a kernel without autogroups
            AUTOGROUP.write_text(LOWEST)
