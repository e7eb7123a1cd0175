"""Propose a run for a compute budget: model size, number of tokens, batch size and learning rate.

**Size and tokens.** N is chosen to minimize the loss of a scaling law, with as many tokens as the budget then allows.
Training costs 6 N D FLOPs, inference 2 N FLOPs per token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). If the
budget includes inference (Sardana et al. 2023, arXiv:2401.00448, equation 3), smaller models that are trained longer
are better; if the corpus has only U tokens, repeated tokens count less (Muennighoff et al. 2023, arXiv:2305.16264).

**Depth.** One number, the depth, determines a model, as in nanochat: a width of 64 channels per layer, heads of 64
channels, and an MLP of 8/3 of the width, rounded up to a multiple of 128, otherwise as in the preset `tiny`.

**Batch and learning rate** follow the compute C of the run: B = 0.292 C^0.3271 tokens and η = 0.3118 C^-0.125
(DeepSeek LLM, arXiv:2401.02954, equation 1; fitted there with AdamW from 1e17 to 2e19 FLOPs, on the best sizes). Where
a model is larger than the best one, η is that of the compute for which it would be the best. Where fewer than 200 steps
are left, the batch is smaller, and η with its root (Malladi et al. 2022, arXiv:2205.10287).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_gpt.checks import check_at_least, check_between
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.planning.laws import LossForecast, ScalingLaw, effective_tokens

WIDTH_PER_LAYER = 64
MAX_DEPTH = 128
MIN_STEPS = 20
"""Minimum number of optimizer steps of a proposed run; a shorter one would not learn anything."""
GOOD_STEPS = 200
"""Number of optimizer steps below which a proposed run gets smaller batches."""
NUM_VALIDATIONS = 4
BEST_RATIO = 20
"""Tokens per parameter of a model of the best size (Hoffmann et al. 2022, arXiv:2203.15556, table 3)."""
EVAL_BATCH_SIZE = 16
MIN_EVAL_TOKENS = 2**14
"""Sequences of a batch, and tokens at least, of a validation. Four of a quarter of the run's tokens cost a third of its
training at most; all runs of a ladder are measured on the same tokens."""
LADDER_SHARES = (1 / 9, 1 / 3, 1)
"""Budgets of a ladder, relative to the largest."""


@dataclass(frozen=True)
class Proposal:
    """A proposed run.

    Attributes:
        config: Configuration of the model.
        depth: Number of layers.
        tokens: Number of training tokens.
        batch_sequences: Number of sequences per optimizer step.
        steps: Number of optimizer steps.
        lr: Peak learning rate of AdamW.
        flops: Training FLOPs, 6 N D.
        loss: Forecast of the loss.
    """

    config: GPTConfig
    depth: int
    tokens: int
    batch_sequences: int
    steps: int
    lr: float
    flops: float
    loss: LossForecast


def best_size(
    law: ScalingLaw, flops: float, inference_tokens: float = 0.0, unique_tokens: float | None = None
) -> tuple[float, float]:
    """Return the number of parameters and of training tokens that minimize the loss within a budget.

    Args:
        law: Scaling law of the loss.
        flops: Budget for training and inference together, in FLOPs.
        inference_tokens: Number of tokens, prompts included, that the model will process after training.
        unique_tokens: Number of tokens in the corpus; None: unlimited.

    Raises:
        UserError: If the budget is too small for the inference tokens.
    """
    params = np.exp(np.linspace(math.log(1e3), math.log(1e14), 4000))
    tokens = (flops - 2 * params * inference_tokens) / (6 * params)
    worth = np.array([t if unique_tokens is None or t <= 0 else effective_tokens(t, unique_tokens) for t in tokens])
    c = law.constants
    with np.errstate(all="ignore"):
        loss = np.where(tokens > 0, c["E"] + c["A"] / params ** c["alpha"] + c["B"] / worth ** c["beta"], np.inf)
    best = int(np.argmin(loss))
    if not np.isfinite(loss[best]):
        raise UserError(
            f"a budget of {flops:.3g} FLOPs is too small for {inference_tokens:.3g} inference tokens: those of the "
            f"smallest model take {2 * params[0] * inference_tokens:.2g}; raise it, or lower inference_tokens"
        )
    return float(params[best]), float(tokens[best])


def config_of_depth(depth: int, vocab_size: int, block_size: int) -> GPTConfig:
    """Return the model configuration for a depth: the number of layers determines width, heads and MLP."""
    width = WIDTH_PER_LAYER * depth
    return GPTConfig.from_preset("tiny", vocab_size=vocab_size, block_size=block_size, **_shape(depth, width))


def _shape(depth: int, width: int) -> dict[str, int]:
    inner = -(-8 * width // 3 // 128) * 128
    return {"n_layer": depth, "n_head": depth, "n_embd": width, "intermediate_size": inner}


def propose(
    law: ScalingLaw,
    flops: float | None,
    depth: int | None = None,
    vocab_size: int = 4096,
    block_size: int = 256,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
) -> Proposal:
    """Return the run for a budget, or the compute-optimal run of a depth.

    Args:
        law: Scaling law of the loss.
        flops: Budget in FLOPs; None: the budget for which a model of `depth` is the best one.
        depth: Number of layers; None: the one closest to the best size.
        vocab_size: Number of vocabulary entries.
        block_size: Context length in tokens.
        inference_tokens: Number of tokens that the model will process after training; they are paid from the budget.
        unique_tokens: Number of tokens in the corpus; None: unlimited.

    Raises:
        UserError: If the budget is too small for 20 optimizer steps.
    """
    if depth is None:
        assert flops is not None
        wanted, _ = best_size(law, flops, inference_tokens, unique_tokens)
        sizes = {d: config_of_depth(d, vocab_size, block_size).num_parameters() for d in range(1, MAX_DEPTH + 1)}
        depth = min(sizes, key=lambda d: abs(math.log(sizes[d] / wanted)))
    config = config_of_depth(depth, vocab_size, block_size)
    params = config.num_parameters()
    if flops is None:
        # Find by bisection the compute at which this size is the best one; the best size grows with compute.
        low, high = math.log(1e6), math.log(1e30)
        for _ in range(60):
            middle = (low + high) / 2
            size, _ = best_size(law, math.exp(middle), inference_tokens, unique_tokens)
            low, high = (middle, high) if size < params else (low, middle)
        flops = math.exp(low)
    tokens = (flops - 2 * params * inference_tokens) / (6 * params)
    training = 6 * params * max(tokens, 0.0)
    best_batch = max(1, round(0.292 * max(training, 1.0) ** 0.3271 / block_size))
    batch = max(1, min(best_batch, int(tokens // (GOOD_STEPS * block_size))))
    # A multiple of the validations, so that the last of them is after the last step, where a law needs it.
    steps = int(tokens // (batch * block_size)) // NUM_VALIDATIONS * NUM_VALIDATIONS
    if steps < MIN_STEPS:
        smallest = MIN_STEPS * block_size * 6 * params
        raise UserError(
            f"a budget of {flops:.3g} FLOPs is enough for {max(steps, 0)} steps of a model of depth {depth}; raise it "
            f"to at least {_rounded_up(smallest)} for {MIN_STEPS} steps, or lower vocab_size and block_size"
        )
    tokens_seen = steps * batch * block_size
    return Proposal(
        config=config,
        depth=depth,
        tokens=tokens_seen,
        batch_sequences=batch,
        steps=steps,
        lr=min(0.01, 0.3118 * max(training, 6 * params * BEST_RATIO * params) ** -0.125)
        * math.sqrt(batch / best_batch),
        flops=6 * params * tokens_seen,
        loss=law.forecast(params, tokens_seen, unique_tokens),
    )


def _rounded_up(value: float) -> str:
    """Return a bound with two digits, which is no lower than the value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit) * unit:.2g}"


def propose_ladder(
    law: ScalingLaw, flops: float, vocab_size: int = 4096, block_size: int = 256, depths: Sequence[int] | None = None
) -> list[Proposal]:
    """Return the runs for fitting a law: several depths, each for three budgets.

    Several sizes for each of several budgets (isoFLOP profiles: Hoffmann et al. 2022, arXiv:2203.15556, section 3.2)
    show how the loss falls with parameters and with tokens independently of each other.

    Args:
        law: Law that finds the best depth for the middle budget.
        flops: Largest budget in FLOPs.
        vocab_size: Number of vocabulary entries.
        block_size: Context length in tokens.
        depths: Numbers of layers; None: three around the best one.

    Raises:
        UserError: If the smallest budget is too small for 20 optimizer steps of the largest of the depths, or they are
            fewer than three.
    """
    middle = LADDER_SHARES[1] * flops
    best, _ = best_size(law, middle)
    sizes = {d: config_of_depth(d, vocab_size, block_size).num_parameters() for d in range(1, MAX_DEPTH + 1)}
    if depths is None:
        depth = max(2, min(sizes, key=lambda d: abs(math.log(sizes[d] / best))))
        depths = (depth - 1, depth, depth + 1) if depth < 5 else (depth - 2, depth, depth + 2)
    depths = sorted(set(depths))
    check_at_least("the number of different depths", len(depths), 3, "a law needs at least three sizes")
    for depth in depths:
        check_between("depths", depth, 1, MAX_DEPTH)
    needed = MIN_STEPS * block_size * 6 * sizes[depths[-1]] / LADDER_SHARES[0]
    if flops < needed:
        raise UserError(
            f"flops {flops:.3g} is too small for a ladder of depths {', '.join(map(str, depths))}, whose smallest runs "
            f"have a ninth of it; raise it to at least {_rounded_up(needed)}, or lower vocab_size and block_size"
        )
    return [propose(law, share * flops, d, vocab_size, block_size) for d in depths for share in LADDER_SHARES]


def as_yaml(proposal: Proposal, data: dict[str, Any], name: str, shortest: int | None = None) -> dict[str, Any]:
    """Return the contents of a YAML file for `fit` that trains the proposed run.

    Args:
        proposal: The proposed run.
        data: `class_path` and `init_args` of the DataModule; `block_size` and `global_batch_size` are filled in.
        name: Name of the run.
        shortest: Tokens of the shortest run with which its loss will be compared; None: its own.
    """
    config, steps = proposal.config, proposal.steps
    eval_tokens = max(MIN_EVAL_TOKENS, (shortest or proposal.tokens) // NUM_VALIDATIONS)
    sizes = {"block_size": config.block_size, "global_batch_size": proposal.batch_sequences}
    sizes["eval_batch_size"] = EVAL_BATCH_SIZE
    if data["class_path"].endswith("StdlibDataModule"):
        sizes["vocab_size"] = config.vocab_size
    return {
        "seed_everything": 0,
        "trainer": {
            "name": name,
            "max_steps": steps,
            "val_check_interval": steps // NUM_VALIDATIONS,
            "limit_val_batches": max(1, eval_tokens // (EVAL_BATCH_SIZE * config.block_size)),
            "log_every_n_steps": min(25, steps // 8),
        },
        "model": {
            "class_path": "PretrainModule",
            "init_args": {
                "preset": "tiny",
                "overrides": _shape(proposal.depth, config.n_embd),
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": float(f"{proposal.lr:.3g}"), "betas": [0.9, 0.95], "weight_decay": 0.1},
                },
                "schedule": {"class_path": "Cosine", "init_args": {"warmup_steps": max(1, min(steps // 20, 2000))}},
            },
        },
        "data": {"class_path": data["class_path"], "init_args": {**(data.get("init_args") or {}), **sizes}},
    }
