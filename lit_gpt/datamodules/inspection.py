"""Open the DataModule of a run's YAML and collect the windows that `inspect` shows.

Only the fields of the batch, the tokenizer folder and, where the DataModule has them, `provenance(batch, split)` and
`lineage()` are used, so DataModules of other packages can be inspected, too.
"""

import itertools
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, Trainer

from lit_gpt.data.inspection.view import Report, TokenTexts, Window, windows_of
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError
from lit_gpt.instantiate import read_yaml


def open_datamodule(path: Path, stage: str) -> LightningDataModule:
    """Build, prepare and set up the DataModule that a YAML file describes, in a single process.

    Args:
        path: YAML file of a run.
        stage: `fit`, `validate` or `test`.

    Raises:
        UserError: if the file is missing or does not describe a DataModule.
    """
    if path.is_dir():
        path = path / "config.yaml"
    values = read_yaml(path, "the YAML of a run")
    if not isinstance(values, dict) or "data" not in values:
        raise UserError(f"{path} has no `data`; pass the YAML file of a run, as for `fit`")
    datamodule = _parse(values)
    trainer = values.get("trainer") or {}
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    # The schedule of a mixture and the length of a stream depend on the run's limits.
    datamodule.trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=-1 if trainer.get("max_steps") is None else int(trainer["max_steps"]),
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule.prepare_data()
    datamodule.setup(stage)
    return datamodule


def _parse(values: dict[str, Any]) -> LightningDataModule:
    """Return the DataModule that `fit` would build: short class names are resolved and the seed is linked."""
    import lit_gpt.datamodules  # noqa: F401 (imported classes can be given by their short names)

    sys.path.insert(0, str(Path.cwd()))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=bool | int, default=0)
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=True)
    parser.link_arguments("seed_everything", "data.init_args.seed")
    given = {key: values[key] for key in ("seed_everything", "data") if values.get(key) is not None}
    try:
        return parser.instantiate_classes(parser.parse_object(given)).data
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error


def inspect_data(datamodule: Any, split: str, num_windows: int, step: int | None) -> Report:
    """Collect windows of a split.

    Args:
        datamodule: DataModule after `setup`.
        split: `train`, `val` or `test`.
        num_windows: Number of windows to collect.
        step: Optimizer step, counted from 1, whose windows are all collected; None starts at the first window.

    Raises:
        UserError: if the split is empty, or the DataModule names no tokenizer.
    """
    tokenizer_path = getattr(datamodule, "tokenizer_path", None)
    if tokenizer_path is None:
        raise UserError(
            f"{type(datamodule).__name__} has no tokenizer_path property, which is needed to decode its tokens"
        )
    texts = TokenTexts(load_tokenizer(tokenizer_path))
    loader = getattr(datamodule, f"{split}_dataloader")()
    if isinstance(loader, list | tuple):
        loader = itertools.chain.from_iterable(loader)
    elif step is not None:
        loader = _from_step(loader, step)
    # Rows that are not packed have no document ids: each is one document and cannot attend to another.
    isolated = bool(getattr(datamodule, "isolate_documents", isinstance(datamodule, RowDataModule)))
    windows: list[Window] = []
    for batch in loader:
        for micro_batch in batch if isinstance(batch, list) else [batch]:
            trace = getattr(datamodule, "provenance", None)
            pieces = trace(micro_batch, split) if trace is not None else None
            windows += [window for window in windows_of(micro_batch, texts, pieces, isolated) if window.tokens]
        if step is not None or len(windows) >= num_windows:
            break
    if not windows:
        raise UserError(
            f"the {split} split of {type(datamodule).__name__} is empty; set {split}_files or {split}_fraction"
        )
    if step is None:
        windows = windows[:num_windows]
    what = f"optimizer step {step:,}" if step is not None else f"the {split} split"
    return Report(f"{type(datamodule).__name__}: {what}", _facts(datamodule, texts), windows, step=step)


def _from_step(loader: Any, step: int) -> Any:
    """Return an iterator that starts at a step: by `seek` if the loader has it, else by skipping steps."""
    if hasattr(loader, "seek"):
        loader.seek(step - 1)
        return loader
    endless = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return itertools.islice(endless, step - 1, None)


def _facts(datamodule: Any, texts: TokenTexts) -> list[tuple[str, str]]:
    tokenizer = texts.tokenizer
    facts = [
        ("tokenizer", f"{tokenizer.vocab_size:,} entries, {datamodule.tokenizer_path}"),
        ("stop token", f"{tokenizer.separator} (id {tokenizer.separator_id})"),
    ]
    for name in ("block_size", "global_batch_size", "seed"):
        if hasattr(datamodule, name):
            facts.append((name, f"{getattr(datamodule, name):,}"))
    lineage = datamodule.lineage() if hasattr(datamodule, "lineage") else {}
    corpora = lineage.get("corpora") or ({"corpus": lineage["corpus"]} if lineage.get("corpus") else {})
    for name, corpus in corpora.items():
        splits = ", ".join(f"{split} {counts['tokens']:,}" for split, counts in corpus["splits"].items())
        facts.append((name, f"tokens: {splits}; {corpus['fingerprint'][:16]}…"))
    return facts
