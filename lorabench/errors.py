"""The one exception a user may see."""


class UserError(Exception):
    """A mistake of the user's: one line that says what is wrong and what to type instead.

    The command line prints the message without a traceback and exits with code 2.
    """
