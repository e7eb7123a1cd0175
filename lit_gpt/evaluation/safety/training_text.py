"""What a model was trained on, where nobody says so: the corpus that its run's `config.yaml` names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject
from lit_gpt.evaluation.texts import Texts

_FRACTIONS = ("val_fraction", "test_fraction")


class TrainingTexts(NamedTuple):
    """What a model was trained on, and text of the same kind that it was not.

    Attributes:
        training: The one.
        held_out: The other; None: nobody held any out.
    """

    training: Texts
    held_out: Texts | None


def training_texts(subject: Subject, training: Texts | None, held_out: Texts | None = None) -> TrainingTexts | None:
    """Returns what is given, or else what the model's run says.

    Args:
        subject: The model.
        training: What it was trained on; None: what its run names.
        held_out: What it was not.

    Returns:
        None where nothing is given, and the model belongs to no run on one text corpus.

    Raises:
        UserError: Held-out text is given without training text.
    """
    if training is not None:
        return TrainingTexts(training, held_out)
    if held_out is not None:
        raise UserError("held_out is given without training; name both, or neither for what the model's run names")
    data = _data_of_run(subject.path)
    if data is None:
        return None
    kind = str(data.get("class_path", "")).rpartition(".")[2]
    options = data.get("init_args") or {}
    if kind == "PreparedDataModule":
        corpus = str(options["path"])
        return TrainingTexts(Texts(corpus=corpus, split="train"), Texts(corpus=corpus, split="val"))
    place: dict[str, Any]
    if kind == "StdlibDataModule":
        place = {"stdlib": True}
    elif kind == "TextDataModule" and not any(options.get(x) for x in ("datasets", "val_files", "test_files")):
        place = {name: options[name] for name in ("files", "text_field", "document_separator") if name in options}
    else:
        return None
    place |= {name: float(options.get(name, 0.0)) for name in _FRACTIONS}
    held = Texts(**place, split="val") if place["val_fraction"] else None
    return TrainingTexts(Texts(**place, split="train"), held)


def unknown_training(name: str, title: str) -> Result:
    """Returns the result of a measure that cannot say anything without knowing the training text."""
    return Result(
        name,
        title,
        "Not measured: it compares the model with the text that it was trained on.",
        "",
        (),
        notes=(
            "What the model was trained on is not known: it lies in no run with one text corpus. Name it in a config "
            "of your own, such as training: {files: ...}.",
        ),
    )


def _data_of_run(path: Path | None) -> Mapping[str, Any] | None:
    """The `data` of the run that a model lies in: the run's folder itself, or a checkpoint in it."""
    import yaml

    if path is None:
        return None
    for folder in (path, *list(path.parents)[:2]):
        file = folder / "config.yaml"
        if file.is_file() and (folder / "checkpoints").is_dir():
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            data = config.get("data") if isinstance(config, Mapping) else None
            return data if isinstance(data, Mapping) else None
    return None
