"""One grading process: `python -m tasks.grading_worker MODULE:FUNCTION SECONDS`, started by tasks/grading_pool.py.

It reads pairs as JSON lines, [answer, reference], and writes for each one double: what FUNCTION(answer, reference)
says, or NaN when that took too long. Three clocks watch each call. The gentle one counts the process's own seconds, so
that a busy machine makes no answer wrong, and interrupts Python code. The other two end the process, by the kernel's
hand, whatever it is doing and also when nobody is left to watch: one counts its own seconds, the other the wall's.
"""

import importlib
import json
import math
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator

MEMORY_BYTES = 4 * 2**30  # a number that does not fit is a MemoryError here, not the machine's trouble
ORPHAN_CHECK_S = 2.0
OVERTIME_SIGNALS = (signal.SIGALRM, signal.SIGVTALRM)
"""what ends a process whose call has run out of time; any other end is an accident"""


class OutOfTime(BaseException):
    """Raised into a call that takes too long; no `except Exception` on its way swallows it."""


def wall_limit(time_limit: float) -> float:
    """Seconds on the wall's clock after which a call's process is gone; long, as others may have the cores."""
    return 4 * time_limit + 4


def call(compare: Callable[[str, str], float], answer: str, reference: str, time_limit: float) -> float:
    """What compare says, 0 if it raises, NaN if it runs out of time."""
    try:
        signal.setitimer(signal.ITIMER_REAL, wall_limit(time_limit))
        signal.setitimer(signal.ITIMER_VIRTUAL, time_limit + 0.5)
        signal.setitimer(signal.ITIMER_PROF, time_limit, 0.1)  # again and again, should a bare except eat the first
        try:
            return float(compare(answer, reference))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except OutOfTime:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return math.nan
    except Exception:  # the answer is the model's: whatever it breaks in the comparison, it is not the right one
        return 0.0
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def read_lines(descriptor: int) -> Iterator[bytes]:
    """Lines until the end of the input, or until the parent is gone (its end may live on in a fork of it)."""
    parent, held = os.getppid(), b""
    while True:
        if not select.select([descriptor], [], [], ORPHAN_CHECK_S)[0]:
            if os.getppid() != parent:
                return
            continue
        received = os.read(descriptor, 1 << 16)
        if not received:
            return
        *lines, held = (held + received).split(b"\n")
        yield from lines


def main() -> None:
    name, time_limit = sys.argv[1], float(sys.argv[2])
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes the input
    for deadly in OVERTIME_SIGNALS:
        signal.signal(deadly, signal.SIG_DFL)
    module_name, function = name.split(":")
    module = importlib.import_module(module_name)
    compare = getattr(module, function)
    getattr(module, "warm_up", lambda: None)()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    def out_of_time(*_):
        raise OutOfTime

    signal.signal(signal.SIGPROF, out_of_time)
    os.write(replies, struct.pack("d", 0.0))  # ready
    for line in read_lines(0):
        os.write(replies, struct.pack("d", call(compare, *json.loads(line), time_limit)))


if __name__ == "__main__":
    main()
