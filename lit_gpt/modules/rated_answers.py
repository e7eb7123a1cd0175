"""Rewards of answers that a policy draws: what is checked, measured and shown of them, in rollouts and held out."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from tqdm import tqdm

from lit_gpt.batch import Batch
from lit_gpt.data.documents import SPLITS
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion
from lit_gpt.modules.reference import ReferencedModule
from lit_gpt.modules.rollouts import request_seed
from lit_gpt.modules.sampling import Prompt, SamplingMixin, shown_answer
from lit_gpt.rewards import Rated, Rewards, Sample

NAMED = 5
"""So many skipped rewards are named at the end."""


class RatedAnswersModule(SamplingMixin, ReferencedModule):
    """A `ReferencedModule` whose answers are rated: the part of `GRPOModule` that does not learn."""

    eval_samples: int
    eval_temperature: float

    def _init_rewards(self, rewards: Rewards) -> None:
        self.rewards = rewards
        self.measures = ("reward", *(f"reward_{name}" for name in rewards.names), "length", "finished")
        self.means = nn.ModuleDict({name: MeanMetric() for name in self.measures})
        self._rollout_sums: dict[str, float] = {}
        self._token_sums: dict[str, Tensor] = {}

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

    # ---- rewards that cannot be had ---------------------------------------------------------------------------

    def _check_rows(self) -> None:
        """Find rows that a reward will not be able to use, before the first of them is drawn.

        Raises:
            UserError: under `on_bad_input: error` if there is one, else if there is no other.
        """
        rows_of_split = self.data_info.rows
        if rows_of_split is None or not self.rewards.check_rows:
            return
        unusable = num_rows = 0
        examples: list[str] = []
        for name in SPLITS:
            split = rows_of_split(name)
            shown = {"desc": f"checking {name}", "unit": "row", "delay": 2, "leave": False}
            for row in tqdm(range(len(split)), disable=not self.trainer.is_global_zero, **shown):
                problem = self.rewards.problem_of(json.loads(split.attached(row) or "{}").get("row", {}))
                if problem is not None:
                    unusable += 1
                    if len(examples) < NAMED:
                        examples.append(f"{split.where(row)}: {problem}")
            num_rows += len(split)
        if not unusable:
            return
        told = f"{unusable} of {num_rows} rows cannot be rated: {'; '.join(examples)}"
        if unusable == num_rows:
            raise UserError(f"{told}; name the right field in the reward, or leave it out")
        if self.rewards.bad_input.mode == "error":
            raise UserError(f"{told}; mend them, name the right field, or set on_bad_input: skip")
        self.print(told)

    def _check_some_rated(self, num_rated: float) -> None:
        """Refuse to go on where a whole rollout has no reward."""
        bad = self.rewards.bad_input
        if bad.mode == "skip" and not self._sum_over_ranks(torch.tensor(num_rated, device=self.device)):
            raise UserError(
                f"every reward of a whole rollout was skipped, so that nothing can be learned; {bad.named[-1]}"
            )

    def _tell_skipped(self) -> None:
        """Print how many rewards were skipped, and the first of them."""
        bad = self.rewards.bad_input
        everyone: list[Any] = [(bad.num_skipped, bad.named[:NAMED])]
        if self.data_parallel_size > 1:
            everyone = [None] * self.data_parallel_size
            torch.distributed.all_gather_object(everyone, (bad.num_skipped, bad.named[:NAMED]))
        total = sum(count for count, _ in everyone)
        if total:
            named = [name for _, names in everyone for name in names]
            self.print("\n  ".join([f"{total} answers had a reward that was skipped, such as", *named[:NAMED]]))

    def on_fit_end(self) -> None:
        """Say which rewards were skipped."""
        super().on_fit_end()
        self._tell_skipped()

    # ---- rollouts ---------------------------------------------------------------------------------------------

    def _add_measures(self, samples: Sequence[Sample], rated: Rated) -> None:
        sums = self._rollout_sums
        for place, sample in enumerate(samples):
            sums["answers"] += 1
            sums["length"] += sample.num_tokens
            sums["finished"] += sample.finished
            total = rated.totals[place]
            if total is None:
                continue
            sums["rated"] += 1
            sums["reward"] += total
            for name, values in rated.by_name.items():
                sums[f"reward_{name}"] += values[place] or 0.0
        if len(self._shown) < self.num_logged_samples:
            self._shown += _shown(samples, rated, self.num_logged_samples - len(self._shown))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add the rollout's measures to what is logged of this step."""
        super().on_before_optimizer_step(optimizer)
        if not self._logs_after_this_step:
            return
        token_names = ("clip_fraction", "kl", "entropy", "tokens")
        host = torch.tensor([*self._rollout_sums.values(), float(self.rewards.bad_input.num_skipped)])
        tokens = torch.stack([self._token_sums[name].detach().float() for name in token_names])
        *values, skipped = self._sum_over_ranks(host.to(self.device)).tolist()
        sums = dict(zip(self._rollout_sums, values, strict=True))
        of_tokens = dict(zip(token_names, self._sum_over_ranks(tokens).tolist(), strict=True))
        counts = {"length": "answers", "finished": "answers", "signal": "groups"}
        logged = {n: sums[n] / max(sums[counts.get(n, "rated")], 1) for n in (*self.measures, "signal")}
        logged |= {name: of_tokens[name] / max(of_tokens["tokens"], 1) for name in token_names[:3]}
        if not self.uses_reference:
            del logged["kl"]
        if skipped:
            logged["skipped_rewards"] = skipped
        self._step_values |= {f"train/{name}": value for name, value in logged.items()}
        self._write_answers("train")

    # ---- evaluation -------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer and rate held-out prompts."""
        self._evaluate_prompts(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on the test split."""
        self._evaluate_prompts(batch, batch_idx)

    def _evaluate_prompts(self, batch: Any, batch_idx: int) -> None:
        prompts = [candidates[0] for candidates in batch["prompts"]]
        seeds = [
            [request_seed(self.seed, "evaluation", prompt["number"], n) for n in range(self.eval_samples)]
            for prompt in prompts
        ]
        samples, rated = self._rate(prompts, self.sample(prompts, seeds, self.eval_temperature))
        if batch_idx == 0:
            self._shown = _shown(samples, rated, self.num_logged_samples, self.eval_samples)
        means: Any = self.means
        for place, sample in enumerate(samples):
            means["length"].update(float(sample.num_tokens))
            means["finished"].update(float(sample.finished))
            if rated.totals[place] is not None:
                means["reward"].update(rated.totals[place])
                for name, values in rated.by_name.items():
                    means[f"reward_{name}"].update(values[place])

    def on_validation_epoch_end(self) -> None:
        """Log the mean rewards; those before the first step too, if there is a sanity check."""
        self._log_rewards("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean rewards."""
        self._log_rewards("test")

    def _log_rewards(self, stage: str) -> None:
        means: list[tuple[str, Any]] = list(self.means.items())
        values = {f"{stage}/{name}": float(mean.compute()) for name, mean in means}
        for _, mean in means:
            mean.reset()
        values[f"{stage}/loss"] = -values[f"{stage}/reward"]
        self._write_answers(stage)
        if self.trainer.sanity_checking:  # what Lightning would not log
            self._log_now(values)
            self.print(f"held-out reward before training: {values[f'{stage}/reward']:.4f}")
            return
        self.log_dict({**values, "step": float(self.trainer.global_step)}, prog_bar=False)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._tell_skipped()


def _shown(samples: Sequence[Sample], rated: Rated, count: int, stride: int = 1) -> list[str]:
    """The first completions as Markdown, with their rewards."""
    texts = []
    for place in range(0, len(samples), stride)[: max(count, 0)]:
        sample = samples[place]
        parts = {name: values[place] for name, values in rated.by_name.items()}
        rewards = ", ".join(f"{name} {'skipped' if v is None else f'{v:.3g}'}" for name, v in parts.items())
        title = f"{sample.where}: {rewards}"
        texts.append(shown_answer(title, sample.prompt[-1]["content"], sample.completion, sample.finished))
    return texts
