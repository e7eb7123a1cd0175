"""The receipt of a plan: what was forecast before the first step, against what the run measured.

A plan is sealed when the run starts: its hash goes into the lineage, so that no forecast can be written afterwards.
While the run trains, its curves are compared with the plan's bands. At the end every forecast is scored, and many
receipts show whether the intervals hold as often as they say (calibration: a 90 % interval should hold nine runs in
ten).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_gpt.atomic import atomic_file
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json
from lit_gpt.pages import render_page
from lit_gpt.pages.text import human_bytes
from lit_gpt.planning.laws import LAW_REACH

PLAN = "plan.json"
RECEIPT = "receipt.json"
PAGE = "receipt.html"
QUANTITIES = {
    "memory": ("memory a device at the peak", "bytes"),
    "tokens_per_second": ("speed", "tokens/s"),
    "hours": ("time of training", "h"),
    "money": ("money", "dollars"),
    "loss": ("final loss", "nats/token"),
}
"""Forecasts that a run can be held to: name in `plan.json` → title and unit."""
TOLERATED_ENTRIES = 2
"""Log entries in a row outside a band of speed or memory before it is said: a single one may be another program's."""


@dataclass(frozen=True)
class Score:
    """One forecast against its measurement.

    Attributes:
        name: Name of the quantity (`QUANTITIES`).
        low: Lower end of the interval.
        value: Forecast.
        high: Upper end.
        measured: What the run did; None: not measured.
        basis: What the forecast rests on.
    """

    name: str
    low: float
    value: float
    high: float
    measured: float | None
    basis: str

    @property
    def error(self) -> float | None:
        """Measured over forecast, less 1."""
        return self.measured / self.value - 1 if self.measured is not None and self.value else None

    @property
    def held(self) -> bool | None:
        """Whether the interval holds the measurement."""
        return None if self.measured is None else self.low <= self.measured <= self.high


def read_plan(file: str | Path) -> dict[str, Any]:
    """Read what `plan --out` wrote.

    Raises:
        UserError: The file is missing or is no plan.
    """
    remedy = "write one with `plan --config <the run's YAML> --out plan.json`"
    try:
        plan = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"plan {file} cannot be read: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"plan {file} is not JSON ({error}); {remedy}") from error
    needed = {"run", "device", "memory", "step_seconds", "tokens_per_second", "curve"}
    missing = sorted(needed - plan.keys()) if isinstance(plan, dict) else sorted(needed)
    if missing:
        raise UserError(f"plan {file} has no {', '.join(missing)}; {remedy}")
    return plan


def check_plan(plan: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Check that a plan is of this run.

    Args:
        plan: The plan.
        actual: What is known of the run, by the names of `RunFacts` and `device` (cpu or cuda); None: unknown.

    Raises:
        UserError: They differ; the message names the first difference.
    """
    expected = plan["run"] | {"device": plan["device"]["kind"], "world_size": num_devices(plan)}
    for name, value in actual.items():
        if value is not None and expected[name] is not None and value != expected[name]:
            raise UserError(
                f"the plan is for {name} {expected[name]}, but the run has {value}; plan this run as it is (plan "
                "--config <its YAML> --out plan.json), or leave out --plan"
            )


def num_devices(plan: Mapping[str, Any]) -> int:
    """Return the number of processes of a plan, one per device."""
    return math.prod(size for axis, size in plan["run"]["layout"].items() if axis != "expert")


class Bands:
    """The bands of a plan in which a run's curves should stay.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Mapping[str, Any]) -> None:
        speed = plan["tokens_per_second"]
        self._constant = {
            "tokens_per_second": (speed["low"], speed["high"]),
            "memory": (0.0, plan["memory"]["high"]),
        }
        self._curve = [(math.log(step), low, high) for step, low, high in plan["curve"]["points"]]
        self._outside: dict[str, int] = {}

    def at(self, name: str, step: int) -> tuple[float, float] | None:
        """Return (low, high) of `loss`, `tokens_per_second` or `memory` at an optimizer step; None: no band."""
        if name != "loss":
            return self._constant[name]
        if not self._curve:
            return None
        x = math.log(max(step, 1))
        for (x0, low0, high0), (x1, low1, high1) in zip(self._curve, self._curve[1:], strict=False):
            if x <= x1:
                share = max(0.0, (x - x0) / (x1 - x0))
                return low0 + share * (low1 - low0), high0 + share * (high1 - high0)
        return self._curve[-1][1:]

    def leaves(self, name: str, step: int, value: float) -> str | None:
        """Return a sentence when a curve has just left its band, for whichever reason; None: nothing new."""
        band = self.at(name, step)
        if band is None:
            return None
        if band[0] <= value <= band[1]:  # false for NaN
            self._outside[name] = 0
            return None
        side = "below" if value < band[0] else "above"
        sign = -1 if side == "below" else 1
        before = self._outside.get(name, 0)
        self._outside[name] = sign if before * sign < 0 else before + sign  # from one side to the other is news too
        if abs(self._outside[name]) != (1 if name == "loss" else TOLERATED_ENTRIES):
            return None
        title = QUANTITIES[name][0] if name != "loss" else "train/loss"
        ends = [format_quantity(name, end) for end in band]
        return f"step {step:,}: {title} {format_quantity(name, value)} is {side} its plan, {ends[0]} to {ends[1]}"


def score(plan: Mapping[str, Any], measured: Mapping[str, float | None]) -> list[Score]:
    """Return each forecast of a plan against its measurement.

    Args:
        plan: The plan.
        measured: By the names of `QUANTITIES`; what is missing was not measured.
    """
    scores = []
    for name in QUANTITIES:
        entry = plan.get(name)
        if entry is None or (name == "money" and not entry["high"]):
            continue  # not forecast, or free of charge
        if name == "loss" and (entry.get("extrapolation") or 1.0) < LAW_REACH:
            continue  # `plan` said so too
        # The low end of memory is the tensors'; a process never takes less, but for noise.
        low = 0.9 * entry["low"] if name == "memory" else entry["low"]
        value = measured.get(name)
        scores.append(Score(name, low, entry["value"], entry["high"], value, str(entry.get("basis", ""))))
    return scores


def write_receipt(
    folder: Path,
    plan: Mapping[str, Any],
    scores: Sequence[Score],
    history: Sequence[Sequence[float]],
    departures: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write `receipt.json` and `receipt.html` into a run's folder.

    Args:
        folder: Folder of the run.
        plan: The sealed plan.
        scores: Scores of its forecasts.
        history: Rows (step, loss or NaN, tokens/s or NaN), as logged.
        departures: Sentences of when the run left a band.
        facts: What else was measured, for the page: seconds of validation and saving.
    """
    rows = [[step, *(value if math.isfinite(value) else None for value in values)] for step, *values in history]
    receipt = {
        "plan_sha256": sha256_json(plan),
        "run": folder.resolve().name,  # the plan may have been of a run of another name
        "device": plan["device"]["name"],
        "scores": [asdict(s) | {"error": s.error, "held": s.held} for s in scores],
        "departures": list(departures),
        "facts": dict(facts),
        "history": rows,
    }
    with atomic_file(folder / RECEIPT) as temporary:
        temporary.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    page = render_page(
        "receipt.html", receipt=receipt, scores=scores, plan=plan, charts_of=_charts(plan, rows), **_WORDS
    )
    with atomic_file(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _charts(plan: Mapping[str, Any], rows: Sequence[Sequence[float | None]]) -> list[dict[str, Any]]:
    """Return the plain form of the pictures: loss and speed over the run, each with the band of the plan."""
    bands = Bands(plan)
    found = []
    for place, name, title in ((1, "loss", "train/loss"), (2, "tokens_per_second", "tokens/s")):
        mine = [row for row in rows if row[place] is not None]
        if not mine:
            continue
        steps = [int(row[0] or 0) for row in mine]
        ends = [bands.at(name, step) for step in steps]
        band = None if ends[0] is None else {"low": [e[0] for e in ends if e], "high": [e[1] for e in ends if e]}
        found.append(
            {
                "title": title,
                "kind": "line",
                "x": steps,
                "series": {"measured": [row[place] for row in mine]},
                "band": band,
                "x_label": "optimizer step",
                "y_label": title,
            }
        )
    return found


def format_quantity(name: str, value: float | None) -> str:
    """Return a value of one of `QUANTITIES` with its unit."""
    if value is None:
        return "not measured"
    if name == "memory":
        return human_bytes(value)
    return f"{value:,.0f} tokens/s" if name == "tokens_per_second" else f"{value:.4g} {QUANTITIES[name][1]}"


_WORDS = {"titles": {name: title for name, (title, _) in QUANTITIES.items()}, "format_quantity": format_quantity}


def describe_scores(scores: Sequence[Score]) -> str:
    """Return the scores as lines for a terminal."""
    lines = []
    for s in scores:
        low, value, high, measured = (
            format_quantity(s.name, number) for number in (s.low, s.value, s.high, s.measured)
        )
        result = "" if s.error is None else f", {s.error:+.0%}, {'held' if s.held else 'missed'}"
        lines.append(f"plan {s.name:18} forecast {value} ({low} to {high}), measured {measured}{result}")
    return "\n".join(lines)


# ---- many runs -----------------------------------------------------------------------------------------------------


def read_receipts(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read the receipts of runs.

    Args:
        runs: Their folders, or `receipt.json` files.

    Raises:
        UserError: A run has no receipt.
    """
    receipts = []
    for run in runs:
        path = Path(run).expanduser()
        path = path / RECEIPT if path.is_dir() else path
        try:
            receipt = json.loads(path.read_text(encoding="utf-8"))
            receipt["scores"] = [Score(**{f: s[f] for f in Score.__dataclass_fields__}) for s in receipt["scores"]]
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}; a receipt is written at the end of `fit --plan plan.json`"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no receipt ({error}); name runs of `fit --plan plan.json`") from error
        receipts.append(receipt)
    return receipts


def calibration_table(receipts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each quantity how far off its forecasts were, and how often their intervals held.

    Returns:
        Rows with `name`, `num_runs`, `median_error` (absolute), `bias` (geometric mean of measured over forecast, less
        1), `held` (share) and `largest_error`.
    """
    table = []
    for name in QUANTITIES:
        mine = [s for receipt in receipts for s in receipt["scores"] if s.name == name and s.error is not None]
        if not mine:
            continue
        errors = sorted(abs(s.error) for s in mine)
        ratios = [math.log(s.measured / s.value) for s in mine if s.measured > 0]
        table.append(
            {
                "name": name,
                "num_runs": len(mine),
                "median_error": (errors[(len(errors) - 1) // 2] + errors[len(errors) // 2]) / 2,
                "largest_error": errors[-1],
                "bias": math.expm1(sum(ratios) / len(ratios)) if ratios else math.nan,
                "held": sum(bool(s.held) for s in mine) / len(mine),
            }
        )
    return table


def describe_calibration(receipts: Sequence[Mapping[str, Any]]) -> str:
    """Return the calibration over many runs as lines for a terminal."""
    lines = []
    for row in calibration_table(receipts):
        lines.append(
            f"{row['name']:18} {row['num_runs']:>3} runs  median error {row['median_error']:.1%}, largest "
            f"{row['largest_error']:.1%}, measured {row['bias']:+.1%} on average, in the interval {row['held']:.0%}"
        )
    num = sum(bool(receipt["departures"]) for receipt in receipts)
    return "\n".join([*lines, f"{num} of {len(receipts)} runs left a band while they ran"])


def write_calibration(file: Path, receipts: Sequence[Mapping[str, Any]]) -> None:
    """Write the calibration over many runs as a page.

    Args:
        file: HTML file to write.
        receipts: As `read_receipts` returns them.
    """
    page = render_page("calibration.html", receipts=receipts, table=calibration_table(receipts), **_WORDS)
    with atomic_file(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
