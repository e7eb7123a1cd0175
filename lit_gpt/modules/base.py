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
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_gpt.adapters import AdapterConfig, trainable_counts
from lit_gpt.batch import Batch, StepBatch
from lit_gpt.checkpoints.resolve import ModelSource, resolve_model
from lit_gpt.errors import UserError
from lit_gpt.evaluation import language_modeling_metrics
from lit_gpt.models import GPT, GPTConfig, GPTConfigOverrides
from lit_gpt.models.head import HeadFn
from lit_gpt.models.parallel import parallelize
from lit_gpt.models.vocabulary import VOCABULARY_WEIGHTS, with_new_tokens
from lit_gpt.modules.adapted import AdapterMixin
from lit_gpt.modules.evaluated import EvaluationMixin
from lit_gpt.modules.optimized import OptimizationMixin
from lit_gpt.modules.router_training import RouterTraining
from lit_gpt.modules.same_tokens import check_same_tokens
from lit_gpt.modules.starting_weights import copy_whole, fit_context, warn_if_not_exportable
from lit_gpt.objectives import TokenLoss
from lit_gpt.optim import Schedule


class GPTModule(AdapterMixin, OptimizationMixin, EvaluationMixin):
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

    trains_ahead = False
    """Whether `loss` trains the blocks of the config's `multi_token`; where it does not, none are built."""
    try_it = "generate --model {run} --prompt {prompt}"
    """Words of the command that shows what a trained model does; printed at the end of a run."""
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
        super().__init__(adapter, init_from)
        self._source = resolve_model(init_from) if init_from is not None else None
        if self._source is not None:
            config = self._source.config
            if self.grows_vocabulary and vocab_size is not None and vocab_size > config.vocab_size:
                config = config.overridden({"vocab_size": vocab_size})
            self.config = fit_context(config, dict(overrides or {}), vocab_size, block_size)
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
        warn_if_not_exportable(self.config)
        self._init_optimization(optimizer, schedule, max_tokens)
        self.activation_checkpointing = activation_checkpointing
        self.compile_model = compile
        self.seed = seed
        self.model: nn.Module | None = None
        self._train_sums: Tensor | None = None
        self._loaded_sums: list[float] | None = None
        self._step_values: dict[str, Any] = {}
        self._step_losses: dict[str, Tensor] = {}
        self._step_num_tokens: Tensor | None = None
        self._routers = None if self.config.moe is None else RouterTraining(self.config.moe)

    # ---- what a subclass replaces -----------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """Make the model on the device in force (the meta device), with no weights yet."""
        return GPT(self.config)

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
        self._add_adapter(model)
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
        self._note_base(weights)
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name not in weights and (name in self.new_weights or self._is_new_ahead(name)):
                    continue  # random, from `init_weights`
                if name not in weights:
                    raise UserError(f"{self._source.path}: no weight named {name}; is it another architecture?")
                value = weights[name]
                if self.grows_vocabulary and name in VOCABULARY_WEIGHTS:
                    value = with_new_tokens(value, self.config.vocab_size, self.seed)
                copy_whole(tensor, value)

    def _is_new_ahead(self, name: str) -> bool:
        """Whether a weight is that of a further block of `multi_token` than the source has."""
        assert self._source is not None
        kind, _, rest = name.partition(".")
        return kind == "multi_token" and int(rest.split(".")[0]) >= self._source.config.multi_token

    def forward(self, batch: Batch, head_fn: HeadFn | None = None, ahead_fns: Sequence[HeadFn] = ()) -> Any:
        """Run the model on a batch; see `GPT.forward`. In training, routers of a mixture of experts are recorded."""
        assert self.model is not None
        options: dict[str, Any] = {}
        if ahead_fns:
            options["mtp_head_fns"] = ahead_fns
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

    def on_fit_start(self) -> None:
        """Refuse data in other tokens than those of the weights that the run starts from.

        Raises:
            UserError: the DataModule's tokenizer is another than that of `init_from`.
        """
        self._reset_metrics()
        if self._source is not None:
            self.check_tokens(self._source, str(self.init_from))

    def check_tokens(self, source: ModelSource, name: str) -> None:
        """Refuse a model whose tokenizer is not that of the data, as far as both are known."""
        data = self.data_info.tokenizer_path
        if data is not None and source.tokenizer_path is not None:
            check_same_tokens(data, source.tokenizer_path, name)

    def on_train_start(self) -> None:
        """Let the YAML's optimizer settings win over a checkpoint's, and say what changed."""
        self._keep_configured_settings()
        self._train_sums = torch.zeros(3, device=self.device)
        if self._loaded_sums is not None and self.trainer.is_global_zero:  # summed over ranks when they were saved
            self._train_sums += torch.tensor(self._loaded_sums, device=self.device)
        self._loaded_sums = None
        self._stop_at_max_tokens()
        assert self.model is not None
        trained, count = trainable_counts(self.model)
        share = "" if trained == count else f", {trained / 1e6:,.2f} M ({trained / count:.1%}) of them trained"
        self.print(f"model: {count / 1e6:,.2f} M parameters{share}")

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

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what model this is, in plain data."""
        checkpoint["lit_gpt"] = {
            "config": self.config.to_dict(),
            "tokens_seen": self.tokens_seen,
            "seed": self.seed,
            "train_sums": None if self._train_sums is None else self._sum_over_ranks(self._train_sums).tolist(),
        }
        self._keep_adapter_alone(checkpoint)

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
