"""The errors that end a program with one sentence, and how they do."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tasks.startup import let_threads_sleep


class UsageError(ValueError):
    """What was asked for cannot work; the message is one sentence that says what to do. Ends a program with code 2."""


class NonFiniteError(RuntimeError):
    """A weight, logit, log-probability, loss or gradient is not finite, and loss scaling cannot mend it. Ends a program
    with code 1."""


def require(condition: bool, sentence: str) -> None:
    """Refuse what was asked for unless the condition holds.

    Raises:
        UsageError: with the sentence.
    """
    if not condition:
        raise UsageError(sentence)


def run_program(main: Callable[[], int], *, goes_on: bool = False) -> NoReturn:
    """Run a script's ``main`` and end the process as every script of this project ends.

    Exit codes: what ``main`` returns; 1 for a `NonFiniteError`, 2 for a `UsageError`, 130 if interrupted.

    Args:
        main: the program.
        goes_on: whether the same command, given again, takes up what an interrupted one has done.
    """
    let_threads_sleep()
    name = Path(sys.argv[0]).name
    try:
        code = main()
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 2
    except NonFiniteError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted" + ("; the same command goes on from here" if goes_on else ""), file=sys.stderr)
        code = 130
    sys.exit(code)
