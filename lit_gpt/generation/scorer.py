"""Rate conversations with a reward model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from lit_gpt.checkpoints.resolve import built_model, resolve_model
from lit_gpt.data.chat import ChatRenderer, Message
from lit_gpt.data.instructions import InstructionEncoder
from lit_gpt.data.instructions.encoder import as_context
from lit_gpt.data.records import BadInput, Record
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.loading import choose_device
from lit_gpt.models import GPT

SCORE = "score.weight"


class RewardScorer:
    """Rates the last answer of conversations with a reward model.

    Args:
        model: GPT of the reward model.
        score: (1, C) weight of its score layer.
        renderer: Chat template with its tokenizer.
    """

    def __init__(self, model: GPT, score: Tensor, renderer: ChatRenderer) -> None:
        self.model = model.eval()
        self.score = score
        self.renderer = renderer
        self._encoder = InstructionEncoder(renderer, model.config.block_size)

    def rate(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Return the reward of each conversation, which must end with an answer.

        Raises:
            UserError: if a prompt alone fills the context, or a conversation has no answer.
        """
        sequences = []
        for messages in conversations:
            encoded = self._encoder.sequence([*as_context(messages[:-1]), messages[-1]], [])
            assert not isinstance(encoded, str)
            sequences.append(encoded[0].ids)
        return self.rate_ids(sequences)

    @torch.no_grad()
    def rate_ids(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the reward of each tokenized conversation, including its stop token."""
        device = self.score.device
        last = torch.tensor([len(ids) - 2 for ids in sequences], device=device)  # position that predicts the stop token
        inputs = torch.zeros(len(sequences), int(last.max()) + 1, dtype=torch.int64)
        for row, ids in zip(inputs, sequences, strict=True):
            row[: len(ids) - 1] = torch.tensor(list(ids[:-1]))

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return nn.functional.linear(hidden[torch.arange(len(last), device=device), last], self.score).float()

        scores: Tensor = self.model(inputs.to(device), head_fn=head_fn)
        return scores.squeeze(1).tolist()

    def rate_rows(
        self, rows: Iterable[Record], bad_input: BadInput, columns: Mapping[str, str] | None = None, batch_size: int = 8
    ) -> Iterator[tuple[list[Record], list[float]]]:
        """Yield rows of instructions and their rewards, in batches; invalid rows go to `bad_input`."""
        encoder = InstructionEncoder(self.renderer, self.model.config.block_size, columns=columns)

        def encoded() -> Iterator[tuple[Record, list[int]]]:
            for row in rows:
                try:
                    result = encoder(row)
                except UserError as error:
                    bad_input.reject(row.where, str(error))
                    continue
                assert not isinstance(result, str)
                last = result[-1] if isinstance(result, list) else result  # the whole conversation
                yield row, last.sequences[0].ids

        pairs = encoded()
        while batch := list(islice(pairs, batch_size)):
            yield [row for row, _ in batch], self.rate_ids([ids for _, ids in batch])


def load_scorer(model: str, device: str = "auto", adapter: str | None = None) -> RewardScorer:
    """Load a run, checkpoint or adapter of `RewardModule`.

    Raises:
        UserError: if the model is not a reward model, or has no tokenizer, or there is no such device.
    """
    target = choose_device(device)
    source = resolve_model(model, adapter=adapter)
    weights = dict(source.load_state_dict())
    if SCORE not in weights or weights[SCORE].shape[0] != 1:
        raise UserError(f"{source.path} is not a reward model: it has no score layer; train one with RewardModule")
    if source.tokenizer_path is None:
        raise UserError(f"{source.path} has no tokenizer, so it cannot read a conversation")
    score = weights[SCORE] if source.builder is not None else weights.pop(SCORE)
    network = built_model(source, weights)
    renderer = ChatRenderer(load_tokenizer(source.tokenizer_path))
    return RewardScorer(network.to(target), score.to(target), renderer)
