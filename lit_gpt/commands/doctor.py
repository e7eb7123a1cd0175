"""Report what this machine has and what is missing."""


def doctor(folder: str = "runs") -> None:
    """Report devices, the fastest precision, free memory and disk space, installed extras, and library versions.

    Args:
        folder: folder that runs would be written to; free space is measured on its disk.
    """
    from pathlib import Path

    from lit_gpt.planning.machine import report

    print(report(Path(folder).expanduser()))
