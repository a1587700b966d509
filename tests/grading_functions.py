"""What the grading processes of tests/test_grading.py are made to do; imported in those processes."""

import contextlib
import ctypes
import os
import signal
import sys
import time


def act(answer: str, reference: str) -> float:
    """Do what the answer says; ``fine`` gives the reference as a number."""
    if answer == "loop":
        while True:
            pass
    if answer == "swallow":
        with contextlib.suppress(BaseException):
            act("loop", "")
        act("loop", "")
    if answer == "raise":
        raise RuntimeError("as asked")
    if answer == "memory":
        return float(len(bytearray(64 * 2**30)))
    if answer == "print":
        print("not a reply", flush=True)
        os.write(1, b"nor this")
        return 5.0
    if answer == "exit":
        os._exit(3)
    if answer == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if answer == "sleep":
        time.sleep(60)
    if answer == "stuck in C":
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock
    return float(reference)


def heavy_modules(answer: str, reference: str) -> float:
    """How many engines' modules are in the process, after what grading mathematics imports."""
    from tasks.answers.equality import grade_answer

    grade_answer(r"\frac{x}{2}", "0.5x")
    return float(len({"torch", "vllm", "deepspeed", "transformers", "datasets", "oat"} & set(sys.modules)))
