"""Run the model during training (for samples, pictures, evaluation) without side effects on the training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.data_info import read_data_info
from lit_gpt.models import GPT
from lit_gpt.plugins import ParallelStrategy


@contextmanager
def quiet_model(trainer: Trainer, pl_module: LightningModule) -> Iterator[GPT]:
    """Yield the GPT in eval mode, uncompiled, in the run's precision, without gradients.

    The states of random number generators and each module's mode are restored afterwards.
    """
    model = pl_module.model
    assert isinstance(model, GPT)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        # Without compiling, because shapes other than training's would trigger recompilation.
        with (
            isolate_rng(),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            trainer.precision_plugin.forward_context(),
        ):
            yield model
    finally:
        for module, training in modes:
            module.training = training


def unavailable_reason(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Return why `quiet_model` cannot be used in this run, or None if it can."""
    if not isinstance(pl_module.model, GPT):
        return f"the module's model is a {type(pl_module.model).__name__} and not a lit_gpt.models.GPT"
    if read_data_info(trainer).tokenizer_path is None:
        return "the DataModule has no tokenizer_path"
    strategy = trainer.strategy
    if isinstance(strategy, ParallelStrategy) and strategy.layout.tensor > 1:
        return "with tensor parallelism each process has only part of each layer"
    if isinstance(strategy, ParallelStrategy) and strategy.layout.pipeline > 1:
        return "with a pipeline each process has only some of the layers"
    return None


def data_tokenizer(trainer: Trainer) -> Tokenizer:
    """Load the tokenizer of the Trainer's data; `unavailable_reason` has checked that there is one."""
    path = read_data_info(trainer).tokenizer_path
    assert path is not None
    return load_tokenizer(path)


def is_stopping(trainer: Trainer) -> bool:
    """Return whether a signal is ending the run (`GracefulStop`), so that optional work should be skipped."""
    return any(getattr(callback, "stopped_by", None) is not None for callback in getattr(trainer, "callbacks", []))


def takes_part(trainer: Trainer) -> bool:
    """Return whether this process runs the model: the first one, or all if its weights are sharded."""
    return trainer.is_global_zero or isinstance(trainer.strategy, ParallelStrategy)


def writers(trainer: Trainer, method: str) -> list[Any]:
    """Return the loggers' experiments that can write text or images (TensorBoard's writers)."""
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [experiment for experiment in experiments if callable(getattr(experiment, method, None))]
