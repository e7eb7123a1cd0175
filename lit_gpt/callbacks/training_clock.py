"""How fast a run goes and when it ends: small arithmetic that the monitor and the progress bar share."""

import math
import time
from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer


class TrainingClock:
    """Seconds and tokens of training since the last look, without validation and other pauses.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._paused_at: float | None = None
        self.restart(0, 0)

    def restart(self, step: int, tokens: int) -> None:
        """Begin to count after optimizer step `step`, at `tokens` seen."""
        self._paused_at = None
        self._step, self._tokens, self._start = step, tokens, self._now()

    def pause(self) -> None:
        """Stop counting time."""
        self._paused_at = self._now()

    def resume(self) -> None:
        """Go on counting time."""
        if self._paused_at is not None:
            self._start += self._now() - self._paused_at
            self._paused_at = None

    def skip(self, seconds: float) -> None:
        """Leave out time that was spent on something else."""
        self._start += seconds

    def lap(self, step: int, tokens: int) -> tuple[float, float]:
        """Return (seconds a step, tokens a second) since the last lap and begin another; NaN before a first step."""
        steps, seconds = step - self._step, self._now() - self._start
        counted = tokens - self._tokens
        self.restart(step, tokens)
        return (seconds / steps if steps else math.nan, counted / seconds if steps and seconds > 0 else math.nan)


def tokens_seen(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the input tokens that all devices have trained on, as the module counts them; 0 if it does not."""
    return int(getattr(pl_module, "tokens_seen", 0))


def planned_steps(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """Return at which optimizer step the run will end, from whichever limit comes first; None if there is none."""
    ends: list[float] = []
    if trainer.max_steps != -1:
        ends.append(trainer.max_steps)
    if trainer.max_epochs not in (None, -1):
        ends.append((trainer.max_epochs or 0) * trainer.num_training_batches)
    max_tokens, seen = getattr(pl_module, "max_tokens", None), tokens_seen(trainer, pl_module)
    if max_tokens is not None and seen and trainer.global_step:
        ends.append(trainer.global_step + math.ceil((max_tokens - seen) * trainer.global_step / seen))
    finite = [int(end) for end in ends if math.isfinite(end)]
    return min(finite) if finite else None


def clock_time(seconds: float) -> str:
    """Return seconds as `1:23:45` or `2:05`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
