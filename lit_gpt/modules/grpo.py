"""Reinforcement learning with group-relative advantages: sample completions, rate them, and reinforce the better ones.

One optimizer step, all in one process:

1. The project's engine samples `group_size` completions per prompt from the current policy.
2. Rewards, plain functions of text, rate the completions. Generated code is never executed.
3. A completion's advantage is how much better it is than the mean of its group.
4. The clipped objective is backpropagated, `completions_per_forward` completions at a time, as the mean over the step.

The random numbers of a request depend only on (seed, rollout, index in the rollout, trial, sample), so that a resumed
run repeats them.
"""

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lit_gpt.batch import Batch, StepBatch
from lit_gpt.checks import check_above, check_at_least
from lit_gpt.data.records import SPLITS, OnBadInput
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion
from lit_gpt.modules.base import GPTModule
from lit_gpt.modules.reference import ReferenceKind, ReferenceModel
from lit_gpt.modules.rollouts import Answer, RolloutBatch, chunks, request_seed, rollout_batch
from lit_gpt.modules.sampling import Prompt, Sampler, shown_answer
from lit_gpt.objectives import PolicyLoss, TokenLoss, group_advantages, linear_entropy, linear_log_probs
from lit_gpt.objectives.grpo import Average
from lit_gpt.progress import Bar
from lit_gpt.rewards import Rated, Reward, RewardFunction, Rewards, Sample

NUM_NAMED = 5
"""Number of skipped rewards that are listed at the end of a run."""


class GRPOModule(GPTModule):
    """Group-relative policy optimization (Shao et al. 2024, arXiv:2402.03300), with Dr. GRPO's and DAPO's corrections.

    Logged in training: `reward` (the weighted sum) and each reward by name, over all sampled completions; `length` in
    tokens and the fraction that `finished`; the fraction of groups with a `signal` (rewards that differ); and of the
    tokens in the loss: `entropy`, `clip_fraction` and `kl` to the reference. In validation: the rewards, length and
    fraction finished on held-out prompts, with the same random numbers each time; `val/loss` is the negative reward.
    With `trainer.num_sanity_val_steps: -1` this is also measured before the first step, and logged at step 0.
    Completions with their rewards are written to the log as text.

    The defaults: mean over all tokens of the step and no clipping beyond the paper's. The paper itself: `average:
    completion`, `kl_coefficient: 0.04`. Dr. GRPO: `average: constant`, `scale_by_std: false`. DAPO: `clip_high: 0.28`,
    `dynamic_sampling: true` with `candidates` of the data above 1, and `Length` with a margin among the rewards.

    Completions are sampled in the dtype of the weights. Under `bf16-mixed` they are thus sampled in float32, but the
    loss is computed in bfloat16; as the ratio of a rollout's first step is 1 by definition, this difference is not
    corrected, a bias as small as bfloat16's rounding. With `bf16-true` or `32-true` both dtypes are the same.

    Args:
        rewards: functions of a `lit_gpt.rewards.Sample`, by `class_path` (built-in ones) or import path.
        reward_weights: one weight per reward; null: all 1.
        group_size: number of completions per prompt.
        max_new_tokens: maximum length of a completion, in tokens.
        temperature: sampling temperature; log-probabilities in the loss use the same temperature, so they refer to the
            distribution that was sampled.
        scale_by_std: divide advantages by the standard deviation of the group's rewards.
        average: whether the mean is over all tokens of a step, over each completion's tokens first, or a division by a
            constant; see `PolicyLoss`.
        clip_low: lower bound of the ratio to the sampling policy, as a distance from 1.
        clip_high: upper bound of the ratio, as a distance from 1; null: same as `clip_low`.
        kl_coefficient: weight of the KL to the reference; 0: no KL term, and no reference in memory.
        unbiased_kl: weight the KL term by the ratio, as in DeepSeek-V3.2; see `PolicyLoss`.
        reference: `frozen`, `disabled_adapter` or `auto`.
        dynamic_sampling: exclude groups whose rewards are all equal from the mean, and try the next of the data's
            `candidates` in their place.
        mask_unfinished: exclude completions that were cut off by a limit from the loss (DAPO's overlong filtering).
        completions_per_forward: completions per forward and backward; fewer save memory and do not change the result.
        engine_batch_size: number of completions sampled at once, which bounds the KV cache.
        eval_samples: number of completions per held-out prompt.
        eval_temperature: sampling temperature for held-out prompts; null: as in training; 0: greedy decoding.
        num_logged_samples: number of completions written to the log each time.
        on_bad_input: what to do if a reward raises or returns a non-finite number: `error` names the row and stops,
            `skip` excludes the completion from its group and reports it.
        kwargs: see `GPTModule`.
    """

    is_language_model_loss = False
    always_logs = ("val/loss", "val/reward")
    grows_vocabulary = True

    def __init__(
        self,
        rewards: list[Reward | RewardFunction],
        reward_weights: list[float] | None = None,
        group_size: int = 8,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        scale_by_std: bool = True,
        average: Average = "token",
        clip_low: float = 0.2,
        clip_high: float | None = None,
        kl_coefficient: float = 0.0,
        unbiased_kl: bool = False,
        reference: ReferenceKind = "auto",
        dynamic_sampling: bool = False,
        mask_unfinished: bool = False,
        completions_per_forward: int = 8,
        engine_batch_size: int = 32,
        eval_samples: int = 1,
        eval_temperature: float | None = None,
        num_logged_samples: int = 4,
        on_bad_input: OnBadInput = "error",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        check_at_least("group_size", group_size, 2, "a completion is compared with the others of its group")
        check_at_least("completions_per_forward", completions_per_forward, 1)
        check_at_least("eval_samples", eval_samples, 1)
        check_above("temperature", temperature, 0, "at 0 all completions of a group are the same")
        self.sampler = Sampler(max_new_tokens, engine_batch_size, num_logged_samples)
        choices: tuple[ReferenceKind, ...] = ("auto", "frozen", "disabled_adapter")
        self.reference = ReferenceModel(reference, choices, has_adapter=self.adapter is not None)
        self.rewards = Rewards(rewards, reward_weights, on_bad_input)
        self.policy_loss = PolicyLoss(clip_low, clip_high, kl_coefficient, average, unbiased_kl)
        self.group_size, self.temperature = group_size, temperature
        self.scale_by_std, self.dynamic_sampling, self.mask_unfinished = scale_by_std, dynamic_sampling, mask_unfinished
        self.completions_per_forward = completions_per_forward
        self.eval_samples = eval_samples
        self.eval_temperature = temperature if eval_temperature is None else eval_temperature
        self._groups: dict[int, list[Answer]] = {}
        """The current rollout: completions by their index in it, over all ranks."""
        self._rollout_sums: dict[str, float] = {}
        """Sums of the metrics of this rank's part of the current rollout."""
        self._next_update = 0
        """Index of the next step on the current rollout; 0: the next step samples a new rollout."""

    @property
    def uses_reference(self) -> bool:
        """Whether the loss has a KL term."""
        return self.policy_loss.kl_coefficient > 0

    # ---- before the first step ----------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the policy, unsharded on each device, and the reference if there is a KL term.

        Raises:
            UserError: the strategy shards the model.
        """
        if self.model is not None:
            return
        if self.device_mesh is not None:
            raise UserError("GRPO samples from the complete model on each device; set trainer.strategy to auto or ddp")
        super().configure_model()
        if self.uses_reference:
            self.reference.build(self)

    def on_fit_start(self) -> None:
        """Check that completions fit into the context and that all rows can be rated; prepare sampling.

        Raises:
            UserError: prompts and completions exceed the context, or rows cannot be rated.
        """
        super().on_fit_start()
        longest, new = self.data_info.max_prompt_tokens, self.sampler.max_new_tokens
        if longest is not None and longest + new > self.config.block_size:
            raise UserError(
                f"prompts of {longest} tokens and {new} new ones do not fit in the model's block_size "
                f"{self.config.block_size}; lower max_new_tokens, or the data's max_prompt_tokens"
            )
        self._check_rows()
        self.sampler.prepare(self)

    def _check_rows(self) -> None:
        """Find rows that a reward will not be able to use, before any completion is sampled.

        Raises:
            UserError: under `on_bad_input: error` if there is such a row; under `skip` if all are.
        """
        rows_of_split = self.data_info.rows
        if rows_of_split is None or not self.rewards.check_rows:
            return
        unusable = num_rows = 0
        examples: list[str] = []
        for name in SPLITS:
            rows = rows_of_split(name)
            shown = {"desc": f"checking {name}", "unit": "row", "delay": 2, "leave": False}
            for row in Bar(range(len(rows)), disable=not self.trainer.is_global_zero, **shown):
                problem = self.rewards.problem_of(json.loads(rows.attached(row) or "{}").get("row", {}))
                if problem is not None:
                    unusable += 1
                    if len(examples) < NUM_NAMED:
                        examples.append(f"{rows.where(row)}: {problem}")
            num_rows += len(rows)
        if not unusable:
            return
        message = f"{unusable} of {num_rows} rows cannot be rated: {'; '.join(examples)}"
        if unusable == num_rows:
            raise UserError(f"{message}; name the right field in the reward, or remove the reward")
        if self.rewards.bad_input.mode == "error":
            raise UserError(f"{message}; correct them, name the right field, or set on_bad_input: skip")
        self.print(message)

    # ---- rollouts -----------------------------------------------------------------------------------------------

    def training_step(self, batch: StepBatch | Batch, batch_idx: int) -> Tensor:
        """Sample and rate completions, unless this step reuses the current rollout; then run the training step."""
        parts: list[Any] = batch if isinstance(batch, list) else [batch]
        first = parts[0]
        groups = [candidates for part in parts for candidates in part["prompts"]]
        start = self.data_parallel_rank * len(groups)
        if first["update"] == 0:
            self._groups = self._rollout(groups, start, first)
        assert first["update"] == self._next_update, "the data and the rollouts are out of sync"
        self._next_update = (first["update"] + 1) % first["num_updates"]
        self._log_rollout()
        answers = [answer for position in range(start, start + len(groups)) for answer in self._groups[position]]
        rollouts: list[Batch] = list(self._batches(answers))
        return super().training_step(rollouts, batch_idx)

    def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Completion]]:
        """Sample completions of prompts from the current policy; see `Sampler.sample`."""
        return self.sampler.sample(self, prompts, seeds, temperature)

    def _rollout(self, groups: Sequence[Sequence[Prompt]], start: int, batch: Any) -> dict[int, list[Answer]]:
        """Sample completions of each group's first candidate, or with dynamic sampling the first whose rewards differ.

        Args:
            groups: this rank's groups, each a list of candidate prompts.
            start: index of this rank's first group among those of all ranks.
            batch: provides the index of the rollout, and the number of steps that use it.

        Returns:
            The completions of each group, by its index.
        """
        answers: dict[int, list[Answer]] = {}
        self._rollout_sums = dict.fromkeys((*self._measures, "answers", "rated", "signal", "groups"), 0.0)
        self.sampler.shown = []
        pending = dict(enumerate(groups, start))
        for trial in range(max(map(len, groups))):
            prompts = [candidates[trial] for candidates in pending.values()]
            # Seed by index rather than by prompt, so that a prompt that occurs twice gets different completions.
            seeds = [
                [request_seed(self.seed, batch["rollout"], index, trial, n) for n in range(self.group_size)]
                for index in pending
            ]
            completions = self.sample(prompts, seeds, self.temperature)
            samples, rated = self._rate(prompts, completions)
            self._add_measures(samples, rated)
            still_pending = {}
            rewards = iter(rated.totals)
            for (index, candidates), of_prompt in zip(pending.items(), completions, strict=True):
                answers[index] = group = self._group(of_prompt, list(islice(rewards, len(of_prompt))))
                has_signal = any(answer.advantage for answer in group)
                self._rollout_sums["signal"] += has_signal
                self._rollout_sums["groups"] += 1
                if not has_signal and trial + 1 < len(candidates):
                    still_pending[index] = candidates
            pending = still_pending
            if not self.dynamic_sampling or not pending:
                break
        self._check_some_rated(self._rollout_sums["rated"])
        self._add_log_probs([answer for group in answers.values() for answer in group], batch["num_updates"] > 1)
        return answers

    def _group(self, completions: Sequence[Completion], rewards: Sequence[float | None]) -> list[Answer]:
        """Return the completions of one prompt with their advantages; those with reward None are excluded."""
        used = [reward for reward in rewards if reward is not None]
        advantages = iter(group_advantages(used, self.scale_by_std) if len(used) > 1 else [0.0] * len(used))
        group = []
        for completion, reward in zip(completions, rewards, strict=True):
            advantage = 0.0 if reward is None else next(advantages)
            counts = reward is not None and bool(completion.token_ids)
            if self.mask_unfinished and completion.finish_reason != "stop":
                counts = False
            ids = [*completion.prompt_ids, *completion.token_ids]
            group.append(Answer(ids, len(ids) - len(completion.token_ids), advantage if counts else 0.0, counts))
        if self.dynamic_sampling and not any(answer.advantage for answer in group):
            for answer in group:
                answer.counts = False
        return group

    def _batches(self, answers: Sequence[Answer]) -> list[RolloutBatch]:
        """Return the forward batches of a step; completions without a gradient only count in the mean."""
        loss = self.policy_loss
        units = sum(loss.units(answer.num_tokens, self.sampler.max_new_tokens) for answer in answers if answer.counts)
        learned = [answer for answer in answers if self._has_gradient(answer)]
        # If there is nothing to learn, use a prompt without a completion: under DDP every rank needs a backward pass.
        parts = chunks(learned, self.completions_per_forward) or [[Answer(answers[0].ids, len(answers[0].ids))]]
        return [rollout_batch(part, loss, self.device, 0 if position else units) for position, part in enumerate(parts)]

    def _has_gradient(self, answer: Answer) -> bool:
        return answer.counts and (answer.advantage != 0 or self.uses_reference)

    @torch.no_grad()
    def _add_log_probs(self, answers: Sequence[Answer], several_updates: bool) -> None:
        """Store the log-probabilities under the sampling policy and under the reference, if they are needed."""
        learned = [answer for answer in answers if self._has_gradient(answer)]
        model: Any = self.model
        for part in chunks(learned, self.completions_per_forward):
            batch = rollout_batch(part, self.policy_loss, self.device)
            sizes = [answer.num_tokens for answer in part]
            if several_updates:
                training = model.training
                model.eval()
                log_probs, _ = self._log_probs(model, batch)
                model.train(training)
                for answer, values in zip(part, log_probs.split(sizes), strict=True):
                    answer.old_log_probs = values
            if self.uses_reference:
                with self.reference.active(self) as reference:
                    log_probs, _ = self._log_probs(reference, batch)
                for answer, values in zip(part, log_probs.split(sizes), strict=True):
                    answer.reference_log_probs = values

    # ---- rewards and metrics of completions ---------------------------------------------------------------------

    @property
    def _measures(self) -> tuple[str, ...]:
        return ("reward", *(f"reward_{name}" for name in self.rewards.names), "length", "finished")

    def _rate(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Completion]]) -> tuple[list[Sample], Rated]:
        samples = [
            Sample(
                prompt=prompt["messages"],
                completion=completion.text,
                row=prompt["row"],
                num_tokens=len(completion.token_ids),
                finished=completion.finish_reason == "stop",
                where=prompt["where"],
            )
            for prompt, of_prompt in zip(prompts, answers, strict=True)
            for completion in of_prompt
        ]
        return samples, self.rewards(samples)

    def _add_measures(self, samples: Sequence[Sample], rated: Rated) -> None:
        sums = self._rollout_sums
        for name, value in self._sums_of(samples, rated).items():
            sums[name] += value
        missing = self.sampler.num_logged_samples - len(self.sampler.shown)
        self.sampler.shown += _shown(samples, rated, missing)

    def _sums_of(self, samples: Sequence[Sample], rated: Rated) -> dict[str, float]:
        """Return the sums of all metrics, and the numbers of `answers` and of `rated` ones."""
        sums = dict.fromkeys((*self._measures, "answers", "rated"), 0.0)
        for position, sample in enumerate(samples):
            sums["answers"] += 1
            sums["length"] += sample.num_tokens
            sums["finished"] += sample.finished
            total = rated.totals[position]
            if total is None:
                continue
            sums["rated"] += 1
            sums["reward"] += total
            for name, values in rated.by_name.items():
                sums[f"reward_{name}"] += values[position] or 0.0
        return sums

    def _log_measures(self, sums: dict[str, float]) -> None:
        """Log the means over all completions, and those of rewards over the rated ones."""
        for name in self._measures:
            self.log_sum(name, sums[name], sums["answers" if name in ("length", "finished") else "rated"])

    def _log_rollout(self) -> None:
        self._log_measures(self._rollout_sums)
        self.log_sum("signal", self._rollout_sums["signal"], self._rollout_sums["groups"])

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Also log how many rewards have been skipped so far, and the completions as text."""
        super().on_before_optimizer_step(optimizer)
        if not self.logs_after_this_step:
            return
        skipped = self.sum_over_ranks(torch.tensor(float(self.rewards.bad_input.num_skipped), device=self.device))
        if skipped:
            self._step_values["train/skipped_rewards"] = skipped
        self.sampler.write_shown(self, "train")

    def _check_some_rated(self, num_rated: float) -> None:
        """Raise if no completion of a whole rollout has a reward."""
        bad = self.rewards.bad_input
        if bad.mode == "skip" and not self.sum_over_ranks(torch.tensor(num_rated, device=self.device)):
            raise UserError(
                f"every reward of a whole rollout was skipped, so there is nothing to learn from; {bad.named[-1]}"
            )

    def _print_skipped(self) -> None:
        """Print how many rewards were skipped, and the first of them."""
        bad = self.rewards.bad_input
        everyone: list[Any] = [(bad.num_skipped, bad.named[:NUM_NAMED])]
        if self.data_parallel_size > 1:
            everyone = [None] * self.data_parallel_size
            torch.distributed.all_gather_object(everyone, (bad.num_skipped, bad.named[:NUM_NAMED]))
        total = sum(count for count, _ in everyone)
        if total:
            named = [name for _, names in everyone for name in names]
            self.print("\n  ".join([f"{total} completions had a reward that was skipped, such as", *named[:NUM_NAMED]]))

    def on_fit_end(self) -> None:
        """Print which rewards were skipped."""
        super().on_fit_end()
        self._print_skipped()

    # ---- the loss -----------------------------------------------------------------------------------------------

    def num_units(self, batch: Batch) -> Tensor:
        """Return the denominator of a step's mean: tokens of completions, completions, or a constant; see `average`."""
        units: Tensor = batch["units"]  # type: ignore[typeddict-item]
        return units

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the weighted sum of the clipped objective over the completions' tokens."""
        rollout: Any = batch
        log_probs, entropy = self._log_probs(self, batch, measure=self.logs_after_this_step)
        # In a rollout's first step the policy equals the sampling policy: the ratio is 1, but its gradient is not 0.
        old = rollout.get("old_log_probs", log_probs.detach())
        terms = self.policy_loss(log_probs, old, rollout["advantages"], rollout.get("reference_log_probs"))
        total = (terms.loss * rollout["weights"]).sum()
        learned = (rollout["weights"] > 0).to(terms.kl.dtype)
        self.log_sum("clip_fraction", (terms.clipped * learned).sum(), learned.sum())
        if self.uses_reference:
            self.log_sum("kl", (terms.kl * learned).sum(), learned.sum())
        if entropy is not None:
            self.log_sum("entropy", (entropy * learned).sum(), learned.sum())
        return TokenLoss(total, total.detach())

    def _log_probs(self, model: Any, batch: Any, measure: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return (n,) log-probabilities of the completions' tokens at the sampling temperature, and their entropy.

        Args:
            model: the policy (this module, which records routing, or its model) or the reference.
            batch: a `RolloutBatch`.
            measure: whether to compute the entropy.
        """
        index, labels = batch["target_index"], batch["labels"]
        temperature, softcap = self.temperature, self.config.logit_softcap

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
            cap = softcap
            if temperature != 1:
                # Divide hidden states instead of logits: the head is linear, and with a soft-cap
                # cap · tanh(z / cap) / t = (cap / t) · tanh((z / t) / (cap / t)).
                rows, bias = rows / temperature, None if bias is None else bias / temperature
                cap = None if softcap is None else softcap / temperature
            targets = labels.reshape(-1).index_select(0, index)
            log_probs = linear_log_probs(rows, weight, bias, targets, softcap=cap)
            return log_probs, linear_entropy(rows, weight, bias, cap) if measure else None

        if model is self:
            both: tuple[Tensor, Tensor | None] = self(batch, head_fn=head_fn)
            return both
        result: tuple[Tensor, Tensor | None] = model(
            batch["input_ids"], position_ids=batch["position_ids"], head_fn=head_fn
        )
        return result

    # ---- held-out prompts ---------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sample and rate completions of held-out prompts."""
        self._evaluate_prompts(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Sample and rate completions of the test split's prompts."""
        self._evaluate_prompts(batch, batch_idx)

    def _evaluate_prompts(self, batch: Any, batch_idx: int) -> None:
        prompts = [candidates[0] for candidates in batch["prompts"]]
        seeds = [
            [request_seed(self.seed, "evaluation", prompt["number"], n) for n in range(self.eval_samples)]
            for prompt in prompts
        ]
        samples, rated = self._rate(prompts, self.sample(prompts, seeds, self.eval_temperature))
        if batch_idx == 0:
            self.sampler.shown = _shown(samples, rated, self.sampler.num_logged_samples, self.eval_samples)
        self._log_measures(self._sums_of(samples, rated))

    def on_validation_epoch_end(self) -> None:
        """Log the mean rewards, also those before the first step if there is a sanity check."""
        self._log_rewards("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean rewards."""
        self._log_rewards("test")

    def _log_rewards(self, stage: str) -> None:
        is_trial = self.trainer.sanity_checking
        means = self._evaluation_sums.pop_means(self.data_info.data_parallel, self.device, keep_empty=is_trial)
        reward = means.setdefault("reward", math.nan)  # NaN if every reward was skipped
        values = {f"{stage}/{name}": value for name, value in (means | {"loss": -reward}).items()}
        self.sampler.write_shown(self, stage)
        if is_trial:  # Lightning does not log these
            self.log_dict(values | {"step": 0.0}, prog_bar=False)
            self._log_now({name: value for name, value in values.items() if not math.isnan(value)})
            self.print(f"held-out reward before training: {reward:.4f}")
            return
        self._log_at_step(values)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._print_skipped()

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the hash of the reference's weights, and the current rollout if further steps use it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_gpt"]["reference_sha256"] = self.reference.sha256
        if not self._next_update:
            return
        groups = {position: [answer.to_plain() for answer in group] for position, group in self._groups.items()}
        sums = torch.tensor(list(self._rollout_sums.values()), dtype=torch.float32, device=self.device)
        everyone: list[Any] = [groups]
        if self.data_parallel_size > 1:
            everyone = [None] * self.data_parallel_size
            torch.distributed.all_gather_object(everyone, groups)
        checkpoint["lit_gpt"]["rollout"] = {
            "next_update": self._next_update,
            "groups": {position: group for part in everyone for position, group in part.items()},
            "sums": dict(zip(self._rollout_sums, self.sum_over_ranks(sums).tolist(), strict=True)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the current rollout from the checkpoint.

        Raises:
            UserError: the reference differs from that of the run so far.
        """
        super().on_load_checkpoint(checkpoint)
        self.reference.check_saved(checkpoint["lit_gpt"].get("reference_sha256"), self.init_from)
        saved = checkpoint["lit_gpt"].get("rollout")
        if saved is not None:
            self._next_update = saved["next_update"]
            self._groups = {n: [Answer(**answer) for answer in group] for n, group in saved["groups"].items()}
            # The sums were reduced over ranks when they were saved, so only rank 0 restores them.
            here = self.trainer.is_global_zero
            self._rollout_sums = {name: value if here else 0.0 for name, value in saved["sums"].items()}


def _shown(samples: Sequence[Sample], rated: Rated, count: int, stride: int = 1) -> list[str]:
    """Return the first completions as Markdown, with their rewards."""
    texts = []
    for position in range(0, len(samples), stride)[: max(count, 0)]:
        sample = samples[position]
        parts = {name: values[position] for name, values in rated.by_name.items()}
        rewards = ", ".join(f"{name} {'skipped' if v is None else f'{v:.3g}'}" for name, v in parts.items())
        title = f"{sample.where}: {rewards}"
        texts.append(shown_answer(title, sample.prompt[-1]["content"], sample.completion, sample.finished))
    return texts
