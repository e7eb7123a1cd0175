"""Forecast a run before it starts, and fit scaling laws to runs."""

from typing import Any


def plan(
    config: str,
    device: str = "cpu",
    devices: int | None = None,
    price_per_hour: float | None = None,
    measure: bool = False,
    law: str | None = None,
    out: str | None = None,
) -> None:
    """Forecast memory, time, money, energy and loss of a run from its YAML, without starting it.

    Memory and work come from two steps of the real module on tensors without data, in a process group of the intended
    size. Nothing is downloaded but what the tokenizer of the data needs.

    Args:
        config: YAML that `fit` accepts, or a run's folder.
        device: Kind of device: cpu (this machine's), h100, h200, b200, a100-80gb, a100-40gb, l40s, l4, a10, rtx-4090,
            rtx-3090, mi300x, or a YAML file with `device: {name, kind, memory, ...}`.
        devices: Number of devices over all nodes; null takes the YAML's.
        price_per_hour: Dollars that one device costs an hour; null takes the table's, where it has one.
        measure: Time a few real steps here to calibrate the speed (device: cpu).
        law: File of a scaling law that `plan fit-law` wrote; null takes a published one, with a wide interval.
        out: File to which the forecast is written as JSON as well.
    """
    import json
    from dataclasses import replace
    from pathlib import Path

    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import check_at_least
    from lit_gpt.instantiate import read_yaml
    from lit_gpt.planning.devices import find_device, read_device
    from lit_gpt.planning.forecast import describe
    from lit_gpt.planning.laws import load_law
    from lit_gpt.plans import PlannedRun

    check_at_least("devices", devices, 1)
    check_at_least("price_per_hour", price_per_hour, 0)
    if device.endswith((".yaml", ".yml")):
        chosen = read_device((read_yaml(device, "the YAML of a device") or {}).get("device"))
    else:
        chosen = find_device(device)
    if price_per_hour is not None:
        chosen = replace(chosen, price_per_hour=price_per_hour, price_source="as given")
    scaling_law = None if law is None else load_law(law)
    run = PlannedRun(Path(config).expanduser(), chosen, devices)
    result = run.forecast(run.measure() if measure else None, scaling_law)
    if out is not None:
        with atomic_file(Path(out).expanduser()) as temporary:
            temporary.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(describe(result))


def fit_law(
    table: str,
    out: str | None = None,
    corpus: str | None = None,
    columns: dict[str, str] | None = None,
    where: dict[str, Any] | None = None,
    max_compute: float | None = None,
    min_compute_to_score: float | None = None,
    num_resamples: int = 200,
) -> None:
    """Fit a Chinchilla law to a table of runs, with intervals; also laws of learning rate and batch size.

    Args:
        table: CSV or JSON lines with params, tokens and loss of each run, and corpus, model, lr, global_batch if known.
        out: File to which the law is written, for `plan --law`.
        corpus: Take only the runs on this corpus.
        columns: Our name of a column and the table's, such as {params: params_active, loss: val_loss}.
        where: Take only rows with these values, such as {evaluated_on: c4}.
        max_compute: Fit only runs below this many FLOPs (6 N D).
        min_compute_to_score: Score the law on the runs of at least this many FLOPs.
        num_resamples: Fits to resampled runs, for the interval.
    """
    from pathlib import Path

    from lit_gpt.planning.laws import describe_laws

    print(
        describe_laws(
            Path(table), columns, where or {}, corpus, max_compute, min_compute_to_score, num_resamples,
            None if out is None else Path(out).expanduser(),
        )
    )  # fmt: skip
