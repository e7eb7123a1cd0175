"""`PlanReceipt`: holds a run to its plan, while it trains and at its end."""

import json
import math
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gpt.atomic import atomic_file
from lit_gpt.callbacks.run_folder import run_dir_of
from lit_gpt.callbacks.throughput import TrainingClock, seconds_saving, tokens_seen
from lit_gpt.data_info import read_data_info
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json
from lit_gpt.planning.receipt import (
    PAGE,
    PLAN,
    Bands,
    check_plan,
    describe_scores,
    num_devices,
    read_plan,
    score,
    write_receipt,
)

MAX_HISTORY = 2000
"""Rows of the curves that are kept; from there on every second one is dropped."""
CHARTS = {
    "loss": ["train/loss", "plan/loss_low", "plan/loss_high"],
    "tokens per second": [
        "throughput/tokens_per_second",
        "plan/tokens_per_second_low",
        "plan/tokens_per_second_high",
    ],
}
"""TensorBoard's margin charts: the curve, and the two ends of its band."""


class PlanReceipt(Callback):
    """Seals the forecast of `plan --out` before the first step, and scores it at the end.

    Sealing: the plan is copied into the run's folder, and its hash into `lineage.json`. While the run trains, a curve
    that leaves its band is reported once, and TensorBoard's tab "Custom scalars" shows the curves over their bands. At
    the end `receipt.json` and `receipt.html` compare forecast and measurement: memory, tokens per second, training time
    (without validation and saving), money and loss. A resumed run continues its measurements.

    Between two log entries a step costs two comparisons.

    Args:
        plan: file that `plan --out` wrote for this run.

    Raises:
        UserError: it is missing, no plan, or of another run.
    """

    def __init__(self, plan: str) -> None:
        self.plan = read_plan(plan)
        self.lineage = {"plan_sha256": sha256_json(self.plan)}
        """Entries of the run's `lineage.json`."""
        self._bands = Bands(self.plan)
        self._lap, self._whole = TrainingClock(), TrainingClock()
        self._memory = PeakMemory()
        self._history: list[list[float]] = []
        self._departures: list[str] = []
        self._seconds = self._peak = self._saving = 0.0
        self._last: int | None = None
        self._loss_is_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the plan is of this run.

        Raises:
            UserError: it is not.
        """
        if stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        config: Any = getattr(pl_module, "config", None)
        check_plan(
            self.plan,
            {
                "device": trainer.strategy.root_device.type,
                "world_size": trainer.world_size,
                "precision": trainer.precision,
                "model_params": int(config.num_parameters()) if hasattr(config, "num_parameters") else None,
                "tokens_per_step": read_data_info(trainer).tokens_per_step,
                "steps": _last_step(trainer, pl_module, self.plan),
            },
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seal the plan and start the clocks.

        Raises:
            UserError: the run was started with another plan.
        """
        self._last = self.plan["run"]["steps"]
        self._saving = seconds_saving(trainer)
        self._whole.restart(trainer.global_step, 0)
        self._lap.restart(-1, 0)
        self._memory.start(pl_module)
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        path = run_dir_of(trainer) / PLAN
        if trainer.ckpt_path and path.exists() and sha256_json(read_plan(path)) != self.lineage["plan_sha256"]:
            raise UserError(f"the run was sealed with {path}, and this plan is another; resume with --plan {path}")
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.plan, indent=1) + "\n", encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                charts = {name: ["Margin", tags] for name, tags in CHARTS.items()}
                logger.experiment.add_custom_scalars({"plan": charts})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the loss of the last log entry: the module logs it after the callbacks' `on_train_batch_end`."""
        if self._loss_is_due:
            self._read_loss(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare speed and memory with their bands every `log_every_n_steps` optimizer steps, the first one aside."""
        step = trainer.global_step
        if self._lap.step < 0:
            self._skip_saving(trainer)
            self._lap.restart(step, tokens_seen(trainer, pl_module))
            return
        every = int(getattr(trainer, "log_every_n_steps", 0) or 0)
        if not every or step % every:
            return
        self._skip_saving(trainer)
        _, speed = self._lap.lap(step, tokens_seen(trainer, pl_module))
        self._peak = max(self._peak, self._memory.read())
        self._history.append([step, math.nan, speed])
        if len(self._history) > MAX_HISTORY:
            self._history = self._history[1::2]
        self._loss_is_due = True
        values = {"tokens_per_second": speed, "memory": self._peak}
        for name, value in values.items():
            if not math.isnan(value):
                self._say(trainer, self._bands.leaves(name, step, value))
        ends = {name: self._bands.at(name, step) for name in ("loss", "tokens_per_second")}
        for logger in trainer.loggers:
            for name, band in ends.items():
                if band is not None:
                    logger.log_metrics({f"plan/{name}_low": band[0], f"plan/{name}_high": band[1]}, step=step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clocks, and take the memory of training before that of validation."""
        self._peak = max(self._peak, self._memory.read())
        self._lap.pause()
        self._whole.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clocks."""
        self._lap.resume()
        self._whole.resume()
        self._memory.restart()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the forecasts, if the run has done all of its steps."""
        self._read_loss(trainer)
        self._skip_saving(trainer)
        self._seconds += self._whole.seconds()
        self._peak = max(self._peak, self._memory.read())
        unfinished = self._last is not None and trainer.global_step < self._last
        if not trainer.is_global_zero or unfinished or getattr(trainer, "fast_dev_run", False):
            return
        hours = self._seconds / 3600
        speeds = sorted(speed for _, _, speed in self._history if not math.isnan(speed))
        price = self.plan["device"]["price_per_hour"]
        validated = trainer.callback_metrics.get("val/loss")
        losses = [loss for _, loss, _ in self._history if not math.isnan(loss)]
        scores = score(
            self.plan,
            {
                "memory": self._peak or None,
                "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
                "hours": hours,
                "money": None if price is None else hours * num_devices(self.plan) * price,
                "loss": float(validated) if validated is not None else losses[-1] if losses else None,
            },
        )
        folder = run_dir_of(trainer)
        facts = {"loss measured": "the last val/loss" if validated is not None else "the last train/loss"}
        write_receipt(folder, self.plan, scores, self._history, self._departures, facts)
        print(f"\n{describe_scores(scores)}\nreceipt     {folder / PAGE}")

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            "seconds": self._seconds + self._whole.seconds(),
            "peak": self._peak,
            "history": [list(row) for row in self._history],
            "departures": list(self._departures),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what was measured before."""
        self._seconds, self._peak = state_dict["seconds"], state_dict["peak"]
        self._history, self._departures = state_dict["history"], state_dict["departures"]

    # ---- reading

    def _read_loss(self, trainer: Trainer) -> None:
        value = trainer.callback_metrics.get("train/loss")
        if not self._loss_is_due or value is None:
            return
        self._loss_is_due = False
        step = int(self._history[-1][0])
        self._history[-1][1] = float(value)
        self._say(trainer, self._bands.leaves("loss", step, float(value)))

    def _say(self, trainer: Trainer, departure: str | None) -> None:
        if departure is not None:
            self._departures.append(departure)
            if trainer.is_global_zero:
                print(f"plan: {departure}")

    def _skip_saving(self, trainer: Trainer) -> None:
        saving = seconds_saving(trainer)
        for clock in (self._lap, self._whole):
            clock.skip(saving - self._saving)
        self._saving = saving


def _last_step(trainer: Trainer, pl_module: LightningModule, plan: dict[str, Any]) -> int | None:
    """Return the steps of the run as a plan counts them: the first of `max_steps` and `max_tokens`; None: unknown."""
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    max_tokens = getattr(pl_module, "max_tokens", None)
    if max_tokens is not None:
        ends.append(-(-max_tokens // plan["run"]["tokens_per_step"]))
    return min(ends) if ends else None


class PeakMemory:
    """The most memory that training takes on this process's device, as a plan counts it.

    On CUDA: the tensors of torch's allocator. On a CPU: the process's own pages at their peak, less what they were
    before the first step, and with the weights, which existed then. Pages of libraries are not counted.
    """

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._base = 0

    def start(self, pl_module: LightningModule) -> None:
        """Begin before the first step, with the weights in memory."""
        self._device = pl_module.device
        weights = sum(p.numel() * p.element_size() for p in pl_module.parameters())
        self._base = _own_pages()[0] - weights if self._device.type == "cpu" else 0
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:  # another system, or a container that forbids it: the peak then has all that came before
                return

    def read(self) -> float:
        """Return the bytes of the peak since `start` or `restart`; 0: unknown."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        return float(max(0, _own_pages()[1] - self._base)) if self._device.type == "cpu" else 0.0


def _own_pages() -> tuple[int, int]:
    """Return the bytes of memory that belongs to this process alone, now and at its peak (here alike without /proc)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        now = psutil.Process().memory_info().rss
        return now, now
    kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    files = kilobytes.get("RssFile", 0) + kilobytes.get("RssShmem", 0)
    return 1024 * (kilobytes["VmRSS"] - files), 1024 * (kilobytes["VmHWM"] - files)
