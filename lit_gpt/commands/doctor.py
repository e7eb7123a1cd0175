"""Say what this machine has and what is missing."""


def doctor(folder: str = "runs") -> None:
    """Report devices, fast precision, free memory and disk, installed extras and versions of the stack.

    Args:
        folder: where runs would be written; its disk is checked.
    """
    from pathlib import Path

    from lit_gpt.planning.machine import report

    print(report(Path(folder).expanduser()))
