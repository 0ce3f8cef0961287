"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake in data, options or files that the user can mend.

    The message says what was found, where (utterance, file or option), what was expected and what
    to do. Command-line programs print it without a traceback and exit with status 1.
    """
