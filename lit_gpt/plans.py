"""Plan a run: build the module and DataModule of a YAML for `fit`, and forecast the run without starting it.

The DataModule is built but not prepared: nothing is downloaded or tokenized. Its batches are synthetic, with windows or
rows of `block_size` tokens, the largest possible.
"""

import contextlib
import copy
import functools
import inspect
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.utilities.seed import isolate_rng

from lit_gpt.data.compiled_bpe import byte_alphabet
from lit_gpt.data.tokenizers import END_OF_TEXT, is_local_tokenizer, load_tokenizer
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json
from lit_gpt.instantiate import read_yaml
from lit_gpt.modules import GRPOModule
from lit_gpt.optim import Schedule
from lit_gpt.parallel.layout import AXES, Layout
from lit_gpt.parallel.pipeline import check_micro_batches, check_pipeline, split_layers, usual_stages_per_rank
from lit_gpt.planning.devices import Device, find_device
from lit_gpt.planning.forecast import (
    UNCALIBRATED,
    Calibration,
    Change,
    Forecast,
    LossCurve,
    RunFacts,
    calibration_from,
    forecast,
    largest_that_fits,
    loss_curve,
    step_parts,
)
from lit_gpt.planning.hardware import fast_precision, gpu_peak_flops
from lit_gpt.planning.laws import LAW_REACH, PUBLISHED, LossForecast, ScalingLaw
from lit_gpt.planning.run_log import read_log, run_row, typical_step_seconds
from lit_gpt.planning.simulation import simulate_step
from lit_gpt.planning.tracker import SimulatedStep, Work
from lit_gpt.trainer import Trainer

DEFAULT_CHECKPOINTS = 3
"""Number of checkpoints that `RunCheckpoint` keeps by default: the two newest and the best."""
PILOT_STEPS = 50
PILOT_SECONDS = 60.0
MIN_PILOT_STEPS = 4
PATIENCE = 3
"""Steps of a run that `--measure` trains: so many, or as many as these seconds allow (three times as long until a loss
is logged), but never fewer than the least."""
STRATEGY = ("all_gather_dtype", "reshard_after_forward", "sync_micro_batches", "schedule", "stages_per_rank")
"""Arguments of `ParallelStrategy` that change memory and collectives of a step."""
ZERO_BUBBLE_SHARE = 1 / 3
"""Bubble of ZB1P relative to 1F1B, where the forward pass, gradients of activations and of weights take as long as one
another (Qi et al. 2023, arXiv:2401.10241, section 2.3)."""
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
        if self.precision == "auto":  # every GPU in the table of devices computes in bfloat16
            self.precision = "bf16-mixed" if device.kind == "cuda" else fast_precision("cpu")
        self.layout, self.strategy = _layout(self.trainer, num_devices)
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
        self.schedule: str = self.strategy.get("schedule", "1f1b")
        self._check_micro_batches(self.micro_batches)

    def _check_micro_batches(self, count: int) -> None:
        if self.layout.pipeline > 1:
            check_pipeline(
                self.module.config, self.layout.pipeline, self.schedule, self.strategy.get("stages_per_rank")
            )
            check_micro_batches(count, self.layout.pipeline, self.schedule)

    def build(self, **changes: Any) -> tuple[Any, Any]:
        """Return the module and the DataModule as `fit` would build them.

        Args:
            **changes: Arguments of the module that replace those of the YAML.
        """
        import lit_gpt.callbacks
        import lit_gpt.datamodules
        import lit_gpt.modules
        import lit_gpt.optim  # noqa: F401 (imported classes can be given by their short names)

        given: dict[str, Any] = copy.deepcopy(
            {k: self.values[k] for k in ("seed_everything", "data", "model") if k in self.values}
        )
        given["model"].setdefault("init_args", {}).update(changes)
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        with tempfile.TemporaryDirectory() as folder:
            return self._instantiate(_with_any_tokenizer(given, Path(folder)))

    def _instantiate(self, given: dict[str, Any]) -> tuple[Any, Any]:
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

    def batch(self, rows: int) -> dict[str, Any]:
        """Return a micro-batch of the longest possible rows; only its shapes matter."""
        T = int(self.data.block_size)
        if isinstance(self.data, RowDataModule):
            V = int(getattr(self.data, "vocab_size", 2))
            samples = [np.array([row]) for row in range(rows)]
            collate = self.data.collator(self.data._row_length)
            batch = dict(collate(_LongestRows(T, V), samples, np.arange(rows)))  # type: ignore[arg-type]
        else:
            ids = torch.zeros((), dtype=torch.int64).expand(rows, T)  # a single number in memory
            batch = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(T).expand(rows, T)}
            batch |= {"sample_ids": torch.arange(rows), "num_bytes": torch.full((rows,), 4 * T)}
            if getattr(self.data, "isolate_documents", False):
                batch["document_ids"] = (torch.arange(T) // max(1, T // 2)).expand(rows, T)
        if self.device.kind == "cuda":
            batch.pop("document_ids", None)  # FlexAttention isolates documents without a mask in memory
        return batch

    def simulate(
        self, rows: int, num_micro_batches: int, precision: str | None = None, **changes: Any
    ) -> SimulatedStep:
        """Simulate an optimizer step; results are cached.

        Args:
            rows: Number of rows per micro-batch.
            num_micro_batches: Number of micro-batches; at most two are simulated, for each process of a pipeline,
                because more need no more memory.
            precision: Precision as named in Lightning; None: the precision of the YAML.
            **changes: Arguments of the module that replace those of the YAML.

        Returns:
            The step of a process; of a pipeline's, the memory of the one that needs most and the work of the one that
            has most.
        """
        count = min(num_micro_batches, 2 * self.layout.pipeline)
        key = (rows, count, precision or self.precision, tuple(sorted(changes.items())))
        if key not in self._simulated:
            steps = [self._simulate_stage(stage, *key[:3], changes) for stage in self._different_stages()]
            largest = max(steps, key=lambda step: step.upper_bytes) if len(steps) > 1 else steps[0]
            busiest = max(steps, key=lambda step: sum(step.work.flops.values()))
            self._simulated[key] = replace(largest, work=busiest.work)
        return self._simulated[key]

    def _simulate_stage(
        self, stage: int, rows: int, count: int, precision: str, changes: dict[str, Any]
    ) -> SimulatedStep:
        module, _ = self.build(**({"compile": False} if hasattr(self.module, "compile_model") else {}) | changes)
        clips = self.trainer.get("gradient_clip_val", 1.0) is not None
        return simulate_step(
            module,
            [self.batch(rows)] * count,
            precision,
            self.layout,
            clips,
            self.device.kind,
            self.steps or 1000,
            stage=stage,
            **self.strategy,
        )

    def _different_stages(self) -> list[int]:
        """Return the processes of a pipeline to simulate: for each number of layers the first, and the last of all.

        Earlier ones keep the activations of more micro-batches; the first has the embedding, and the last the head.
        """
        size = self.layout.pipeline
        if size == 1:
            return [0]
        held = [len(layers) for layers in split_layers(self.module.config, size * self._stages_per_rank)]
        numbers = [sum(held[rank::size]) for rank in range(size)]
        return sorted({numbers.index(number) for number in numbers} | {size - 1})

    @property
    def _stages_per_rank(self) -> int:
        return self.strategy.get("stages_per_rank") or usual_stages_per_rank(self.schedule)

    def work(self, rows: int, count: int, precision: str | None = None, **changes: Any) -> Work:
        """Return the work of a complete optimizer step.

        Args:
            rows: Number of rows per micro-batch.
            count: Number of micro-batches.
            precision: Precision as named in Lightning; None: the precision of the YAML.
            **changes: Arguments of the module that replace those of the YAML.
        """
        size = self.layout.pipeline
        work = self.simulate(rows, count, precision, **changes).work
        if count > size:
            one = self.simulate(rows, size, precision, **changes).work
            simulated = min(count, 2 * size)
            work = one.plus(work.plus(one, -1.0), (count - size) / (simulated - size))
        if size > 1:
            # The first micro-batch reaches the last process after size - 1 others, and its gradient the first one as
            # late (Narayanan et al. 2021, arXiv:2104.04473, sections 2.2.1 and 2.2.2).
            share = ZERO_BUBBLE_SHARE if self.schedule == "zero_bubble" else 1.0
            work = replace(work, idle_share=share * (size - 1) / (count * self._stages_per_rank))
        return work

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

    def measure(self, max_steps: int = PILOT_STEPS, max_seconds: float = PILOT_SECONDS) -> "Pilot":
        """Train the first steps of the run here, on its own data, and compare their time with the model of time.

        Nothing is written but the prepared data, which the run itself will use.

        Args:
            max_steps: Steps at most.
            max_seconds: Seconds of them at most, after which the step in progress is the last.

        Raises:
            UserError: The run is planned for another device than this machine's, or for several.
        """
        here = self.device.kind == "cpu" or (
            torch.cuda.is_available() and gpu_peak_flops(torch.cuda.get_device_name()) == self.device.peak_flops
        )
        if not here or self.layout.world_size > 1:
            raise UserError(
                f"--measure times steps on one device of this machine, and the run is planned for "
                f"{self.layout.world_size} x {self.device.name}; leave it out, or run it there"
            )
        steps = self.steps
        recorder = _Recorder(max_steps, max_seconds)
        with isolate_rng(), tempfile.TemporaryDirectory() as folder:
            module, data = self.build()
            seed_everything(int(self.values.get("seed_everything") or 0), verbose=False)
            trainer = Trainer(
                name="pilot",
                default_root_dir=folder,
                max_steps=-1 if steps is None else steps,
                accelerator="cpu" if self.device.kind == "cpu" else "gpu",
                devices=1,
                precision=self.precision,
                gradient_clip_val=self.trainer.get("gradient_clip_val", 1.0),
                log_every_n_steps=self.log_every_n_steps,
                callbacks=[recorder],
                default_callbacks=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                limit_val_batches=0,
            )
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # the plan alone is the output
                warnings.simplefilter("ignore")
                trainer.fit(module, datamodule=data)
        seconds = sorted(recorder.seconds[2:] or recorder.seconds)  # the first steps allocate and compile
        middle = seconds[len(seconds) // 2]
        spread = seconds[int(0.9 * (len(seconds) - 1))] / middle
        ratio = middle / self.step_seconds()
        basis = f"{len(recorder.seconds)} steps of the run timed here"
        return Pilot(Calibration(ratio, min(max(1.15, spread), UNCALIBRATED), basis), recorder.losses)

    @property
    def log_every_n_steps(self) -> int:
        """Optimizer steps between two log entries, as the YAML or the project's Trainer has it."""
        given = self.trainer.get("log_every_n_steps")
        return int(
            inspect.signature(Trainer.__init__).parameters["log_every_n_steps"].default if given is None else given
        )

    def step_seconds(self) -> float:
        """Return the seconds of a step by the model of time, uncalibrated."""
        rows = self.micro_batch_size
        work = self.work(rows, self.micro_batches)
        compiled = bool(getattr(self.module, "compile_model", False))
        return sum(step_parts(work, self.device, self.precision, compiled).values())

    def forecast(
        self, calibration: Calibration | None = None, law: ScalingLaw | None = None, pilot: "Pilot | None" = None
    ) -> Forecast:
        """Return the forecast of the run.

        Args:
            calibration: Correction of forecast times by measured ones; None: the pilot's, or no correction.
            law: Scaling law of the loss; None: a published one.
            pilot: First steps of the run, as returned by `measure`.
        """
        calibration = calibration or (Calibration() if pilot is None else pilot.calibration)
        rows = self.micro_batch_size
        facts = self.facts()
        step = self.simulate(rows, self.micro_batches)
        work = self.work(rows, self.micro_batches)
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
                changes.append(self._change(name, other, self.work(rows, self.micro_batches, **option), calibration))
            share = rows * self.micro_batches
            better = max((size for size in self._sizes_of(share) if size <= most), default=0)
            if better and better != rows and recompute == recomputes:
                count = share // better
                other = self.simulate(better, count, **option)
                resized = self.work(better, count, **option)
                changes.append(self._change(f"micro_batch_size: {better}", other, resized, calibration))
        half = self.device.kind == "cuda" or self.device.half_speed > 1.3
        if self.precision == "32-true" and half:
            other = self.simulate(rows, self.micro_batches, "bf16-mixed")
            mixed = self.work(rows, self.micro_batches, "bf16-mixed")
            changes.append(self._change("precision: bf16-mixed", other, mixed, calibration, "bf16-mixed"))
        loss, basis, curve = self._loss(law, () if pilot is None else pilot.losses)
        return forecast(facts, step, work, self.device, calibration, loss, basis, curve, largest, changes)

    def _loss(
        self, law: ScalingLaw | None, pilot: Sequence[tuple[int, float]]
    ) -> tuple[LossForecast | None, str, LossCurve]:
        """Return the forecast of the final loss, what it rests on, and the band of the training loss."""
        if not getattr(self.module, "is_language_model_loss", False):
            return None, "", LossCurve([], f"no band: the loss of {type(self.module).__name__} is not that of a text")
        params, steps, per_step = self.facts().model_params, self.steps, self.tokens_per_step
        if steps is None or not params:
            return None, "", LossCurve([], "no band: the run has no last step")
        fresh = not getattr(self.module, "init_from", None)
        chosen = law or PUBLISHED
        final = chosen.forecast(params, steps * per_step) if fresh else None
        usable = final is not None and (final.extrapolation or 1.0) >= LAW_REACH
        schedule = getattr(self.module, "schedule", None) or Schedule()
        unit = per_step if schedule.counts_tokens else 1
        curve = loss_curve(
            steps,
            per_step,
            int(getattr(self.module.config, "vocab_size", 2)),
            lambda done: schedule.factor(done * unit, steps * unit),
            pilot,
            (lambda tokens: chosen.forecast(params, tokens)) if usable else None,
        )
        if pilot and not usable:
            _, low, high = curve.points[-1]
            return LossForecast(math.sqrt(low * high), low, high, None), curve.basis, curve
        return final, chosen.describe(), curve

    def _sizes_of(self, share: int) -> list[int]:
        """Return the sizes of micro-batches into which a device's rows of a step can be divided."""
        sizes = []
        for size in range(1, share + 1):
            with contextlib.suppress(UserError):  # too few micro-batches for a pipeline
                self._check_micro_batches(share // size)
                sizes += [size] if share % size == 0 else []
        return sizes

    def _change(
        self, what: str, step: SimulatedStep, work: Work, calibration: Calibration, precision: str | None = None
    ) -> Change:
        compiled = bool(getattr(self.module, "compile_model", False))
        parts = step_parts(work, self.device, precision or self.precision, compiled)
        fits = step.upper_bytes <= self.device.memory
        return Change(what, step.process_bytes, sum(parts.values()) * calibration.ratio, fits)


@dataclass(frozen=True)
class Pilot:
    """The first steps of a run.

    Attributes:
        calibration: Correction of the forecast times.
        losses: Pairs (step, training loss), as the run will log them.
    """

    calibration: Calibration
    losses: list[tuple[int, float]]


class _Recorder(Callback):
    """Times steps, keeps what is logged of their loss, and ends the run early."""

    def __init__(self, max_steps: int, max_seconds: float) -> None:
        self.seconds: list[float] = []
        self.losses: list[tuple[int, float]] = []
        self._max_steps, self._max_seconds = max_steps, max_seconds
        self._end = 0.0

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._end = time.perf_counter()

    def on_train_batch_end(
        self, trainer: LightningTrainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the step took, with the loading of its data."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self.seconds.append(now - self._end)
        self._end = now
        # The loss of the first log entry is worth waiting for, since the run can be held to it.
        step, every = trainer.global_step, max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (step - 1) % every == 0:
            self._note(trainer, step - 1)
        patience = self._max_seconds * (1 if self.losses else PATIENCE)
        if step >= self._max_steps or (sum(self.seconds) > patience and step >= MIN_PILOT_STEPS):
            trainer.should_stop = True

    def on_train_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Keep the loss of the last step, if it was logged."""
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._note(trainer, trainer.global_step)

    def _note(self, trainer: LightningTrainer, step: int) -> None:
        loss = trainer.callback_metrics.get("train/loss")
        if step > 0 and loss is not None:
            self.losses.append((step, float(loss)))


def calibrate(runs: Sequence[Path], device: Device) -> Calibration:
    """Compare the model of time with finished runs on such devices.

    Args:
        runs: Their folders.
        device: On which they ran.

    Returns:
        The median ratio. Its spread is that of the ratios, as a 90 % interval of the next one.

    Raises:
        UserError: A folder has no config or no log.
    """
    ratios = []
    for run in runs:
        seconds = typical_step_seconds(read_log(run))
        if seconds is None:
            raise UserError(f"{run} logged no throughput/step_seconds; let it run for at least two log entries")
        ratios.append(seconds / PlannedRun(run, device).step_seconds())
    return calibration_from(ratios, f"{len(ratios)} run{'s' * (len(ratios) > 1)} on such devices")


def law_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return runs as rows of a table for `plan fit-law`.

    Args:
        runs: Their folders.

    Raises:
        UserError: A folder has no config, or no validation loss in its log.
    """
    rows, device = [], find_device("cpu")
    for run in runs:
        log = read_log(run)
        params = PlannedRun(run, device).module.config.num_parameters()
        rows.append(run_row(run, log, params, _corpus_of(run)))
    return rows


def _corpus_of(run: Path) -> str:
    """Return a hash of a run's corpus, tokenizer and context, within which losses are comparable."""
    path = run / "lineage.json"
    if not path.is_file():
        raise UserError(f"{run} has no lineage.json, so its corpus is not known; name the folder of a run of `fit`")
    corpus = json.loads(path.read_text(encoding="utf-8")).get("corpus") or {}
    # What changes from run to run of one ladder does not change what a loss is measured on.
    same = {name: value for name, value in corpus.items() if name not in ("seed", "global_batch_size")}
    return sha256_json(same)[:12]


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


def _with_any_tokenizer(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a run's YAML with a tokenizer of single bytes if its own is on the Hub, which cannot be reached.

    A plan needs only the size of the vocabulary. Where `vocab_size` of the data gives it, any tokenizer does, so that
    a large run can be planned without a network or an account.

    Args:
        values: Content of the YAML; unchanged.
        folder: Folder for the tokenizer of single bytes.
    """
    options = values["data"].get("init_args") or {}
    name = options.get("tokenizer")
    if not options.get("vocab_size") or not isinstance(name, str) or is_local_tokenizer(name) or _loads(name):
        return values
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=byte_alphabet(), merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}), encoding="utf-8")
    return values | {"data": values["data"] | {"init_args": options | {"tokenizer": str(folder)}}}


@functools.cache
def _loads(tokenizer: str) -> bool:
    """Return whether a tokenizer can be loaded; the Hub is asked once."""
    try:
        load_tokenizer(tokenizer)
    except UserError:
        return False
    return True


def _layout(trainer: dict[str, Any], num_devices: int | None) -> tuple[Layout, dict[str, Any]]:
    """Return how the Trainer of the YAML distributes a run over processes, and its other options that matter to a plan.

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
        return Layout.resolve(num_devices, **sizes), {name: options[name] for name in STRATEGY if name in options}
    return Layout(replicate=num_devices), {}
