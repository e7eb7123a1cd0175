"""The reference model that a policy is compared with, and its precomputed log-probabilities."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_gpt.adapters import adapters_disabled
from lit_gpt.atomic import atomic_file
from lit_gpt.batch import Batch
from lit_gpt.checkpoints.adapters import hash_weights
from lit_gpt.checks import check_one_of
from lit_gpt.errors import UserError
from lit_gpt.models import GPT
from lit_gpt.modules.base import GPTModule

ReferenceKind = Literal["auto", "frozen", "precomputed", "disabled_adapter"]
SPLITS = ("train", "val", "test")


class ReferenceModel:
    """The weights that a run started from: a frozen copy, or the base with the adapter disabled.

    It is not a submodule of the module that holds it, so it is not in checkpoints and the optimizer. On a resume it is
    rebuilt from the initial weights, whose hash is in the checkpoint.

    Args:
        kind: `frozen`; `precomputed` (frozen, and released once all rows are scored); `disabled_adapter` (no second
            model in memory); or `auto`: the last one if there is an adapter, else `frozen`.
        choices: kinds that the objective supports.
        has_adapter: whether the run trains an adapter.

    Raises:
        UserError: the kind is not among the choices, or needs an adapter and there is none.
    """

    def __init__(self, kind: ReferenceKind, choices: Sequence[ReferenceKind], has_adapter: bool) -> None:
        check_one_of("reference", kind, choices)
        if kind == "disabled_adapter" and not has_adapter:
            raise UserError("reference is disabled_adapter, but there is no adapter; set adapter, or reference: frozen")
        if kind == "auto":
            kind = "disabled_adapter" if has_adapter else "frozen"
        self.kind: ReferenceKind = kind
        self.model: GPT | None = None
        """The frozen copy; None with a disabled adapter, and after it is released."""
        self.sha256: str | None = None
        """Content hash of the frozen copy's weights."""

    def build(self, policy: GPTModule) -> None:
        """Create the frozen copy, if one is needed.

        Raises:
            UserError: the policy is sharded, which is not supported for the copy.
        """
        if self.kind == "disabled_adapter":
            adapter = policy._adapter
            if adapter is not None and adapter.trains_embeddings and policy.device_mesh is not None:
                raise UserError(
                    "reference is disabled_adapter, but the adapter also trains the embeddings, whose former values "
                    "are not kept in shards; set adapter.train_embeddings: false, reference: precomputed, or "
                    "trainer.strategy to ddp"
                )
            return
        if self.kind == "frozen" and policy.device_mesh is not None:
            raise UserError("a frozen reference is not sharded; set reference: precomputed")
        with torch.device("meta"):
            model = policy.build_model()
        model.to_empty(device=policy.device)
        assert isinstance(model, GPT)
        model.init_weights(policy.seed)
        if policy.init_from is not None:
            policy.load_source(model)
        model.requires_grad_(False).eval()
        self.sha256 = hash_weights(dict(model.named_parameters()), policy.config)
        self.model = model

    def release(self) -> None:
        """Free the frozen copy's memory; it is rebuilt when it is needed."""
        self.model = None

    @contextmanager
    def active(self, policy: GPTModule) -> Iterator[Any]:
        """Yield the reference: a second model, or the policy's model with its adapter disabled and without dropout."""
        if self.kind != "disabled_adapter":
            if self.model is None:  # released after scoring, but these rows are not in the tables
                self.build(policy)
            yield self.model
            return
        model = policy.model
        assert isinstance(model, nn.Module)
        training = model.training
        model.eval()
        with adapters_disabled(model):
            yield model
        model.train(training)

    def check_saved(self, sha256: str | None, init_from: str | None) -> None:
        """Reject resuming with another reference.

        Args:
            sha256: `sha256` of the run so far, from its checkpoint.
            init_from: the initial weights as the user named them.

        Raises:
            UserError: the initial weights are not those that the run was started from.
        """
        if sha256 is not None and self.sha256 is not None and sha256 != self.sha256:
            raise UserError(
                f"the run was started from other weights than {init_from} has now, so its reference is lost; restore "
                "those weights, or start a new run"
            )


@torch.no_grad()
def score_all_rows(
    policy: GPTModule,
    reference: ReferenceModel,
    score: Callable[[Any, Batch], Tensor],
    rows_of: Callable[[Batch], Tensor],
) -> dict[str, Tensor]:
    """Return the reference's scores of every row, computed once and stored in the run's folder.

    Args:
        policy: the module, which provides data, ranks and device.
        reference: the reference model.
        score: (model, batch) → (rows, 2) float32.
        rows_of: batch → (rows,) int64, row numbers in their split; -1 is padding.

    Returns:
        (rows of the split, 2) float32 by split.

    Raises:
        UserError: the DataModule does not consist of rows.
    """
    info = policy.data_info
    if info.rows is None or info.scoring_batches is None:
        raise UserError(
            "reference: precomputed needs a row-based DataModule, such as PreferenceDataModule; set reference: frozen"
        )
    tables = {}
    for split in SPLITS:
        rows = info.rows(split)
        path = Path(policy.trainer.default_root_dir) / "reference" / f"{split}.safetensors"
        key = {"rows": rows.fingerprint, "weights": str(reference.sha256), "kind": type(policy).__name__}
        if path.exists() and _metadata(path) == key:
            tables[split] = load_file(path)["log_probs"].to(policy.device)
            continue
        table = torch.zeros(len(rows), 2, dtype=torch.float32, device=policy.device)
        for batch in info.scoring_batches(split):
            batch = policy.transfer_batch_to_device(batch, policy.device, 0)
            numbers = rows_of(batch)
            is_row = numbers >= 0
            with reference.active(policy) as model:
                table[numbers[is_row]] = score(model, batch)[is_row]
        tables[split] = table = policy.sum_over_ranks(table)  # each row was scored by one rank and is 0 on the others
        if policy.trainer.is_global_zero:
            with atomic_file(path) as temporary:
                save_file({"log_probs": table.cpu()}, temporary, metadata=key)
    return tables


def _metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] | None = file.metadata()
        return metadata
