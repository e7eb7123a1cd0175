"""Plan a run: build the module and DataModule of a YAML for `fit`, and forecast the run without starting it.

The DataModule is built but not prepared: nothing is downloaded or tokenized. Its batches are synthetic, with windows or
rows of `block_size` tokens, the largest possible.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule

from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError
from lit_gpt.instantiate import read_yaml
from lit_gpt.modules import GRPOModule
from lit_gpt.parallel.layout import AXES, Layout
from lit_gpt.planning.devices import Device
from lit_gpt.planning.forecast import (
    Calibration,
    Change,
    Forecast,
    RunFacts,
    forecast,
    largest_that_fits,
    step_parts,
)
from lit_gpt.planning.laws import PUBLISHED, ScalingLaw
from lit_gpt.planning.simulation import SimulatedStep, Work, simulate_step, time_steps

DEFAULT_CHECKPOINTS = 3
"""Number of checkpoints that `RunCheckpoint` keeps by default: the two newest and the best."""
MANY_ROWS = 256
"""Rows of the simulated micro-batches from which the largest one that fits is extrapolated."""


class PlannedRun:
    """A run described by a YAML file, to be simulated and forecast.

    Args:
        config: YAML that `fit` accepts, or a run's folder.
        device: Device of the run; all are of the same kind.
        num_devices: Number of devices over all nodes; None: the number in the YAML.

    Raises:
        UserError: If the YAML does not describe a run, or describes one that cannot be simulated.
    """

    def __init__(self, config: Path, device: Device, num_devices: int | None = None) -> None:
        path = config / "config.yaml" if config.is_dir() else config
        values = read_yaml(path, "the YAML of a run")
        for key in ("model", "data"):
            if not isinstance(values, dict) or not isinstance(values.get(key), dict):
                raise UserError(f"{path} has no `{key}`; name the YAML of a run, as `fit` takes it")
        self.values: dict[str, Any] = values
        self.trainer: dict[str, Any] = values.get("trainer") or {}
        self.device = device
        self.precision = str(self.trainer.get("precision") or "32-true")
        self.layout = _layout(self.trainer, num_devices)
        self._simulated: dict[Any, SimulatedStep] = {}
        self.module, self.data = self.build()
        if isinstance(self.module, GRPOModule) or getattr(self.module, "lmbda", False):
            kind = "GRPOModule" if isinstance(self.module, GRPOModule) else "DistillModule with lmbda above 0"
            raise UserError(
                f"{kind} samples answers in its step, so their lengths are not known in advance; plan the same "
                f"model with {'SFTModule' if isinstance(self.module, GRPOModule) else 'lmbda: 0'} for a lower bound"
            )
        size = int(getattr(self.data, "global_batch_size", 0))
        if size < 1:
            raise UserError(f"{type(self.data).__name__} has no global_batch_size, so its steps cannot be planned")
        ranks = self.layout.num_batch_ranks
        share, rest = divmod(size, ranks)
        if rest or not share:
            raise UserError(
                f"global_batch_size {size} cannot be shared evenly by {ranks} devices; set it to "
                f"{max(1, share) * ranks}"
            )
        micro = getattr(self.data, "micro_batch_size", "auto")
        self.micro_batch_size = share if micro in ("auto", None) else int(micro)
        self.micro_batches = max(1, share // self.micro_batch_size)

    def build(self, **changes: Any) -> tuple[Any, Any]:
        """Return the module and the DataModule as `fit` would build them.

        Args:
            **changes: Arguments of the module that replace those of the YAML.
        """
        import lit_gpt.callbacks
        import lit_gpt.datamodules
        import lit_gpt.modules
        import lit_gpt.optim  # noqa: F401 (imported classes can be given by their short names)

        given = copy.deepcopy({k: self.values[k] for k in ("seed_everything", "data", "model") if k in self.values})
        given["model"].setdefault("init_args", {}).update(changes)
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--seed_everything", type=bool | int, default=0)
        parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=True)
        parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False, required=True)
        for name in ("vocab_size", "block_size", "classes"):
            read = _attribute(name)
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=read, apply_on="instantiate")
        for target in ("model", "data"):
            parser.link_arguments("seed_everything", f"{target}.init_args.seed")
        try:
            objects = parser.instantiate(parser.parse_object(given))
        except ArgumentError as error:
            raise UserError(" ".join(str(error).split())[:400]) from error
        return objects.model, objects.data

    # ---- simulating

    def batch(self, rows: int, real: bool = False) -> dict[str, Any]:
        """Return a micro-batch of the longest possible rows; only its shapes matter, unless it is `real`."""
        T = int(self.data.block_size)
        V = int(getattr(self.data, "vocab_size", 2))
        if isinstance(self.data, RowDataModule):
            samples = [np.array([row]) for row in range(rows)]
            collate = self.data.collator(self.data._row_length)
            batch = dict(collate(_LongestRows(T, V), samples, np.arange(rows)))  # type: ignore[arg-type]
        else:
            ids = torch.randint(0, V, (rows, T))
            positions = torch.arange(T).expand(rows, T).clone()
            batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": positions}
            batch |= {"sample_ids": torch.arange(rows), "num_bytes": torch.full((rows,), 4 * T)}
            if getattr(self.data, "isolate_documents", False):
                batch["document_ids"] = (torch.arange(T) // max(1, T // 2)).expand(rows, T).clone()
        if self.device.kind == "cuda":
            batch.pop("document_ids", None)  # FlexAttention isolates documents without a mask in memory
        return batch

    def simulate(
        self, rows: int, num_micro_batches: int, precision: str | None = None, **changes: Any
    ) -> SimulatedStep:
        """Simulate an optimizer step; results are cached.

        Args:
            rows: Number of rows per micro-batch.
            num_micro_batches: Number of micro-batches; at most two are simulated, because more need no more memory.
            precision: Precision as named in Lightning; None: the precision of the YAML.
            **changes: Arguments of the module that replace those of the YAML.
        """
        key = (rows, min(num_micro_batches, 2), precision or self.precision, tuple(sorted(changes.items())))
        if key in self._simulated:
            return self._simulated[key]
        module, _ = self.build(**({"compile": False} if hasattr(self.module, "compile_model") else {}) | changes)
        clips = self.trainer.get("gradient_clip_val", 1.0) is not None
        batches = [self.batch(rows)] * min(num_micro_batches, 2)
        steps = self.steps or 1000
        self._simulated[key] = simulate_step(
            module, batches, precision or self.precision, self.layout, clips, self.device.kind, max_steps=steps
        )
        return self._simulated[key]

    def work(self, step: SimulatedStep, rows: int, precision: str | None = None, **changes: Any) -> Work:
        """Return the work of a complete optimizer step, with all micro-batches."""
        if self.micro_batches < 2:
            return step.work
        one, two = self.simulate(rows, 1, precision, **changes).work, step.work
        return one.plus(two.plus(one, -1.0), self.micro_batches - 1)

    # ---- the forecast

    @property
    def steps(self) -> int | None:
        """Number of optimizer steps of the run; None if the YAML does not limit them."""
        limits = []
        if (self.trainer.get("max_steps") or -1) > 0:
            limits.append(int(self.trainer["max_steps"]))
        max_tokens = getattr(self.module, "max_tokens", None)
        if max_tokens is not None:
            limits.append(-(-max_tokens // self.tokens_per_step))
        return min(limits) if limits else None

    @property
    def tokens_per_step(self) -> int:
        """Maximum number of input tokens per optimizer step, over all devices."""
        return int(self.data.global_batch_size) * int(self.data.block_size)

    def facts(self) -> RunFacts:
        """Return the properties of the run that its forecast needs in addition to the simulated step."""
        kept = DEFAULT_CHECKPOINTS
        for callback in self.trainer.get("callbacks") or []:
            if isinstance(callback, dict) and str(callback.get("class_path", "")).endswith("RunCheckpoint"):
                init_args = callback.get("init_args") or {}
                kept = int(init_args.get("keep_last", 2)) + bool(init_args.get("save_best", True))
        config = getattr(self.module, "config", None)
        return RunFacts(
            name=str(self.trainer.get("name", "default")),
            steps=self.steps,
            tokens_per_step=self.tokens_per_step,
            micro_batch_size=self.micro_batch_size,
            micro_batches=self.micro_batches,
            layout=self.layout,
            precision=self.precision,
            compiled=bool(getattr(self.module, "compile_model", False)),
            checkpoints_kept=kept,
            model_params=0 if config is None else int(config.num_parameters()),
        )

    def measure(self) -> Calibration:
        """Time a few real steps on this machine, with up to `micro_batch_size` rows, and compare with the forecast.

        Raises:
            UserError: If the run is planned for another device than this machine's CPU, or for several.
        """
        if self.device.kind != "cpu" or self.layout.world_size > 1:
            raise UserError(
                f"--measure times steps on this machine's CPU, and the run is planned for {self.layout.world_size} x "
                f"{self.device.name}; leave it out, or run it there"
            )
        ratios = []
        for rows in sorted({1, max(1, self.micro_batch_size // 2), self.micro_batch_size}):
            module, _ = self.build()
            seconds = sorted(time_steps(module, [self.batch(rows, real=True)], self.precision))
            work = self.simulate(rows, 1).work
            parts = step_parts(work, self.device, self.layout, self.precision, False)
            ratios.append(seconds[len(seconds) // 2] / sum(parts.values()))
        spread = max(1.1, max(ratios) / min(ratios))
        return Calibration(ratios[-1], min(spread, 1.5), f"{len(ratios)} sizes of micro-batch timed here")

    def forecast(self, calibration: Calibration | None = None, law: ScalingLaw | None = None) -> Forecast:
        """Return the forecast of the run.

        Args:
            calibration: Correction of forecast times by measured ones; None: no correction.
            law: Scaling law of the loss; None: a published one.
        """
        calibration = calibration or Calibration()
        rows = self.micro_batch_size
        facts = self.facts()
        step = self.simulate(rows, self.micro_batches)
        work = self.work(step, rows)
        changes: list[Change] = []
        largest = {}
        recomputes = bool(getattr(self.module, "activation_checkpointing", False))
        can_recompute = hasattr(self.module, "activation_checkpointing")
        for recompute in (False, True) if can_recompute else (recomputes,):
            option: dict[str, Any] = {"activation_checkpointing": recompute} if recompute != recomputes else {}
            # Many rows, so that the peak is in the activations, and not where the optimizer works.
            sizes = (MANY_ROWS, 2 * MANY_ROWS)
            one, two = (self.simulate(size, self.micro_batches, **option) for size in sizes)
            most = largest_that_fits(one, two, sizes, self.device)
            largest["with" if recompute else "without"] = most
            if recompute != recomputes:
                other = self.simulate(rows, self.micro_batches, **option)
                name = f"activation_checkpointing: {str(recompute).lower()}"
                changes.append(self._change(name, other, self.work(other, rows, **option), calibration))
            share = rows * self.micro_batches
            better = max((size for size in range(1, share + 1) if share % size == 0 and size <= most), default=0)
            if better and better != rows and recompute == recomputes:
                changes.append(self._resized(better, calibration, option))
        half = self.device.kind == "cuda" or self.device.half_speed > 1.3
        if self.precision == "32-true" and half:
            other = self.simulate(rows, self.micro_batches, "bf16-mixed")
            mixed = self.work(other, rows, "bf16-mixed")
            changes.append(self._change("precision: bf16-mixed", other, mixed, calibration, "bf16-mixed"))
        loss, basis = None, ""
        if getattr(self.module, "is_language_model_loss", False) and not getattr(self.module, "init_from", None):
            law = law or PUBLISHED
            basis = law.describe()
            if facts.steps is not None:
                loss = law.forecast(facts.model_params, facts.steps * facts.tokens_per_step)
        return forecast(facts, step, work, self.device, calibration, loss, basis, largest, changes)

    def _resized(self, rows: int, calibration: Calibration, option: dict[str, Any]) -> Change:
        count = self.micro_batch_size * self.micro_batches // rows
        step = self.simulate(rows, count, **option)
        work = step.work
        if count > 1:
            one = self.simulate(rows, 1, **option).work
            work = one.plus(work.plus(one, -1.0), count - 1)
        return self._change(f"micro_batch_size: {rows}", step, work, calibration)

    def _change(
        self, what: str, step: SimulatedStep, work: Work, calibration: Calibration, precision: str | None = None
    ) -> Change:
        compiled = bool(getattr(self.module, "compile_model", False))
        parts = step_parts(work, self.device, self.layout, precision or self.precision, compiled)
        fits = (step.upper_bytes if self.device.kind == "cuda" else step.peak_bytes) <= self.device.memory
        return Change(what, step.peak_bytes, sum(parts.values()) * calibration.ratio, fits)


class _LongestRows:
    """Stand-in for a `RowSplit` whose rows all have the maximum length; the second half of each is supervised."""

    def __init__(self, length: int, vocab_size: int) -> None:
        self._ids = np.random.default_rng(0).integers(0, vocab_size, length + 1)
        self._mask = np.arange(length + 1) > length // 2

    def __len__(self) -> int:
        return 2**31

    def sequence(self, row: int, side: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of a row and its loss mask."""
        return self._ids, self._mask

    def number(self, name: str) -> Any:
        """Return a named value of each row, such as its class: always 0."""
        return np.zeros(2**16)


def _attribute(name: str) -> Any:
    def read(data: LightningDataModule) -> Any:
        return getattr(data, name, None)

    return read


def _layout(trainer: dict[str, Any], num_devices: int | None) -> Layout:
    """Return how the Trainer of the YAML distributes a run over processes.

    Raises:
        UserError: If the number of devices does not match the sizes of the strategy.
    """
    nodes = int(trainer.get("num_nodes") or 1)
    devices = trainer.get("devices", "auto")
    if num_devices is None:
        if isinstance(devices, list):
            devices = len(devices)
        num_devices = nodes * (1 if devices in ("auto", -1, "-1", None) else int(devices))
    strategy: Any = trainer.get("strategy") or "auto"
    name = strategy if isinstance(strategy, str) else str(strategy.get("class_path", ""))
    options = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    if name.rpartition(".")[2] == "ParallelStrategy":
        sizes = {axis: options[axis] for axis in (*AXES, "expert") if axis in options}
        return Layout.resolve(num_devices, **sizes)
    return Layout(replicate=num_devices)
