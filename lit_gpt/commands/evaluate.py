"""Evaluate a model, write a report, and check the release gate."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from lit_gpt.evaluation.plan import GateRecord, Outcome, Plan


def evaluate(
    model: str | None = None,
    config: str | None = None,
    suite: str | None = None,
    tasks: list[str] | None = None,
    compare: list[str] | None = None,
    adapter: str | None = None,
    out: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    weights: Literal["auto", "plain", "float32", "bfloat16", "int8", "int4"] = "auto",
    chat_template: str | None = None,
    max_batch_size: int = 16,
    limit: int | None = None,
    run_untrusted_code: bool = False,
    explain: str | None = None,
) -> int:
    """Evaluate a model on language modeling, benchmarks, code and safety, and check the release gate.

    Writes report.html and report.json. Exit status: 0 on success; 1 if a measure failed because of a bug; 2 if an
    argument or a measure's setup is wrong; 3 if a threshold of the gate was missed. Results of the measures that did
    run are saved in every case.

    Args:
        model: run folder, checkpoint, bundle, Hugging Face folder, GGUF file, or Hub name.
        config: YAML plan: measures, their settings, a seed, and gate thresholds (examples in configs/eval/).
        suite: name of a built-in plan to use instead of a config, such as safety.
        tasks: lm-eval's tasks, groups or patterns to measure instead of a config, such as hellaswag,arc_easy (extra
            `eval`); a config can set their options.
        compare: two models (or their reports) to compare item by item; a model that has no report for the given
            config or suite is evaluated first.
        adapter: run, checkpoint or peft folder with an adapter trained on the model.
        out: folder of the report, replaced if it exists; null: evaluation/<config name>/ in the run or bundle, or
            ./evaluation/<model>/<config name>/ for other models, with the adapter, chat template or limit appended to
            the name. `export` looks for the gate's verdict there.
        device: device to run on; auto uses the accelerator if there is one.
        weights: form of the weights on a CPU, prepared once after loading: float32, bfloat16, int8, or int4 (groups of
            32); auto: the model's own precision, in the layout that this machine measures as fastest; plain: as loaded.
            A form other than auto and plain is part of the report's name.
        chat_template: preset (chatml, llama3, qwen, ...) or Jinja file to use instead of the model's own template.
        max_batch_size: maximum number of sequences in a batch.
        limit: maximum number of items per measure, for a quick look; null: all. Of harmful and harmless prompts
            (Refusal), half; one that asks in several forms (Robustness) asks each item in all of them.
        run_untrusted_code: allow programs written by the model to run in a sandbox; measures that need this fail
            without it.
        explain: print the description and options of this measure and exit; without a value, list all measures.
    """
    if explain is not None:
        from lit_gpt.evaluation.plan import explanation

        print(explanation(explain))
        return 0

    from lit_gpt.checks import local_path
    from lit_gpt.errors import UserError
    from lit_gpt.evaluation.plan import load_plan, suite_file, tasks_plan

    if sum(option is not None for option in (config, suite, tasks)) > 1:
        raise UserError("of --config, --suite and --tasks more than one is given; choose one")
    if compare is not None and model is not None:
        raise UserError("--model and --compare are both given; --compare names both of its models")
    file = config if suite is None else suite_file(suite)
    plan = None if file is None else load_plan(file, limit, run_untrusted_code)
    if tasks is not None:
        plan = tasks_plan([task for word in tasks for task in word.split(",") if task], limit)

    def measure(name: str, folder: "Path | None") -> "tuple[Path | None, Outcome, GateRecord | None]":
        assert plan is not None
        return _evaluate(plan, name, adapter, folder, device, chat_template, max_batch_size, weights)

    def report_on(name: str) -> "Path":
        from lit_gpt.evaluation.compare import find_report

        found = find_report(name, plan, adapter, chat_template)
        page = measure(name, None)[0] if found is None else found
        if page is None:
            raise UserError(f"no measure produced a result for {name}, so there is nothing to compare")
        return page.parent if found is None else page

    if compare is not None:
        return _compare(compare, local_path("out", out or "evaluation/comparison"), report_on)
    if model is None:
        raise UserError("--model is missing; name a run, checkpoint, bundle or Hugging Face model")
    if plan is None:
        raise UserError(
            "there is no plan; give --config <YAML, such as configs/eval/stdlib.yaml>, --tasks hellaswag or --suite "
            "safety"
        )
    page, outcome, gate = measure(model, None if out is None else local_path("out", out))
    _print_scores(outcome, gate)
    if page is not None:
        print(page)
    if outcome.status:
        return outcome.status
    from lit_gpt.evaluation.plan import GATE_EXIT

    return 0 if gate is None or gate.passed else GATE_EXIT


def _evaluate(
    plan: "Plan",
    model: str,
    adapter: str | None,
    out: "Path | None",
    device: str,
    chat_template: str | None,
    max_batch_size: int,
    weights: str,
) -> "tuple[Path | None, Outcome, GateRecord | None]":
    """Evaluate one model and write its report.

    Returns:
        The report's HTML page (None if no measure produced a result and an older report was therefore left in place),
        the outcome of the measures, and the gate's verdict (None: the plan has no gate).
    """
    import sys
    import time
    from dataclasses import replace

    from lit_gpt.evaluation.plan import check_gate, run_plan
    from lit_gpt.evaluation.progress import ProgressBars
    from lit_gpt.evaluation.report import (
        REPORT,
        check_report_folder,
        evaluation_options,
        folder_name,
        make_report,
        report_folder,
        write_report,
    )
    from lit_gpt.evaluation.subject import load_subject

    plan = replace(plan, config={**plan.config, **evaluation_options(model, adapter, chat_template, weights)})
    subject = load_subject(model, adapter, device, chat_template, max_batch_size, plan.seed, weights)
    assert subject.path is not None
    name = folder_name(plan.name, plan.config)
    folder = report_folder(subject.path.resolve(), model) / name if out is None else out
    check_report_folder(folder, plan, subject.path)
    start = time.monotonic()
    bars = ProgressBars()
    try:
        outcome = run_plan(plan, subject, lambda planned: bars.start(planned.label))
    finally:
        bars.close()
    gate = check_gate(plan.gate, outcome.results)
    if not outcome.results and (folder / REPORT).is_file():
        print(f"no measure produced a result; the report in {folder} is unchanged", file=sys.stderr)
        return None, outcome, gate
    page = write_report(make_report(plan, subject, outcome, gate, time.monotonic() - start), folder)
    return page, outcome, gate


def _compare(names: list[str], out: "Path", report_on: "Callable[[str], Path]") -> int:
    """Compare two models, evaluating those without a report first."""
    from lit_gpt.errors import UserError
    from lit_gpt.evaluation.compare import check_comparison_folder, compare_reports, write_comparison
    from lit_gpt.pages.text import visible

    if len(names) != 2:
        raise UserError(f"--compare needs two models, got {len(names)}")
    check_comparison_folder(out)
    reports = [report_on(name) for name in names]
    from lit_gpt.evaluation.report import read_report
    from lit_gpt.pages.text import interval_words
    from lit_gpt.pages.text import score as number

    first, second = (read_report(report) for report in reports)
    comparison = compare_reports(first, second)
    width = max(len(visible(line.key)) for line in comparison.differences)
    print(f"{'':{width}}  {visible(comparison.names[0])} -> {visible(comparison.names[1])}")
    for line in comparison.differences:
        interval = None if line.interval is None else {"low": line.interval.low, "high": line.interval.high}
        between = f" [{interval_words(interval, line.unit)}]" if interval else ""
        values = f"{number(line.first, line.unit)} -> {number(line.second, line.unit)}"
        verdict = line.verdict or ("may be chance" if interval else "not item by item")
        change = f"difference {number(line.difference, line.unit)}{between}"
        print(f"{visible(line.key):{width}}  {values}  {change}  {verdict}")
    print(write_comparison(comparison, out))
    return 0


def _print_scores(outcome: "Outcome", gate: "GateRecord | None") -> None:
    from dataclasses import asdict

    from lit_gpt.pages.text import interval_words, visible
    from lit_gpt.pages.text import score as number

    lines = []
    for result in outcome.results:
        for score in result.scores:
            between = "" if score.interval is None else f"[{interval_words(asdict(score.interval), score.unit)}]"
            lines.append((visible(f"{result.name}.{score.name}"), number(score.value, score.unit), between))
    for name, value, between in lines:
        width, wide = max(len(line[0]) for line in lines), max(len(line[1]) for line in lines)
        print(f"{name:{width}}  {value:>{wide}}  {between}".rstrip())
    if gate is not None:
        for verdict in gate.missed:
            print(visible(f"gate missed: {verdict.key}: {verdict.reason}"))
        if gate.passed:
            print(f"gate passed: {len(gate.verdicts)} of {len(gate.verdicts)} thresholds")
