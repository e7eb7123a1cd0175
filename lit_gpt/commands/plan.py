"""Forecast a run before it starts, and fit scaling laws to runs."""

from typing import Any


def plan(
    config: str,
    device: str = "cpu",
    devices: int | None = None,
    price_per_hour: float | None = None,
    measure: bool = False,
    calibration: list[str] | None = None,
    law: str | None = None,
    out: str | None = None,
) -> None:
    """Forecast memory, time, money, energy and loss of a run from its YAML, without starting it.

    Memory and work come from simulating two steps of the real module on tensors without data, in a fake process group
    of the given size. Nothing is downloaded except the tokenizer of the data, if it is on the Hub.

    Args:
        config: YAML that `fit` accepts, or a run's folder.
        device: Kind of device: cpu (this machine), h100, h200, b200, a100-80gb, a100-40gb, l40s, l4, a10, rtx-4090,
            rtx-3090, mi300x, or a YAML file with `device: {name, kind, memory, ...}`.
        devices: Number of devices over all nodes; null: the number in the YAML.
        price_per_hour: Price of one device in US dollars per hour; null: the price in the table, if any.
        measure: Train the first steps of the run here (50, or one minute of them), which prepares its data, to
            calibrate speed and loss.
        calibration: Folders of finished runs on such devices, whose logs correct the speed.
        law: File of a scaling law written by `plan fit-law`; null: a published one, with a wide interval.
        out: File to write the forecast to, as JSON, for `fit --plan`.
    """
    import json
    from dataclasses import replace
    from pathlib import Path

    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import check_at_least, local_path
    from lit_gpt.errors import UserError
    from lit_gpt.instantiate import read_yaml
    from lit_gpt.planning.devices import find_device, read_device
    from lit_gpt.planning.forecast import describe
    from lit_gpt.planning.laws import load_law
    from lit_gpt.plans import PlannedRun, calibrate

    if measure and calibration:
        raise UserError("--measure and --calibration are both given; keep one of them")
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
    by_runs = calibrate([Path(folder).expanduser() for folder in calibration], chosen) if calibration else None
    result = run.forecast(by_runs, scaling_law, run.measure() if measure else None)
    if out is not None:
        with atomic_file(local_path("out", out)) as temporary:
            temporary.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(describe(result))


def launch(plan: str, config: str, to: str, out: str, per_node: int | None = None) -> None:
    """Write the file that starts a planned run on many machines: a SLURM job, a torchrun script, and so on.

    Args:
        plan: File that `plan --out` wrote: number and kind of devices, and the time limit.
        config: YAML of the run, from the folder in which it will be started.
        to: slurm, torchrun, kubernetes (a PyTorchJob) or skypilot.
        out: File to write.
        per_node: Number of devices of a machine; null: 8, or all if there are fewer.
    """
    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import local_path
    from lit_gpt.planning.launch import launch_file
    from lit_gpt.planning.receipt import read_plan

    path = local_path("out", out)
    text = launch_file(read_plan(plan), config, to, per_node, path.name)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {path}; its first lines say how to start it")


def score(runs: list[str], html: str | None = None) -> None:
    """Say how far off the forecasts of many runs were, and how often their intervals held.

    Args:
        runs: Folders of runs that `fit --plan` finished.
        html: Page to write as well.
    """
    from lit_gpt.checks import local_path
    from lit_gpt.planning.receipt import describe_calibration, read_receipts, write_calibration

    receipts = read_receipts(runs)
    print(describe_calibration(receipts))
    if html is not None:
        write_calibration(local_path("html", html), receipts)


def budget(
    out: str,
    flops: float | None = None,
    hours: float | None = None,
    dollars: float | None = None,
    depth: int | None = None,
    device: str = "cpu",
    devices: int = 1,
    price_per_hour: float | None = None,
    utilization: float = 0.4,
    vocab_size: int = 4096,
    block_size: int = 256,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    law: str | None = None,
    data: str | None = None,
) -> None:
    """Propose a run for a budget of FLOPs, hours or dollars, or for a depth, and write it as a YAML that `fit` runs.

    Args:
        out: YAML file to write.
        flops: Budget in FLOPs. Give one of flops, hours and dollars, or only a depth.
        hours: Budget in hours on these devices.
        dollars: Budget in dollars on these devices.
        depth: Number of layers, which determines the model's size; without a budget, the run has the number of tokens
            for which this size is the best one.
        device: Kind of device, as for `plan`.
        devices: Number of devices.
        price_per_hour: Price of one device in US dollars per hour; null: the price in the table, if any.
        utilization: Expected share of the devices' peak speed (0.4 is usual on GPUs).
        vocab_size: Number of vocabulary entries.
        block_size: Context length in tokens.
        inference_tokens: Number of tokens that the model will process after training; they are paid from the budget.
        unique_tokens: Number of tokens in the corpus; a longer run repeats them; null: unlimited.
        law: File of a scaling law written by `plan fit-law`; null: a published one.
        data: YAML with the `data` of the run; null: the Python standard library.
    """
    import yaml

    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import check_above, check_at_least, check_between, local_path
    from lit_gpt.errors import UserError
    from lit_gpt.planning.budget import as_yaml, propose
    from lit_gpt.planning.devices import find_device
    from lit_gpt.planning.forecast import describe_loss
    from lit_gpt.planning.laws import PUBLISHED, load_law

    for name, value in (("flops", flops), ("hours", hours), ("dollars", dollars), ("unique_tokens", unique_tokens)):
        check_above(name, value, 0)
    check_at_least("devices", devices, 1)
    check_at_least("inference_tokens", inference_tokens, 0)
    check_between("utilization", utilization, 0, 1, low_open=True)
    check_between("depth", depth, 1, 128)
    given = [name for name, value in (("flops", flops), ("hours", hours), ("dollars", dollars)) if value is not None]
    if len(given) > 1 or (not given and depth is None):
        raise UserError(f"budget: {', '.join(given) or 'none'} given; give one of flops, hours and dollars, or a depth")
    if hours is not None or dollars is not None:
        chosen = find_device(device)
        if dollars is not None:
            price = chosen.price_per_hour if price_per_hour is None else price_per_hour
            if not price:
                raise UserError(f"no price is known for {device}; set price_per_hour, or give hours instead")
            hours = dollars / price / devices
        assert hours is not None
        flops = hours * 3600 * devices * chosen.peak_flops * utilization
    scaling_law = PUBLISHED if law is None else load_law(law)
    source = _data_source(data)
    run = propose(scaling_law, flops, depth, vocab_size, block_size, inference_tokens, unique_tokens)
    path = local_path("out", out)
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(as_yaml(run, source, path.stem), sort_keys=False), encoding="utf-8")
    config = run.config
    print(f"model   depth {run.depth}, width {config.n_embd}, {config.num_parameters() / 1e6:,.1f} M parameters")
    print(f"data    {run.tokens:,} tokens in {run.steps:,} steps of {run.batch_sequences} x {config.block_size}")
    print(f"lr      {run.lr:.3g}")
    print(f"work    {run.flops:.3g} FLOPs")
    print(f"loss    {describe_loss(run.loss, scaling_law)}")
    print(f"wrote {path}; next: plan --config {path}, then fit --config {path}")


def fit_law(
    table: str | None = None,
    runs: list[str] | None = None,
    out: str | None = None,
    corpus: str | None = None,
    columns: dict[str, str] | None = None,
    where: dict[str, Any] | None = None,
    max_compute: float | None = None,
    min_compute_to_score: float | None = None,
    num_resamples: int = 200,
) -> None:
    """Fit a Chinchilla scaling law with intervals to a table of runs, and power laws of learning rate and batch size.

    Args:
        table: CSV or JSON lines with params, tokens and loss of each run, and corpus, model, lr, global_batch if known.
        runs: Folders of finished runs to fit instead of a table: their sizes, tokens and last val/loss.
        out: File to write the law to, for `plan --law`.
        corpus: Use only the runs on this corpus.
        columns: Names of the columns in the table, if they differ, such as {params: params_active, loss: val_loss}.
        where: Use only rows with these values, such as {evaluated_on: c4}.
        max_compute: Fit only runs with less compute than this, in FLOPs (6 N D).
        min_compute_to_score: Score the law on the runs with at least this compute, in FLOPs.
        num_resamples: Number of fits to resampled runs, for the interval.
    """
    from pathlib import Path

    from lit_gpt.checks import local_path
    from lit_gpt.errors import UserError
    from lit_gpt.planning.laws import describe_laws, read_table

    if (table is None) == (runs is None):
        raise UserError("fit-law needs either --table (CSV or JSON lines) or --runs (folders of finished runs)")
    if table is not None:
        rows, name = read_table(Path(table), columns), Path(table).name
    else:
        from lit_gpt.plans import law_rows

        rows, name = law_rows([Path(run).expanduser() for run in runs or []]), "your own runs"
    target = None if out is None else local_path("out", out)
    print(
        describe_laws(rows, name, where or {}, corpus, max_compute, min_compute_to_score, num_resamples, target),
    )


def ladder(
    out: str,
    flops: float,
    vocab_size: int = 4096,
    block_size: int = 256,
    law: str | None = None,
    data: str | None = None,
    prefix: str = "ladder",
    depths: list[int] | None = None,
) -> None:
    """Write the YAMLs of nine small runs, of three sizes for three budgets each, to which a scaling law can be fitted.

    Args:
        out: Folder for the YAMLs; it is created.
        flops: Budget of each of the largest three runs, in FLOPs; the others have a third and a ninth of it.
        vocab_size: Number of vocabulary entries.
        block_size: Context length in tokens.
        law: Scaling law that chooses the sizes, as for `plan`.
        data: YAML with the `data` of the runs; null: the text of Python's standard library.
        prefix: Beginning of the names of the runs.
        depths: Numbers of layers of the sizes, at least three; null: three around the best one.
    """
    import yaml

    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import check_above, local_path
    from lit_gpt.planning.budget import as_yaml, propose_ladder
    from lit_gpt.planning.laws import PUBLISHED, load_law

    check_above("flops", flops, 0)
    source = _data_source(data)
    runs = propose_ladder(PUBLISHED if law is None else load_law(law), flops, vocab_size, block_size, depths)
    folder = local_path("out", out)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    shortest = min(run.tokens for run in runs)
    for run in runs:
        name = f"{prefix}-d{run.depth}-{run.flops:.0e}".replace("+", "")
        names.append(name)
        with atomic_file(folder / f"{name}.yaml") as temporary:
            temporary.write_text(
                yaml.safe_dump(as_yaml(run, source, name, shortest), sort_keys=False), encoding="utf-8"
            )
        print(f"{name}: {run.config.num_parameters():,} parameters, {run.tokens:,} tokens in {run.steps:,} steps")
    total = sum(run.flops for run in runs)
    print(f"wrote {len(runs)} YAMLs to {folder}, {total:.3g} FLOPs in all; next:")
    print(f"  for run in {folder}/{prefix}-*.yaml; do python -m lit_gpt fit --config $run; done")
    print(f"  python -m lit_gpt plan fit-law --runs {' '.join(f'runs/{name}' for name in names)} --out law.json")


def _data_source(data: str | None) -> dict[str, Any]:
    """Return class and arguments of the DataModule in a YAML; of the standard library's if there is none."""
    from lit_gpt.errors import UserError
    from lit_gpt.instantiate import read_yaml

    if data is None:
        return {"class_path": "StdlibDataModule"}
    source = (read_yaml(data, "the YAML of a run's data") or {}).get("data")
    if not isinstance(source, dict) or "class_path" not in source:
        raise UserError(f"{data} has no `data` with a class_path; name the YAML of a run, or of its data")
    return source


def init(
    out: str,
    task: str | None = None,
    title: str = "Project brief",
    languages: list[str] | None = None,
    examples: int = 0,
    tokens: float = 0.0,
    dollars: float = 100.0,
    device: str = "h100",
    price_per_hour: float | None = None,
    latency_ms: float | None = None,
    memory_gb: float | None = None,
    use: str = "research",
    risk: str = "low",
    facts_change: bool = False,
    covered: bool = True,
    provenance: bool = False,
) -> None:
    """Advise whether to use a model as it is, retrieve, fine-tune, continue pretraining or train from scratch.

    Without `--task`, the questions are asked in the terminal. The advice is written as a project brief in Markdown.

    Args:
        out: Markdown file to write.
        task: chat, classify, extract, generate, code, translate or reason; null: ask.
        title: Title of the brief.
        languages: Languages of the texts, such as en de.
        examples: Number of inputs with good outputs.
        tokens: Number of tokens of your own text.
        dollars: Budget for training in US dollars.
        device: Device for training and inference, as for `plan`.
        price_per_hour: Price of one device in US dollars per hour; null: the price in the table, if any.
        latency_ms: Longest time per generated token in milliseconds; null: any.
        memory_gb: Memory at inference in GB; null: that of the device.
        use: research or commercial.
        risk: Cost of a wrong answer: low or high.
        facts_change: Whether answers depend on facts that change, or must name their source.
        covered: Whether published models know this kind of text (false: new notations, rare languages).
        provenance: Whether every document behind the model must be known.
    """
    import sys
    from dataclasses import replace

    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import local_path
    from lit_gpt.errors import UserError
    from lit_gpt.planning.devices import find_device
    from lit_gpt.planning.framing import RISKS, TASKS, USES, Answers, brief

    given: dict[str, Any] = {
        "task": task,
        "languages": tuple(languages or ["en"]),
        "examples": examples,
        "tokens": tokens,
        "dollars": dollars,
        "latency_ms": latency_ms,
        "memory_gb": memory_gb,
        "use": use,
        "risk": risk,
        "facts_change": facts_change,
        "covered": covered,
        "provenance": provenance,
    }
    if task is None:
        if not sys.stdin.isatty():
            raise UserError(f"task is not given; set --task to one of {', '.join(TASKS)} (in a terminal, it is asked)")
        given |= {
            "task": _ask(f"Task ({', '.join(TASKS)})?", "chat", str),
            "languages": tuple(_ask("Languages?", "en", str).replace(",", " ").split()),
            "examples": _ask("How many inputs with good outputs are there?", "0", int),
            "tokens": _ask("How many tokens of your own text?", "0", float),
            "dollars": _ask("Budget for training in dollars?", "100", float),
            "facts_change": _ask("Do answers depend on facts that change, or need a source (yes, no)?", "no", _yes),
            "covered": _ask("Do published models know this kind of text (yes, no)?", "yes", _yes),
            "provenance": _ask("Must every document behind the model be known (yes, no)?", "no", _yes),
            "use": _ask(f"Use ({', '.join(USES)})?", "research", str),
            "risk": _ask(f"Cost of a wrong answer ({', '.join(RISKS)})?", "low", str),
        }
    chosen = find_device(device)
    if price_per_hour is not None:
        chosen = replace(chosen, price_per_hour=price_per_hour, price_source="as given")
    text = brief(Answers(**given), chosen, title)
    path = local_path("out", out)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text.split("## Project")[0].strip() + f"\n\nwrote {path}")


def _ask(question: str, default: str, read: Any) -> Any:
    """Return the answer to a question in the terminal, asked again until it can be read."""
    while True:
        answer = input(f"{question} [{default}] ").strip() or default
        try:
            return read(answer)
        except ValueError:
            print(f"{answer!r} cannot be read; write something like {default}")


def _yes(answer: str) -> bool:
    if answer.lower() not in ("yes", "y", "no", "n"):
        raise ValueError(answer)
    return answer.lower().startswith("y")
