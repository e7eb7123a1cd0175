"""The base module, shared by all objectives: trains a GPT with the Lightning Trainer.

One optimizer step, in `training_step`:

1. The DataModule's batch is the list of micro-batches that this rank contributes to one optimizer step (a single batch
   counts as a list of one).
2. The supervised tokens of all micro-batches on all ranks are counted before anything is computed.
3. The summed loss of each micro-batch is divided by that count and backpropagated: all but the last inside
   `training_step`, the last by Lightning itself.

So the loss of a step is the mean over its tokens, regardless of how they are split into micro-batches and ranks, and
one Lightning batch equals one optimizer step: every interval in a Trainer's YAML counts optimizer steps.

An objective is a subclass that implements `loss`. A custom objective usually overrides one method: `loss`,
`build_model` or `build_optimizer`; `log_sum` logs further metrics.
"""

import hashlib
import inspect
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_warn
from lightning.pytorch.utilities.parsing import collect_init_args
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric

from lit_gpt.adapters import AdapterConfig, base_name, init_adapter, trainable_counts
from lit_gpt.batch import IGNORE_INDEX, Batch, StepBatch
from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.checkpoints.resolve import ModelSource, resolve_model
from lit_gpt.checks import check_at_least
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.data_info import DataInfo, DataParallel, read_data_info
from lit_gpt.errors import UserError
from lit_gpt.evaluation import LanguageModelingMetrics, language_modeling_metrics
from lit_gpt.extensions import class_path
from lit_gpt.models import GPT, GPTConfig, GPTConfigOverrides
from lit_gpt.models.head import VOCABULARY_WEIGHTS, HeadFn, with_new_tokens
from lit_gpt.models.kernel_choice import own_choices, restore_choices
from lit_gpt.models.linear import chosen_products
from lit_gpt.models.moe import Router
from lit_gpt.modules.adapter import AdapterTraining, check_same_adapter
from lit_gpt.objectives import RouterTraining, TokenLoss
from lit_gpt.optim import Schedule, ScheduledLR, check_learning_rates, parameter_groups
from lit_gpt.parallel import Pipeline, add_loss
from lit_gpt.parallel.gradients import clip_gradients, parameters_of, total_norm
from lit_gpt.plugins.strategy import check_processes, unset_node_variables


class GPTModule(LightningModule):
    """Base class of all objectives: builds, shards, compiles, optimizes, evaluates, logs and checkpoints a GPT.

    Args:
        preset: name of an architecture, such as `tiny` or `gpt2`; for an unknown name, the nearest ones are suggested.
        overrides: fields of `GPTConfig` that differ from the preset.
        init_from: start from these weights instead of random ones: a run, a checkpoint, a bundle, or a Hugging Face
            folder or Hub name. Its architecture replaces the preset. (To resume a run, use `--ckpt_path last`.)
        vocab_size: number of tokens; the command line sets it from the DataModule.
        block_size: maximum context length in tokens; the command line sets it from the DataModule.
        optimizer: factory of the optimizer from parameter groups: a class of `torch.optim`, or `MuonAdamW`; None: AdamW
            with learning rate 6e-4, betas 0.9 and 0.95, weight decay 0.1.
        schedule: factor of the learning rate over the run; None: constant.
        max_tokens: stop after this many input tokens (or at `trainer.max_steps`, whichever comes first).
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        compile: `torch.compile` the model.
        adapter: train a LoRA (DoRA, rsLoRA, QLoRA) adapter on the frozen weights of `init_from` instead of the weights
            themselves; checkpoints then contain only the adapter.
        seed: seed of the initial weights and of dropout.

    Raises:
        UserError: the arguments contradict each other, the data, or the weights of `init_from`.
    """

    trains_mtp = False
    """Whether `loss` trains the multi-token-prediction blocks (`multi_token` in the config); if not, none are built."""
    try_it = "generate --model {run} --prompt {prompt}"
    """Arguments of the command that tries out a trained model; printed at the end of a run."""
    grows_vocabulary = False
    """Whether tokens of the data that are missing in `init_from` get new embedding rows (in post-training: yes)."""
    new_weights: tuple[str, ...] = ()
    """Names of weights that an objective adds to the model, and that `init_from` may lack."""
    always_logs: tuple[str, ...] = ("val/loss",)
    """Metrics that every validation logs; `Preflight` tries out a validation for monitors of others."""
    loss_sums_tokens = False
    """Whether `loss` is a sum of terms, one per token, that depend on other tokens only through the model, and calls
    `self(batch, ...)` once, with the batch that it gets; then context parallelism may divide rows over processes, and a
    pipeline may divide layers. A subclass with its own `loss` must set this itself."""
    is_language_model_loss = True
    """Whether the loss is in nats per token, so that perplexity and bits per byte are meaningful."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do not assume of a new loss what its base class promises of its own."""
        super().__init_subclass__(**kwargs)
        if "loss" in vars(cls) and "loss_sums_tokens" not in vars(cls):
            cls.loss_sums_tokens = False

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
        adapter: AdapterConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.builder = _builder_of(type(self), inspect.currentframe())
        check_at_least("max_tokens", max_tokens, 1)
        if adapter is not None and init_from is None:
            raise UserError("adapter is set but init_from is not: name the model that the adapter is trained on")
        self.init_from = init_from
        self.adapter = adapter
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.max_tokens = max_tokens
        self.activation_checkpointing = activation_checkpointing
        self.compile_model = compile
        self.seed = seed
        self._unset_node_variables = unset_node_variables()

        self._source = resolve_model(init_from) if init_from is not None else None
        self.config = self._choose_config(preset, dict(overrides or {}), vocab_size, block_size)
        _warn_if_not_exportable(self.config)
        self._adapter: AdapterTraining | None = None
        if adapter is not None and self._source is not None:
            self._adapter = AdapterTraining(adapter, str(init_from), self._source, self.config.vocab_size)
        self._routers = None if self.config.moe is None else RouterTraining(self.config.moe)
        self._data_info: DataInfo | None = None
        self._pipeline: Pipeline | None = None
        """The pipeline among whose stages the model is divided; None: this process has the whole model."""
        self._running_stage: tuple[GPT, Batch, Tensor | None] | None = None
        """The stage of a pipeline that runs now: its part of the model, its batch, the previous stage's output."""

        self.val_metrics = LanguageModelingMetrics()
        self.test_metrics = LanguageModelingMetrics()
        self._corpus_metrics: dict[str, LanguageModelingMetrics] = {}
        self.model: nn.Module | None = None  # built in `configure_model`

        self.tokens_seen = 0
        """Input tokens of the run so far, over all ranks; saved and resumed."""
        self._configured_groups: list[dict[str, Any]] = []
        # Sums since the last log entry: of the loss, of its units and of bytes, and the sums of `log_sum`.
        self._loss_sums: Tensor | None = None
        self._train_sums, self._evaluation_sums = NamedSums(), NamedSums()
        self._loaded_sums: tuple[list[float] | None, Mapping[str, tuple[float, float]]] = (None, {})
        self._step_values: dict[str, Any] = {}
        self._logged_step, self._has_logged, self._prints_products = 0, False, True

    def _choose_config(
        self, preset: str, overrides: dict[str, Any], vocab_size: int | None, block_size: int | None
    ) -> GPTConfig:
        """Return the config of the preset or of `init_from`, with the overrides and the data's sizes applied."""
        if self._source is not None:
            config = self._source.config
            if self.grows_vocabulary and vocab_size is not None and vocab_size > config.vocab_size:
                config = config.overridden({"vocab_size": vocab_size})
            config = _fit_to_weights(config, overrides, vocab_size, block_size)
        else:
            linked = {"vocab_size": vocab_size, "block_size": block_size}
            given = {name: value for name, value in linked.items() if value is not None}
            config = GPTConfig.from_preset(preset, **(given | overrides))
        if config.multi_token and (self.adapter is not None or not self.trains_mtp):
            if overrides.get("multi_token"):
                raise UserError(
                    f"multi_token is {config.multi_token}, but {type(self).__name__} does not train "
                    "multi-token-prediction "
                    "blocks; set it to 0, or use PretrainModule's own loss without an adapter"
                )
            config = config.overridden({"multi_token": 0})
        return config

    # ---- methods for subclasses to override ---------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Batch) -> TokenLoss:
        """Return the loss of one micro-batch, summed (not averaged) over its supervised tokens.

        Usually `self(batch, head_fn=...)`: the loss is computed inside `GPT.forward`, in place of the head. There the
        head's weight is complete even if it is sharded (FSDP2 gathers it for the duration of the root's forward), and
        the (tokens, vocabulary) logits, the largest tensor of a step, need never be materialized at once.
        """

    def num_units(self, batch: Batch) -> Tensor:
        """Return the denominator of a step's mean loss: the supervised tokens, unless an objective overrides it.

        Returns:
            () int64, on the batch's device.
        """
        return (batch["labels"] != IGNORE_INDEX).sum()

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """Return the loss in validation and test; an objective may also update its own metrics here."""
        return self.loss(batch)

    def evaluation_metrics(self) -> dict[str, float]:
        """Return and reset the objective's own metrics, at the end of a validation or test."""
        return {}

    def build_model(self) -> nn.Module:
        """Build the model without weights (called in a meta-device context).

        Override it to replace parts of the GPT (`model.blocks[0].mlp = MyMLP(...)`, (B, T, C) → (B, T, C)). Checkpoints
        then record the class by name, and can be opened only where the class can be imported.
        """
        return GPT(self.config)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Create the optimizer from the parameter groups of `lit_gpt.optim.parameter_groups`."""
        if self.optimizer is None:
            # Not the argument's default: a YAML file with another class would inherit AdamW's arguments.
            return AdamW(groups, lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        return self.optimizer(groups)

    # ---- the model and its weights ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the model on the meta device, shard it if the strategy has a mesh, then load or initialize weights.

        Raises:
            UserError: the strategy cannot shard this model, or an adapter.
        """
        if self.model is not None:
            if self._pipeline is not None:  # divided under an earlier Trainer
                setattr(self.trainer.strategy, "pipeline", self._pipeline)  # noqa: B010  (of ParallelStrategy alone)
            return
        with torch.device("meta"):
            model = self.build_model()
            if self._adapter is not None and self.device_mesh is not None:  # what is inserted is sharded, too
                self._adapter.add_to(model, self.seed, self.new_weights)
        if isinstance(model, GPT):
            model.gradient_checkpointing = self.activation_checkpointing
        if self.device_mesh is not None:
            assert isinstance(model, GPT), "a custom model must be sharded in an overridden configure_model"
            strategy: Any = self.trainer.strategy
            if not hasattr(strategy, "parallelize"):
                raise UserError(
                    f"trainer.strategy is {type(strategy).__name__}, which cannot shard a GPT; set it to "
                    "lit_gpt.plugins.ParallelStrategy"
                )
            if self.builder is not None and strategy.layout.tensor > 1:
                raise UserError(
                    f"{self.builder['class']} builds parts that tensor parallelism does not divide; set tensor: 1 and "
                    "shard over data instead (FSDP2)"
                )
            strategy.parallelize(model)
            self._pipeline = getattr(strategy, "pipeline", None)
        # Memory is allocated only now: each process holds only its shards.
        model.to_empty(device=self.device)
        self.init_weights(model)
        if self._adapter is not None and self.device_mesh is None:  # a quantized base is made from its weights
            self._adapter.add_to(model, self.seed, self.new_weights)
        if self.compile_model:
            # Block by block: all blocks share one compiled graph, and the head's `head_fn` stays plain Python.
            for part in (*model.blocks, *(model.multi_token or ())) if isinstance(model, GPT) else [model]:
                part.compile()
        self.model = model

    def init_weights(self, model: nn.Module) -> None:
        """Fill an empty model, with random values by (seed, parameter name) or from `init_from`.

        Raises:
            UserError: a third-party part of the model has values that only its own `reset_parameters` can fill.
        """
        _reset_foreign_parts(model, self.seed)
        if isinstance(model, GPT):
            model.init_weights(self.seed)
        if self._source is None:
            return
        # On a resume the checkpoint replaces all weights, so those of `init_from` are not read, except with an adapter,
        # whose checkpoint does not contain the base. `_trainer` because `trainer` raises without one (in a notebook).
        resumes = self._trainer is not None and self._trainer.ckpt_path is not None
        if resumes and self.adapter is None:
            return
        self.load_source(model)
        if self._adapter is not None and self.device_mesh is not None and not next(model.parameters()).is_meta:
            init_adapter(model, self.seed)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a module with the weights of a checkpoint, a run or a bundle, ready to use without a Trainer.

        Args:
            checkpoint_path: a `step-*.ckpt` folder, or anything else that `init_from` accepts.
            args: unused; Lightning's `map_location` and `hparams_file` are ignored.
            kwargs: arguments of the module; architecture and weights come from the checkpoint.
        """
        for name in ("map_location", "hparams_file", "strict", "weights_only"):
            kwargs.pop(name, None)
        module = cls(**(kwargs | {"init_from": str(checkpoint_path)}))
        module.configure_model()
        return module.eval()

    def load_source(self, model: nn.Module) -> None:
        """Fill a model with the weights of `init_from`.

        Raises:
            UserError: a weight is missing or has another shape.
        """
        assert self._source is not None
        self._check_builder(self._source.builder, str(self._source.path))
        if next(model.parameters()).is_meta:  # a plan's simulation has shapes alone
            return
        weights = self._source.load_state_dict()
        if self._adapter is not None:
            self._adapter.note_base(weights)
        for own_name, tensor in (*model.named_parameters(), *model.named_buffers()):
            name = base_name(own_name)
            if name is None:
                continue
            if name not in weights and (name in self.new_weights or self._is_new_mtp_block(name)):
                continue  # keep the random values of `init_weights`
            if name not in weights:
                raise UserError(f"{self._source.path}: no weight named {name}; does it have another architecture?")
            value = weights[name]
            if self.grows_vocabulary and name in VOCABULARY_WEIGHTS:
                value = with_new_tokens(value, self.config.vocab_size, self.seed)
            _copy_into(tensor, value)

    def _check_builder(self, builder: Mapping[str, Any] | None, where: str) -> None:
        if builder is not None and builder["class"] not in map(class_path, type(self).__mro__):
            raise UserError(
                f"{where} has parts that {builder['class']} builds, which {type(self).__name__} does not have; use "
                "that class, or a subclass of it"
            )

    def _is_new_mtp_block(self, name: str) -> bool:
        """Return whether a weight is in a multi-token-prediction block that the source does not have."""
        assert self._source is not None
        kind, _, rest = name.partition(".")
        return kind == "multi_token" and int(rest.split(".")[0]) >= self._source.config.multi_token

    def forward(self, batch: Batch, head_fn: HeadFn | None = None, mtp_head_fns: Sequence[HeadFn] = ()) -> Any:
        """Run the model on a batch; see `GPT.forward`. In training, mixture-of-experts routing is recorded.

        Raises:
            UserError: a pipeline's model is called outside of `loss`.
        """
        assert self.model is not None
        model: nn.Module = self.model
        options: dict[str, Any] = {}  # only what is needed: a custom model may lack the other arguments
        if self._pipeline is not None:
            if self._running_stage is None or self._running_stage[1] is not batch:
                raise UserError(
                    f"{type(self).__name__} runs the model outside of its loss, which a pipeline does not support; set "
                    "pipeline: 1 of the strategy"
                )
            model, _, options["hidden"] = self._running_stage
        if mtp_head_fns:
            options["mtp_head_fns"] = mtp_head_fns
        if self._routers is not None and self.training and "labels" in batch:
            options["routing"] = self._routers.new_record(batch)
        if "sequence" in batch:
            options["sequence"] = batch["sequence"]
        return model(
            batch["input_ids"],
            position_ids=batch.get("position_ids"),
            document_ids=batch.get("document_ids"),
            head_fn=head_fn,
            **options,
        )

    # ---- data and ranks -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Discard the data info of an earlier run; the DataModule's own `setup` has already run."""
        self._data_info = None

    @property
    def data_info(self) -> DataInfo:
        """The DataModule's description of the data, read once per run."""
        if self._trainer is None:  # for example in a notebook; `self.trainer` would raise
            return DataInfo()
        # Not read in `setup`, because a subclass may override it without calling super().
        if self._data_info is None:
            self._data_info = read_data_info(self.trainer)
        return self._data_info

    @property
    def data_parallel_size(self) -> int:
        """Number of ranks that hold different tokens (tensor-parallel ranks hold the same)."""
        return self.data_info.data_parallel.size

    @property
    def data_parallel_rank(self) -> int:
        """Data-parallel rank of this process."""
        return self.data_info.data_parallel.rank

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the data-parallel ranks; a collective that all of them must call."""
        return self.data_info.data_parallel.sum(value)

    def check_tokens(self, source: ModelSource, name: str) -> None:
        """Reject a model whose tokenizer differs from the data's, as far as both are known.

        Raises:
            UserError: token ids mean different tokens.
        """
        data = self.data_info.tokenizer_path
        if data is not None and source.tokenizer_path is not None:
            _check_same_tokens(data, source.tokenizer_path, name)

    # ---- optimizer and schedule ---------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer over named parameter groups, and the schedule in optimizer steps or tokens.

        Raises:
            UserError: the optimizer rejects the model's parameters, or has an invalid learning rate.
        """
        assert self.model is not None
        try:
            optimizer = self.build_optimizer(parameter_groups(self.model))
        except ValueError as error:  # for example plain Muon with vectors; MuonAdamW supports all
            raise UserError(f"the optimizer rejects the model's parameters: {error}") from error
        check_learning_rates(optimizer)
        self._configured_groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        tokens_per_step = self.data_info.tokens_per_step
        total = self.max_tokens if self.schedule.counts_tokens else self._total_steps()

        def factor(step: int) -> float:
            # The current step counts as completed up to its last token, so that the first step does not train at nearly
            # 0.
            now = self.tokens_seen + (tokens_per_step or 1) - 1 if self.schedule.counts_tokens else step
            return self.schedule.factor(now, total)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ScheduledLR(optimizer, factor), "interval": "step"},
        }

    def _total_steps(self) -> int | None:
        """Return the number of optimizer steps of the whole run, from whichever limit the user set."""
        limits = []
        if self.max_tokens is not None and self.data_info.tokens_per_step is not None:
            limits.append(-(-self.max_tokens // self.data_info.tokens_per_step))
        if self.trainer.max_steps >= 0:
            limits.append(self.trainer.max_steps)
        if self.trainer.max_epochs not in (None, -1) and self.schedule.needs_total:
            # Lightning builds the training loader to compute this number. The loader must be rebuilt afterwards,
            # because the position in a checkpoint is given only to a loader that is built after the checkpoint's loops
            # are restored.
            steps_per_run = self.trainer.estimated_stepping_batches
            self.trainer.fit_loop._combined_loader = None
            limits.append(int(steps_per_run))
        return min(limits) if limits else None

    def _restore_configured_settings(self) -> None:
        """Override a checkpoint's optimizer settings with the YAML's, and print what changed."""
        for group, configured in zip(self.trainer.optimizers[0].param_groups, self._configured_groups, strict=False):
            for key, value in configured.items():
                if key in ("lr", "initial_lr"):  # already set by `ScheduledLR`
                    continue
                if group.get(key) != value:
                    name = configured.get("name", "the optimizer")
                    self.print(f"resume: {key} of {name} is {value} (the checkpoint had {group.get(key)})")
                    group[key] = value

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: `training_step` clears the gradients before the first micro-batch.

        Lightning calls this between `training_step` and the backward pass of the loss that it returned, which would
        discard the gradients of all micro-batches but the last.
        """

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as configured in the Trainer, also in bf16-mixed with a fused optimizer.

        Lightning refuses to clip for an optimizer that can unscale gradients itself, as fused ones can, even if there
        is no gradient scaler.
        """
        precision = self.trainer.precision_plugin
        by_norm = gradient_clip_algorithm in (None, GradClipAlgorithmType.NORM)
        if (
            self.device_mesh is not None
            and gradient_clip_val
            and by_norm
            and getattr(precision, "scaler", None) is None
        ):
            # torch's function, which Lightning calls, does not support the several meshes of a mixture's parameters.
            norm = self._gradient_norm(optimizer)
            clip_gradients(parameters_of(optimizer), float(gradient_clip_val), norm)
        elif isinstance(precision, MixedPrecision) and precision.scaler is None and gradient_clip_val:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _gradient_norm(self, optimizer: Optimizer) -> Tensor:
        """Return the norm of all gradients, of every process and stage."""
        parameters = parameters_of(optimizer)
        return total_norm(parameters) if self._pipeline is None else self._pipeline.gradient_norm(parameters)

    # ---- one optimizer step -------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Check the processes and mend Lightning's progress bar; it adds no callback.

        Of all hooks, only this one runs before the processes of a run wait for one another.

        Raises:
            UserError: see `lit_gpt.plugins.strategy.check_processes`.
        """
        check_processes(self.trainer, self._unset_node_variables)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RichProgressBar) and self.trainer.max_epochs == -1:
                # Lightning before 2.7 shows a run without a limit of epochs as "Epoch 0/-2" (its issue 21925).
                setattr(callback, "_get_train_description", "Epoch {:<4}".format)  # noqa: B010
        return []

    def on_fit_start(self) -> None:
        """Reject data whose tokens differ from those of the weights that the run starts from.

        Raises:
            UserError: the DataModule's tokenizer differs from that of `init_from`.
        """
        # Metrics created under `trainer.validate` hold inference tensors, which training must not modify.
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()
        self._evaluation_sums.clear()
        if self._source is not None:
            self.check_tokens(self._source, str(self.init_from))

    def _check_accumulation(self) -> None:
        # Set by an argument of any Trainer, or changed during the run by a callback.
        count = self.trainer.accumulate_grad_batches
        if count != 1:
            raise UserError(
                f"accumulate_grad_batches is {count}; it must be 1, because a batch contains all micro-batches of an "
                "optimizer step: set global_batch_size and micro_batch_size of the DataModule instead"
            )

    def on_train_start(self) -> None:
        """Apply the YAML's optimizer settings, restore the sums of a checkpoint, and print the model's size."""
        self._restore_configured_settings()
        self._loss_sums = torch.zeros(3, dtype=torch.float32, device=self.device)
        self._train_sums.clear()
        self._logged_step, self._has_logged, self._prints_products = self.trainer.global_step, False, True
        loss_sums, named_sums = self._loaded_sums
        if self.trainer.is_global_zero:  # already summed over ranks when saved, so only rank 0 restores them
            self._train_sums.load(named_sums)
            if loss_sums is not None:
                self._loss_sums += torch.tensor(loss_sums, device=self.device)
        self._loaded_sums = None, {}
        self._stop_at_max_tokens()
        if self.trainer.should_stop and self.max_tokens is not None and self.tokens_seen >= self.max_tokens:
            self.print(f"nothing to train: {self.tokens_seen:,} tokens seen, and max_tokens is {self.max_tokens:,}")
        assert self.model is not None
        trained, count = trainable_counts(self.model)
        if self._pipeline is not None:
            trained, count = self._pipeline.num_trained, self._pipeline.num_parameters
        share = "" if trained == count else f", {trained / 1e6:,.2f} M ({trained / count:.1%}) trainable"
        self.print(f"model: {count / 1e6:,.2f} M parameters{share}")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of (seed, optimizer step, data-parallel rank), so that a resumed run repeats it.

        The stages of a pipeline draw different numbers, or the same channels would be dropped in all of them.
        """
        self._check_accumulation()
        stage = f" {self._pipeline.rank}" if self._pipeline is not None else ""
        key = f"{self.seed} {self.trainer.global_step} {self.data_parallel_rank}{stage}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "little")
        # Not torch.manual_seed: it seeds every kind of device, at 0.4 ms per call on a machine without any.
        torch.default_generator.manual_seed(seed)
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).manual_seed(seed)

    def training_step(self, batch: StepBatch | Batch, batch_idx: int) -> Tensor:
        """Accumulate the gradient of one optimizer step: the mean loss over all of its tokens.

        Why not `accumulate_grad_batches`: Lightning averages the micro-batches' mean losses, so that a token in a
        micro-batch with few supervised tokens would weigh more than one in a full micro-batch, and the gradient would
        depend on how a step is split. Here all micro-batches are known, so the sums can be divided by the step's total.

        Args:
            batch: the micro-batches of this rank, or a single one.
            batch_idx: unused.

        Returns:
            () the last micro-batch's share of the loss, which Lightning backpropagates, including the strategy's
            gradient synchronization, clipping, the optimizer and all hooks.
        """
        micro_batches = batch if isinstance(batch, list) else [batch]
        self.trainer.optimizers[0].zero_grad()
        num_units = self._count_step(micro_batches)
        if self._routers is not None:
            self._routers.begin_step()
        # Data-parallel strategies average gradients over ranks, but the ranks' losses are shares of one sum: the factor
        # `data_parallel_size` undoes the averaging. A step without supervised tokens has loss 0 instead of 0 / 0.
        scale = self.data_parallel_size / num_units.clamp(min=1)
        if self._pipeline is not None:
            loss = self._pipeline.step(micro_batches, partial(self._stage_loss, scale=scale))
            self._stop_at_max_tokens()
            # The schedule has run the backward passes, so Lightning's must do nothing: it gets a leaf, without a graph.
            return (torch.zeros((), device=self.device) if loss is None else loss).requires_grad_()
        # Backward passes inside the step: each micro-batch's graph is freed before the next forward, so memory is that
        # of one micro-batch. They accumulate on this rank only (`block_backward_sync`: DDP's `no_sync`, FSDP2's
        # `set_requires_gradient_sync(False)`); gradients are summed over ranks once, in the backward pass of the
        # returned loss.
        no_sync = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        with no_sync():
            for micro_batch in micro_batches[:-1]:
                self.trainer.strategy.backward(self._micro_batch_loss(micro_batch) * scale, None)
        loss = self._micro_batch_loss(micro_batches[-1]) * scale
        self._stop_at_max_tokens()
        return loss

    def _stage_loss(self, part: GPT, micro_batch: Batch, hidden: Tensor | None, scale: Tensor) -> Tensor:
        """Run one stage of a pipeline on a micro-batch: return the hidden states that leave it, or the scaled loss."""
        with self._stage(part, micro_batch, hidden):
            if part.lm_head is not None:
                return self._micro_batch_loss(micro_batch) * scale
            x = self(micro_batch)
        router_loss = None if self._routers is None else self._routers.take_loss()
        if router_loss is None or not router_loss.requires_grad:  # no mixture of experts in this stage
            return x
        self.log_sum("router_loss", router_loss, 0)  # the last stage counts the tokens
        return add_loss(x, router_loss * scale)

    @contextmanager
    def _stage(self, part: GPT, batch: Batch, hidden: Tensor | None) -> Iterator[None]:
        """Let `forward` run one stage of a pipeline on this batch."""
        self._running_stage = part, batch, hidden
        try:
            yield
        finally:
            self._running_stage = None

    def _micro_batch_loss(self, micro_batch: Batch) -> Tensor:
        """Return the summed loss of a micro-batch, and add it to the logged sums."""
        token_loss = self.loss(micro_batch)
        loss, num_units = token_loss.loss, self.num_units(micro_batch)
        for name, part in token_loss.parts.items():
            self.log_sum(name, part, num_units)
        router_loss = None if self._routers is None else self._routers.take_loss()
        if router_loss is not None:
            loss = loss + router_loss
            self.log_sum("router_loss", router_loss, num_units)
        assert self._loss_sums is not None
        self._loss_sums[0] += token_loss.cross_entropy.detach()
        self._loss_sums[1] += num_units
        if "num_bytes" in micro_batch:
            self._loss_sums[2] += micro_batch["num_bytes"].sum()
        return loss

    def _count_step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Return the units of a step's loss over all ranks, and add the step's tokens to `tokens_seen`."""
        num_units = torch.stack([self.num_units(micro_batch) for micro_batch in micro_batches]).sum()
        ranks, own, counted = self.data_info.data_parallel, 0, 0
        for micro_batch in micro_batches:
            ids, sequence = micro_batch["input_ids"], micro_batch.get("sequence")
            # Of divided rows: the whole ones, without the padding that makes them divisible.
            tokens = ids.numel() if sequence is None else len(ids) * sequence.num_read
            own += tokens if sequence is None or sequence.rank == 0 else 0
            counted += tokens * ranks.size // (1 if sequence is None else sequence.size)
        if ranks.size > 1 and self.data_info.tokens_per_step is None:
            # Rows of different lengths: the ranks must agree on the number, or they would stop at different steps.
            sums = ranks.sum(torch.stack([num_units, num_units.new_tensor(own)]))
            num_units, counted = sums[0], int(sums[1])
        else:  # all ranks have the same number, so that the host need not wait for the device
            num_units = ranks.sum(num_units)
        self.tokens_seen += counted
        return num_units

    def _stop_at_max_tokens(self) -> None:
        # Set before the step's callbacks run, so that the checkpoint callback knows that this step is the last one.
        if self.max_tokens is not None and self.tokens_seen >= self.max_tokens:
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Record the gradient norm before clipping and the learning rates, and update the routers' selection biases."""
        if self.logs_after_this_step:
            self._step_values = {
                f"optim/lr_{group.get('name', i)}": group["lr"] for i, group in enumerate(optimizer.param_groups)
            }
            if self._pipeline is not None:  # other stages have other groups: the first has no head
                self._step_values = self._pipeline.union(self._step_values)
            self._step_values["optim/grad_norm"] = self._gradient_norm(optimizer)
        # `NonFiniteGuard` sets gradients to None to skip a step; then the biases must not change either.
        if self._routers is not None and any(p.grad is not None for p in optimizer.param_groups[0]["params"]):
            assert self.model is not None
            measures = self._routers.finish_step(self.model, self.data_info.data_parallel, self.logs_after_this_step)
            self._step_values |= {f"router/{name}": value for name, value in measures.items()}

    # ---- logging ------------------------------------------------------------------------------------------------

    def log_sum(self, name: str, value: Tensor | float, count: Tensor | float) -> None:
        """Log a mean: the sum of `value` divided by the sum of `count`.

        Call it in `loss` or anywhere in a step. In training the sums run over the micro-batches, steps and ranks since
        the last log entry, and `train/<name>` is written with the next one; in validation and test they run over
        the whole split (`val/<name>`, `test/<name>`). The device is not synchronized before that. The sums are part of
        a checkpoint, so that a resumed run logs the same values as an uninterrupted one. A name whose count is 0 is not
        logged.

        Args:
            name: name of the metric, without the stage.
            value: () sum over the counted items; detached here.
            count: () number of items in the sum: tokens, pairs, completions.

        Example:
            >>> self.log_sum("entropy", entropies.sum(), entropies.numel())  # doctest: +SKIP
        """
        (self._train_sums if self.training else self._evaluation_sums).add(name, value, count)

    @property
    def logs_after_this_step(self) -> bool:
        """Return whether the current optimizer step is logged; expensive measurements are made only then."""
        return self._logs_at(self.trainer.global_step + 1)

    def _logs_at(self, step: int) -> bool:
        every = int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        return every > 0 and step % every == 0  # 0: never, as with `barebones: true`

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the sums accumulated on the device, every `trainer.log_every_n_steps` optimizer steps."""
        if self._prints_products and (products := chosen_products()) is not None:
            self.print(products)
        self._prints_products = False
        self._log_step()
        if self._logs_at(self.trainer.global_step) and "train/loss" in self._step_values:
            self.log("train/loss", self._step_values["train/loss"], logger=False, prog_bar=True)

    def _log_step(self) -> None:
        """Log the step if it is due and has not been logged.

        A checkpoint of the step is saved before the module's own `on_train_batch_end`. It calls this first, so that it
        does not contain sums that this step logs: a resumed run would log them again.
        """
        step = self.trainer.global_step
        if self._logs_at(step) and step != self._logged_step:
            self._logged_step, self._has_logged = step, True
            self._step_values |= self._pop_train_metrics()
            self._log_now(self._step_values)

    def on_train_end(self) -> None:
        """Log once in a run that is shorter than the interval."""
        # A checkpoint of this step was saved before and has the sums, so that a resumed run still logs them in full.
        if int(self.trainer.log_every_n_steps) > 0 and not self._has_logged:  # type: ignore[attr-defined]
            self._log_now(self._pop_train_metrics())

    def _pop_train_metrics(self) -> dict[str, float]:
        """Return the training metrics since the last call, over all ranks; all must call it."""
        assert self._loss_sums is not None
        sums = self.data_info.data_parallel.total(self._loss_sums).tolist()
        self._loss_sums.zero_()
        # No supervised token, as in GRPO where all rewards of every group are equal: there is no loss.
        measures = self._reported(language_modeling_metrics(*sums)) if sums[1] else {}
        measures |= self._train_sums.pop_means(self.data_info.data_parallel, self.device)
        return {f"train/{name}": value for name, value in measures.items()}

    def _log_now(self, values: Mapping[str, Any]) -> None:
        """Write to the loggers directly, without Lightning's per-step bookkeeping."""
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.trainer.global_step)

    def _reported(self, measures: dict[str, float]) -> dict[str, float]:
        """Return only the loss if it is not that of a language model."""
        return measures if self.is_language_model_loss else {"loss": measures["loss"]}

    # ---- validation and test ------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the validation split."""
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation split, and of each corpus if there are several."""
        self._log_evaluation("val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the test split."""
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test split, and of each corpus if there are several."""
        self._log_evaluation("test", self.test_metrics)

    def _evaluate(self, batch: Batch, metrics: LanguageModelingMetrics) -> None:
        num_units = self.num_units(batch)
        num_bytes = batch["num_bytes"].sum() if "num_bytes" in batch else torch.zeros_like(num_units)
        if self._pipeline is None:
            token_loss = self.evaluation_loss(batch)
        else:
            token_loss = self._pipeline.evaluate(batch, self._stage_evaluation)
            if token_loss is None:  # the rank with the last stage counts the batch
                num_units, num_bytes = torch.zeros_like(num_units), torch.zeros_like(num_bytes)
                token_loss = TokenLoss(num_units.float(), num_units.float())
        metrics.update(token_loss.cross_entropy, num_units, num_bytes)
        for name, part in token_loss.parts.items():
            self.log_sum(name, part, num_units)
        if "corpus" in batch:
            name = batch["corpus"]
            if name not in self._corpus_metrics:
                self._corpus_metrics[name] = LanguageModelingMetrics().to(self.device)
            self._corpus_metrics[name].update(token_loss.cross_entropy, num_units, num_bytes)

    def _stage_evaluation(self, part: GPT, batch: Batch, hidden: Tensor | None) -> Any:
        """Run one stage of a pipeline on an evaluation batch."""
        with self._stage(part, batch, hidden):
            return self(batch) if part.lm_head is None else self.evaluation_loss(batch)

    def _log_evaluation(self, stage: str, metrics: LanguageModelingMetrics) -> None:
        measures = self._reported(metrics.compute()) | self.evaluation_metrics()
        # In a sanity check the names matter (`Preflight` compares monitors with them), also of what has count 0 in it.
        is_trial = self.trainer.sanity_checking
        measures |= self._evaluation_sums.pop_means(self.data_info.data_parallel, self.device, keep_empty=is_trial)
        values = {f"{stage}/{name}": value for name, value in measures.items()}
        metrics.reset()
        for corpus, of_corpus in self._corpus_metrics.items():
            values |= {f"{stage}/{corpus}/{name}": value for name, value in of_corpus.compute().items()}
        self._corpus_metrics.clear()
        self._log_at_step(values)

    def _log_at_step(self, values: Mapping[str, Any]) -> None:
        """Log results of a split at the optimizer step; a checkpoint that is only tested has none here."""
        step = self.trainer.global_step
        self.log_dict({**values, "step": float(step)} if step else values, prog_bar=False)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the model's config and the training position as plain data."""
        ranks = self.data_info.data_parallel
        if self.trainer.training:
            self._log_step()
        checkpoint["lit_gpt"] = {
            "config": self.config.to_dict(),
            "tokens_seen": self.tokens_seen,
            "builder": self.builder,
            "seed": self.seed,
            "precision": self.trainer.precision,
            "kernels": own_choices(),
            "optimizer_names": self._optimizer_names(),
            "train_sums": None if self._loss_sums is None else ranks.total(self._loss_sums).tolist(),
            "named_sums": self._train_sums.totals(ranks, self.device),
        }
        if self._adapter is not None:
            assert self.model is not None
            self._adapter.drop_base(checkpoint, self.model)

    def _optimizer_names(self) -> list[list[str]]:
        """Return the parameters of each optimizer by name, in its order, which depends on the layout of the run."""
        names = {parameter: name.replace("_orig_mod.", "") for name, parameter in self.named_parameters()}
        return [[names[p] for group in o.param_groups for p in group["params"]] for o in self.trainer.optimizers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject a checkpoint of another model, naming the fields that differ, and restore its counts.

        Raises:
            UserError: the checkpoint was not written by lit_gpt, contains another architecture or adapter, or the run
                was started with another seed.
        """
        if "lit_gpt" not in checkpoint:
            raise UserError(
                "the checkpoint was not written by lit_gpt: it has no model configuration; name a "
                "step-*.ckpt folder of a run"
            )
        saved, here = checkpoint["lit_gpt"]["config"], self.config.to_dict()
        different = [
            f"{name} is {here.get(name)} here and {saved.get(name)} in the checkpoint"
            for name in sorted(saved.keys() | here.keys())
            if saved.get(name) != here.get(name)
        ]
        if different:
            raise UserError(
                "the checkpoint contains another model: " + "; ".join(different) + ". Give the model those values, or "
                "start a new run from its weights with model.init_args.init_from"
            )
        self._check_builder(checkpoint["lit_gpt"].get("builder"), "the checkpoint")
        check_same_adapter(checkpoint["lit_gpt"].get("adapter"), self._adapter)
        if self.trainer.training and checkpoint["lit_gpt"]["seed"] != self.seed:
            started = checkpoint["lit_gpt"]["seed"]
            raise UserError(
                f"the run was started with seed {started}, not {self.seed}; set seed_everything: {started} to resume "
                "it, or start a new run from the weights (init_from)"
            )
        started_in = checkpoint["lit_gpt"].get("precision", self.trainer.precision)
        if getattr(self.trainer, "chooses_precision", False) and started_in != self.trainer.precision:
            raise UserError(
                f"precision auto is {self.trainer.precision} here, and the checkpoint is of a run in {started_in}; set "
                f"trainer.precision: {started_in}"
            )
        restore_choices(checkpoint["lit_gpt"].get("kernels", {}))
        self.tokens_seen = checkpoint["lit_gpt"]["tokens_seen"]
        self._loaded_sums = checkpoint["lit_gpt"]["train_sums"], checkpoint["lit_gpt"]["named_sums"]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; an adapter's checkpoint contains exactly the trained ones.

        Raises:
            UserError: a trained weight is missing, or there are unexpected weights.
        """
        # `ddp_notebook`, `ddp_fork` and `ddp_spawn` build and train the model in other processes, and then load its
        # weights into the module of this one, which has no model so far (not strictly, so that they would be dropped).
        self.configure_model()
        if self._adapter is None or self.model is None:
            return super().load_state_dict(state_dict, strict, assign)
        result = super().load_state_dict(state_dict, False, assign)
        if strict:
            self._adapter.check_loaded(result, self.model)
        return result


# ---- sums that are logged as means ------------------------------------------------------------------------------


class NamedSums:
    """Named sums and their counts, accumulated on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, name: str, value: Tensor | float, count: Tensor | float) -> None:
        """Add to a sum and to its count, without synchronizing the device."""
        value, count = (x.detach() if isinstance(x, Tensor) else x for x in (value, count))
        if name in self._sums:
            total, number = self._sums[name]
            value, count = total + value, number + count
        self._sums[name] = value, count

    def totals(self, ranks: DataParallel, device: torch.device) -> dict[str, tuple[float, float]]:
        """Return (sum, count) by name, over all ranks and stages; all must call it, but their names may differ."""
        names = ranks.union(self._sums, device)
        if not names:
            return {}
        pairs = [[torch.as_tensor(x, dtype=torch.float32) for x in self._sums.get(name, (0.0, 0.0))] for name in names]
        table = torch.stack([x.to(device) for pair in pairs for x in pair])  # (2 n,)
        values = ranks.total(table).tolist()
        return {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(names)}

    def pop_means(self, ranks: DataParallel, device: torch.device, keep_empty: bool = False) -> dict[str, float]:
        """Return sum / count by name, over all ranks, and reset; names with a count of 0 are skipped, or NaN."""
        totals = self.totals(ranks, device)
        self.clear()
        return {
            name: total / count if count else math.nan for name, (total, count) in totals.items() if count or keep_empty
        }

    def load(self, totals: Mapping[str, tuple[float, float]]) -> None:
        """Restore the result of `totals`, on one rank only, because it is already summed over all of them."""
        self._sums = {name: (total, count) for name, (total, count) in totals.items()}

    def clear(self) -> None:
        """Reset all sums."""
        self._sums = {}


# ---- models with third-party parts ------------------------------------------------------------------------------


def _builder_of(kind: type[GPTModule], frame: FrameType | None) -> dict[str, Any] | None:
    """Describe a class that builds a custom model, so that a checkpoint can name it.

    Args:
        kind: class of the module.
        frame: frame of `GPTModule.__init__`, whose callers are the constructors of the subclasses.

    Returns:
        `class`: its import path; `arguments`: its constructor's arguments beyond `GPTModule`'s;
        `not_saved`: the names of those that are not plain data. None: the class builds a plain `GPT`.
    """
    methods = (kind.build_model, kind.configure_model)
    if all(method.__module__.partition(".")[0] == __name__.partition(".")[0] for method in methods):
        return None
    assert frame is not None  # None only in a Python without stack frames
    given: dict[str, Any] = {}
    for arguments in collect_init_args(frame, [], classes=(GPTModule,)):
        given |= arguments
    plain: dict[str, Any] = {}
    not_saved = []
    for name in sorted(given.keys() - inspect.signature(GPTModule.__init__).parameters):
        try:
            plain[name] = json.loads(json.dumps(given[name], allow_nan=False))
        except (TypeError, ValueError):
            not_saved.append(name)
    return {"class": class_path(kind), "arguments": plain, "not_saved": not_saved}


def _reset_foreign_parts(model: nn.Module, seed: int) -> None:
    """Let third-party parts of the model fill what `GPT.init_weights` does not fill after the meta device.

    These are the buffers of a GPT's replaced parts, and all values of a model of another class.
    """
    with isolate_rng():
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            empty = [] if isinstance(module, Router) else list(module.named_buffers(recurse=False))
            if not isinstance(model, GPT):
                empty += module.named_parameters(recurse=False)
            if not empty:
                continue
            if not hasattr(module, "reset_parameters"):
                raise UserError(
                    f"{name or 'the model'} is a {type(module).__name__}, whose {empty[0][0]} is lost because models "
                    "are built on the meta device: give it a method reset_parameters() that fills it"
                )
            module.reset_parameters()


# ---- starting from existing weights -----------------------------------------------------------------------------

WEIGHTLESS = {
    "attention_scale",
    "attention_softcap",
    "chunked_window",
    "dropout",
    "embedding_scale",
    "init_std",
    "layer_windows",
    "logit_scale",
    "logit_softcap",
    "multi_token",
    "norm_eps",
    "residual_scale",
    "rope_fraction",
    "rope_layers",
    "rope_local_theta",
    "rope_scaling",
    "rope_theta",
    "scale_residual_init",
    "sliding_window",
}
"""Fields of `GPTConfig` that do not determine weights, or (`multi_token`) whose weights may start at random."""
WEIGHTLESS_MOE = {
    "balance_loss_weight",
    "bias_update_rate",
    "norm_topk_prob",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "topk_group",
    "z_loss_weight",
}
"""Fields of `MoEConfig` that do not determine weights."""


def _fit_to_weights(
    config: GPTConfig, overrides: dict[str, Any], vocab_size: int | None, block_size: int | None
) -> GPTConfig:
    """Check the data's sizes against existing weights; only fields that do not determine weights may be overridden."""
    for name, needed in (("vocab_size", vocab_size), ("block_size", block_size)):
        if needed is not None and needed > getattr(config, name):
            raise UserError(
                f"the data needs {name} {needed}, but the weights of init_from have {getattr(config, name)}; "
                "use the tokenizer and context of that model"
            )
    moe = overrides.get("moe")
    fixed = sorted(overrides.keys() - WEIGHTLESS)
    if moe and WEIGHTLESS_MOE.issuperset(moe):
        fixed.remove("moe")
    if fixed:
        raise UserError(
            f"overrides {', '.join(fixed)} would not fit the weights of init_from; only "
            f"{', '.join(sorted(WEIGHTLESS))}, and of moe {', '.join(sorted(WEIGHTLESS_MOE))}, may differ from them"
        )
    return config.overridden(overrides)


@torch.no_grad()
def _copy_into(parameter: Tensor, value: Tensor) -> None:
    """Copy a complete tensor into a parameter that may be sharded: each process copies its own shard."""
    if parameter.shape != value.shape:
        raise UserError(f"a weight has shape {tuple(value.shape)} but the model's has {tuple(parameter.shape)}")
    if isinstance(parameter, DTensor):
        # src_data_rank=None: every process has read the complete value, so nothing is communicated.
        value = distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    # In place: DDP, FSDP2 and fused optimizers keep references to the parameter's memory and its layout.
    parameter.copy_(value)


def _warn_if_not_exportable(config: GPTConfig) -> None:
    """Warn before the first step about what would make `export` fail after the last."""
    try:
        config_to_hf(config)
    except UserError as error:
        rank_zero_warn(f"this model could not be exported to Hugging Face: {error}")


def _check_same_tokens(data: Path, model: Path, name: str) -> None:
    """Reject data whose token ids differ from the model's; additional tokens on either side are allowed.

    Args:
        data: folder of the data's tokenizer.
        model: folder of the model's tokenizer.
        name: name of the model, for the message.

    Raises:
        UserError: a token has different ids on the two sides, or an id in both stands for different tokens.
    """
    one, other = (load_tokenizer(path).backend.get_vocab(with_added_tokens=True) for path in (data, model))
    different = sum(one[token] != other[token] for token in one.keys() & other.keys())
    # A token that only one side has must not have an id that the other side uses.
    common = min(len(one), len(other))
    different += sum(index < common for token, index in one.items() if token not in other)
    if different:
        raise UserError(
            f"the data's tokenizer is not that of {name}: {different:,} of its {len(one):,} tokens have other ids "
            f"there; set data.init_args.tokenizer to {name}"
        )
