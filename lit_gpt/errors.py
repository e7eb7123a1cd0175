"""The one exception for what a user can cause.

A `UserError` says the value, the bound and the remedy in one sentence. The command line prints it as one line
and exits with status 2; from Python it is a `ValueError` like any other. Everything else that is raised is a bug
of ours and keeps its traceback.
"""


class UserError(ValueError):
    """Something the user wrote, or a file the user named, cannot be used as it is."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` in a chain of exceptions: jsonargparse wraps what a class raises when it is made."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
