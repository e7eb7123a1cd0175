"""Distillation: train a student on the next-token distributions of a teacher."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_gpt.batch import IGNORE_INDEX, Batch, StepBatch
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.checks import check_above, check_between, check_one_of
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion
from lit_gpt.models import GPT
from lit_gpt.models.precision import converted
from lit_gpt.modules.rollouts import PAD_MULTIPLE, request_seed
from lit_gpt.modules.sampling import Prompt, Sampler, shown_answer
from lit_gpt.modules.sft import SFTModule
from lit_gpt.objectives import TokenLoss, linear_cross_entropy, token_cross_entropy
from lit_gpt.objectives.distillation import Divergence, linear_divergence

PACKED = "lmbda needs one conversation per row; set data.init_args.packing to false"


class DistillModule(SFTModule):
    """Divergence of the student's next-token distribution from the teacher's, mixed with cross-entropy.

    Works with every DataModule whose batches have `labels`: supervised tokens are distilled. Logged in addition to
    SFT's metrics: `divergence`, in nats per token.

    On-policy (GKD, Agarwal et al. 2023, arXiv:2306.13649, algorithm 1): with `lmbda` above 0, in that fraction of the
    rows the last answer is replaced by one sampled from the current student, so that it learns from the teacher in the
    states that its own outputs lead to. These rows have no cross-entropy term: their divergence has full weight. The
    choice of rows and the samples depend only on (seed, optimizer step, row). Logged then: `own_answers`, the fraction
    of rows, and `own_length`, their mean length in tokens; some of them are also logged as text; `loss` is the
    cross-entropy over all supervised tokens.

    Args:
        teacher: weights of the teacher: a run, a checkpoint, a bundle, a Hugging Face folder or a Hub name, with the
            student's tokenizer.
        divergence: `forward` KL (Hinton et al. 2015), `reverse` KL (MiniLLM) or `jsd` (GKD).
        temperature: divides the logits of both models.
        hard_weight: weight of the cross-entropy against the data, from 0 to 1.
        beta: interpolation coefficient of `jsd`.
        teacher_dtype: type of the teacher's weights in memory.
        lmbda: fraction of the rows that the student answers itself, from 0 to 1; needs `packing: false` of the data.
        max_new_tokens: maximum length of such an answer, in tokens.
        sample_temperature: sampling temperature of these answers.
        engine_batch_size: number of answers sampled at once, which bounds the KV cache.
        num_logged_samples: number of the student's answers written to the log each time.
        kwargs: see `SFTModule`.

    Raises:
        UserError: the teacher's context is shorter than the student's.
    """

    loss_sums_tokens = True

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
        check_one_of("divergence", divergence, get_args(Divergence))
        check_above("temperature", temperature, 0)
        check_between("hard_weight", hard_weight, 0, 1)
        check_between("beta", beta, 0, 1, low_open=True, high_open=True)
        check_between("lmbda", lmbda, 0, 1, "0: the data's answers; 1: the student's own")
        check_above("sample_temperature", sample_temperature, 0)
        self.lmbda, self.sample_temperature = lmbda, sample_temperature
        self.sampler = Sampler(max_new_tokens, engine_batch_size, num_logged_samples)
        self.teacher = teacher
        self._teacher_source = resolve_model(teacher)
        teacher_block_size = self._teacher_source.config.block_size
        if self.config.block_size > teacher_block_size:
            raise UserError(
                f"the teacher {teacher} has block_size {teacher_block_size}, less than the {self.config.block_size} of "
                "the student; lower the data's block_size"
            )
        self.divergence: Divergence = divergence
        self.temperature = temperature
        self.hard_weight = hard_weight
        self.beta = beta
        self.teacher_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[teacher_dtype]
        self.__dict__["_teacher_model"] = None  # not a submodule, so it is not in checkpoints and the optimizer

    def configure_model(self) -> None:
        """Build the student and the frozen teacher.

        Raises:
            UserError: the student is sharded, which on-policy distillation does not support.
        """
        if self.model is not None:
            return
        if self.lmbda and self.device_mesh is not None:
            raise UserError(
                "lmbda samples from the complete student on each device; set trainer.strategy to auto or ddp"
            )
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
        """Reject a teacher with other tokens and data that cannot be answered, and prepare sampling.

        Raises:
            UserError: the teacher's tokenizer differs, or the data packs rows that are to be answered.
        """
        super().on_fit_start()
        if self.lmbda and self.data_info.packing:
            raise UserError(PACKED)
        self.check_tokens(self._teacher_source, f"the teacher {self.teacher}")
        if self.lmbda:
            self.sampler.prepare(self)

    # ---- the student's own answers ------------------------------------------------------------------------------

    def training_step(self, batch: StepBatch | Batch, batch_idx: int) -> Tensor:
        """Let the student answer its fraction of the rows, then run the step."""
        if self.lmbda == 0:
            return super().training_step(batch, batch_idx)
        micro_batches: list[Batch] = batch if isinstance(batch, list) else [batch]
        return super().training_step(self._with_own_answers(micro_batches), batch_idx)

    def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Completion]]:
        """Sample answers from the current student; see `Sampler.sample`."""
        return self.sampler.sample(self, prompts, seeds, temperature)

    def _with_own_answers(self, micro_batches: list[Batch]) -> list[Batch]:
        step, chosen, prompts = self.trainer.global_step, [], []
        for index, batch in enumerate(micro_batches):
            if "document_ids" in batch:
                raise UserError(PACKED)
            for row, number in enumerate(batch["sample_ids"].tolist()):
                length = prompt_length(batch["labels"][row])
                fits = 0 < length < self.config.block_size
                # The seed has 56 bits: divided by 2^56 it is a uniform sample from [0, 1).
                if fits and request_seed(self.seed, "own", step, number) / 2**56 < self.lmbda:
                    chosen.append((index, row))
                    prompts.append({"ids": batch["input_ids"][row, :length].tolist(), "number": number})
        seeds = [[request_seed(self.seed, step, prompt["number"], 0)] for prompt in prompts]
        completions = self.sample(prompts, seeds, self.sample_temperature)
        self._show(prompts, completions)
        answers: list[dict[int, Completion]] = [{} for _ in micro_batches]
        for (index, row), (completion,) in zip(chosen, completions, strict=True):
            if completion.token_ids:
                answers[index][row] = completion
        lengths = [len(completion.token_ids) for part in answers for completion in part.values()]
        rows = sum(int((batch["labels"] != IGNORE_INDEX).any(1).sum()) for batch in micro_batches)
        self.log_sum("own_answers", len(lengths), rows)
        self.log_sum("own_length", sum(lengths), len(lengths))
        return [
            with_answers(
                batch,
                {row: completion.token_ids for row, completion in part.items()},
                {row: len(completion.text.encode()) for row, completion in part.items()},
            )
            for batch, part in zip(micro_batches, answers, strict=True)
        ]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Also log some of the student's answers as text."""
        super().on_before_optimizer_step(optimizer)
        if self.lmbda and self.logs_after_this_step:
            self.sampler.write_shown(self, "train")

    def _show(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> None:
        sampler = self.sampler
        sampler.shown = []
        if sampler.tokenizer is None or not self.logs_after_this_step:
            return
        for prompt, (completion,) in list(zip(prompts, completions, strict=True))[: sampler.num_logged_samples]:
            text, finished = sampler.tokenizer.decode(prompt["ids"]), completion.finish_reason == "stop"
            sampler.shown.append(shown_answer(f"row {prompt['number']}", text, completion.text, finished))

    # ---- the loss -----------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss of the supervised tokens."""
        return self._distillation_loss(batch)

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss, and log SFT's metrics as well."""
        super().evaluation_loss(batch)
        return self._distillation_loss(batch)

    def _distillation_loss(self, batch: Batch) -> TokenLoss:
        teacher: Any = self._teacher_model
        inputs = {name: batch.get(name) for name in ("position_ids", "document_ids", "sequence")}
        with torch.no_grad():
            teacher_hidden = teacher(batch["input_ids"], head_fn=lambda hidden, *_: hidden, **inputs)  # (B, T, C_t)

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            labels = batch["labels"].reshape(-1)
            index: Any = batch.get("target_index")
            if index is None:
                index = torch.nonzero(labels != IGNORE_INDEX).squeeze(1)
            targets = labels.index_select(0, index)  # (n,) supervised tokens
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
            teacher_rows = teacher_hidden.reshape(-1, teacher_hidden.shape[-1]).index_select(0, index)
            softcap = self.config.logit_softcap
            own: Any = batch.get("own")
            if own is None:
                hard = linear_cross_entropy(rows, weight, bias, targets, softcap=softcap)
                divergence = self._divergence(rows, weight, teacher_rows)
                return self._mixed(hard.loss, divergence), divergence.detach(), hard.cross_entropy
            # Tokens of the data's answers (h, t, y) have both losses, those of the student's own only the divergence.
            is_own = own[index // batch["labels"].shape[1]]
            h, t, y = (values[~is_own] for values in (rows, teacher_rows, targets))
            own_h, own_t, own_y = (values[is_own] for values in (rows, teacher_rows, targets))
            hard = linear_cross_entropy(h, weight, bias, y, softcap=softcap)
            divergence, own_divergence = self._divergence(h, weight, t), self._divergence(own_h, weight, own_t)
            own_entropy = token_cross_entropy(own_h, weight, bias, own_y, softcap=softcap).sum()
            loss = self._mixed(hard.loss, divergence) + own_divergence
            return loss, (divergence + own_divergence).detach(), hard.cross_entropy + own_entropy

        loss, divergence, cross_entropy = self(batch, head_fn=head_fn)
        return TokenLoss(loss, cross_entropy, {"divergence": divergence})

    def _mixed(self, hard: Tensor, divergence: Tensor) -> Tensor:
        return self.hard_weight * hard + (1 - self.hard_weight) * divergence

    def _divergence(self, rows: Tensor, weight: Tensor, teacher_rows: Tensor) -> Tensor:
        teacher: Any = self._teacher_model
        softcaps = (self.config.logit_softcap, self._teacher_source.config.logit_softcap)
        return linear_divergence(
            rows, weight, teacher_rows, teacher.lm_head.weight, self.divergence, self.temperature, self.beta, softcaps
        )


# ---- replacing answers in a batch -------------------------------------------------------------------------------


def with_answers(batch: Batch, answers: Mapping[int, Sequence[int]], num_bytes: Mapping[int, int]) -> Batch:
    """Return a padded batch with the last answers of some rows replaced.

    Args:
        batch: one conversation per row.
        answers: by row, the token ids of the new answer, whose tokens become the only supervised ones of the row.
        num_bytes: by row, the UTF-8 length of the new answer's text.

    Returns:
        The batch, with `own` (B,) bool: which rows were replaced.
    """
    inputs, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
    rows = []
    for row in range(len(inputs)):
        end = int((labels[row] != IGNORE_INDEX).nonzero().max()) + 1 if (labels[row] != IGNORE_INDEX).any() else 1
        ids, targets = inputs[row, :end], labels[row, :end]
        if row in answers:
            answer = torch.tensor(answers[row], dtype=torch.int64)
            prompt = inputs[row, : prompt_length(labels[row])]
            ids = torch.cat([prompt, answer[:-1]])
            targets = torch.cat([torch.full((len(prompt) - 1,), IGNORE_INDEX), answer])
        rows.append((ids, targets))
    T = -(-max(len(ids) for ids, _ in rows) // PAD_MULTIPLE) * PAD_MULTIPLE
    new_inputs = torch.zeros(len(rows), T, dtype=torch.int64)
    new_labels = torch.full((len(rows), T), IGNORE_INDEX)
    for row, (ids, targets) in enumerate(rows):
        new_inputs[row, : len(ids)], new_labels[row, : len(ids)] = ids, targets
    result: Any = dict(batch) | {
        "input_ids": new_inputs,
        "labels": new_labels,
        "position_ids": torch.arange(T).expand(len(rows), T).contiguous(),
        "target_index": (new_labels.reshape(-1) != IGNORE_INDEX).nonzero().squeeze(1),
        "own": torch.tensor([row in answers for row in range(len(rows))]),
    }
    if "num_bytes" in batch:
        old = batch["num_bytes"].tolist()
        result["num_bytes"] = torch.tensor([num_bytes.get(row, size) for row, size in enumerate(old)])
    moved: Batch = {
        name: value.to(batch["input_ids"].device) if isinstance(value, Tensor) else value
        for name, value in result.items()
    }  # type: ignore[assignment]
    return moved


def prompt_length(labels: Tensor) -> int:
    """Return the number of tokens before the last answer of a row; 0 if there is none.

    Args:
        labels: (T,), shifted: `labels[t]` is the token after position t.
    """
    learned = (labels != IGNORE_INDEX).tolist()
    if not any(learned):
        return 0
    last = len(learned) - 1 - learned[::-1].index(True)
    while last > 0 and learned[last - 1]:
        last -= 1
    return last + 1
