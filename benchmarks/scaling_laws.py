"""How well a scaling law fitted to small runs forecasts the large ones, on published tables.

    python benchmarks/scaling_laws.py FOLDER

The folder holds `scaling-gadre/losses.csv` (Gadre et al. 2024, arXiv:2403.08540) or `scaling-gemstone/
dclm_losses.jsonl` (McLeish et al. 2025, arXiv:2502.06857), each reduced to one row a run. Fitted are the runs below a
bound of compute; scored are those at or above another: the median and largest relative error, and how many lie in the
90 % interval. The plain law is the same equation fitted by SciPy's L-BFGS-B to the same Huber loss, from a grid of
starting points (Hoffmann et al. 2022, arXiv:2203.15556, section D.2).
"""

import itertools
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from lit_gpt.planning.laws import HUBER_DELTA, Point, ScalingLaw, fit_law, points_of, read_table

EVALUATED = ("c4_val/shard-{0000000..0000010}.tar", "val_tok_mult/paloma_c4_en/00000001.tar")


def main(folder: Path) -> None:
    inside = []
    for name, points, below, above in _tables(folder):
        small = [p for p in points if p.compute < below]
        large = [p for p in points if p.compute >= above]
        law = fit_law(small)
        forecasts = [law.forecast(p.params, p.tokens) for p in large]
        held = [f.low <= p.loss <= f.high for f, p in zip(forecasts, large, strict=True)]
        constants = ", ".join(f"{key} {value:.4g}" for key, value in law.constants.items())
        width = np.median([(f.high - f.low) / 2 / f.value for f in forecasts])
        print(
            f"{name}: {len(small)} runs fitted, {len(large)} scored: {_errors(law, large)} (plain law: "
            f"{_errors(plain_law(small), large)}), {np.mean(held):.0%} in the 90 % interval (median ±{width:.1%}); "
            f"{constants}",
            flush=True,
        )
        inside.append(np.mean(held))
    print(f"{len(inside)} tables: {np.mean(inside):.0%} in the 90 % interval on average")


def _errors(law: ScalingLaw, points: list[Point]) -> str:
    errors = [abs(law.loss(p.params, p.tokens) / p.loss - 1) for p in points]
    return f"median error {np.median(errors):.2%}, largest {max(errors):.2%}"


def plain_law(points: list[Point]) -> ScalingLaw:
    n, d, loss = (np.log([getattr(p, name) for p in points]) for name in ("params", "tokens", "loss"))

    def objective(theta: np.ndarray) -> float:
        e, a, alpha, b, beta = theta
        size = np.abs(np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e) - loss)
        huber = np.where(size <= HUBER_DELTA, 0.5 * size**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))
        return 1e4 * float(huber.sum())

    grid = itertools.product((0.0, 0.5), (3, 8), (0.2, 0.5), (5, 12), (0.3, 0.6))
    fits = [minimize(objective, np.array(start), method="L-BFGS-B", options={"maxiter": 1000}) for start in grid]
    e, a, alpha, b, beta = min(fits, key=lambda fit: fit.fun).x
    return ScalingLaw({"E": np.exp(e), "A": np.exp(a), "alpha": alpha, "B": np.exp(b), "beta": beta})


def _tables(folder: Path) -> list[tuple[str, list[Point], float, float]]:
    found = []
    gadre = folder / "scaling-gadre" / "losses.csv"
    if gadre.exists():
        rows = read_table(gadre)
        for evaluated in EVALUATED:
            for corpus in sorted({row["corpus"] for row in rows}):
                mine = [row for row in rows if row["corpus"] == corpus and row["evaluated_on"] == evaluated]
                for below, above in ((3e18, 2e19), (2e19, 1e20), (1e20, 1e20)):
                    name = f"gadre {corpus}, {evaluated[:6]}, below {below:.0e}, from {above:.0e}"
                    found.append((name, points_of(mine), below, above))
    gemstone = folder / "scaling-gemstone" / "dclm_losses.jsonl"
    if gemstone.exists():
        points = points_of(read_table(gemstone))
        for share in (0.6, 0.8):
            bound = float(np.quantile([p.compute for p in points], share))
            found.append((f"gemstone, smaller {share:.0%}", points, bound, bound))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
