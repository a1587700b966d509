"""The errors that end a program with one sentence."""


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


def first_line(error: Exception) -> str:
    """Of what an error says, without its full stop; the error's kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
