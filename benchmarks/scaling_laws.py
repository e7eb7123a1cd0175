"""How well a scaling law fitted to small runs forecasts the large ones, on published tables.

    python benchmarks/scaling_laws.py FOLDER

The folder holds `scaling-gadre/losses.csv` (Gadre et al. 2024, arXiv:2403.08540) or `scaling-gemstone/
dclm_losses.jsonl` (McLeish et al. 2025, arXiv:2502.06857), each reduced to one row a run. Fitted are the runs below a
bound of compute; scored are those at or above another: the median and largest relative error, and how many lie in the
90 % interval.
"""

import sys
from pathlib import Path

import numpy as np

from lit_gpt.planning.laws import Point, fit_law, points_of, read_table


def main(folder: Path) -> None:
    for name, points, below, above in _tables(folder):
        small = [p for p in points if p.compute < below]
        large = [p for p in points if p.compute >= above]
        law = fit_law(small)
        forecasts = [law.forecast(p.params, p.tokens) for p in large]
        errors = [abs(f.value / p.loss - 1) for f, p in zip(forecasts, large, strict=True)]
        held = [f.low <= p.loss <= f.high for f, p in zip(forecasts, large, strict=True)]
        constants = ", ".join(f"{key} {value:.4g}" for key, value in law.constants.items())
        print(
            f"{name}: {len(small)} runs fitted, {len(large)} scored: median error {np.median(errors):.2%}, largest "
            f"{max(errors):.2%}, {np.mean(held):.0%} in the 90 % interval "
            f"(median width ±{np.median([(f.high - f.low) / 2 / f.value for f in forecasts]):.1%}); {constants}"
        )


def _tables(folder: Path) -> list[tuple[str, list[Point], float, float]]:
    found = []
    gadre = folder / "scaling-gadre" / "losses.csv"
    if gadre.exists():
        rows = read_table(gadre)
        for corpus in sorted({row["corpus"] for row in rows}):
            mine = [row for row in rows if row["corpus"] == corpus]
            evaluated = "c4_val/shard-{0000000..0000010}.tar"
            points = points_of([row for row in mine if row["evaluated_on"] == evaluated])
            found.append((f"gadre {corpus}", points, 2e19, 1e20))
    gemstone = folder / "scaling-gemstone" / "dclm_losses.jsonl"
    if gemstone.exists():
        points = points_of(read_table(gemstone))
        bound = float(np.quantile([p.compute for p in points], 0.6))
        found.append(("gemstone", points, bound, bound))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
