"""`EvaluationSuite`: a small fixed evaluation every few optimizer steps, logged as curves in TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.tensor import DTensor

from lit_gpt.callbacks.quiet_model import data_tokenizer, is_stopping, quiet_model, unavailable_reason
from lit_gpt.checks import check_at_least
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.plan import Plan, PlannedMeasure, load_plan, make_plan, run_plan
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject
from lit_gpt.models import GPT


class EvaluationSuite(Callback):
    """Evaluates the model during training, and logs every score as `eval/<result>.<score>`.

    The first process evaluates the current weights in their own precision while the others wait, so keep the suite
    small. Training is not affected: weights, their memory layout, random number generators and modes are restored
    afterwards. A measure that fails is reported and training continues. Generated programs are never executed here. If
    weights are sharded over processes, nothing is measured, with a warning.

    Args:
        measures: list as in an evaluation's YAML, {class_path: ..., init_args: {...}} each; in Python also instances.
        config: path of an evaluation's YAML instead; its gate is ignored.
        every_n_steps: number of optimizer steps between two evaluations; there is also one at the end.
        chat_template: a preset or file instead of the tokenizer's own template.
        max_batch_size: number of sequences run at once.
        seed: seed of all sampling, the same at each evaluation; null: the config's, or 0.

    Raises:
        UserError: neither or both of measures and config are given, one of them is invalid, or a number is below 1.
    """

    def __init__(
        self,
        measures: list[Any] | None = None,
        config: str | None = None,
        every_n_steps: int = 1000,
        chat_template: str | None = None,
        max_batch_size: int = 16,
        seed: int | None = None,
    ) -> None:
        check_at_least("every_n_steps of EvaluationSuite", every_n_steps, 1)
        check_at_least("max_batch_size of EvaluationSuite", max_batch_size, 1)
        if (not measures) == (config is None):
            what = "neither is" if config is None else "both are"
            raise UserError(f"EvaluationSuite needs either measures or config; {what} given")
        self.plan = load_plan(config) if config is not None else _plan_of(measures or [])
        self.every_n_steps = every_n_steps
        self.chat_template = chat_template
        self.max_batch_size = max_batch_size
        self.seed = self.plan.seed if seed is None else seed
        self.results: tuple[Result, ...] = ()
        """Results of the latest evaluation, on the first process."""
        self._tokenizer: Tokenizer | None = None
        self._evaluated_at = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the tokenizer, or warn why there will be no evaluation."""
        reason = unavailable_reason(trainer, pl_module)
        if reason is None and any(isinstance(parameter, DTensor) for parameter in pl_module.parameters()):
            reason = "the weights are sharded; evaluate checkpoints with `python -m lit_gpt evaluate` instead"
        self._tokenizer, self._evaluated_at = None, -1
        if reason is not None:
            rank_zero_warn(f"EvaluationSuite measures nothing: {reason}")
            return
        self._tokenizer = data_tokenizer(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate every `every_n_steps` optimizer steps."""
        if trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the final model, unless a signal ends the run."""
        if not is_stopping(trainer):
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self._tokenizer is None or self._evaluated_at == step:  # several batches per step (accumulation)
            return
        self._evaluated_at = step
        if trainer.is_global_zero:
            with (
                quiet_model(trainer, pl_module) as model,
                _layout_kept(model),
                torch.autocast(pl_module.device.type, enabled=False),  # the engine's cache has the weights' dtype
            ):
                self._log(trainer, model, self._tokenizer, step)
        trainer.strategy.barrier("EvaluationSuite")

    def _log(self, trainer: Trainer, model: GPT, tokenizer: Tokenizer, step: int) -> None:
        subject = Subject(
            f"step {step}",
            model,
            tokenizer,
            chat_template=self.chat_template,
            max_batch_size=self.max_batch_size,
            seed=self.seed,
        )
        self.results = run_plan(self.plan, subject).results
        values = {f"eval/{result.name}.{score.name}": score.value for result in self.results for score in result.scores}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


def _plan_of(measures: list[Any]) -> Plan:
    """Return a plan with the given measures, some of which may already be instances."""
    described = [entry for entry in measures if not isinstance(entry, Measure)]
    for entry in described:
        if not isinstance(entry, str | Mapping):
            raise UserError(
                f"a measure of EvaluationSuite is {entry!r}; write it as {{class_path: ..., init_args: ...}}"
            )
    made = iter(make_plan({"measures": described}, "in training").measures if described else ())
    planned = [
        PlannedMeasure(type(entry).__name__, entry) if isinstance(entry, Measure) else next(made) for entry in measures
    ]
    return Plan("in training", tuple(planned))


@contextmanager
def _layout_kept(model: GPT) -> Iterator[None]:
    """Restore the parameters' memory layout, which the engine changes in place for decoding.

    In another layout, products of the same values are rounded differently. So training continues with the original
    tensors, and a run is bit-identical with and without evaluations.
    """
    tensors = [(parameter, parameter.data) for parameter in model.parameters()]
    fused = [(module, module.fused) for module in model.modules() if hasattr(module, "fused")]
    try:
        yield
    finally:
        for parameter, data in tensors:
            parameter.data = data
        for module, value in fused:
            module.fused = value
