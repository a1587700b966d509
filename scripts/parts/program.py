"""How every program of scripts/ begins and ends."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from actors.startup import let_threads_sleep
from tasks.errors import NonFiniteError, UsageError


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
