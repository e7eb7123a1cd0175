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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from lit_gpt.adapters import AdapterConfig, add_adapter, trainable_counts, trained_names
from lit_gpt.batch import IGNORE_INDEX, Batch, StepBatch
from lit_gpt.checkpoints.adapters import adapter_info, hash_weights
from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.checkpoints.resolve import ModelSource, resolve_model
from lit_gpt.checkpoints.step import PREFIX
from lit_gpt.errors import UserError
from lit_gpt.evaluation import LanguageModelingMetrics, language_modeling_metrics
from lit_gpt.models import GPT, GPTConfig, GPTConfigOverrides
from lit_gpt.models.head import HeadFn
from lit_gpt.models.parallel import parallelize
from lit_gpt.models.vocabulary import VOCABULARY_WEIGHTS, with_new_tokens
from lit_gpt.modules.router_training import RouterTraining
from lit_gpt.modules.same_tokens import check_same_tokens
from lit_gpt.objectives import TokenLoss
from lit_gpt.optim import Schedule, ScheduledLR, check_learning_rates, parameter_groups

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
"""Fields of `GPTConfig` that hold no weights, or (`multi_token`) weights that may start at random."""
WEIGHTLESS_MOE = {
    "balance_loss_weight",
    "bias_update_rate",
    "norm_topk_prob",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "topk_group",
    "z_loss_weight",
}
"""The same of `MoEConfig`."""


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
        adapter: train a LoRA (DoRA, rsLoRA, QLoRA) beside the frozen weights of `init_from` instead of these;
            checkpoints then hold the adapter alone.
        seed: of the initial weights and of dropout.
    """

    is_language_model_loss = True
    """Whether the loss is nats a token, so that perplexity and bits per byte mean something."""
    new_weights: tuple[str, ...] = ()
    """Weights that an objective adds to the model, and that `init_from` need not have."""
    trains_ahead = False
    """Whether `loss` trains the blocks of the config's `multi_token`; where it does not, none are built."""
    grows_vocabulary = False
    """Whether tokens of the data that the weights of `init_from` lack get rows of their own (post-training: yes)."""

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
        self.init_from = init_from
        if adapter is not None and init_from is None:
            raise UserError("adapter is set but init_from is not: name the model that it is trained beside")
        self.adapter = adapter
        self._base_sha256: str | None = None
        self._source = resolve_model(init_from) if init_from is not None else None
        if self._source is not None:
            config = self._source.config
            if self.grows_vocabulary and vocab_size is not None and vocab_size > config.vocab_size:
                config = config.overridden({"vocab_size": vocab_size})
            self.config = _fit_context(config, dict(overrides or {}), vocab_size, block_size)
        else:
            linked = {"vocab_size": vocab_size, "block_size": block_size}
            given = {name: value for name, value in linked.items() if value is not None}
            self.config = GPTConfig.from_preset(preset, **(given | dict(overrides or {})))
        if self.config.multi_token and (adapter is not None or not self.trains_ahead):
            if (overrides or {}).get("multi_token"):
                raise UserError(
                    f"multi_token is {self.config.multi_token}, but {type(self).__name__} does not train blocks that "
                    "predict further tokens; set it to 0, or use PretrainModule's own loss without an adapter"
                )
            self.config = self.config.overridden({"multi_token": 0})
        _warn_if_not_exportable(self.config)
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
        self._corpus_metrics: dict[str, LanguageModelingMetrics] = {}
        self._train_sums: Tensor | None = None
        self._loaded_sums: list[float] | None = None
        self._step_values: dict[str, Any] = {}
        self._step_losses: dict[str, Tensor] = {}
        self._step_num_tokens: Tensor | None = None
        self._routers = None if self.config.moe is None else RouterTraining(self.config.moe)
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

    def num_units(self, batch: Batch) -> Tensor:
        """Count what the loss of a step is the mean over: supervised tokens, unless an objective says otherwise.

        Returns:
            () int64, on the batch's device.
        """
        return (batch["labels"] != IGNORE_INDEX).sum()

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """The same in validation and test, where an objective may also update metrics of its own."""
        return self.loss(batch)

    def evaluation_metrics(self) -> dict[str, float]:
        """Return and reset an objective's own metrics, at the end of a validation or test."""
        return {}

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
        if self.adapter is not None and self.device_mesh is not None:
            raise UserError("an adapter is trained on one device or with DDP; set trainer.strategy to auto or ddp")
        model.to_empty(device=self.device)
        self.init_weights(model)
        if self.adapter is not None:
            add_adapter(model, self.adapter, self.seed, self._trains_embeddings)
            for name in self.new_weights:
                model.get_parameter(name).requires_grad_(True)
        if self.compile_model:
            # Block by block: all share one compiled graph, and the head's `head_fn` stays plain Python.
            for part in (*model.blocks, *(model.multi_token or ())) if isinstance(model, GPT) else [model]:
                part.compile()
        self.model = model

    def init_weights(self, model: nn.Module) -> None:
        """Fill an empty model: random by (seed, parameter name), or from `init_from`."""
        if isinstance(model, GPT):
            model.init_weights(self.seed)
        if self._source is None or (self.trainer.ckpt_path is not None and self.adapter is None):
            return
        self.load_source(model)

    def load_source(self, model: nn.Module) -> None:
        """Fill a model with the weights of `init_from`."""
        assert self._source is not None
        weights = self._source.load_state_dict()
        if self.adapter is not None:
            self._base_sha256 = hash_weights(weights, self._source.config)
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name not in weights and (name in self.new_weights or self._is_new_ahead(name)):
                    continue  # random, from `init_weights`
                if name not in weights:
                    raise UserError(f"{self._source.path}: no weight named {name}; is it another architecture?")
                value = weights[name]
                if self.grows_vocabulary and name in VOCABULARY_WEIGHTS:
                    value = with_new_tokens(value, self.config.vocab_size, self.seed)
                _copy(tensor, value)

    def _is_new_ahead(self, name: str) -> bool:
        """Whether a weight is that of a further block of `multi_token` than the source has."""
        assert self._source is not None
        kind, _, rest = name.partition(".")
        return kind == "multi_token" and int(rest.split(".")[0]) >= self._source.config.multi_token

    @property
    def _trains_embeddings(self) -> bool:
        """Whether an adapter's run also trains embedding and head: if it is told to, or there are new tokens."""
        assert self.adapter is not None
        assert self._source is not None
        if self.adapter.train_embeddings is not None:
            return self.adapter.train_embeddings
        return self.config.vocab_size > self._source.config.vocab_size

    def forward(self, batch: Batch, head_fn: HeadFn | None = None, ahead_fns: Sequence[HeadFn] = ()) -> Any:
        """Run the model on a batch; see `GPT.forward`. In training, routers of a mixture of experts are recorded."""
        assert self.model is not None
        options: dict[str, Any] = {}
        if ahead_fns:
            options["ahead_fns"] = ahead_fns
        if self._routers is not None and self.training and "labels" in batch:
            options["routing"] = self._routers.new_record(batch)
        return self.model(
            batch["input_ids"],
            position_ids=batch.get("position_ids"),
            document_ids=batch.get("document_ids"),
            head_fn=head_fn,
            **options,
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

    def on_fit_start(self) -> None:
        """Refuse data in other tokens than those of the weights that the run starts from.

        Raises:
            UserError: the DataModule's tokenizer is another than that of `init_from`.
        """
        if self._source is not None:
            self.check_tokens(self._source, str(self.init_from))

    def check_tokens(self, source: ModelSource, name: str) -> None:
        """Refuse a model whose tokenizer is not that of the data, as far as both are known."""
        data = getattr(getattr(self.trainer, "datamodule", None), "tokenizer_path", None)
        if data is not None and source.tokenizer_path is not None:
            check_same_tokens(Path(data), source.tokenizer_path, name)

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
        trained, count = trainable_counts(self.model)
        share = "" if trained == count else f", {trained / 1e6:,.2f} M ({trained / count:.1%}) of them trained"
        self.print(f"model: {count / 1e6:,.2f} M parameters{share}")

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
        num_tokens = self._sum_over_ranks(self._count_units(micro_batches))
        self._step_num_tokens, self._step_losses = num_tokens, {}
        if self._routers is not None:
            self._routers.begin_step()
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
        token_loss = self._with_routers(self.loss(micro_batch))
        for name, part in (("router_loss", token_loss.router), ("ahead_loss", token_loss.ahead)):
            if part is not None:
                self._step_losses[name] = self._step_losses.get(name, 0) + part
        assert self._train_sums is not None
        self._train_sums[0] += token_loss.cross_entropy.detach()
        self._train_sums[1] += self.num_units(micro_batch)
        if "num_bytes" in micro_batch:
            self._train_sums[2] += micro_batch["num_bytes"].sum()
        self.tokens_seen += micro_batch["input_ids"].numel() * self.data_parallel_size
        return token_loss.loss

    def _with_routers(self, token_loss: TokenLoss) -> TokenLoss:
        """The loss of a micro-batch, and what its routers add to it."""
        extra = None if self._routers is None else self._routers.take_loss()
        if extra is None:
            return token_loss
        return token_loss._replace(loss=token_loss.loss + extra, router=extra.detach())

    def _count_units(self, micro_batches: Iterable[Batch]) -> Tensor:
        return torch.stack([self.num_units(micro_batch) for micro_batch in micro_batches]).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note the gradient norm, before the Trainer clips, and the learning rates of a step that will be logged.

        Routers' selection biases move here, with the optimizer's step; a step whose gradients were dropped leaves them.
        """
        if self._logs_after_this_step:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            self._step_values = {
                f"optim/lr_{group.get('name', i)}": group["lr"] for i, group in enumerate(optimizer.param_groups)
            }
            self._step_values["optim/grad_norm"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
            for name, part in self._step_losses.items():
                assert self._step_num_tokens is not None
                self._step_values[f"train/{name}"] = self._sum_over_ranks(part) / self._step_num_tokens
        if self._routers is not None and any(p.grad is not None for p in optimizer.param_groups[0]["params"]):
            assert self.model is not None
            measures = self._routers.finish_step(self.model, self._sum_over_ranks, self._logs_after_this_step)
            self._step_values |= {f"router/{name}": value for name, value in measures.items()}

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
            measures = self._reported(language_modeling_metrics(*sums))
            values = {f"train/{name}": value for name, value in measures.items()}
            self._log_now(values | self._step_values)
            self.log("train/loss", values["train/loss"], logger=False, prog_bar=True)

    def _log_now(self, values: dict[str, Any]) -> None:
        """Write to the loggers without Lightning's per-step bookkeeping."""
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.trainer.global_step)

    # ---- evaluation -------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch, metrics: LanguageModelingMetrics) -> None:
        num_tokens = self.num_units(batch)
        num_bytes = batch["num_bytes"].sum() if "num_bytes" in batch else torch.zeros_like(num_tokens)
        loss_sum = self.evaluation_loss(batch).cross_entropy
        metrics.update(loss_sum, num_tokens, num_bytes)
        if "corpus" in batch:
            name = batch["corpus"]
            if name not in self._corpus_metrics:
                self._corpus_metrics[name] = LanguageModelingMetrics().to(self.device)
            self._corpus_metrics[name].update(loss_sum, num_tokens, num_bytes)

    def _reported(self, measures: dict[str, float]) -> dict[str, float]:
        """The loss alone, where it is not that of a language model."""
        return measures if self.is_language_model_loss else {"loss": measures["loss"]}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the validation split."""
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole validation split, and of each corpus of several."""
        self._log_evaluation("val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the test split."""
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole test split, and of each corpus of several."""
        self._log_evaluation("test", self.test_metrics)

    def _log_evaluation(self, stage: str, metrics: LanguageModelingMetrics) -> None:
        measures = self._reported(metrics.compute()) | self.evaluation_metrics()
        values = {f"{stage}/{name}": value for name, value in measures.items()}
        metrics.reset()
        for corpus, of_corpus in self._corpus_metrics.items():
            values |= {f"{stage}/{corpus}/{name}": value for name, value in of_corpus.compute().items()}
        self._corpus_metrics.clear()
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
        if self.adapter is not None:
            assert self.model is not None
            assert self._base_sha256 is not None
            checkpoint["lit_gpt"]["adapter"] = adapter_info(self.adapter, str(self.init_from), self._base_sha256)
            trained = {f"{PREFIX}{name}" for name in trained_names(self.model)}
            weights = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in weights.items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of an adapter's checkpoint are the trained ones alone, and all of them."""
        if self.adapter is None or self.model is None:
            return super().load_state_dict(state_dict, strict, assign)
        result = super().load_state_dict(state_dict, False, assign)
        trained = {f"{PREFIX}{name}" for name in trained_names(self.model)}
        wrong = sorted(trained.intersection(result.missing_keys)) + result.unexpected_keys
        if strict and wrong:
            raise UserError(f"the checkpoint's adapter does not fit this one: {', '.join(wrong[:5])}")
        return result

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
        self._check_adapter(checkpoint["lit_gpt"].get("adapter"))
        if self.trainer.training and checkpoint["lit_gpt"]["seed"] != self.seed:
            raise UserError(f"the run was started with seed {checkpoint['lit_gpt']['seed']}, not {self.seed}")
        self.tokens_seen = checkpoint["lit_gpt"]["tokens_seen"]
        self._loaded_sums = checkpoint["lit_gpt"]["train_sums"]

    def _check_adapter(self, saved: dict[str, Any] | None) -> None:
        mine = None if self.adapter is None else self.adapter.to_dict()
        theirs = None if saved is None else saved["config"]
        if mine != theirs:
            raise UserError(f"the checkpoint's adapter is {theirs}, this run's is {mine}; give the module the same one")
        if saved is not None and self._base_sha256 is not None and saved["base_sha256"] != self._base_sha256:
            raise UserError(
                f"the checkpoint's adapter was trained beside {saved['base']}, whose weights were others than those of "
                f"{self.init_from} now (SHA-256 {saved['base_sha256'][:12]}..., not {self._base_sha256[:12]}...)"
            )


def _warn_if_not_exportable(config: GPTConfig) -> None:
    """Say before the first step what `export` would say after the last."""
    try:
        config_to_hf(config)
    except UserError as error:
        rank_zero_warn(f"this model could not be exported to Hugging Face: {error}")


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
def _copy(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter that may be sharded."""
    if parameter.shape != value.shape:
        raise UserError(f"a weight has shape {tuple(value.shape)} where the model has {tuple(parameter.shape)}")
    if isinstance(parameter, DTensor):
        value = distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    parameter.copy_(value)
