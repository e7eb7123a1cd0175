"""Learning-rate schedules: pure functions, and thin classes that a YAML file can select.

Each function maps progress to a factor of the learning rate. `now` and `total` have the same unit, optimizer steps or
tokens, never epochs or micro-batches. The current step counts as begun, so that no step trains with a rate of 0.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_gpt.checks import check_at_least, check_between
from lit_gpt.errors import UserError


def warmup_factor(now: int, warmup: int) -> float:
    """Return a factor that rises linearly from 1/warmup to 1 over `warmup` units, and is 1 afterwards."""
    return min(1.0, (now + 1) / warmup) if warmup > 0 else 1.0


def linear_decay(progress: float, final: float) -> float:
    """Return a factor that falls linearly from 1 to `final` as `progress` goes from 0 to 1."""
    return 1.0 + (final - 1.0) * progress


def cosine_decay(progress: float, final: float) -> float:
    """Return a factor that falls along half a cosine from 1 to `final` (arXiv:1608.03983, equation 5)."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Schedule:
    """Warm-up, followed by `after_warmup`; constant in this base class.

    Args:
        warmup_steps: optimizer steps of linear warm-up.
        warmup_tokens: the same in tokens; the whole schedule then counts tokens (needs `max_tokens`).
        final: factor of the learning rate at the end.

    Raises:
        UserError: warm-up is given in both steps and tokens.
    """

    needs_total = False

    def __init__(self, warmup_steps: int = 0, warmup_tokens: int = 0, final: float = 0.1) -> None:
        check_at_least("warmup_steps", warmup_steps, 0)
        check_at_least("warmup_tokens", warmup_tokens, 0)
        if warmup_steps and warmup_tokens:
            raise UserError(f"warmup_steps {warmup_steps} and warmup_tokens {warmup_tokens} are both set; keep one")
        check_between("final", final, 0, 1, "it is a factor of the learning rate")
        self.warmup_steps = warmup_steps
        self.warmup_tokens = warmup_tokens
        self.final = final

    @property
    def counts_tokens(self) -> bool:
        """Whether `now` and `total` are tokens instead of optimizer steps."""
        return self.warmup_tokens > 0

    def factor(self, now: int, total: int | None) -> float:
        """Return the factor of the learning rate for the step that begins at `now`.

        Args:
            now: steps (or tokens) completed before this one.
            total: steps (or tokens) of the whole run; None if the run has no fixed end.

        Raises:
            UserError: the schedule needs an end and the run has none.
        """
        if self.needs_total and total is None:
            unit = "max_tokens of the module" if self.counts_tokens else "trainer.max_steps or max_tokens of the module"
            raise UserError(
                f"{type(self).__name__} decays until the end of the run, but the run has no fixed end; set {unit}"
            )
        warmup = self.warmup_tokens or self.warmup_steps
        if now < warmup:
            return warmup_factor(now, warmup)
        return self.after_warmup(now, warmup, total)

    def after_warmup(self, now: int, warmup: int, total: int | None) -> float:
        """Return the factor after the warm-up; the only method that a custom schedule overrides."""
        return 1.0


class Constant(Schedule):
    """Warm-up, then a constant learning rate."""


class Linear(Schedule):
    """Warm-up, then a linear decay to `final` at the end of the run."""

    needs_total = True

    def after_warmup(self, now: int, warmup: int, total: int | None) -> float:
        """See `linear_decay`."""
        return linear_decay(_progress(now, warmup, total), self.final)


class Cosine(Schedule):
    """Warm-up, then a half-cosine decay to `final` at the end of the run."""

    needs_total = True

    def after_warmup(self, now: int, warmup: int, total: int | None) -> float:
        """See `cosine_decay`."""
        return cosine_decay(_progress(now, warmup, total), self.final)


class WSD(Schedule):
    """Warm-up, stable, decay: constant, then a linear decay to `final` (MiniCPM, Hu et al. 2024, arXiv:2404.06395).

    Args:
        warmup_steps: optimizer steps of linear warm-up.
        warmup_tokens: the same in tokens; the whole schedule then counts tokens (needs `max_tokens`).
        final: factor of the learning rate at the end.
        decay_fraction: fraction of the whole run that the decay takes.
    """

    needs_total = True

    def __init__(
        self, warmup_steps: int = 0, warmup_tokens: int = 0, final: float = 0.0, decay_fraction: float = 0.2
    ) -> None:
        super().__init__(warmup_steps, warmup_tokens, final)
        check_between("decay_fraction", decay_fraction, 0, 1, "it is a share of the run", low_open=True)
        self.decay_fraction = decay_fraction

    def after_warmup(self, now: int, warmup: int, total: int | None) -> float:
        """Return 1, then `linear_decay` over the last `decay_fraction` of the run."""
        assert total is not None
        start = max(warmup, total - round(total * self.decay_fraction))
        return 1.0 if now < start else linear_decay(_progress(now, start, total), self.final)


class InverseSquareRoot(Schedule):
    """Warm-up, then 1/sqrt(now) (Vaswani et al. 2017, arXiv:1706.03762, equation 3), at least `final`."""

    def after_warmup(self, now: int, warmup: int, total: int | None) -> float:
        """Return sqrt(warmup / now), which continues the warm-up at 1."""
        return max(self.final, math.sqrt(max(warmup, 1) / max(now, 1)))


def _progress(now: int, start: int, total: int | None) -> float:
    assert total is not None
    return min(1.0, (now - start) / max(1, total - start))


class ScheduledLR(LambdaLR):
    """A schedule as a PyTorch scheduler; the configured learning rates take precedence over a checkpoint's.

    PyTorch's schedulers restore `base_lrs`, so that a changed learning rate is silently lost on resume. Here only the
    position in the schedule is saved.
    """

    def state_dict(self) -> dict[str, int]:
        """Return the number of steps taken."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the position and set each group's learning rate from the configured one."""
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = []
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
            self._last_lr.append(group["lr"])


def check_learning_rates(optimizer: Optimizer) -> None:
    """Raise if the optimizer would not change any parameter.

    Raises:
        UserError: every group's configured learning rate is 0.
    """
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not any(rates):
        raise UserError("the learning rate is 0 in every parameter group, so nothing would train; set optimizer lr > 0")
