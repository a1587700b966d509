"""The error that a user can mend."""


class UsageError(ValueError):
    """What was asked for cannot work; the message is one sentence that says what to do. Ends a program with code 2."""


def require(condition: bool, sentence: str) -> None:
    """Refuse what was asked for unless the condition holds.

    Raises:
        UsageError: with the sentence.
    """
    if not condition:
        raise UsageError(sentence)
