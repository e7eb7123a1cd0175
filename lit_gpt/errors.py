"""`UserError`, the exception for all errors that a user can cause.

Its message gives the value, the bound and the remedy in one sentence. The command line prints it as one line and exits
with status 2; in Python it is a `ValueError` like any other. Any other exception is a bug in this package and keeps
its traceback.
"""


class UserError(ValueError):
    """A value that the user gave, or a file that the user named, is invalid."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """Return the `UserError` in a chain of exceptions: jsonargparse wraps the errors of constructors."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
