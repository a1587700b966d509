"""Being told to stop: SIGTERM and SIGUSR1, which Slurm sends before a time limit or a pre-emption."""

import signal

from actors.processes import gather


class Stopped(Exception):
    """The run was told to stop and has saved itself; the message says where it was."""


class Interruption:
    """Notes the first signal and lets work go on to a place where it can stop; a second one ends the process."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self._received: str | None = None

    def listen(self) -> "Interruption":
        """From now on; only the main thread may call this."""
        for number in self.SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame) -> None:
        self._received = signal.Signals(number).name
        for again in self.SIGNALS:
            signal.signal(again, signal.SIG_DFL)

    def requested(self) -> str | None:
        """The name of the signal that any of the processes received, on all of them; they must ask together."""
        return next((name for name in gather(self._received) if name is not None), None)
