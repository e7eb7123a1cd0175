"""What every objective shares: a GPT under the Lightning Trainer.

The way of a step:

1. The DataModule gives the micro-batches of one optimizer step (a list; a single batch counts as a list of one).
2. The supervised tokens of all micro-batches on all ranks are counted before anything is computed.
3. Each micro-batch's summed loss is divided by that count and backpropagated, the last one by Lightning itself.

So the loss of a step is the mean over its tokens, however they are cut into micro-batches and ranks, and Lightning
sees one batch for one optimizer step: each interval in a Trainer's YAML counts optimizer steps.

A project of your own replaces one method: `build_model`, `build_optimizer` or `loss`.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from lit_gpt.batch import IGNORE_INDEX, Batch, StepBatch
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.errors import UserError
from lit_gpt.evaluation import LanguageModelingMetrics, language_modeling_metrics
from lit_gpt.models import GPT, GPTConfig, GPTConfigOverrides
from lit_gpt.models.parallel import parallelize
from lit_gpt.objectives import TokenLoss
from lit_gpt.optim import Schedule, ScheduledLR, check_learning_rates, parameter_groups

WEIGHTLESS = {"dropout", "init_std", "norm_eps", "rope_scaling", "rope_theta", "sliding_window", "layer_windows"}
"""Fields of `GPTConfig` that weights do not depend on."""


class GPTModule(LightningModule):
    """Base of all objectives: builds, shards, compiles, optimises, logs and checkpoints a GPT.

    Args:
        preset: name of an architecture, such as `tiny` or `gpt2`; an unknown one is answered with the nearest names.
        overrides: fields of `GPTConfig` that differ from the preset's.
        init_from: start from these weights instead of random ones: a run, a checkpoint, a bundle, or a Hugging Face
            folder or hub name. Its architecture replaces the preset. (To resume a run, use `--ckpt_path last`.)
        vocab_size: entries of the token table; the command line takes it from the DataModule.
        block_size: longest context; the command line takes it from the DataModule.
        optimizer: makes the optimizer from parameter groups: a class of `torch.optim`, or `MuonAdamW`; None: AdamW
            with learning rate 6e-4, betas 0.9 and 0.95, weight decay 0.1.
        schedule: factor of the learning rate over the run; None: constant.
        max_tokens: stop after this many input tokens (or at `trainer.max_steps`, whichever comes first).
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        compile: `torch.compile` the model.
        seed: of the initial weights and of dropout.
    """

    def __init__(
        self,
        preset: str = "tiny",
        overrides: GPTConfigOverrides | None = None,
        init_from: str | None = None,
        vocab_size: int | None = None,
        block_size: int | None = None,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        max_tokens: int | None = None,
        activation_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.init_from = init_from
        self._source = resolve_model(init_from) if init_from is not None else None
        if self._source is not None:
            self.config = _fit_context(self._source.config, dict(overrides or {}), vocab_size, block_size)
        else:
            linked = {"vocab_size": vocab_size, "block_size": block_size}
            given = {name: value for name, value in linked.items() if value is not None}
            self.config = GPTConfig.from_preset(preset, **(given | dict(overrides or {})))
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1; got {max_tokens}")
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.max_tokens = max_tokens
        self.activation_checkpointing = activation_checkpointing
        self.compile_model = compile
        self.seed = seed
        self.tokens_seen = 0
        self.model: nn.Module | None = None
        self.val_metrics = LanguageModelingMetrics()
        self.test_metrics = LanguageModelingMetrics()
        self._train_sums: Tensor | None = None
        self._loaded_sums: list[float] | None = None
        self._step_values: dict[str, Any] = {}
        self._configured_groups: list[dict[str, Any]] = []

    # ---- what a subclass replaces -----------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """Make the model on the device in force (the meta device), with no weights yet."""
        return GPT(self.config)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer from `lit_gpt.optim.parameter_groups`."""
        if self.optimizer is None:
            # Not a default of the argument: a YAML that names another class would inherit AdamW's arguments.
            return AdamW(groups, lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        return self.optimizer(groups)

    @abstractmethod
    def loss(self, batch: Batch) -> TokenLoss:
        """Loss of one micro-batch, summed (not averaged) over its supervised tokens."""

    # ---- the model --------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build on the meta device, shard if the strategy has a mesh, then fill in the weights."""
        if self.model is not None:
            return
        with torch.device("meta"):
            model = self.build_model()
        if isinstance(model, GPT):
            model.gradient_checkpointing = self.activation_checkpointing
        if self.device_mesh is not None:
            assert isinstance(model, GPT), "a model of your own must be sharded in your own configure_model"
            parallelize(model, self.device_mesh)
        model.to_empty(device=self.device)
        self.init_weights(model)
        if self.compile_model:
            # Block by block: all share one compiled graph, and the head's `head_fn` stays plain Python.
            for part in model.blocks if isinstance(model, GPT) else [model]:
                part.compile()
        self.model = model

    def init_weights(self, model: nn.Module) -> None:
        """Fill an empty model: random by (seed, parameter name), or from `init_from`."""
        if isinstance(model, GPT):
            model.init_weights(self.seed)
        if self._source is None or self.trainer.ckpt_path is not None:
            return
        weights = self._source.load_state_dict()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in weights:
                    raise UserError(f"{self._source.path}: no weight named {name}; is it another architecture?")
                _copy(parameter, weights[name])

    def forward(self, batch: Batch, head_fn: Callable[..., Any] | None = None) -> Any:
        """Run the model on a batch; see `GPT.forward`."""
        assert self.model is not None
        return self.model(
            batch["input_ids"],
            position_ids=batch.get("position_ids"),
            document_ids=batch.get("document_ids"),
            head_fn=head_fn,
        )

    # ---- optimisation -----------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Named parameter groups, the optimizer, and the schedule counted in optimizer steps or tokens."""
        assert self.model is not None
        optimizer = self.build_optimizer(parameter_groups(self.model))
        check_learning_rates(optimizer)
        self._configured_groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        total = self.max_tokens if self.schedule.counts_tokens else self._total_steps()

        def factor(step: int) -> float:
            # The step in hand counts as done up to its last token, so that the first one does not train at nearly 0.
            now = self.tokens_seen + (self._step_tokens or 1) - 1 if self.schedule.counts_tokens else step
            return self.schedule.factor(now, total)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ScheduledLR(optimizer, factor), "interval": "step"},
        }

    def _total_steps(self) -> int | None:
        """Optimizer steps of the whole run, from whichever limit the user set."""
        limits = []
        if self.max_tokens is not None and self._step_tokens is not None:
            limits.append(-(-self.max_tokens // self._step_tokens))
        if self.trainer.max_steps >= 0:
            limits.append(self.trainer.max_steps)
        if self.trainer.max_epochs not in (None, -1) and self.schedule.needs_total:
            # Lightning makes the training loader for this number; it must be made again, because the position in a
            # checkpoint is given only to a loader that is made after the checkpoint's loops are restored.
            steps_per_run = self.trainer.estimated_stepping_batches
            self.trainer.fit_loop._combined_loader = None
            limits.append(int(steps_per_run))
        return min(limits) if limits else None

    @property
    def _step_tokens(self) -> int | None:
        """Input tokens of an optimizer step where the DataModule fixes them."""
        return getattr(getattr(self.trainer, "datamodule", None), "tokens_per_step", None)

    def on_train_start(self) -> None:
        """Let the YAML's optimizer settings win over a checkpoint's, and say what changed."""
        for group, configured in zip(self._optimizer.param_groups, self._configured_groups, strict=False):
            for key, value in configured.items():
                if key in ("lr", "initial_lr"):  # `ScheduledLR` has set them
                    continue
                if group.get(key) != value:
                    name = configured.get("name", "the optimizer")
                    self.print(f"resume: {key} of {name} is {value} (the checkpoint had {group.get(key)})")
                    group[key] = value
        self._train_sums = torch.zeros(3, device=self.device)
        if self._loaded_sums is not None and self.trainer.is_global_zero:  # summed over ranks when they were saved
            self._train_sums += torch.tensor(self._loaded_sums, device=self.device)
        self._loaded_sums = None
        self._stop_at_max_tokens()
        assert self.model is not None
        count = sum(parameter.numel() for parameter in self.model.parameters())
        self.print(f"model: {count / 1e6:,.2f} M parameters")

    @property
    def _optimizer(self) -> Optimizer:
        return self.trainer.optimizers[0]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: `training_step` clears the gradients before it accumulates micro-batches.

        (Lightning would clear them between `training_step` and the last backward pass.)
        """

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; on a CPU it is there already, and Lightning's walk through it costs 0.2 ms."""
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of (seed, optimizer step, data-parallel rank), so that a resumed run repeats it."""
        key = f"{self.seed} {self.trainer.global_step} {self.data_parallel_rank}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "little")
        # Not torch.manual_seed: it asks every kind of device, at 0.4 ms a call on a machine that has none of them.
        torch.default_generator.manual_seed(seed)
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).manual_seed(seed)

    def training_step(self, batch: StepBatch | Batch, batch_idx: int) -> Tensor:
        """One optimizer step: every micro-batch's loss over the token count of the whole step."""
        micro_batches = batch if isinstance(batch, list) else [batch]
        self._optimizer.zero_grad()
        num_tokens = self._sum_over_ranks(self._count_tokens(micro_batches))
        # Data-parallel strategies average gradients over ranks; here they are shares of one sum.
        scale = self.data_parallel_size / num_tokens.clamp(min=1)
        for micro_batch in micro_batches[:-1]:
            self.trainer.strategy.backward(self._share(micro_batch) * scale, None)
        loss = self._share(micro_batches[-1]) * scale
        self._stop_at_max_tokens()
        return loss

    def _stop_at_max_tokens(self) -> None:
        # Before the step's callbacks run, so that the checkpoint callback knows this step as the last.
        if self.max_tokens is not None and self.tokens_seen >= self.max_tokens:
            self.trainer.should_stop = True

    def _share(self, micro_batch: Batch) -> Tensor:
        token_loss = self.loss(micro_batch)
        assert self._train_sums is not None
        self._train_sums[0] += token_loss.cross_entropy.detach()
        self._train_sums[1] += (micro_batch["labels"] != IGNORE_INDEX).sum()
        if "num_bytes" in micro_batch:
            self._train_sums[2] += micro_batch["num_bytes"].sum()
        self.tokens_seen += micro_batch["input_ids"].numel() * self.data_parallel_size
        return token_loss.loss

    @staticmethod
    def _count_tokens(micro_batches: Iterable[Batch]) -> Tensor:
        counts = [(micro_batch["labels"] != IGNORE_INDEX).sum() for micro_batch in micro_batches]
        return torch.stack(counts).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note the gradient norm, before the Trainer clips, and the learning rates of a step that will be logged."""
        if self._logs_after_this_step:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            self._step_values = {
                f"optim/lr_{group.get('name', i)}": group["lr"] for i, group in enumerate(optimizer.param_groups)
            }
            self._step_values["optim/grad_norm"] = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, also in bf16-mixed with a fused optimizer.

        Lightning refuses to clip beside an optimizer that can unscale gradients itself, as fused ones can, even when
        there is no scaler whose gradients could be scaled.
        """
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None and gradient_clip_val:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @property
    def _log_every(self) -> int:
        return max(1, int(self.trainer.log_every_n_steps))  # type: ignore[attr-defined]

    @property
    def _logs_after_this_step(self) -> bool:
        return (self.trainer.global_step + 1) % self._log_every == 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Flush the sums that stayed on the device, every `trainer.log_every_n_steps` optimizer steps."""
        if self.trainer.global_step % self._log_every == 0:
            assert self._train_sums is not None
            sums = self._sum_over_ranks(self._train_sums).tolist()
            self._train_sums.zero_()
            values = {f"train/{name}": value for name, value in language_modeling_metrics(*sums).items()}
            self._log_now(values | self._step_values)
            self.log("train/loss", values["train/loss"], logger=False, prog_bar=True)

    def _log_now(self, values: dict[str, Any]) -> None:
        """Write to the loggers without Lightning's per-step bookkeeping."""
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.trainer.global_step)

    # ---- evaluation -------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch, metrics: LanguageModelingMetrics) -> None:
        num_tokens = (batch["labels"] != IGNORE_INDEX).sum()
        num_bytes = batch["num_bytes"].sum() if "num_bytes" in batch else torch.zeros_like(num_tokens)
        metrics.update(self.loss(batch).cross_entropy, num_tokens, num_bytes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the validation split."""
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole validation split."""
        self._log_evaluation("val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the test split."""
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole test split."""
        self._log_evaluation("test", self.test_metrics)

    def _log_evaluation(self, stage: str, metrics: LanguageModelingMetrics) -> None:
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        metrics.reset()
        if not self.trainer.sanity_checking:
            self.log_dict({**values, "step": float(self.trainer.global_step)}, prog_bar=False)

    # ---- ranks ------------------------------------------------------------------------------------------------

    @property
    def _data_parallel(self) -> dict[str, int]:
        return getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different data (tensor-parallel ranks see the same)."""
        return self._data_parallel["num_replicas"]

    @property
    def data_parallel_rank(self) -> int:
        """This process's place among them."""
        return self._data_parallel["rank"]

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.data_parallel_size == 1:
            return value
        value = value.clone()
        group = self.device_mesh["data_parallel"].get_group() if self.device_mesh is not None else None
        torch.distributed.all_reduce(value, group=group)
        return value

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what model this is, in plain data."""
        checkpoint["lit_gpt"] = {
            "config": self.config.to_dict(),
            "tokens_seen": self.tokens_seen,
            "seed": self.seed,
            "train_sums": None if self._train_sums is None else self._sum_over_ranks(self._train_sums).tolist(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, by the names of the fields that differ.

        Raises:
            UserError: the checkpoint was not written by lit_gpt, or holds another architecture.
        """
        if "lit_gpt" not in checkpoint:
            raise UserError("the checkpoint was not written by lit_gpt: it has no model configuration")
        saved, mine = checkpoint["lit_gpt"]["config"], self.config.to_dict()
        different = [
            f"{name} is {mine.get(name)} here and {saved.get(name)} in the checkpoint"
            for name in sorted(saved.keys() | mine.keys())
            if saved.get(name) != mine.get(name)
        ]
        if different:
            raise UserError(
                "the checkpoint holds another model: " + "; ".join(different) + ". Give the model those values, or "
                "start a new run from its weights with model.init_args.init_from"
            )
        if self.trainer.training and checkpoint["lit_gpt"]["seed"] != self.seed:
            raise UserError(f"the run was started with seed {checkpoint['lit_gpt']['seed']}, not {self.seed}")
        self.tokens_seen = checkpoint["lit_gpt"]["tokens_seen"]
        self._loaded_sums = checkpoint["lit_gpt"]["train_sums"]


def _fit_context(
    config: GPTConfig, overrides: dict[str, Any], vocab_size: int | None, block_size: int | None
) -> GPTConfig:
    """Check the linked sizes against weights that exist; only fields that hold no weights may be overridden."""
    for name, needed in (("vocab_size", vocab_size), ("block_size", block_size)):
        if needed is not None and needed > getattr(config, name):
            raise UserError(
                f"the data needs {name} {needed}, but the weights of init_from have {getattr(config, name)}; "
                "use the tokenizer and context of that model"
            )
    fixed = sorted(overrides.keys() - WEIGHTLESS)
    if fixed:
        raise UserError(
            f"overrides {', '.join(fixed)} would not fit the weights of init_from; only "
            f"{', '.join(sorted(WEIGHTLESS))} may differ from them"
        )
    return GPTConfig.from_dict({**config.to_dict(), **overrides})


@torch.no_grad()
def _copy(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter that may be sharded."""
    if parameter.shape != value.shape:
        raise UserError(f"a weight has shape {tuple(value.shape)} where the model has {tuple(parameter.shape)}")
    if isinstance(parameter, DTensor):
        value = distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    parameter.copy_(value)
