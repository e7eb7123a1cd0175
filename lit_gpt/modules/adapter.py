"""Adapter training: adding the adapter to the frozen base, saving only the adapter, and validating checkpoints."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lit_gpt.adapters import AdapterConfig, add_adapter, trained_names
from lit_gpt.checkpoints.adapters import adapter_info, hash_weights
from lit_gpt.checkpoints.resolve import ModelSource
from lit_gpt.checkpoints.step import PREFIX
from lit_gpt.errors import UserError


class AdapterTraining:
    """The adapter that a module trains instead of the weights of `init_from`.

    Args:
        config: configuration of the adapter: kind, rank, targets.
        init_from: the base model as the user named it, for messages.
        source: the base model.
        vocab_size: number of tokens in the data; more than in the base model means that the data adds new tokens.

    Raises:
        UserError: the data adds new tokens, and embeddings are not to be trained.
    """

    def __init__(self, config: AdapterConfig, init_from: str, source: ModelSource, vocab_size: int) -> None:
        self.config = config
        self.init_from = init_from
        self.base_sha256: str | None = None
        """Content hash of the base model's weights, set once they are loaded."""
        self._source = source
        # Rows of new tokens are trained even if the user did not ask for it: they start as the mean of the others.
        new_tokens = vocab_size - source.config.vocab_size
        if config.train_embeddings is False and new_tokens > 0:
            raise UserError(
                f"adapter.train_embeddings is false, but the data adds {new_tokens} tokens that {init_from} does not "
                "have: their rows would be neither trained nor saved; set it to null or true, or choose a chat "
                "template whose tokens the model has"
            )
        self.trains_embeddings = new_tokens > 0 if config.train_embeddings is None else config.train_embeddings

    def note_base(self, weights: Mapping[str, Tensor]) -> None:
        """Record the hash of the weights that the adapter belongs to."""
        self.base_sha256 = hash_weights(weights, self._source.config)

    def add_to(self, model: nn.Module, seed: int, also_trained: tuple[str, ...]) -> None:
        """Freeze the base and insert the adapter.

        Args:
            model: the base model with its weights loaded.
            seed: seed of the adapter's initial weights.
            also_trained: names of weights that an objective adds to the model; they stay trainable.
        """
        add_adapter(model, self.config, seed, self.trains_embeddings)
        for name in also_trained:
            model.get_parameter(name).requires_grad_(True)

    def drop_base(self, checkpoint: dict[str, Any], model: nn.Module) -> None:
        """Remove the base weights from a Lightning checkpoint, and record their hash."""
        assert self.base_sha256 is not None
        checkpoint["lit_gpt"]["adapter"] = adapter_info(self.config, self.init_from, self.base_sha256)
        trained = _trained_keys(model)
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in weights.items() if name in trained}

    def check_loaded(self, result: Any, model: nn.Module) -> None:
        """Check the result of `load_state_dict(strict=False)`: exactly the trained weights must have been loaded.

        Raises:
            UserError: a trained weight is missing, or there are unexpected weights.
        """
        wrong = sorted(_trained_keys(model).intersection(result.missing_keys)) + result.unexpected_keys
        if wrong:
            raise UserError(f"the checkpoint's adapter does not fit this one: {', '.join(wrong[:5])}")


def check_same_adapter(saved: dict[str, Any] | None, current: AdapterTraining | None) -> None:
    """Reject a checkpoint with another adapter, or with one that was trained on another base model.

    Args:
        saved: the checkpoint's `adapter` entry; None: it has no adapter.
        current: the adapter of the module that loads the checkpoint; None: it has none.

    Raises:
        UserError: the adapters differ.
    """
    here = None if current is None else current.config.to_dict()
    there = None if saved is None else saved["config"]
    if here != there:
        raise UserError(f"the checkpoint's adapter is {there}, this run's is {here}; give the module the same one")
    if saved is None or current is None or current.base_sha256 is None:
        return
    if saved["base_sha256"] != current.base_sha256:
        raise UserError(
            f"the checkpoint's adapter was trained on {saved['base']}, whose weights differ from those of "
            f"{current.init_from} now (SHA-256 {saved['base_sha256'][:12]}..., not {current.base_sha256[:12]}...)"
        )


def _trained_keys(model: nn.Module) -> set[str]:
    """Return the names of the trained weights as written in a Lightning checkpoint."""
    return {f"{PREFIX}{name}" for name in trained_names(model)}
