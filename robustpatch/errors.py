"""The one exception that callers can provoke, and the commonest reason for it."""


class InvalidInput(ValueError):
    """A call that cannot be answered soundly: the message names the parameter, the value received and the remedy.

    The command lines turn it into exit status 2 and one line; every other exception is a defect of this library.
    """


def check_whole(what: str, value: object) -> None:
    """Refuse anything but a whole number of at least 1 with `InvalidInput`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(f"{what} is {value!r}; it must be a whole number of at least 1")
