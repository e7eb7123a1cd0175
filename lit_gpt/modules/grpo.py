"""Reinforcement learning with group-relative advantages: try, rate, and make the better answers likelier.

The way of a step, in one process:

1. Each prompt is answered `group_size` times by the project's engine, with the policy as it is.
2. Rewards, plain functions of text, rate the answers. Nothing ever runs them.
3. Each answer's advantage is how much better it is than its group.
4. The clipped objective is backpropagated, `completions_per_forward` answers at a time, as the mean over the step.

A request's draws depend on (seed, rollout, place in it, trial, sample) alone, so that a resumed run repeats them.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import Batch, StepBatch
from lit_gpt.data.documents import OnBadInput
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion
from lit_gpt.models.fused import prepare_for_decoding
from lit_gpt.modules.rated_answers import RatedAnswersModule
from lit_gpt.modules.reference import ReferenceKind
from lit_gpt.modules.rollouts import Answer, RolloutBatch, chunks, request_seed, rollout_batch
from lit_gpt.modules.sampling import Prompt
from lit_gpt.objectives import PolicyLoss, TokenLoss, group_advantages, linear_entropy, linear_log_probs
from lit_gpt.objectives.grpo import Average
from lit_gpt.rewards import Reward, RewardFunction, Rewards


class GRPOModule(RatedAnswersModule):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300), with Dr. GRPO's and DAPO's corrections.

    Logged in training: `reward` (the weighted sum) and each reward by name, over all answers drawn; `length` in tokens
    and the share that `finished`; the share of groups with a `signal` (rewards that differ); and of the tokens that
    are learned from: `entropy`, `clip_fraction` and `kl` to the reference. In validation: the rewards, length and
    share finished on held-out prompts, with the same draws each time; `val/loss` is the reward's negative. With
    `trainer.num_sanity_val_steps: -1` this is also measured before the first step, and logged at step 0. Completions
    with their rewards are written to the log as text.

    The defaults: mean over all tokens of the step and no clipping beyond the paper's. The paper itself: `average:
    completion`, `kl_coefficient: 0.04`. Dr. GRPO: `average: constant`, `scale_by_std: false`. DAPO: `clip_high: 0.28`,
    `dynamic_sampling: true` with `candidates` of the data above 1, and `Length` with a margin among the rewards.

    Answers are drawn in the weights' own type. Under `bf16-mixed` they are thus drawn in float32 and learned in
    bfloat16; as the ratio of a rollout's first step is 1 by definition, nothing corrects for that difference, a bias as
    small as bfloat16's rounding. With `bf16-true` or `32-true` both are one.

    Args:
        rewards: functions of a `lit_gpt.rewards.Sample`, by `class_path` (those of the project) or dotted name.
        reward_weights: one number each; null: all 1.
        group_size: answers to each prompt.
        max_new_tokens: of an answer.
        temperature: of the draws, and of the probabilities that are learned: those are of what was drawn from.
        scale_by_std: divide advantages by the standard deviation of the group's rewards.
        average: over a step's tokens, over each completion's first, or by a constant; see `PolicyLoss`.
        clip_low: lower bound of the ratio to the policy that drew, as a distance from 1.
        clip_high: upper bound; null: as `clip_low`.
        kl_coefficient: weight of the KL to the reference; 0: none, and no reference in memory.
        unbiased_kl: weigh the KL term by the ratio, as DeepSeek-V3.2 does; see `PolicyLoss`.
        reference: `frozen`, `disabled_adapter` or `auto`.
        dynamic_sampling: leave groups whose rewards are all equal out of the mean, and try the next of the data's
            `candidates` in their place.
        mask_unfinished: learn nothing from answers that a limit cut off (DAPO's overlong filtering).
        completions_per_forward: answers in one forward and backward; fewer save memory and change no result.
        engine_batch_size: answers drawn at once, which bounds the cache.
        eval_samples: answers to each held-out prompt.
        eval_temperature: of these; null: as in training; 0: the likeliest tokens.
        num_logged_samples: completions written to the log each time.
        on_bad_input: where a reward raises or gives no finite number: `error` names the row and stops, `skip` leaves
            the answer out of its group, counted and named.
        kwargs: see `GPTModule`.
    """

    is_language_model_loss = False
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
        super().__init__(reference=reference, **kwargs)
        if group_size < 2:
            raise UserError(f"group_size is {group_size}; an answer is compared with others, so it must be at least 2")
        counts = {"max_new_tokens": max_new_tokens, "completions_per_forward": completions_per_forward}
        counts |= {"engine_batch_size": engine_batch_size, "eval_samples": eval_samples}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if not temperature > 0:
            raise UserError(f"temperature is {temperature}; it must be above 0, or all answers of a group are one")
        self._init_rewards(Rewards(rewards, reward_weights, on_bad_input))
        self.policy_loss = PolicyLoss(clip_low, clip_high, kl_coefficient, average, unbiased_kl)
        self.group_size, self.max_new_tokens, self.temperature = group_size, max_new_tokens, temperature
        self.scale_by_std, self.dynamic_sampling, self.mask_unfinished = scale_by_std, dynamic_sampling, mask_unfinished
        self.completions_per_forward, self.engine_batch_size = completions_per_forward, engine_batch_size
        self.eval_samples = eval_samples
        self.eval_temperature = temperature if eval_temperature is None else eval_temperature
        self.num_logged_samples = num_logged_samples
        self._groups: dict[int, list[Answer]] = {}
        """Of the rollout in hand, by place in it, counted over all ranks."""
        self._next_update = 0
        """Which step on the rollout in hand comes next; 0: the next one draws anew."""
        self._shown: list[str] = []

    # ---- drawing answers --------------------------------------------------------------------------------------

    @property
    def uses_reference(self) -> bool:
        """Whether there is a KL term."""
        return self.policy_loss.kl_coefficient > 0

    def configure_model(self) -> None:
        """Build the policy, whole on each device."""
        if self.device_mesh is not None:
            raise UserError("GRPO draws from the whole model on each device; set trainer.strategy to auto or ddp")
        super().configure_model()

    def on_fit_start(self) -> None:
        """Refuse answers that the context has no room for, and rows that cannot be rated."""
        super().on_fit_start()
        longest = self.data_info.max_prompt_tokens
        if longest is not None and longest + self.max_new_tokens > self.config.block_size:
            raise UserError(
                f"prompts of {longest} tokens and {self.max_new_tokens} new ones do not fit in the model's block_size "
                f"{self.config.block_size}; lower max_new_tokens, or the data's max_prompt_tokens"
            )
        self._check_rows()

    # ---- rollouts ---------------------------------------------------------------------------------------------

    def training_step(self, batch: StepBatch | Batch, batch_idx: int) -> Tensor:
        """Draw and rate answers, unless this step goes on learning from the last ones; then learn."""
        parts: list[Any] = batch if isinstance(batch, list) else [batch]
        first = parts[0]
        slots = [group for part in parts for group in part["prompts"]]
        start = self.data_parallel_rank * len(slots)
        if first["update"] == 0:
            self._groups = self._rollout(slots, start, first)
        else:
            # As the engine has left it, which after a resume in the middle of a rollout it has not: products of
            # matrices in another layout are rounded otherwise.
            assert self.model is not None
            prepare_for_decoding(self.model)
        assert first["update"] == self._next_update, "the data and the rollouts are out of step"
        self._next_update = (first["update"] + 1) % first["num_updates"]
        answers = [answer for place in range(start, start + len(slots)) for answer in self._groups[place]]
        self._token_sums = {}
        rollouts: list[Batch] = list(self._batches(answers))
        return super().training_step(rollouts, batch_idx)

    def _rollout(self, slots: Sequence[Sequence[Prompt]], start: int, batch: Any) -> dict[int, list[Answer]]:
        """Answers to each slot's first candidate, or under dynamic sampling to the first whose rewards differ.

        Args:
            slots: this rank's, each with its candidates.
            start: place of the first among those of all ranks.
            batch: says which rollout it is, and how many steps learn from it.
        """
        groups: dict[int, list[Answer]] = {}
        self._rollout_sums = dict.fromkeys((*self.measures, "answers", "rated", "signal", "groups"), 0.0)
        self._shown = []
        open_slots = dict(enumerate(slots, start))
        for trial in range(max(map(len, slots))):
            prompts = [slot[trial] for slot in open_slots.values()]
            # By place and not by prompt: one that is drawn twice is answered anew.
            seeds = [
                [request_seed(self.seed, batch["rollout"], place, trial, n) for n in range(self.group_size)]
                for place in open_slots
            ]
            completions = self.sample(prompts, seeds, self.temperature)
            samples, rated = self._rate(prompts, completions)
            self._add_measures(samples, rated)
            still_open = {}
            rewards = iter(rated.totals)
            for (place, slot), of_prompt in zip(open_slots.items(), completions, strict=True):
                groups[place] = group = self._group(of_prompt, list(islice(rewards, len(of_prompt))))
                has_signal = any(answer.advantage for answer in group)
                self._rollout_sums["signal"] += has_signal
                self._rollout_sums["groups"] += 1
                if not has_signal and trial + 1 < len(slot):
                    still_open[place] = slot
            open_slots = still_open
            if not self.dynamic_sampling or not open_slots:
                break
        self._check_some_rated(self._rollout_sums["rated"])
        self._add_log_probs([answer for group in groups.values() for answer in group], batch["num_updates"] > 1)
        return groups

    def _group(self, completions: Sequence[Completion], rewards: Sequence[float | None]) -> list[Answer]:
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
        """The forwards of a step. What gives no gradient is left out of them, but not out of the mean."""
        loss = self.policy_loss
        units = sum(loss.units(answer.num_tokens, self.max_new_tokens) for answer in answers if answer.counts)
        learned = [answer for answer in answers if self._teaches(answer)]
        parts = chunks(learned, self.completions_per_forward) or [[Answer(answers[0].ids, len(answers[0].ids))]]
        return [rollout_batch(part, loss, self.device, 0 if place else units) for place, part in enumerate(parts)]

    def _teaches(self, answer: Answer) -> bool:
        return answer.counts and (answer.advantage != 0 or self.uses_reference)

    @torch.no_grad()
    def _add_log_probs(self, answers: Sequence[Answer], several_updates: bool) -> None:
        """Note what the policy that drew, and the reference, think of each token, as far as it will be needed."""
        learned = [answer for answer in answers if self._teaches(answer)]
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
                with self.reference_model() as reference:
                    log_probs, _ = self._log_probs(reference, batch)
                for answer, values in zip(part, log_probs.split(sizes), strict=True):
                    answer.reference_log_probs = values

    # ---- the loss ---------------------------------------------------------------------------------------------

    def num_units(self, batch: Batch) -> Tensor:
        """What the loss of a step is the mean over: tokens of answers, answers, or a constant; see `average`."""
        units: Tensor = batch["units"]  # type: ignore[typeddict-item]
        return units

    def loss(self, batch: Batch) -> TokenLoss:
        """Sum of the answers' tokens."""
        rollout: Any = batch
        log_probs, entropy = self._log_probs(self, batch, measure=self._logs_after_this_step)
        old = rollout.get("old_log_probs", log_probs.detach())
        terms = self.policy_loss(log_probs, old, rollout["advantages"], rollout.get("reference_log_probs"))
        total = (terms.loss * rollout["weights"]).sum()
        here = (rollout["weights"] > 0).to(terms.kl.dtype)
        sums = {"clip_fraction": (terms.clipped * here).sum(), "kl": (terms.kl * here).sum(), "tokens": here.sum()}
        sums["entropy"] = here.new_zeros(()) if entropy is None else (entropy * here).sum()
        for name, value in sums.items():
            self._token_sums[name] = self._token_sums.get(name, 0) + value
        return TokenLoss(total, total.detach())

    def _log_probs(self, model: Any, batch: Any, measure: bool = False) -> tuple[Tensor, Tensor | None]:
        """(n,) log-probabilities of the answers' tokens at the temperature they are drawn at, and the entropy there.

        Args:
            model: the policy (this module, which records routers, or its model) or the reference.
            batch: a `RolloutBatch`.
            measure: whether the entropy is wanted.
        """
        index, labels = batch["target_index"], batch["labels"]
        warmth, softcap = self.temperature, self.config.logit_softcap

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
            cap = softcap
            if warmth != 1:  # the head is linear, and cap · tanh(z / cap) / t = (cap / t) · tanh((z / t) / (cap / t))
                rows, bias = rows / warmth, None if bias is None else bias / warmth
                cap = None if softcap is None else softcap / warmth
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

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also keep the rollout in hand, if more steps are to learn from it."""
        super().on_save_checkpoint(checkpoint)
        if not self._next_update:
            return
        groups = {place: [answer.to_plain() for answer in group] for place, group in self._groups.items()}
        sums = torch.tensor(list(self._rollout_sums.values()), device=self.device)
        everyone: list[Any] = [groups]
        if self.data_parallel_size > 1:
            everyone = [None] * self.data_parallel_size
            torch.distributed.all_gather_object(everyone, groups)
        checkpoint["lit_gpt"]["rollout"] = {
            "next_update": self._next_update,
            "groups": {place: group for part in everyone for place, group in part.items()},
            "sums": dict(zip(self._rollout_sums, self._sum_over_ranks(sums).tolist(), strict=True)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the rollout in hand."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["lit_gpt"].get("rollout")
        if saved is not None:
            self._next_update = saved["next_update"]
            self._groups = {n: [Answer(**answer) for answer in group] for n, group in saved["groups"].items()}
            mine = self.trainer.is_global_zero
            self._rollout_sums = {name: value if mine else 0.0 for name, value in saved["sums"].items()}
