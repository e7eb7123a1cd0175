"""Frame a problem before a run: a model as it is, retrieval, fine-tuning, continued pretraining, or from scratch.

A few answers about task, data, budget and use give five options, each with reasons, numbers and a verdict. The rules
are simple on purpose, and each names its source or says that it is a judgement, so that a reader can disagree with one.
The result is a project brief in Markdown with the configs to start from. `export --brief` reads it back: for the model
card, and for what must hold before a release.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.errors import UserError
from lit_gpt.planning.budget import best_size
from lit_gpt.planning.devices import Device
from lit_gpt.planning.laws import PUBLISHED

TASKS = ("chat", "classify", "extract", "generate", "code", "translate", "reason")
USES = ("research", "commercial")
RISKS = ("low", "high")
UTILIZATION = 0.4
"""Of the peak in training, as `plan budget` assumes."""
FEW_EXAMPLES, MANY_EXAMPLES = 50, 1000
"""Below the first, examples fit into a prompt; a thousand good ones teach form and style (LIMA, arXiv:2305.11206)."""
DOMAIN_TOKENS = 1e8
"""From about so many tokens of its own text on, continued pretraining is worth a try. A judgement: in Gururangan et al.
2020 (arXiv:2004.10964) domains gain with 2e9 tokens and more, and the few texts of a task help less."""
USEFUL_FLOPS = 1e21
"""Training compute of the smallest published models that answer general questions passably: SmolLM2-135M, 2e12 tokens
(arXiv:2502.02737), 6 N D = 1.6e21."""
BASE_SIZES = (1.35e8, 3.6e8, 1.7e9, 3e9, 8e9, 1.4e10, 3.2e10, 7e10)
"""Parameters of open models that exist at about these sizes."""
BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.56}
"""Of a weight; int4 has scales for groups of weights."""
MEMORY_SHARE = 0.8
"""Of the memory at inference that weights may take; the rest is for the KV cache and the process."""
TASK, LANGUAGES, USE = "task", "languages", "use"
RISK, PROVENANCE = "cost of a wrong answer", "all documents must be known"
"""Questions of a brief that `read_brief` returns."""
EXAMPLE_TOKENS = 500
EPOCHS = 3
"""Of an example, and of fine-tuning on it (the usual two to four: LIMA has 15, Alpaca 3)."""


@dataclass(frozen=True)
class Answers:
    """What is known of a project; None is "not known".

    Attributes:
        task: One of `TASKS`.
        languages: Languages of inputs and outputs, by their codes.
        examples: Number of inputs with good outputs.
        tokens: Tokens of the project's own text without outputs.
        dollars: Budget for training.
        latency_ms: Longest time for a token at inference, in milliseconds.
        memory_gb: Memory at inference, in GB.
        use: One of `USES`.
        risk: What a wrong answer costs: one of `RISKS`.
        facts_change: Whether answers depend on facts that change, or must name their source.
        covered: Whether published models know this kind of text: false for new notations, rare languages, sequences.
        provenance: Whether every document that the model learned from must be known.
    """

    task: str
    languages: tuple[str, ...] = ("en",)
    examples: int = 0
    tokens: float = 0.0
    dollars: float = 100.0
    latency_ms: float | None = None
    memory_gb: float | None = None
    use: str = "research"
    risk: str = "low"
    facts_change: bool = False
    covered: bool = True
    provenance: bool = False

    def __post_init__(self) -> None:
        check_one_of("task", self.task, TASKS)
        check_one_of("use", self.use, USES)
        check_one_of("risk", self.risk, RISKS)
        for name in ("examples", "tokens", "dollars"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("latency_ms", "memory_gb"):
            check_at_least(name, getattr(self, name), 1e-3)


@dataclass(frozen=True)
class Option:
    """One way to go.

    Attributes:
        name: Short name.
        advised: `yes`, `maybe` or `no`.
        reasons: Why.
        numbers: What it takes.
        start: Commands or configs to start from.
    """

    name: str
    advised: str
    reasons: list[str]
    numbers: list[str]
    start: list[str]


def largest_base(answers: Answers, device: Device) -> tuple[float | None, str, str]:
    """Return parameters of the largest base model that memory and latency allow, its dtype, and the reason.

    A token takes at least the time in which all weights are read once: latency >= bytes / bandwidth.
    """
    memory = device.memory if answers.memory_gb is None else answers.memory_gb * 1e9
    for dtype, size in BYTES.items():
        allowed = MEMORY_SHARE * memory / size
        reason = f"{MEMORY_SHARE:.0%} of {memory / 1e9:.3g} GB holds {allowed:.2g} weights in {dtype}"
        if answers.latency_ms is not None:
            by_time = answers.latency_ms / 1e3 * device.bandwidth / size
            if by_time < allowed:
                allowed = by_time
                reason = (
                    f"{answers.latency_ms:g} ms per token at {device.bandwidth / 1e12:.3g} TB/s read {allowed:.2g} "
                    f"weights in {dtype}"
                )
        fitting = [base for base in BASE_SIZES if base <= allowed]
        if fitting and (dtype == "int4" or fitting[-1] >= 1e9):
            return fitting[-1], dtype, reason
    return None, "int4", reason


def budget_flops(answers: Answers, device: Device) -> float | None:
    """Return the training FLOPs that the dollars pay; None: the device has no known price."""
    if not device.price_per_hour:
        return None
    return answers.dollars / device.price_per_hour * 3600 * device.peak_flops * UTILIZATION


def advise(answers: Answers, device: Device) -> list[Option]:
    """Return the five options, with the advised ones first.

    Args:
        answers: What is known of the project.
        device: For training, and for inference unless the memory is given.
    """
    base, dtype, why = largest_base(answers, device)
    flops = budget_flops(answers, device)
    size = "none that is published" if base is None else f"about {base:.2g} parameters in {dtype}"
    fits = f"largest base model: {size} ({why})"
    options = [
        _as_it_is(answers, fits),
        _retrieval(answers, fits),
        _fine_tune(answers, base, flops, fits, device),
        _continue(answers, base, flops, fits),
        _from_scratch(answers, flops, device),
    ]
    return sorted(options, key=lambda option: ("yes", "maybe", "no").index(option.advised))


def _as_it_is(a: Answers, fits: str) -> Option:
    reasons = []
    advised = "yes" if a.covered and a.examples < MANY_EXAMPLES else "maybe"
    if not a.covered:
        advised, reasons = "no", ["published models do not know this kind of text"]
    elif a.examples:
        reasons.append(f"the {a.examples:,} examples are a test first: measure before anything is trained")
    else:
        reasons.append("there are no examples: write 50 to 200 first, they are the test of every other option too")
    if a.provenance:
        advised = "no"
        reasons.append("the documents behind published weights are rarely all known")
    if a.use == "commercial":
        reasons.append("check the licence of the weights for commercial use")
    if 0 < a.examples <= FEW_EXAMPLES:
        reasons.append(f"{a.examples} examples fit into the prompt")
    start = [
        "python -m lit_gpt import --model <Hugging Face folder or name> --out base",
        "configs/eval/benchmarks.yaml",
    ]
    return Option("use a published model as it is", advised, reasons, [fits], start)


def _retrieval(a: Answers, fits: str) -> Option:
    if a.facts_change:
        reasons = ["facts that change or need a source belong in documents and not in weights (arXiv:2005.11401)"]
        advised = "yes" if a.covered else "maybe"
    else:
        reasons = ["no facts that change or need a source: retrieval adds parts without need"]
        advised = "no"
    if a.facts_change and a.risk == "high":
        reasons.append("with sources shown, a wrong answer can be seen to be wrong")
    start = ["python -m lit_gpt serve --model base", "an index of the documents, outside of this package"]
    return Option("retrieve documents into the prompt", advised, reasons, [fits], start)


def _fine_tune(a: Answers, base: float | None, flops: float | None, fits: str, device: Device) -> Option:
    reasons, numbers = [], [fits]
    if a.examples >= MANY_EXAMPLES:
        advised = "yes"
        reasons.append(f"{a.examples:,} examples teach form, style and the task (arXiv:2305.11206: 1,000 good ones do)")
    elif a.examples > FEW_EXAMPLES:
        advised = "maybe"
        reasons.append(f"{a.examples:,} examples: compare with the same examples in the prompt")
    else:
        advised = "no"
        reasons.append(f"{a.examples:,} examples are too few; collect {MANY_EXAMPLES:,}")
    if not a.covered or base is None or a.provenance:
        advised = "no"
        reasons.append("there is no suitable base model" if base is None or not a.covered else "its data is not known")
    if a.facts_change:
        reasons.append("it teaches form, not facts: new knowledge by fine-tuning invites invention (arXiv:2405.05904)")
    if base is not None and a.examples:
        tokens = a.examples * EXAMPLE_TOKENS * EPOCHS
        numbers.append(f"{tokens:.2g} tokens in {EPOCHS} epochs: {_cost(6 * base * tokens, device)}")
        if flops is not None and 6 * base * tokens > flops:
            advised = "maybe" if advised == "yes" else advised
            reasons.append("the budget does not pay for this base model; take a smaller one, or LoRA on fewer epochs")
    configs = {"classify": "configs/classify/stdlib.yaml", "reason": "configs/grpo/gsm8k.yaml"}
    start = [
        configs.get(a.task, "configs/sft/dolly.yaml"),
        "adapter: {rank: 16} trains LoRA in a third of the memory",
    ]
    return Option("fine-tune a base model", advised, reasons, numbers, start)


def _continue(a: Answers, base: float | None, flops: float | None, fits: str) -> Option:
    reasons, numbers = [], [fits]
    advised = "maybe" if a.tokens >= DOMAIN_TOKENS else "no"
    reasons.append(
        f"{a.tokens:.2g} tokens of the domain; it gains from about {DOMAIN_TOKENS:.0e} on (arXiv:2004.10964)"
    )
    if base is None:
        return Option("continue pretraining a base model", "no", [*reasons, "no base model fits"], numbers, [])
    if a.tokens >= DOMAIN_TOKENS and flops is not None:
        needed = 6 * base * a.tokens
        numbers.append(f"one pass over it: 6 N D = {needed:.2g} FLOPs; the budget has {flops:.2g}")
        if needed > flops:
            affordable = [size for size in BASE_SIZES if 6 * size * a.tokens <= flops]
            reasons.append(
                f"the budget pays for a base model of {affordable[-1]:.2g} parameters at most"
                if affordable
                else "the budget does not pay for one pass over the text with any base model"
            )
            advised = "maybe" if affordable else "no"
        else:
            advised = "yes" if a.provenance is False else "no"
    if a.provenance:
        advised = "no"
        reasons.append("the documents behind the base model are rarely all known")
    start = ["configs/pretrain/mixture.yaml with model.init_args.init_from: base (mix in a tenth of general text)"]
    return Option("continue pretraining a base model", advised, reasons, numbers, start)


def _from_scratch(a: Answers, flops: float | None, device: Device) -> Option:
    reasons, numbers = [], []
    advised = "no"
    if flops is None:
        reasons.append(f"no price is known for {device.name}, so the budget's FLOPs are not; give --price_per_hour")
    else:
        params, tokens = best_size(PUBLISHED, flops)
        text = min(tokens, a.tokens) if a.tokens else tokens
        numbers.append(
            f"the budget's {flops:.2g} FLOPs train {params:.2g} parameters on {tokens:.2g} tokens at the optimum; "
            f"there are {a.tokens:.2g} tokens"
        )
        if a.tokens and a.tokens < tokens / 4:
            reasons.append(
                "the text is less than a quarter of the optimum: more than 4 epochs teach little (2305.16264)"
            )
        general = a.covered and not a.provenance
        if general:
            share = flops / USEFUL_FLOPS
            reasons.append(
                f"the budget is {share:.2g} of the compute of a small published model, which can be had for nothing"
            )
            advised = "maybe" if share >= 1 and text >= tokens / 4 else "no"
        else:
            advised = "yes" if a.tokens and a.tokens >= tokens / 4 else "maybe"
    if not a.covered:
        reasons.append("no published model knows this kind of text: a small model of one's own may be the better one")
    if a.provenance:
        reasons.append("every document is known: `lineage.json` records it")
    start = [
        "python -m lit_gpt plan budget --dollars ... --out run.yaml",
        "configs/pretrain/my_text.yaml",
        "configs/data/stdlib.yaml (cleaning)",
    ]
    return Option("pretrain from scratch", advised, reasons, numbers, start)


def _cost(flops: float, device: Device) -> str:
    hours = flops / (device.peak_flops * UTILIZATION) / 3600
    money = "" if not device.price_per_hour else f", {hours * device.price_per_hour:.2g} dollars"
    return f"{flops:.2g} FLOPs, {hours:.2g} h on one {device.name}{money}"


def brief(answers: Answers, device: Device, title: str) -> str:
    """Return the project brief as Markdown."""
    options = advise(answers, device)
    best = options[0]
    lines = [f"# {title}", "", "## Advice", ""]
    if best.advised == "no":
        lines.append("None of the options is advised with these answers; see what each lacks.")
    else:
        also = [option.name for option in options[1:] if option.advised == best.advised]
        joined = f" Together with, or compared to: {', '.join(also)}." if also else ""
        lines.append(
            f"**{best.name[0].upper()}{best.name[1:]}**"
            + (" (to be tried)" if best.advised == "maybe" else "")
            + f".{joined}"
        )
    lines += ["", "## Project", "", "| question | answer |", "|---|---|"]
    rows: list[tuple[str, Any]] = [
        (TASK, answers.task),
        (LANGUAGES, ", ".join(answers.languages)),
        ("examples with outputs", f"{answers.examples:,}"),
        ("tokens of own text", f"{answers.tokens:.3g}"),
        ("budget", f"{answers.dollars:g} dollars on {device.name}"),
        ("latency", "any" if answers.latency_ms is None else f"{answers.latency_ms:g} ms per token"),
        ("memory at inference", f"that of {device.name}" if answers.memory_gb is None else f"{answers.memory_gb:g} GB"),
        (USE, answers.use),
        (RISK, answers.risk),
        ("facts that change or need a source", "yes" if answers.facts_change else "no"),
        ("known to published models", "yes" if answers.covered else "no"),
        (PROVENANCE, "yes" if answers.provenance else "no"),
    ]
    lines += [f"| {name} | {value} |" for name, value in rows]
    for option in options:
        lines += ["", f"## {option.name[0].upper()}{option.name[1:]}: {option.advised}", ""]
        lines += [f"- {sentence}" for sentence in option.reasons + option.numbers]
        if option.advised != "no":
            lines += ["", "Start from:", ""] + [f"- `{start}`" for start in option.start]
    lines += ["", "## Before release", ""]
    lines.append("- Measure every option on the same held-out examples: `python -m lit_gpt evaluate --model ...`.")
    if answers.risk == "high":
        lines.append("- A wrong answer is costly: set a gate (`configs/eval/safety.yaml`); let a person check answers.")
    if answers.use == "commercial":
        lines.append("- Commercial use: licences of weights and of data, in the model card.")
    if len(answers.languages) > 1 or answers.languages != ("en",):
        lines.append(f"- Tokens per word in {', '.join(answers.languages)}: `python -m lit_gpt tokenizer measure`.")
    return "\n".join(lines) + "\n"


def read_brief(file: str | Path) -> dict[str, str]:
    """Read the title and the answers of a project brief, which may have been edited since `plan init` wrote it.

    Returns:
        `title`, and the answers by their questions: `TASK`, `LANGUAGES`, `USE`, `RISK`, `PROVENANCE` and any other.

    Raises:
        UserError: The file cannot be read, or lacks one of these answers, or has one that is not possible.
    """
    remedy = "write one with `plan init --out brief.md`"
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"brief {file} cannot be read ({error}); {remedy}") from error
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|", 1)] for line in lines if line.startswith("|")]
    found = {row[0]: row[1] for row in rows if len(row) == 2}
    found["title"] = next((line[2:].strip() for line in lines if line.startswith("# ")), "")
    missing = [name for name in (TASK, LANGUAGES, USE, RISK, PROVENANCE) if not found.get(name)]
    if missing:
        raise UserError(f"brief {file} has no row for {', '.join(missing)} in its table; {remedy}")
    for name, allowed in ((TASK, TASKS), (USE, USES), (RISK, RISKS), (PROVENANCE, ("yes", "no"))):
        check_one_of(f"{name!r} of brief {file}", found[name], allowed)
    return found
