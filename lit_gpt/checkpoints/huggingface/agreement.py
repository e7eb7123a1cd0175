"""Names that should be there and names that are: an error that lists the difference."""

from lit_gpt.errors import UserError

_LISTED = 40


def agree(where: str, missing: set[str], leftover: set[str]) -> None:
    """Refuse tensors that are missing or left over.

    Raises:
        UserError: If there are any, with their names.
    """
    problems = [
        f"{len(names)} tensors {what}: {_list(names)}"
        for what, names in (("are missing", missing), ("are left over", leftover))
        if names
    ]
    if problems:
        raise UserError(f"{where} and the config disagree; {'; '.join(problems)}")


def _list(names: set[str]) -> str:
    listed = sorted(names)
    rest = len(listed) - _LISTED
    return ", ".join(listed[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
