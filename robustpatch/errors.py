"""The one exception that callers can provoke."""


class InvalidInput(ValueError):
    """A call that cannot be answered soundly: the message names the parameter, the value received and the remedy.

    The command lines turn it into exit status 2 and one line; every other exception is a defect of this library.
    """
