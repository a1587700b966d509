"""What a program does before it loads torch, and while it loads vLLM and DeepSpeed. Importing this is cheap."""

import atexit
import gc
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

atexit.register(gc.unfreeze)  # else modules that are written in C++ complain, at the very end, of what is left
SPINS = "1500"  # beside nothing as quick as endless ones, beside another program two to three times as quick
OPENMP_WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def let_threads_sleep(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP's threads soon sleep while they wait for one another, unless the environment says how they wait.

    A thread that spins keeps a core from the one that it waits for, wherever another program has taken a core: steps
    then take several times as long. The OpenMP of torch's builds reads this once, when torch is loaded.
    """
    if not any(name in environ for name in OPENMP_WAITS):
        environ["GOMP_SPINCOUNT"] = SPINS


@contextmanager
def importing() -> Iterator[None]:
    """Within, modules are imported and no garbage is looked for; what they made is not looked through later either.

    Python would search the growing heap some twenty times: a third of the time that loading both engines takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
