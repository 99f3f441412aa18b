"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Bad input: the message is one line that names what is wrong, what was expected, what came.

    The command line prints it and exits with 2.
    """
