"""Scaling laws: forecast the loss of a model with N parameters after D tokens, with an interval, from a fit to runs.

**Chinchilla** (Hoffmann et al. 2022, arXiv:2203.15556, equation 2): L(N, D) = E + A / N^α + B / D^β. E is the loss of
a perfect model of the data; the other two terms are the excess loss of a finite model and of finite data. The fit
minimizes the Huber loss (δ = 1e-3) of the difference of log losses (their section D.2), so a failed run has little
influence.

**Repeated data** (Muennighoff et al. 2023, arXiv:2305.16264, equations 5 and 6): repeating U unique tokens R times is
worth fewer than U R new tokens, so D is replaced by U + U R* (1 - exp(-R / R*)) with R* = 15.39.

**Hyperparameters** (DeepSeek LLM, arXiv:2401.02954, section 3; Step Law, arXiv:2503.04715): the best learning rate or
batch size is a power law, log y = c + a log N + b log D.

**The interval** of a forecast is the root of the sum of two squared errors. The first is the spread of fits to the
fitted losses plus resampled residuals (residual bootstrap, Efron 1979): resampling whole runs would lose the few runs
that identify the constants. The second is the error on the larger runs of fits to the smaller ones, as far as their
own bootstrap does not explain it: no curve of this form matches the true loss exactly, and with many runs the bootstrap
alone gives intervals that are far too narrow.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.checks import check_at_least
from lit_gpt.errors import UserError
from lit_gpt.suggest import unknown_name

HUBER_DELTA = 1e-3
MIN_POINTS = 6
"""Minimum number of runs: the law has five constants, and at least one more run is needed to check the fit."""
REPETITION_WORTH = 15.39
"""R* of repeated tokens (arXiv:2305.16264, section 5)."""
MIN_POINTS_TO_TEST = 15
"""Runs of the smallest fit that is tested on larger runs, three for each constant: fits to fewer runs err by more than
the law does."""
UNTESTED_ERROR = 0.05
"""Relative error assumed if there are too few runs to test the law on; published tests found 1 to 5 %."""
LAW_REACH = 1e-4
"""Smallest compute, relative to the largest run of a law, for which the law is used."""
MIN_SHARE = 0.003
"""Share of the loss below which a term is lost in the noise of runs: repeated ones differ by as much."""
_STEPS = 80
_TEST_RESAMPLES = 60


@dataclass(frozen=True)
class Point:
    """One measurement: the loss of a run at its end or at an intermediate checkpoint.

    Attributes:
        params: N, number of parameters.
        tokens: D, number of training tokens.
        loss: Loss in nats per token.
        corpus: Name of the training and evaluation corpus; losses on different corpora are not comparable.
        name: Name of the run.
    """

    params: float
    tokens: float
    loss: float
    corpus: str = ""
    name: str = ""

    @property
    def compute(self) -> float:
        """6 N D, in FLOPs (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""
        return 6 * self.params * self.tokens


@dataclass(frozen=True)
class LossForecast:
    """A forecast loss with its interval.

    Attributes:
        value: Loss in nats per token.
        low: Lower end of the 90 % interval.
        high: Upper end of the 90 % interval.
        extrapolation: Compute of the forecast run divided by that of the largest run that the law was fitted to;
            None: unknown, or the forecast is not from a law.
    """

    value: float
    low: float
    high: float
    extrapolation: float | None


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law L(N, D) = E + A / N^α + B / D^β.

    Attributes:
        constants: Values of E, A, alpha, B and beta.
        corpus: Corpus on which the law was fitted, and to which it applies.
        source: Origin of the law: a citation, or the table of runs.
        num_points: Number of runs that it was fitted to.
        max_compute: Compute of the largest of these runs, in FLOPs.
        spread: (resamples, 5) logarithms of E, A, B and the exponents, from fits to resampled residuals.
        relative_error: 90 % quantile of the relative error of fits to the smaller runs on the larger ones, as far as
            it is not of the fits' own spread.
        outliers: Names of the runs that are far from the law.
    """

    constants: dict[str, float]
    corpus: str = ""
    source: str = ""
    num_points: int = 0
    max_compute: float = 0.0
    spread: list[list[float]] = field(default_factory=list)
    relative_error: float = 0.0
    outliers: list[str] = field(default_factory=list)

    def loss(self, params: float, tokens: float) -> float:
        """Return L(N, D)."""
        c = self.constants
        return c["E"] + c["A"] / params ** c["alpha"] + c["B"] / tokens ** c["beta"]

    def forecast(self, params: float, tokens: float, unique_tokens: float | None = None) -> LossForecast:
        """Return the loss with its 90 % interval.

        Args:
            params: N, number of parameters.
            tokens: D, number of training tokens.
            unique_tokens: Number of tokens in the corpus, if it is repeated; None: no token is repeated.
        """
        tokens = tokens if unique_tokens is None else effective_tokens(tokens, unique_tokens)
        value = self.loss(params, tokens)
        below = above = 0.0
        if self.spread:
            n, d = math.log(params), math.log(tokens)
            logs = np.log(_losses(np.array(self.spread), np.array([n]), np.array([d])))[:, 0] - math.log(value)
            below, above = -min(0.0, np.quantile(logs, 0.05)), max(0.0, np.quantile(logs, 0.95))
        extrapolation = 6 * params * tokens / self.max_compute if self.max_compute else None
        error = 0.0 if extrapolation is None else self.relative_error * float(_distance(np.log(extrapolation)))
        low, high = (math.hypot(side, error) for side in (below, above))
        return LossForecast(value, value * math.exp(-low), value * math.exp(high), extrapolation)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the (N, D) that minimize the loss subject to 6 N D = `flops` (arXiv:2203.15556, equation 4)."""
        c = self.constants
        a, b = c["alpha"], c["beta"]
        g = (a * c["A"] / (b * c["B"])) ** (1 / (a + b))
        params = g * (flops / 6) ** (b / (a + b))
        return params, flops / 6 / params

    def describe(self) -> str:
        """Return the origin of the law and its corpus, for messages."""
        return f"{self.source or 'your own law'}, fitted on {self.corpus or 'one corpus'}"

    def save(self, file: Path) -> None:
        """Write the law as JSON."""
        from lit_gpt.atomic import atomic_file

        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(vars(self), indent=1) + "\n", encoding="utf-8")


PUBLISHED = ScalingLaw(
    constants={"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},
    corpus="MassiveText with a vocabulary of 32,000",
    source="Chinchilla, fitted again (Besiroglu et al. 2024, arXiv:2404.10102)",
    num_points=240,
    max_compute=3e21,
    relative_error=0.25,
)
"""The law used if the user gives none. Its relative error is a judgment: losses on other corpora and with other
vocabularies differ by about that much. For a reliable forecast, fit a law to runs on your own corpus."""


def load_law(file: str | Path) -> ScalingLaw:
    """Read a law that `save` wrote.

    Raises:
        UserError: If the file is missing or is not a scaling law.
    """
    try:
        values = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        law = ScalingLaw(**values)
        law.loss(1e6, 1e6)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; write a law with `plan fit-law --out`") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is not a scaling law ({error}); write one with `plan fit-law --out`") from error
    return law


def effective_tokens(tokens: float, unique_tokens: float) -> float:
    """Return how many unique tokens are worth as much as `tokens` from a repeated corpus of `unique_tokens`."""
    if tokens <= unique_tokens:
        return tokens
    repetitions = tokens / unique_tokens - 1
    return unique_tokens * (1 + REPETITION_WORTH * (1 - math.exp(-repetitions / REPETITION_WORTH)))


# ---- fitting --------------------------------------------------------------------------------------------------------


def fit_law(points: Sequence[Point], num_resamples: int = 200, seed: int = 0, source: str = "") -> ScalingLaw:
    """Fit the Chinchilla law to runs.

    Args:
        points: Runs on one corpus.
        num_resamples: Number of bootstrap fits.
        seed: Seed of the resampling.
        source: Description of the runs, stored in the law.

    Raises:
        UserError: If there are too few runs, or too few different sizes or numbers of tokens, or several corpora.
    """
    _check(points)
    check_at_least("num_resamples", num_resamples, 0)
    n, d, loss = (np.log([getattr(p, name) for p in points]) for name in ("params", "tokens", "loss"))
    best = _fit(n, d, loss)
    residuals = np.log(_losses(best[None], n, d))[0] - loss
    scale = max(1.4826 * float(np.median(np.abs(residuals - np.median(residuals)))), HUBER_DELTA)
    far = np.abs(residuals) > 5 * scale
    outliers = [
        p.name or f"N {p.params:.3g}, D {p.tokens:.3g}" for p, is_far in zip(points, far, strict=True) if is_far
    ]
    return ScalingLaw(
        constants=_named(best),
        corpus=points[0].corpus,
        source=source,
        num_points=len(points),
        max_compute=max(p.compute for p in points),
        spread=_bootstrap(n, d, loss, best, num_resamples, seed).tolist(),
        relative_error=_error_on_larger(n, d, loss),
        outliers=outliers,
    )


def _check(points: Sequence[Point]) -> None:
    corpora = sorted({p.corpus for p in points})
    if len(corpora) > 1:
        raise UserError(
            f"the runs are of {len(corpora)} corpora ({', '.join(corpora[:4])}), whose losses are not comparable; fit "
            "one corpus at a time with --corpus"
        )
    if len(points) < MIN_POINTS:
        raise UserError(
            f"{len(points)} runs are given; the law has 5 constants and needs at least {MIN_POINTS} runs of several "
            "sizes and lengths"
        )
    for name, values in (("parameters", {p.params for p in points}), ("tokens", {p.tokens for p in points})):
        if len(values) < 3:
            raise UserError(
                f"the runs have {len(values)} different numbers of {name}; the law needs at least 3 to tell how the "
                f"loss falls with {name}"
            )
    bad = [p for p in points if not (p.params > 0 and p.tokens > 0 and p.loss > 0 and math.isfinite(p.loss))]
    if bad:
        raise UserError(f"run {bad[0].name or bad[0]} has no positive finite params, tokens and loss; leave it out")


def _bootstrap(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, best: np.ndarray, num_resamples: int, seed: int = 0
) -> np.ndarray:
    """Return (resamples, 5) constants of fits to the fitted losses plus resampled residuals, of either sign.

    The residuals are widened by sqrt(runs / (runs - 5)), since a fit of five constants makes them too small.
    """
    if not num_resamples:
        return np.zeros((0, 5))
    random = np.random.default_rng(seed)
    fitted = np.log(_losses(best[None], n, d))[0]
    residuals = (loss - fitted) * math.sqrt(len(n) / max(1, len(n) - 5))
    drawn = residuals[random.integers(0, len(n), (num_resamples, len(n)))]
    drawn *= random.choice([-1.0, 1.0], drawn.shape)
    spread = _descend(n, d, fitted + drawn, np.repeat(best[None], num_resamples, 0))[0]
    return spread[np.isfinite(spread).all(1)]


def _error_on_larger(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> float:
    """Estimate the error of the law's form in an extrapolation, from fits to the smaller runs.

    Returns:
        The 90 % quantile of sqrt(error² - spread²) divided by the distance in compute (`_distance`), where error is
        that of the log loss on a larger run, and spread half of its 90 % interval by bootstrap.
    """
    order = np.argsort(n + d, kind="stable")
    errors: list[float] = []
    for share in (0.5, 0.6, 0.7, 0.8):
        cut = max(MIN_POINTS_TO_TEST, int(share * len(order)))
        small, large = order[:cut], order[cut:]
        if len(large):
            fitted = _fit(n[small], d[small], loss[small])
            forecast = np.log(_losses(fitted[None], n[large], d[large]))[0]
            resampled = np.log(
                _losses(_bootstrap(n[small], d[small], loss[small], fitted, _TEST_RESAMPLES), n[large], d[large])
            )
            spread = np.quantile(np.abs(resampled - forecast), 0.9, axis=0)
            unexplained = np.sqrt(np.maximum(0.0, (forecast - loss[large]) ** 2 - spread**2))
            errors += (unexplained / _distance((n + d)[large] - (n + d)[small].max())).tolist()
    return float(np.quantile(errors, 0.9)) if errors else UNTESTED_ERROR


def _distance(log_extrapolation: np.ndarray) -> np.ndarray:
    """Return the factor by which the error grows with log(extrapolation in compute): its root, 1 up to a factor of e.

    The root is how a random walk grows: the true curve departs from the fitted one by as much in each factor of e. On
    published runs (`benchmarks/scaling_laws.py`) linear growth made the intervals up to 40 % wider without need.
    """
    root: np.ndarray = np.sqrt(np.maximum(1.0, log_extrapolation))
    return root


def _losses(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return the (fits, runs) losses for (fits, 5) constants θ = (log E, log A, α, log B, β), n = log N, d = log D."""
    e, a, alpha, b, beta = (theta[:, i, None] for i in range(5))
    return np.exp(e) + np.exp(a - alpha * n) + np.exp(b - beta * d)


def _starts(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return (8, 5) starting points: the best exponents of a grid, with E, A and B from a linear fit for each."""
    target, found = np.exp(loss), []
    for alpha in np.linspace(0.1, 1.2, 12):
        for beta in np.linspace(0.1, 1.2, 12):
            terms = np.stack([np.ones_like(n), np.exp(-alpha * (n - n.mean())), np.exp(-beta * (d - d.mean()))], 1)
            solution = np.linalg.lstsq(terms / target[:, None], np.ones_like(target), rcond=None)[0]
            solution = np.maximum(solution, 1e-3)
            error = np.abs(np.log(terms @ solution) - loss).sum()
            logs = np.log(solution)
            found.append((error, [logs[0], logs[1] + alpha * n.mean(), alpha, logs[2] + beta * d.mean(), beta]))
    found.sort(key=lambda item: item[0])
    return np.array([theta for _, theta in found[:8]])


def _fit(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return the (5,) constants with the smallest Huber loss, found from several starting points."""
    starts = _starts(n, d, loss)
    thetas, objectives = _descend(n, d, loss, starts)
    best = int(np.argmin(objectives))
    # The valley of the minimum is flat where sizes and tokens are few: go on in it from the best start.
    return _descend(n, d, loss, thetas[best : best + 1], 5 * _STEPS)[0][0]


def _descend(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, theta: np.ndarray, num_steps: int = _STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Minimize the Huber loss of many fits at once, by Levenberg-Marquardt steps on reweighted squares.

    Args:
        n: (runs,) log N.
        d: (runs,) log D.
        loss: (runs,) log loss, or (fits, runs) where each fit has its own.
        theta: (fits, 5) starting points.
        num_steps: Number of steps.

    Returns:
        (fits, 5) constants and (fits,) objectives.
    """
    theta = theta.copy()
    damping = np.full(len(theta), 1e-2)

    def objective(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(over="ignore", invalid="ignore"):
            r = np.log(_losses(theta, n, d)) - loss
            size = np.abs(r)
            huber = np.where(size <= HUBER_DELTA, 0.5 * r**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))
            total = huber.sum(1)
        return r, np.where(np.isfinite(total), total, np.inf)

    residual, value = objective(theta)
    for _ in range(num_steps):
        e, a, alpha, b, beta = (theta[:, i, None] for i in range(5))
        of_n, of_d = np.exp(a - alpha * n), np.exp(b - beta * d)
        ones = np.ones_like(n)
        slopes = np.stack([np.exp(e) * ones, of_n, -n * of_n, of_d, -d * of_d], -1)
        slopes /= (np.exp(e) + of_n + of_d)[..., None]
        w = np.minimum(1.0, HUBER_DELTA / np.maximum(np.abs(residual), 1e-12))
        hessian = np.einsum("fri,fr,frj->fij", slopes, w, slopes)
        gradient = np.einsum("fri,fr->fi", slopes, w * residual)
        diagonal = np.einsum("fii->fi", hessian)
        system = hessian + np.eye(5) * (damping[:, None, None] * diagonal[:, None, :] + 1e-12)
        trial = theta - np.linalg.solve(system, gradient[..., None])[..., 0]
        trial[:, [2, 4]] = np.clip(trial[:, [2, 4]], 0.01, 3.0)
        trial[:, 0] = np.clip(trial[:, 0], -10, loss.min(-1))
        new_residual, new_value = objective(trial)
        better = new_value < value
        theta[better], value[better], residual[better] = trial[better], new_value[better], new_residual[better]
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return theta, value


def _named(theta: np.ndarray) -> dict[str, float]:
    e, a, alpha, b, beta = theta.tolist()
    return {"E": math.exp(e), "A": math.exp(a), "alpha": alpha, "B": math.exp(b), "beta": beta}


def fit_power_law(rows: Sequence[Mapping[str, float]], target: str) -> dict[str, float]:
    """Fit log y = c + a log N + b log D to learning rates or batch sizes y, by iteratively reweighted Huber regression.

    Args:
        rows: Runs, each with `params`, `tokens` and the target.
        target: Name of y: `lr` or `global_batch`.

    Returns:
        `constant` (exp c), `params` (a), `tokens` (b), and the median relative `error`.

    Raises:
        UserError: If there are fewer than four rows.
    """
    if len(rows) < 4:
        raise UserError(f"{len(rows)} rows have {target}; the power law has 3 constants and needs at least 4")
    x = np.array([[1.0, math.log(row["params"]), math.log(row["tokens"])] for row in rows])
    y = np.log([row[target] for row in rows])
    w = np.ones(len(y))
    for _ in range(50):
        root = np.sqrt(w)
        solution = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
        residual = y - x @ solution
        scale = max(1.345 * 1.4826 * float(np.median(np.abs(residual))), 1e-9)
        w = np.minimum(1.0, scale / np.maximum(np.abs(residual), 1e-12))
    c, a, b = solution.tolist()
    return {"constant": math.exp(c), "params": a, "tokens": b, "error": float(np.median(np.abs(np.expm1(residual))))}


# ---- tables ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "params": ("params", "params_no_embed", "params_active_precise", "num_params", "n"),
    "tokens": ("tokens", "d", "tokens_seen"),
    "loss": ("loss", "final_loss", "val_loss"),
    "corpus": ("corpus", "dataset"),
    "name": ("model", "run_name", "name"),
}
"""Column name used here → names in published tables; the first one present is used."""


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Read a table of runs (CSV or JSON lines) as rows with `params`, `tokens`, `loss` and the table's other columns.

    Args:
        path: The table.
        columns: Column name used here → name in the table, for names that `COLUMNS` lacks.

    Raises:
        UserError: If the file cannot be read, or a column is missing or not a number.
    """
    import csv

    columns = dict(columns or {})
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a .csv or .jsonl table of runs") from error
    if path.suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    else:
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise UserError(f"{path} is neither .csv nor JSON lines: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows; it needs params, tokens and loss of each run")
    known = set(rows[0])
    chosen = {
        key: columns.get(key) or next((name for name in names if name in known), None) for key, names in COLUMNS.items()
    }
    for key in ("params", "tokens", "loss"):
        if chosen[key] not in known:
            raise UserError(
                f"{path} has no column for {key} (it has {', '.join(sorted(known))}); name it: --columns.{key} NAME"
            )
    table = []
    for number, row in enumerate(rows, start=1):
        entry = dict(row)
        for name, column in chosen.items():
            value = row.get(column) if column is not None else None
            if name in ("params", "tokens", "loss"):
                try:
                    entry[name] = float(value)  # type: ignore[arg-type]
                except (TypeError, ValueError):
                    raise UserError(f"{path}: {column} of row {number} is {value!r}; it must be a number") from None
            else:
                entry[name] = "" if value is None else str(value)
        table.append(entry)
    return table


def points_of(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the runs of a table as points."""
    return [Point(row["params"], row["tokens"], row["loss"], row["corpus"], row["name"]) for row in rows]


def select_rows(rows: Sequence[dict[str, Any]], where: Mapping[str, Any], corpus: str | None) -> list[dict[str, Any]]:
    """Return the rows of a table that have the given values.

    Raises:
        UserError: If a column does not exist, or no row has its value.
    """
    chosen = list(rows)
    for name, value in {**where, **({} if corpus is None else {"corpus": corpus})}.items():
        if name not in rows[0]:
            raise unknown_name("column", name, rows[0])
        found = [row for row in chosen if str(row[name]) == str(value)]
        if not found:
            raise unknown_name("value", value, {str(row[name]) for row in chosen}, f"of {name}")
        chosen = found
    return chosen


def describe_laws(
    table: Sequence[dict[str, Any]],
    name: str,
    where: Mapping[str, Any],
    corpus: str | None,
    max_compute: float | None,
    min_compute_to_score: float | None,
    num_resamples: int,
    out: Path | None,
) -> str:
    """Fit the laws to a table of runs and return them as text; see the command `plan fit-law` for the arguments.

    Args:
        table: Rows as returned by `read_table`.
        name: Name of the table, recorded with the law.
        where: Values of the rows to use.
        corpus: Corpus of the rows to use.
        max_compute: Fit only runs below it.
        min_compute_to_score: Score the law on runs from it on.
        num_resamples: Number of bootstrap fits.
        out: File to write the law to.
    """
    rows = select_rows(table, where, corpus)
    points = points_of(rows)
    fitted = [p for p in points if max_compute is None or p.compute < max_compute]
    law = fit_law(fitted, num_resamples, source=f"{name}, {len(fitted)} runs")
    spread = np.array(law.spread)
    lines = [f"L(N, D) = E + A / N^alpha + B / D^beta, {len(fitted)} runs up to {law.max_compute:.3g} FLOPs"]
    for place, (name, value) in enumerate(law.constants.items()):
        ends = ""
        if len(spread):
            column = np.exp(spread[:, place]) if name in ("E", "A", "B") else spread[:, place]
            ends = f"  (90 %: {np.quantile(column, 0.05):.4g} to {np.quantile(column, 0.95):.4g})"
        lines.append(f"{name:6}{value:.4g}{ends}")
    lines.append(
        f"error of its form on larger runs: {law.relative_error:.2%} times the root of log(extrapolation in compute)"
    )
    c = law.constants
    for names, quantity, least in (
        (("A", "alpha"), "parameters", min(p.params for p in fitted)),
        (("B", "beta"), "tokens", min(p.tokens for p in fitted)),
    ):
        if c[names[0]] / least ** c[names[1]] < MIN_SHARE * min(p.loss for p in fitted):
            lines.append(
                f"{' and '.join(names)} are not determined: in these runs the loss does not fall with {quantity}, so "
                f"trust the law at such numbers of {quantity} alone, or add runs with fewer {quantity}"
            )
    if law.outliers:
        lines.append(
            f"{len(law.outliers)} runs are far from the law and have little influence: {', '.join(law.outliers[:5])}"
        )
    if min_compute_to_score is not None:
        lines.append(_scored(law, [p for p in points if p.compute >= min_compute_to_score], min_compute_to_score))
    for target in ("lr", "global_batch"):
        usable = [{key: float(row[key]) for key in ("params", "tokens", target)} for row in rows if row.get(target)]
        if len(usable) >= 4 and len({row[target] for row in usable}) > 1:
            power = fit_power_law(usable, target)
            lines.append(
                f"{target} = {power['constant']:.3g} · N^{power['params']:.3f} · D^{power['tokens']:.3f} as chosen in "
                f"these runs (median error {power['error']:.0%})"
            )
    if out is not None:
        law.save(out)
        lines.append(f"wrote {out}; use it with plan --law")
    return "\n".join(lines)


def _scored(law: ScalingLaw, points: Sequence[Point], bound: float) -> str:
    if not points:
        raise UserError(f"no run has min_compute_to_score {bound:.3g} FLOPs or more; lower it")
    forecasts = [law.forecast(p.params, p.tokens) for p in points]
    errors = [abs(f.value / p.loss - 1) for f, p in zip(forecasts, points, strict=True)]
    num_inside = sum(f.low <= p.loss <= f.high for f, p in zip(forecasts, points, strict=True))
    return (
        f"scored on {len(points)} runs from {bound:.3g} FLOPs: median error {np.median(errors):.2%}, largest "
        f"{max(errors):.2%}, {num_inside} of {len(points)} in the 90 % interval"
    )
