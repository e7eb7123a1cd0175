"""`UserError`, the exception for all errors that a user can cause.

Its message gives the value, the bound and the remedy in one sentence. The command line prints it as one line and exits
with status 2; in Python it is a `ValueError` like any other. Any other exception is a bug in this package and keeps
its traceback.
"""


class UserError(ValueError):
    """A value that the user gave, or a file that the user named, is invalid."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """Return the `UserError` in a chain of exceptions: jsonargparse wraps the errors of constructors."""
    seen: set[int] = set()  # a chain may return to itself: an error that is raised again while its effect is handled
    pending = [error]
    while pending:
        error = pending.pop()
        if isinstance(error, UserError):
            return error
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            pending += [error.__context__, error.__cause__]  # the cause first
    return None
