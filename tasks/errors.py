"""The error that a user can mend."""


class UsageError(ValueError):
    """What was asked for cannot work; the message is one sentence that says what to do. Ends a program with code 2."""
