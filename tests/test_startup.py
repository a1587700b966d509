"""What a program does before it loads torch, and while it loads the engines."""

import gc
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from actors.startup import SPINS, importing, let_threads_sleep
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"OMP_NUM_THREADS": "1"}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
    ],
)
def test_how_threads_wait_is_settled_unless_the_user_did(given, added):
    environ = dict(given)
    let_threads_sleep(environ)
    assert environ == given | added


@pytest.mark.parametrize(
    "program",
    ["import train", "import scripts.parts.program as p\ntry:\n p.run_program(lambda: 0)\nexcept SystemExit: pass"],
    ids=["train.py", "a script"],
)
def test_it_is_settled_before_torch_is_loaded(program):
    look = f"{program}\nimport os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout.split() == [SPINS, "False"], done.stderr


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_looked_for_while_importing(enabled):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        gc.unfreeze()
        with suppress(ImportError), importing():
            assert not gc.isenabled()
            import no_such_module  # noqa: F401
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > 1000  # and what is there by now is not looked through again
    finally:
        gc.unfreeze()
        (gc.enable if was_enabled else gc.disable)()
