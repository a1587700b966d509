"""Processes that grade: each answer has its own time limit, and a process that hangs or dies is replaced.

They are new Python processes, not forks, for the parent holds the threads and locks of two engines; they import what
they grade with and nothing else. They end when the parent does, however it ends.
"""

import json
import math
import os
import selectors
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tasks.grading_worker import OVERTIME_SIGNALS, wall_limit

ROOT = Path(__file__).resolve().parent.parent
RECORD = struct.calcsize("d")
LARGEST_CHUNK = 16  # pairs sent at once: so many that a process never waits, so few that the last are shared out
START_UP_S = 60.0
STARTS_IN_A_ROW = 3


class Worker:
    """A grading process and the pairs it has been given, by their index, the one in progress first."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, bufsize=0
        )
        self.pending: deque[int] = deque()
        self.ready = False
        self._held = b""

    def send(self, indices: list[int], pairs: list[tuple[str, str]]) -> None:
        self.pending.extend(indices)
        try:
            view = memoryview("".join(json.dumps(pairs[index]) + "\n" for index in indices).encode())
            while view:
                view = view[self.process.stdin.write(view) :]
        except OSError:
            pass  # it died; its end of the other pipe will say so

    def receive(self) -> list[float] | None:
        """The replies that are there; None if the process is gone."""
        received = os.read(self.process.stdout.fileno(), 1 << 16)
        if not received:
            return None
        self._held += received
        whole = len(self._held) // RECORD * RECORD
        replies = [value for (value,) in struct.iter_unpack("d", self._held[:whole])]
        self._held = self._held[whole:]
        if replies and not self.ready:
            self.ready = True
            del replies[0]
        return replies

    def end(self, patience: float = 0.0) -> None:
        """Close its input, which it takes as the end; kill it if it has not ended in ``patience`` seconds."""
        self.process.stdin.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class GradingPool:
    """Calls ``compare(answer, reference)`` in other processes, which start at once. Use `close` when done.

    Args:
        compare: a function of a module, by which the processes import it. A function ``warm_up`` beside it is called
            once in each, to import what is slow.
        workers: processes (default: one a core, at most 8).
        time_limit: seconds of its process's time that one call may take. A process that cannot be interrupted then is
            killed.
    """

    def __init__(self, compare: Callable[[str, str], float], workers: int | None = None, time_limit: float = 2.0):
        name = f"{compare.__module__}:{compare.__qualname__}"
        self._command = [sys.executable, "-m", "tasks.grading_worker", name, str(time_limit)]
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._accidents: set[int] = set()
        self._workers = [Worker(self._command) for _ in range(workers or min(8, os.cpu_count() or 1))]

    def map(self, pairs: list[tuple[str, str]]) -> list[float]:
        """What compare says of each (answer, reference), in order; NaN where it ran out of time, or died twice.

        Raises:
            RuntimeError: the processes do not start, or the pool is closed.
        """
        with self._lock:
            if not self._workers:
                raise RuntimeError("the grading pool is closed")
            return self._map(pairs)

    def _map(self, pairs: list[tuple[str, str]]) -> list[float]:
        results, left = [math.nan] * len(pairs), deque(range(len(pairs)))
        self._accidents.clear()
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            while left or any(worker.pending for worker in self._workers):
                for worker in self._workers:
                    if left and not worker.pending:
                        share = -(-len(left) // (2 * len(self._workers)))
                        worker.send([left.popleft() for _ in range(min(share, LARGEST_CHUNK))], pairs)
                events = selector.select(wall_limit(self._time_limit) + START_UP_S)
                for worker in [key.data for key, _ in events] or [w for w in self._workers if w.pending]:
                    replies = worker.receive() if events else None  # no word from any: stopped, or the machine is
                    if replies is None:
                        selector.unregister(worker.process.stdout)
                        new = self._replace(worker, left)
                        selector.register(new.process.stdout, selectors.EVENT_READ, new)
                        continue
                    for value in replies:
                        results[worker.pending.popleft()] = value
        return results

    def _replace(self, worker: Worker, left: deque[int]) -> Worker:
        """A new process for one that is gone. What it had not come to is put back; so is what it was at, once, unless
        that ran out of time: the process may have died of something else."""
        worker.process.kill()
        worker.end()
        self._failed_starts = 0 if worker.ready else self._failed_starts + 1
        if self._failed_starts == STARTS_IN_A_ROW:
            self._workers.remove(worker)
            raise RuntimeError(f"grading processes do not start; to see why, run: {' '.join(self._command)}")
        if worker.ready and worker.pending:
            current = worker.pending[0]
            if current in self._accidents or -worker.process.returncode in OVERTIME_SIGNALS:
                worker.pending.popleft()
            self._accidents.add(current)
        left.extendleft(reversed(worker.pending))
        new = Worker(self._command)
        self._workers[self._workers.index(worker)] = new
        return new

    def close(self) -> None:
        """End the processes. Needed for tidiness alone: they end with their parent too."""
        with self._lock:
            for worker in self._workers:
                worker.process.stdin.close()
            for worker in self._workers:
                worker.end(patience=0.1)  # nothing is being graded: what is still starting may as well be killed
            self._workers = []
