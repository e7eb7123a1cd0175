"""Forecast a run from the work of one simulated step: time, cost, energy, disk, loss, and whether it fits.

Every number is an `Estimate`: low, value, high, and its basis. The documentation page "Plan a run" derives each formula
and gives its source.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from lit_gpt.pages.text import abbreviated, human_bytes
from lit_gpt.parallel import Layout
from lit_gpt.planning.allocators import bound_without_holes
from lit_gpt.planning.cpu_speed import other_seconds, product_seconds
from lit_gpt.planning.devices import Device
from lit_gpt.planning.laws import LAW_REACH, LossForecast, ScalingLaw
from lit_gpt.planning.tracker import Collective, Product, SimulatedStep, Work

PRODUCT_SHARE = {"linear": 0.70, "experts": 0.45}
"""Share of a GPU's peak that very large products reach (60 to 75 % on A100 and H100: Megatron-LM, arXiv:2104.04473,
figure 12). Smaller ones also wait for their operands: the time of their bytes is added (`_product_seconds`)."""
HALF_SPEED_LENGTH = 350
"""Length of a sequence at which attention kernels reach half of their speed on long ones: FlashAttention-2 on H100 has
191, 260, 298, 319, 333 and 335 TFLOP/s at 512 to 16,384 tokens (arXiv:2407.08608, figure 5; causal, 128 channels)."""
BANDWIDTH_SHARE = 0.75
"""Share of the memory's bandwidth that elementwise kernels reach."""
FUSED_SHARE = 0.35
"""Share of the bytes of elementwise operations that are still moved with `torch.compile`."""
LAUNCH_SECONDS = 5e-6
"""Time to launch one kernel from Python; an eager step takes at least the sum of its launches."""
COLLECTIVE_SECONDS = 20e-6
"""Latency of one collective."""
GPUS_PER_NODE = 8
UNCALIBRATED = 1.8
"""Factor between the value and either end of the interval of a forecast time, if nothing was measured."""
ONE_RUN_SPREAD = 1.3
"""The same for a calibration by a single run of another shape, which shows no spread; a judgement."""
PUE = 1.2
"""Power usage effectiveness: total power of a data center divided by that of its computers. Hyperscale sites have 1.1
to 1.2 (Patterson et al. 2021, arXiv:2104.10350, section 2.3); the industry mean is 1.56 (Uptime Institute 2024)."""
GRID_GRAMS = 445.0
"""CO2 per kWh, world average of 2024 (IEA, Electricity 2025)."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval (about 90 %) and its basis: a measurement, an assumption or a source."""

    low: float
    value: float
    high: float
    basis: str


@dataclass(frozen=True)
class Calibration:
    """Correction of forecast times by measured ones.

    Attributes:
        ratio: Measured divided by forecast seconds; forecasts are multiplied by it.
        spread: Factor between the value and either end of the interval.
        basis: Description of the measurement.
    """

    ratio: float = 1.0
    spread: float = UNCALIBRATED
    basis: str = "tabulated speeds, nothing measured"


def calibration_from(ratios: Sequence[float], basis: str) -> Calibration:
    """Return the correction of the forecast times by runs of other shapes.

    Args:
        ratios: Measured over forecast seconds of each run.
        basis: Description of the runs.

    Returns:
        The median ratio, with the 90 % interval of a further one: Student's t times the standard deviation of the
        logarithms times sqrt(1 + 1 / n).
    """
    logs = [math.log(ratio) for ratio in ratios]
    spread = ONE_RUN_SPREAD
    if len(logs) > 1:
        deviation = statistics.stdev(logs) * math.sqrt(1 + 1 / len(logs))
        spread = math.exp(_student_t(len(logs) - 1) * deviation)
    return Calibration(math.exp(statistics.median(logs)), max(1.05, spread), basis)


def _student_t(freedom: int) -> float:
    """Return the 95 % quantile of Student's t distribution, by the expansion of Abramowitz and Stegun, 26.7.5."""
    if freedom <= 2:
        return (6.314, 2.920)[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.95)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class RunFacts:
    """Properties of a run that its forecast needs in addition to the simulated step.

    Attributes:
        name: Name of the run.
        steps: Number of optimizer steps; None: unlimited.
        tokens_per_step: Input tokens per optimizer step, over all devices.
        micro_batch_size: Rows per micro-batch on a device.
        micro_batches: Number of micro-batches per optimizer step on a device.
        layout: Number of processes and how the model is distributed over them.
        precision: Precision as named in Lightning, such as `bf16-mixed`.
        compiled: Whether `torch.compile` is on.
        checkpoints_kept: Number of checkpoints on disk at the same time.
        model_params: Number of parameters of the whole model, without embeddings that are only looked up.
    """

    name: str
    steps: int | None
    tokens_per_step: int
    micro_batch_size: int
    micro_batches: int
    layout: Layout
    precision: str
    compiled: bool
    checkpoints_kept: int
    model_params: int


@dataclass(frozen=True)
class Change:
    """A change of the YAML and its effect on memory (bytes), time per step (seconds) and whether the run fits."""

    what: str
    memory: float
    step_seconds: float
    fits: bool


@dataclass
class Forecast:
    """The forecast of a run; `to_dict` returns the content of the JSON file that `plan --out` writes."""

    run: dict[str, Any]
    device: dict[str, Any]
    memory_by_kind: dict[str, int]
    memory: Estimate
    step_seconds: Estimate
    bottleneck: str
    flops_per_step: dict[str, float]
    collectives: list[dict[str, Any]]
    tokens_per_second: Estimate
    hours: Estimate | None
    money: Estimate | None
    energy_kwh: Estimate | None
    co2_kg: Estimate | None
    disk_bytes: float
    loss: dict[str, Any] | None
    curve: dict[str, Any]
    fits: bool
    largest_micro_batch: dict[str, int]
    changes: list[Change] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class LossCurve:
    """The band in which the training loss of a run should stay.

    Attributes:
        points: Rows (optimizer step, low, high), rising in steps; empty: no band.
        basis: What it rests on.
    """

    points: list[tuple[int, float, float]]
    basis: str


def loss_curve(
    num_steps: int,
    tokens_per_step: int,
    vocab_size: int,
    factor: Callable[[int], float],
    pilot: Sequence[tuple[int, float]] = (),
    law: Callable[[float], LossForecast] | None = None,
) -> LossCurve:
    """Return the band of the training loss over a run, from the best of what is known.

    - The first steps of the run itself (`plan --measure`), which the run repeats: within 3 %, which leaves room for
      another machine's arithmetic; after them at most 6 % higher than at their end, and falling no faster than
      step^-0.3.
    - A law of the loss, for the tokens so far; up to 15 % higher before the end, since a law is fitted to finished
      runs, whose learning rate has fallen (Hoffmann et al. 2022, arXiv:2203.15556, section 3.1: curves of runs that
      were planned longer lie higher at the same tokens).
    - In any case no higher than chance, log V, less 4 % of it for each doubling of the steps at full learning rate, a
      bound that this project's own runs keep with a margin of 15 % and more; what lies above it does not learn.

    Args:
        num_steps: Optimizer steps of the run.
        tokens_per_step: Input tokens of a step.
        vocab_size: Entries of the vocabulary.
        factor: Steps done → factor of the learning rate.
        pilot: Pairs (step, training loss as logged) of the first steps.
        law: Tokens → forecast of the loss; None: no law, or none that reaches so far.
    """
    steps = sorted({round(num_steps ** (place / 40)) for place in range(41)} | {step for step, _ in pilot})
    chance = math.log(vocab_size)
    points = []
    full, done = 0.0, 0
    for step in steps:
        full += sum(factor(done + n) for n in _sample(step - done)) * (step - done) / len(_sample(step - done))
        done = step
        low, high = 0.0, chance * max(0.2, 1.05 - 0.04 * math.log2(1 + min(full, step * tokens_per_step / 2048)))
        if law is not None:
            now, then = law(full * tokens_per_step), law(step * tokens_per_step)
            low, high = min(then.low, high), min(high, max(now.high, then.high) * (1 + 0.15 * (1 - step / num_steps)))
        points.append((step, low, high))
    basis = "chance, less 4 % for each doubling of the steps: what lies above it does not learn"
    if law is not None:
        basis = "the scaling law at the tokens so far, up to 15 % higher before the learning rate has fallen"
    if pilot:
        known = dict(pilot)
        points = [_piloted(point, pilot) for point in points if point[0] in known or point[0] > pilot[-1][0]]
        basis = f"the first {pilot[-1][0]} steps, which were run; then {basis}"
    return LossCurve(points, basis)


def _sample(count: int) -> range:
    """Return at most 64 of `count` steps, evenly spaced."""
    return range(0, count, max(1, count // 64))


def _piloted(point: tuple[int, float, float], pilot: Sequence[tuple[int, float]]) -> tuple[int, float, float]:
    """Return a point of the curve with the band that the first steps give it."""
    step, low, high = point
    last, end = pilot[-1]
    if step > last:
        return step, max(low, 0.97 * end * (step / last) ** -0.3), min(high, 1.06 * end)
    return step, 0.97 * dict(pilot)[step], 1.03 * dict(pilot)[step]


def step_parts(work: Work, device: Device, precision: str, compiled: bool) -> dict[str, float]:
    """Return the seconds of a step by kind of work, from the roofline model (Williams et al. 2009).

    Matrix products are bound by arithmetic, everything else by memory; on a CPU (this
    machine's) both are timed. Collectives of tensor and context parallelism, and the exchange of tokens between
    experts, add their full time, since a layer waits for them. Those of data parallelism overlap with the backward
    pass: only the time that exceeds it is added, or a tenth of it for the part at the end. The bubble of a pipeline is
    the time in which this process waits for the others.
    """
    seconds: dict[str, float] = {}
    if device.kind == "cpu":
        seconds = product_seconds(work) | {"elementwise": other_seconds(work)}
    else:
        # Without tensor cores float32 products run at about an eighth of the bf16 peak (TF32: a half).
        peak = device.peak_flops * (0.5 if precision == "32-true" else 1.0)
        for product, flops in work.products.items():
            took = _product_seconds(product, flops, peak, device)
            seconds[product.kind] = seconds.get(product.kind, 0.0) + took
        share = FUSED_SHARE if compiled else 1.0
        seconds["elementwise"] = share * work.moved_bytes / (device.bandwidth * BANDWIDTH_SHARE)
        launches = work.num_operations * LAUNCH_SECONDS * share
        seconds["launches"] = max(0.0, launches - sum(seconds.values()))
    computing = sum(seconds.values())
    waiting = overlapping = 0.0
    for collective in work.collectives:
        cost = collective.sent_bytes / _collective_speed(collective, device) + collective.num_calls * COLLECTIVE_SECONDS
        if collective.waits:
            waiting += cost
        else:
            overlapping += cost
    seconds["collectives"] = waiting + max(overlapping - 0.7 * computing, 0.1 * overlapping)
    if work.idle_share:
        seconds["pipeline bubble"] = work.idle_share * (computing + waiting)
    return seconds


def _product_seconds(product: Product, flops: float, peak: float, device: Device) -> float:
    """Return the seconds of all products of a kind on a GPU.

    The time of reading the operands and writing the result is added to that of the arithmetic, since kernels overlap
    the two only in part: so a product of 1,536 columns reaches half of the peak, and one of 8,192 nearly all of its
    share, as measured in Anthony et al. 2024 (arXiv:2401.14489, section 6).
    """
    if product.kind == "attention":
        length = product.shape[2]
        return flops / (peak * device.attention_share * length / (length + HALF_SPEED_LENGTH))
    batch, rows, inner, columns = product.shape
    per_call = 2.0 * batch * rows * inner * columns
    sides = batch * (rows * inner + inner * columns + rows * columns)
    moved: float = sides * getattr(torch, product.dtype).itemsize * flops / per_call
    return flops / (peak * PRODUCT_SHARE[product.kind]) + moved / (device.bandwidth * BANDWIDTH_SHARE)


def _collective_speed(collective: Collective, device: Device) -> float:
    """Return the bytes/s that each process of a collective sends.

    Between nodes, its rings use the network adapters of all its processes in a node side by side, so the speed is that
    of all of them, up to the link's: NCCL reaches 400 to 450 GB/s between nodes of eight H100 with adapters of 50 GB/s.
    """
    in_node = max(1, GPUS_PER_NODE // collective.stride)
    if collective.num_ranks <= in_node:
        return device.link
    if collective.name.startswith("all_to_all"):
        # No ring: each process sends through its own adapter what the processes of other nodes get.
        return device.network * (collective.num_ranks - 1) / (collective.num_ranks - in_node)
    return min(device.link, device.network * in_node)


def forecast(
    facts: RunFacts,
    step: SimulatedStep,
    work: Work,
    device: Device,
    calibration: Calibration,
    loss: LossForecast | None,
    loss_basis: str,
    curve: "LossCurve",
    largest: dict[str, int],
    changes: Sequence[Change],
) -> Forecast:
    """Return the forecast of a run.

    Args:
        facts: Properties of the run.
        step: Simulated step, for the memory.
        work: Work of a complete optimizer step, all micro-batches.
        device: Device of the run; all are of the same kind.
        calibration: Correction of the forecast times.
        loss: Forecast of the loss by a scaling law; None: no law applies.
        loss_basis: Name of the law.
        curve: Band of the training loss.
        largest: Largest micro-batch that fits `with` and `without` activation checkpointing.
        changes: Simulated changes of the YAML; the three best are kept.
    """
    parts = step_parts(work, device, facts.precision, facts.compiled)
    seconds = sum(parts.values()) * calibration.ratio
    time = _around(seconds, calibration.spread, calibration.basis)
    tokens = facts.tokens_per_step
    speed = Estimate(tokens / time.high, tokens / time.value, tokens / time.low, time.basis)
    hours = money = energy = carbon = None
    if facts.steps is not None:
        n = facts.layout.world_size
        scale = facts.steps / 3600
        hours = _scaled(time, scale, f"{facts.steps:,} steps, {time.basis}")
        if device.price_per_hour is not None:
            basis = f"{n} x {device.price_per_hour:g} an hour, {device.price_source}"
            money = _scaled(hours, n * device.price_per_hour, basis)
        energy = _scaled(hours, n * device.watts * PUE / 1000, f"{device.watts:g} W a device at full load, PUE {PUE}")
        carbon = _scaled(energy, GRID_GRAMS / 1000, f"{GRID_GRAMS:g} g/kWh, world average of 2024 (IEA)")
    basis = "simulated tensors; high: with what torch reserves and the context"
    if device.kind == "cpu":
        basis = "simulated tensors (low), their allocations repeated by malloc, and buffers of products"
    memory = Estimate(step.peak_bytes, step.process_bytes, step.upper_bytes, basis)
    layout = facts.layout
    return Forecast(
        run=asdict(facts),
        device=asdict(device),
        memory_by_kind=step.memory,
        memory=memory,
        step_seconds=time,
        bottleneck=max(parts, key=lambda name: parts[name]),
        flops_per_step=work.flops,
        collectives=[asdict(c) | {"sent_bytes": c.sent_bytes} for c in work.collectives],
        tokens_per_second=speed,
        hours=hours,
        money=money,
        energy_kwh=energy,
        co2_kg=carbon,
        disk_bytes=facts.checkpoints_kept * step.resting_bytes * (layout.world_size // layout.replicate),
        loss=None if loss is None else asdict(loss) | {"basis": loss_basis},
        curve=asdict(curve),
        fits=step.upper_bytes <= device.memory,
        largest_micro_batch=largest,
        changes=sorted(changes, key=lambda change: (not change.fits, change.step_seconds))[:3],
    )


def largest_that_fits(one: SimulatedStep, two: SimulatedStep, rows: tuple[int, int], device: Device) -> int:
    """Return the largest micro-batch that fits, extrapolated from two simulated ones: memory is linear in the rows.

    On a CPU these must have so many rows that holes between tensors do not matter.
    """
    first, second = (bound_without_holes(s.peak_bytes) if device.kind == "cpu" else s.upper_bytes for s in (one, two))
    slope = (second - first) / (rows[1] - rows[0])
    free = device.memory - first
    if free < 0 and slope > 0:
        return max(0, rows[0] + math.floor(free / slope))
    return rows[0] + math.floor(free / max(slope, 1.0))


def describe(result: Forecast) -> str:
    """Return the forecast as text for a terminal."""
    facts, device = result.run, result.device
    devices = Layout(**facts["layout"]).world_size
    cut = f"micro-batches of {facts['micro_batch_size']}, {facts['micro_batches']} a step"
    sizes = [f"{size:,} {name} activation checkpointing" for name, size in result.largest_micro_batch.items()]
    flops = ", ".join(f"{kind} {abbreviated(value)}FLOP" for kind, value in result.flops_per_step.items())
    lines = [
        ("run", f"{facts['name']}: {devices} x {device['name']}, {facts['precision']}, {cut}"),
        ("memory", describe_memory(result.memory_by_kind, result.memory.value, result.memory.high, device["memory"])),
        ("micro-batch", f"largest that fits: {', '.join(sizes)}"),
        ("step", f"{_between(result.step_seconds, ' s')}; {_between(result.tokens_per_second, ' tokens/s')}"),
        ("work", f"{flops} a step and device"),
    ]
    if devices > 1:
        sent = [Collective(**{f.name: c[f.name] for f in fields(Collective)}) for c in result.collectives]
        lines.append(("sent", describe_sent(sent)))
    spent = (("time", result.hours, " h"), ("energy", result.energy_kwh, " kWh"), ("CO2", result.co2_kg, " kg"))
    lines += [(name, f"{_between(value, unit)} ({value.basis})") for name, value, unit in spent if value is not None]
    if result.money is not None:
        lines.append(("money", f"{_between(result.money, ' dollars')} ({result.money.basis})"))
    elif result.hours is not None:
        lines.append(("money", f"no price is known for {device['name']}; set --price_per_hour"))
    lines.append(("disk", f"{human_bytes(result.disk_bytes)} for {facts['checkpoints_kept']} checkpoints"))
    if result.loss is not None:
        lines.append(("loss", _loss_text(**result.loss)))
    lines.append(("verdict", f"{'fits' if result.fits else 'does not fit'}; most time goes to {result.bottleneck}"))
    for change in result.changes:
        effect = f"{human_bytes(change.memory)}, {change.step_seconds:.3g} s a step"
        lines.append(("change", f"{change.what}: {effect}, {'fits' if change.fits else 'does not fit'}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)


def describe_memory(by_kind: Mapping[str, int], expected_bytes: float, upper_bytes: float, available: float) -> str:
    """Return the memory of a device at the peak as text: what is expected, its bound, and the kinds.

    Args:
        by_kind: Bytes of tensors by kind.
        expected_bytes: Bytes of the process; what exceeds the tensors is named too.
        upper_bytes: Upper bound in bytes.
        available: Memory of the device in bytes.
    """
    parts = {**by_kind, "holes and buffers": expected_bytes - sum(by_kind.values())}
    kinds = ", ".join(f"{kind} {human_bytes(size)}" for kind, size in parts.items() if size)
    bound = f"at most {human_bytes(upper_bytes)} of {human_bytes(available)}"
    return f"{human_bytes(expected_bytes)} a device at the peak, {bound} ({kinds})"


def describe_sent(collectives: Iterable[Collective]) -> str:
    """Return what a device sends in a step as text, by collective and number of devices; less than 1 MB is left out."""
    sent: dict[tuple[str, int, int], float] = defaultdict(float)  # of those that a layer waits for and those not
    for c in collectives:
        sent[c.name, c.num_ranks, c.stride] += c.sent_bytes
    large = sorted((pair for pair in sent.items() if pair[1] >= 1e6), key=lambda pair: -pair[1])
    parts = [f"{name} over {num_ranks} {human_bytes(size)}" for (name, num_ranks, _), size in large]
    return f"{', '.join(parts) or 'less than 1 MB'} a step and device"


def describe_loss(loss: LossForecast, law: ScalingLaw) -> str:
    """Return a forecast of the loss as text, with its interval, its law and the extrapolation."""
    return _loss_text(loss.value, loss.low, loss.high, loss.extrapolation, law.describe())


def _loss_text(value: float, low: float, high: float, extrapolation: float | None, basis: str) -> str:
    if extrapolation is None:
        return f"{value:.3f} (90 %: {low:.3f} to {high:.3f}; {basis})"
    reach = f"{extrapolation:.2g} times the compute of its largest run"
    if extrapolation < LAW_REACH:
        return f"no forecast: {reach} ({basis}); fit a law to runs of this size with `plan fit-law`"
    return f"{value:.3f} (90 %: {low:.3f} to {high:.3f}; {basis}, {reach})"


def _between(estimate: Estimate, unit: str) -> str:
    return f"{estimate.value:.3g}{unit} ({estimate.low:.3g} to {estimate.high:.3g})"


def _around(value: float, spread: float, basis: str) -> Estimate:
    return Estimate(value / spread, value, value * spread, basis)


def _scaled(estimate: Estimate, factor: float, basis: str) -> Estimate:
    return Estimate(estimate.low * factor, estimate.value * factor, estimate.high * factor, basis)
