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


def flag(name: str) -> str:
    """An option as it is typed: ``--max-steps`` of "max_steps"."""
    return f"--{name.replace('_', '-')}"


def require_number(name: str, value: float, *, or_zero: bool = False) -> None:
    """Refuse an option's value unless it is above 0, or also 0.

    Raises:
        UsageError: naming the option.
    """
    bound = "not be negative" if or_zero else "be greater than 0"
    require(value > 0 or (or_zero and value == 0), f"{flag(name)} is {value:g}; it must {bound}.")


def first_line(error: Exception) -> str:
    """Of what an error says, without its full stop; the error's kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
