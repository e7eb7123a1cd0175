"""Report this machine's hardware and software, and missing dependencies."""


def doctor(folder: str = "runs") -> None:
    """Report devices, the fastest precision, free memory and disk space, installed extras, and library versions.

    Args:
        folder: output folder for runs; free disk space is reported for its disk.
    """
    from pathlib import Path

    from lit_gpt.planning.machine import report

    print(report(Path(folder).expanduser()))
