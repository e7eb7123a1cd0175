"""Distillation: a student learns to say what a teacher would."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from lit_gpt.batch import IGNORE_INDEX, Batch, StepBatch
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion
from lit_gpt.models import GPT
from lit_gpt.models.fused import prepare_for_decoding
from lit_gpt.models.precision import converted
from lit_gpt.modules.rollouts import prompt_length, request_seed, with_answers
from lit_gpt.modules.sampling import Prompt, SamplingMixin, shown_answer
from lit_gpt.modules.sft import SFTModule
from lit_gpt.objectives import TokenLoss, linear_cross_entropy, token_cross_entropy
from lit_gpt.objectives.distillation import Divergence, linear_divergence

PACKED = "lmbda is for one conversation a row; set data.init_args.packing to false"


class DistillModule(SamplingMixin, SFTModule):
    """The divergence of the student's next tokens from the teacher's, mixed with the hard loss; the mean over a step.

    Works with every DataModule whose batches have `labels`: supervised tokens are distilled. Logged beside SFT's
    measures: `divergence`, in nats a token.

    On-policy (GKD, Agarwal et al. 2023, arXiv:2306.13649, algorithm 1): with `lmbda` above 0, that share of the rows
    has its last answer replaced by one that the student draws at that moment, so that it learns from the teacher
    where its own words lead it. Of these there is no hard loss: their divergence counts whole. Which rows, and what
    is drawn, depends on (seed, optimizer step, row) alone. Logged then: `own_answers`, the share of rows, and
    `own_length`, their mean tokens; some of them as text; `loss` is the cross-entropy of all that is learned from.

    Args:
        teacher: its weights: a run, a checkpoint, a bundle, a Hugging Face folder or a hub name, with the student's
            tokenizer.
        divergence: `forward` KL (Hinton et al. 2015), `reverse` KL (MiniLLM) or `jsd` (GKD).
        temperature: divides both logits.
        hard_weight: share of the cross-entropy against the data, from 0 to 1.
        beta: of `jsd`.
        teacher_dtype: of the teacher's weights in memory.
        lmbda: share of the rows answered by the student itself, from 0 to 1; needs `packing: false` of the data.
        max_new_tokens: of such an answer.
        sample_temperature: of the draws.
        engine_batch_size: answers drawn at once, which bounds the cache.
        num_logged_samples: of the student's answers written to the log each time.
        kwargs: see `SFTModule`.
    """

    def __init__(
        self,
        teacher: str,
        divergence: Divergence = "forward",
        temperature: float = 1.0,
        hard_weight: float = 0.5,
        beta: float = 0.5,
        teacher_dtype: Literal["float32", "bfloat16"] = "float32",
        lmbda: float = 0.0,
        max_new_tokens: int = 128,
        sample_temperature: float = 1.0,
        engine_batch_size: int = 32,
        num_logged_samples: int = 4,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        if divergence not in ("forward", "reverse", "jsd"):
            raise UserError(f"divergence is {divergence!r}; it can be forward, reverse or jsd")
        if not temperature > 0:
            raise UserError(f"temperature is {temperature}; it must be above 0")
        if not 0.0 <= hard_weight <= 1.0:
            raise UserError(f"hard_weight is {hard_weight}; it must lie between 0 and 1")
        if not 0.0 < beta < 1.0:
            raise UserError(f"beta is {beta}; it must lie between 0 and 1")
        if not 0.0 <= lmbda <= 1.0:
            raise UserError(f"lmbda is {lmbda}; it must lie between 0 (the data's answers) and 1 (the student's own)")
        for name, count in (("max_new_tokens", max_new_tokens), ("engine_batch_size", engine_batch_size)):
            if count < 1:
                raise UserError(f"{name} is {count}; it must be at least 1")
        if not sample_temperature > 0:
            raise UserError(f"sample_temperature is {sample_temperature}; it must be above 0")
        self.lmbda, self.max_new_tokens = lmbda, max_new_tokens
        self.sample_temperature, self.engine_batch_size = sample_temperature, engine_batch_size
        self.num_logged_samples = num_logged_samples
        self._own_sums: Tensor | None = None
        self._shown: list[str] = []
        self.teacher = teacher
        self._teacher_source = resolve_model(teacher)
        theirs = self._teacher_source.config
        if self.config.block_size > theirs.block_size:
            raise UserError(
                f"the teacher {teacher} has block_size {theirs.block_size}, less than the {self.config.block_size} of "
                "the student; lower the data's block_size"
            )
        self.divergence: Divergence = divergence
        self.temperature = temperature
        self.hard_weight = hard_weight
        self.beta = beta
        self.teacher_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[teacher_dtype]
        self.mean_divergence = MeanMetric()
        self.__dict__["_teacher_model"] = None  # not a submodule: it is in no checkpoint and no optimizer

    def configure_model(self) -> None:
        """Build the student, and the frozen teacher beside it."""
        if self.model is not None:
            return
        if self.lmbda and self.device_mesh is not None:
            raise UserError("lmbda draws from the whole student on each device; set trainer.strategy to auto or ddp")
        super().configure_model()
        with torch.device("meta"):
            teacher = GPT(self._teacher_source.config.overridden({"multi_token": 0}))
        weights = {
            name: converted(name, value, self.teacher_dtype)
            for name, value in self._teacher_source.load_state_dict().items()
            if not name.startswith("multi_token.")
        }
        teacher.load_state_dict(weights, assign=True)
        self.__dict__["_teacher_model"] = teacher.to(self.device).requires_grad_(False).eval()

    def on_fit_start(self) -> None:
        """Refuse a teacher that speaks of other tokens.

        Raises:
            UserError: its tokenizer is another, or the data packs rows that are to be answered.
        """
        super().on_fit_start()
        if self.lmbda and self.data_info.packing:
            raise UserError(PACKED)
        self.check_tokens(self._teacher_source, f"the teacher {self.teacher}")

    # ---- answers of its own -----------------------------------------------------------------------------------

    def training_step(self, batch: StepBatch | Batch, batch_idx: int) -> Tensor:
        """Let the student answer its share of the rows, then do the step."""
        if self.lmbda == 0:
            return super().training_step(batch, batch_idx)
        micro_batches: list[Batch] = batch if isinstance(batch, list) else [batch]
        assert self.model is not None
        # As the engine leaves it, also after a resume: products of matrices in another layout are rounded otherwise.
        prepare_for_decoding(self.model)
        return super().training_step(self._with_own_answers(micro_batches), batch_idx)

    def _with_own_answers(self, micro_batches: list[Batch]) -> list[Batch]:
        step, chosen, prompts = self.trainer.global_step, [], []
        for place, batch in enumerate(micro_batches):
            if "document_ids" in batch:
                raise UserError(PACKED)
            for row, number in enumerate(batch["sample_ids"].tolist()):
                length = prompt_length(batch["labels"][row])
                has_room = 0 < length < self.config.block_size
                if has_room and request_seed(self.seed, "own", step, number) / 2**56 < self.lmbda:
                    chosen.append((place, row))
                    prompts.append({"ids": batch["input_ids"][row, :length].tolist(), "number": number})
        seeds = [[request_seed(self.seed, step, prompt["number"], 0)] for prompt in prompts]
        drawn = self.sample(prompts, seeds, self.sample_temperature)
        self._show(prompts, drawn)
        answers: list[dict[int, Completion]] = [{} for _ in micro_batches]
        for (place, row), (completion,) in zip(chosen, drawn, strict=True):
            if completion.token_ids:
                answers[place][row] = completion
        lengths = [len(completion.token_ids) for part in answers for completion in part.values()]
        rows = sum(int((batch["labels"] != IGNORE_INDEX).any(1).sum()) for batch in micro_batches)
        self._own_sums = torch.tensor([len(lengths), sum(lengths), rows], dtype=torch.float32, device=self.device)
        return [
            with_answers(
                batch,
                {row: completion.token_ids for row, completion in part.items()},
                {row: len(completion.text.encode()) for row, completion in part.items()},
            )
            for batch, part in zip(micro_batches, answers, strict=True)
        ]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add what the student drew to what is logged of this step."""
        super().on_before_optimizer_step(optimizer)
        if self._own_sums is not None and self._logs_after_this_step:
            count, tokens, rows = self._sum_over_ranks(self._own_sums).tolist()
            self._step_values |= {"train/own_answers": count / max(rows, 1), "train/own_length": tokens / max(count, 1)}
            self._write_answers("train")

    def _show(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]]) -> None:
        self._shown = []
        if self._tokenizer is None or not self._logs_after_this_step:
            return
        for prompt, (completion,) in list(zip(prompts, drawn, strict=True))[: self.num_logged_samples]:
            asked, finished = self._tokenizer.decode(prompt["ids"]), completion.finish_reason == "stop"
            self._shown.append(shown_answer(f"row {prompt['number']}", asked, completion.text, finished))

    # ---- the loss ---------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> TokenLoss:
        """Sum over the supervised tokens."""
        loss, apart = self._both(batch)
        self._step_losses["divergence"] = self._step_losses.get("divergence", 0) + apart
        return loss

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """SFT's measures, and the divergence."""
        super().evaluation_loss(batch)
        loss, apart = self._both(batch)
        count = self.num_units(batch)
        self.mean_divergence.update(apart / count.clamp(min=1), count)
        return loss

    def evaluation_metrics(self) -> dict[str, float]:
        """Token accuracy, and nats a token between student and teacher."""
        value = float(self.mean_divergence.compute())
        self.mean_divergence.reset()
        return super().evaluation_metrics() | {"divergence": value}

    def _both(self, batch: Batch) -> tuple[TokenLoss, Tensor]:
        teacher: Any = self._teacher_model
        inputs = {"position_ids": batch.get("position_ids"), "document_ids": batch.get("document_ids")}
        with torch.no_grad():
            theirs = teacher(batch["input_ids"], head_fn=lambda hidden, *_: hidden, **inputs)

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            labels = batch["labels"].reshape(-1)
            index: Any = batch.get("target_index")
            if index is None:
                index = torch.nonzero(labels != IGNORE_INDEX).squeeze(1)
            targets = labels.index_select(0, index)
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
            their_rows = theirs.reshape(-1, theirs.shape[-1]).index_select(0, index)
            softcap = self.config.logit_softcap
            own: Any = batch.get("own")
            if own is None:
                hard = linear_cross_entropy(rows, weight, bias, targets, softcap=softcap)
                apart = self._apart(rows, weight, their_rows)
                return self._mixed(hard.loss, apart), apart.detach(), hard.cross_entropy
            mine = own[index // batch["labels"].shape[1]]
            (h, t, y), (own_h, own_t, own_y) = ((rows[part], their_rows[part], targets[part]) for part in (~mine, mine))
            hard = linear_cross_entropy(h, weight, bias, y, softcap=softcap)
            apart, own_apart = self._apart(h, weight, t), self._apart(own_h, weight, own_t)
            own_entropy = token_cross_entropy(own_h, weight, bias, own_y, softcap=softcap).sum()
            loss = self._mixed(hard.loss, apart) + own_apart
            return loss, (apart + own_apart).detach(), hard.cross_entropy + own_entropy

        loss, apart, cross_entropy = self(batch, head_fn=head_fn)
        return TokenLoss(loss, cross_entropy), apart

    def _mixed(self, hard: Tensor, apart: Tensor) -> Tensor:
        return self.hard_weight * hard + (1 - self.hard_weight) * apart

    def _apart(self, rows: Tensor, weight: Tensor, their_rows: Tensor) -> Tensor:
        teacher: Any = self._teacher_model
        softcaps = (self.config.logit_softcap, self._teacher_source.config.logit_softcap)
        return linear_divergence(
            rows, weight, their_rows, teacher.lm_head.weight, self.divergence, self.temperature, self.beta, softcaps
        )
