"""The one error class for what a user can put right."""


class UserError(Exception):
    """Bad input: one line that names the file or field, the row where there is one, and the remedy.

    Entry points in `launch/` print it without a traceback and exit with status 2.
    """
