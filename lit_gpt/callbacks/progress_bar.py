"""`TokenProgressBar`: progress of the run in tokens and time; a bar on a terminal, plain lines otherwise."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_gpt.callbacks.throughput import TrainingClock, clock_time, planned_steps, tokens_seen
from lit_gpt.progress import Bar

SHOWN = (
    ("loss", ("train/loss", "train_loss", "loss")),
    ("val", ("val/loss", "val_loss")),
    ("bits/byte", ("val/bits_per_byte", "val_bits_per_byte")),
)
"""What the bar shows, and the names under which a module may have logged it."""


class TokenProgressBar(ProgressBar):
    """One bar over all optimizer steps of the run, with loss, tokens per second and time left.

    It reads the clock once per step and redraws at a fixed interval.

    Args:
        refresh_seconds: interval between two updates on a terminal.
        line_seconds: interval between two lines if the output is not a terminal (a file, a pipe, a job's log).
    """

    def __init__(self, refresh_seconds: float = 0.5, line_seconds: float = 30.0) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self.line_seconds = line_seconds
        self._enabled = True
        self._bar: Any = None
        self._short: Any = None
        self._clock = TrainingClock()
        self._drawn_at = 0.0
        self._first_step = 0
        self._start = 0.0
        self._speed = ""
        self._total: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bar": None, "_short": None}  # open bars cannot be pickled to other processes

    def disable(self) -> None:
        """Disable drawing (Lightning calls this on every process but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Enable drawing."""
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether drawing is enabled; `LightningModule.print` reads it."""
        return self._enabled

    @property
    def _on_terminal(self) -> bool:
        return sys.stderr.isatty()

    # ---- training ---------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step where the run starts or resumes."""
        step = trainer.global_step
        self._first_step, self._start, self._drawn_at = step, time.perf_counter(), time.perf_counter()
        self._clock.restart(step, tokens_seen(trainer, pl_module))
        self._total = planned_steps(trainer, pl_module)
        every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self._enabled and self._total is not None and self._total < every:
            self._line(f"{self._total:,} optimizer step{'s' * (self._total != 1)} in all")
        if self._enabled and self._on_terminal:
            self._bar = Bar(
                total=self._total,
                initial=step,
                desc="training",
                mininterval=0,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar if the interval has passed."""
        now = time.perf_counter()
        if self._enabled and now - self._drawn_at >= (self.line_seconds if self._bar is None else self.refresh_seconds):
            self._draw(trainer, pl_module, now)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final state and close the bar."""
        if self._enabled:
            self._draw(trainer, pl_module, time.perf_counter())
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error is on a separate line."""
        self._close()

    def _draw(self, trainer: Trainer, pl_module: LightningModule, now: float) -> None:
        self._drawn_at = now
        step = trainer.global_step
        _, tokens_per_second = self._clock.lap(step, tokens_seen(trainer, pl_module))
        if tokens_per_second > 0:  # else keep the last speed; NaN compares as false
            self._speed = f"{tokens_per_second:,.0f} tokens/s"
        self._total = planned_steps(trainer, pl_module)  # a limit in tokens is converted to steps during the run
        shown = [*_metrics(trainer), *([self._speed] if self._speed else [])]
        if self._bar is not None:
            self._bar.total, self._bar.n = self._total, step
            self._bar.set_postfix_str("  ".join(shown), refresh=False)
            self._bar.refresh()
            return
        position = f"step {step:,}"
        if self._total is not None:
            position += f"/{self._total:,} ({step / max(1, self._total):.0%})"
            done = step - self._first_step
            if done > 0 and step < self._total:
                left = (self._total - step) * (now - self._start) / done
                shown.append(f"{clock_time(left)} left")
        self._line(f"{position}  {'  '.join(shown)}")

    # ---- validation, test and prediction ----------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a separate short bar."""
        self._clock.pause()
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._open_short("checking" if trainer.sanity_checking else "validating", batches)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Advance by a batch."""
        self._step_short()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the short bar; without a terminal, print the results."""
        seconds = self._close_short()
        self._clock.resume()
        if self._enabled and not self._on_terminal and not trainer.sanity_checking:
            found = "  ".join(_metrics(trainer, ("val", "bits/byte")))
            self._line(f"step {trainer.global_step:,}: validated in {clock_time(seconds)}  {found}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a short bar."""
        self._open_short("testing", trainer.num_test_batches)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Advance by a batch."""
        self._step_short()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the short bar."""
        self._close_short()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a short bar."""
        self._open_short("predicting", trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Advance by a batch."""
        self._step_short()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the short bar."""
        self._close_short()

    def _open_short(self, what: str, batches: Any) -> None:
        self._short_start = self._short_drawn_at = time.perf_counter()
        self._short_n, self._short_what = 0, what
        total = sum(batches) if isinstance(batches, list) else batches
        self._short_total = None if total in (None, float("inf")) else int(total)
        if self._enabled and self._on_terminal:
            position = 0 if self._bar is None else 1
            self._short = Bar(total=self._short_total, desc=what, position=position, leave=False, unit="batch")

    def _step_short(self) -> None:
        self._short_n += 1
        if self._short is not None:
            self._short.update()
            return
        now = time.perf_counter()
        if self._enabled and now - self._short_drawn_at >= self.line_seconds:
            self._short_drawn_at = now
            of = "" if self._short_total is None else f"/{self._short_total}"
            self._line(f"{self._short_what}: batch {self._short_n}{of}")

    def _close_short(self) -> float:
        if self._short is not None:
            self._short.close()
            self._short = None
        return time.perf_counter() - self._short_start

    # ---- output -----------------------------------------------------------------------------------------------

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        if not self._enabled:
            return
        if self._bar is None and self._short is None:
            print(*args, sep=sep, **kwargs)
        else:
            tqdm.write(sep.join(map(str, args)), **kwargs)

    def _line(self, text: str) -> None:
        print(text.rstrip(), file=sys.stderr, flush=True)

    def _close(self) -> None:
        for bar in (self._short, self._bar):
            if bar is not None:
                bar.close()
        self._short = self._bar = None


def _metrics(trainer: Trainer, wanted: tuple[str, ...] = ("loss", "val", "bits/byte")) -> list[str]:
    """Return `name value` of what has been logged so far."""
    logged = trainer.callback_metrics
    found = []
    for label, names in SHOWN:
        value = next((logged[name] for name in names if name in logged), None)
        if label in wanted and value is not None:
            found.append(f"{label} {float(value):.3f}")
    return found
