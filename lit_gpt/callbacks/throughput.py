"""`ThroughputMonitor`: tokens per second, MFU, memory and remaining time; and the progress bar's clock."""

import math
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.data_info import read_data_info
from lit_gpt.planning.hardware import peak_flops

GIGA = 1e9


class ThroughputMonitor(Callback):
    """Logs the training speed; between two log entries a step costs one comparison.

    Values go directly to the loggers, without synchronizing with the accelerator: over a window of many steps the
    clocks of host and device agree. Validation and saving are excluded from the speed and included in the remaining
    time.

    Logged: `throughput/tokens_per_second` (all devices), `throughput/tokens_seen`, `throughput/step_seconds`,
    `throughput/seconds_left`, `throughput/mfu`, `memory/rss_gb` (this process), `memory/cuda_allocated_gb`,
    `memory/cuda_reserved_gb` and `memory/cuda_peak_gb` (this device).

    Model FLOPs utilization: tokens per second times FLOPs per token (`GPTConfig.flops_per_token`: 6 N + 12 · layers ·
    width · context, PaLM, arXiv:2204.02311, appendix B), as a fraction of the peak of all devices
    (`lit_gpt.planning.hardware`). Not logged for a device of unknown peak or a module without such a config.

    Attributes:
        latest: the entry logged last.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._clock = TrainingClock()
        self._peak: float | None = None
        self._flops_per_token = 0.0
        self._first_step = 0
        self._start = 0.0
        self._saving = 0.0
        self._every = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up or measure the peak, and the model's FLOPs per token."""
        self._every = max(1, getattr(trainer, "log_every_n_steps", 50))
        config: Any = getattr(pl_module, "config", None)
        if hasattr(config, "flops_per_token"):
            context = read_data_info(trainer).block_size  # context length in tokens
            self._flops_per_token = config.flops_per_token(context)
            one = peak_flops(pl_module.device)
            self._peak = None if one is None else one * trainer.world_size
        self._first_step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every `log_every_n_steps` optimizer steps; the first step (compilation, warm-up) is excluded."""
        step = trainer.global_step
        if self._first_step < 0:
            self._first_step, self._start = step, time.perf_counter()
            self._saving = seconds_saving(trainer)
            self._clock.restart(step, tokens_seen(trainer, pl_module))
        elif step % self._every == 0:
            self._log(trainer, pl_module, step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the clock."""
        self._clock.resume()

    def _log(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        saving = seconds_saving(trainer)
        self._clock.skip(saving - self._saving)
        self._saving = saving
        tokens = tokens_seen(trainer, pl_module)
        step_seconds, tokens_per_second = self._clock.lap(step, tokens)
        values = {
            "throughput/tokens_per_second": tokens_per_second,
            "throughput/tokens_seen": float(tokens),
            "throughput/step_seconds": step_seconds,
            "memory/rss_gb": psutil.Process().memory_info().rss / GIGA,
        }
        if self._peak is not None:
            values["throughput/mfu"] = tokens_per_second * self._flops_per_token / self._peak
        end = planned_steps(trainer, pl_module)
        if end is not None and step > self._first_step:
            seconds_a_step = (time.perf_counter() - self._start) / (step - self._first_step)
            values["throughput/seconds_left"] = max(0, end - step) * seconds_a_step
        if pl_module.device.type == "cuda":
            values["memory/cuda_allocated_gb"] = torch.cuda.memory_allocated(pl_module.device) / GIGA
            values["memory/cuda_reserved_gb"] = torch.cuda.memory_reserved(pl_module.device) / GIGA
            values["memory/cuda_peak_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / GIGA
        self.latest = {name: value for name, value in values.items() if not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)


def seconds_saving(trainer: Trainer) -> float:
    """Return the seconds that the run's checkpoint callbacks have spent so far."""
    return sum(getattr(callback, "seconds_saving", 0.0) for callback in trainer.checkpoint_callbacks)


class TrainingClock:
    """Measures seconds and tokens of training since the last lap, without validation and other pauses.

    Args:
        now: function that returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._paused_at: float | None = None
        self.restart(0, 0)

    def restart(self, step: int, tokens: int) -> None:
        """Start counting after optimizer step `step`, at `tokens` tokens seen."""
        self._paused_at = None
        self._step, self._tokens, self._start = step, tokens, self._now()

    def pause(self) -> None:
        """Stop counting time."""
        self._paused_at = self._now()

    def resume(self) -> None:
        """Continue counting time."""
        if self._paused_at is not None:
            self._start += self._now() - self._paused_at
            self._paused_at = None

    def skip(self, seconds: float) -> None:
        """Exclude time that was spent on something else."""
        self._start += seconds

    @property
    def step(self) -> int:
        """The optimizer step after which the lap began."""
        return self._step

    def seconds(self) -> float:
        """Return the seconds since the lap began."""
        return (self._paused_at if self._paused_at is not None else self._now()) - self._start

    def lap(self, step: int, tokens: int) -> tuple[float, float]:
        """Return (seconds per step, tokens per second) since the last lap and start a new one; NaN without steps."""
        steps, seconds = step - self._step, self.seconds()
        counted = tokens - self._tokens
        self.restart(step, tokens)
        return (seconds / steps if steps else math.nan, counted / seconds if steps and seconds > 0 else math.nan)


def tokens_seen(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the number of input tokens that all devices have trained on, according to the module; 0 if unknown."""
    return int(getattr(pl_module, "tokens_seen", 0))


def planned_steps(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """Return the optimizer step at which the run will end, by whichever limit comes first; None if there is none."""
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
