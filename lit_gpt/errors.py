"""The one exception for what a user can cause.

A `UserError` says the value, the bound and the remedy in one sentence. The command line prints it as one line
and exits with status 2; from Python it is a `ValueError` like any other. Everything else that is raised is a bug
of ours and keeps its traceback.
"""


class UserError(ValueError):
    """Something the user wrote, or a file the user named, cannot be used as it is."""
