"""How probable a model finds given continuations: what multiple choice, bias pairs and membership tests ask.

In stages: texts become ids (`likelihood_texts`), ids become trees in which a shared beginning stands once
(`prefix_trees`), trees of about the same size go through the model in one forward (`tree_step`), and the head runs on
the positions that predict something, and on no others.

Numbers are those of one text after another, up to rounding. A RoPE scaling that depends on a text's length makes its
beginning depend on its end, so for such a model nothing is shared.

N tokens of a forward, M positions that predict, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.likelihood_texts import TextPairs
from lit_gpt.evaluation.prefix_trees import Scored, Stem, Tree, plan_trees
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.token_logprobs import read_tokens
from lit_gpt.evaluation.tree_step import Layers, TreesPart
from lit_gpt.models import GPT
from lit_gpt.models.head import HeadFn
from lit_gpt.models.step_cache import StepCache

BATCH_TOKENS_CPU = 1024
"""What stays in a CPU's cache: larger batches were slower."""
BATCH_TOKENS = 16384
"""What keeps an accelerator busy."""


class Continuation(NamedTuple):
    """How a model continues a context with given tokens.

    Attributes:
        logprob: Sum over its tokens, in nats.
        is_greedy: Whether each token is the likeliest one at its place.
        num_tokens: How many.
        token_logprobs: Of each token, in nats.
    """

    logprob: float
    is_greedy: bool
    num_tokens: int
    token_logprobs: tuple[float, ...]


class LogLikelihoods:
    """Asks a model for log-likelihoods.

    Args:
        model: On its device; its mode is left as it was.
        tokenizer: The model's own.
        max_batch_tokens: Tokens of one forward, at most; one text alone may be longer. None = what suits the device.
        pairs: How texts become ids; None opens each text as the model was trained.

    Example:
        >>> asked = LogLikelihoods(model, tokenizer)  # doctest: +SKIP
        >>> [choice.logprob for choice in asked.of_texts([("2 + 2 =", " 4"), ("2 + 2 =", " 5")])]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_batch_tokens: int | None = None,
        pairs: TextPairs | None = None,
    ) -> None:
        if max_batch_tokens is None:
            max_batch_tokens = BATCH_TOKENS_CPU if model.wte.weight.device.type == "cpu" else BATCH_TOKENS
        if max_batch_tokens < 1:
            raise UserError(f"max_batch_tokens is {max_batch_tokens}, it must be at least 1")
        self.model, self.tokenizer, self.max_batch_tokens = model, tokenizer, max_batch_tokens
        self.pairs = pairs or TextPairs(tokenizer)
        scaling = model.config.rope_scaling
        self._follows_length = scaling is not None and scaling.follows_length and model.config.positions == "rope"
        self.num_computed_tokens = 0
        """Tokens that went through the model since this was made, without those that fill up."""

    def of_texts(self, pairs: Sequence[tuple[str, str]], progress: Progress = no_progress) -> list[Continuation]:
        """Log-likelihoods of continuations of texts.

        Args:
            pairs: (context, continuation); see `TextPairs` for how they are cut into tokens.
            progress: Told how many of them are done.

        Returns:
            In order.

        Raises:
            UserError: A continuation is empty or longer than the model's context.
        """
        encoded = self.pairs.encode(pairs)
        return self.of_ids([context for context, _ in encoded], [continuation for _, continuation in encoded], progress)

    def of_ids(
        self,
        contexts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        progress: Progress = no_progress,
    ) -> list[Continuation]:
        """Log-likelihoods of continuations of token sequences.

        What does not fit is cut off at the left: the model reads the last `block_size` of the tokens before the last
        one, as lm-eval's `hf` model does.

        Args:
            contexts: At least one token each, with what opens a text.
            continuations: At least one token each.
            progress: Told how many of them are done.

        Returns:
            In order.

        Raises:
            UserError: One of them is empty, longer than the model's context, or has a token that the model has not; or
                the model's answer is no number.
        """
        texts = [
            self._scored(context, continuation, number)
            for number, (context, continuation) in enumerate(zip(contexts, continuations, strict=True), start=1)
        ]
        results: list[Continuation | None] = [None] * len(texts)
        was_training = self.model.training
        self.model.eval()
        done = 0
        try:
            with torch.inference_mode():
                kept: dict[Stem, Layers] = {}
                for stem, trees in plan_trees(texts, self.max_batch_tokens, share=not self._follows_length):
                    layers = self._layers(stem, kept)
                    for batch in self._batches(trees):
                        for number, result in self._run(batch, layers, texts):
                            results[number] = result
                            done += 1
                        progress(done, len(texts))
        finally:
            self.model.train(was_training)
        return [result for result in results if result is not None]

    def _scored(self, context: Sequence[int], continuation: Sequence[int], number: int) -> Scored:
        block_size, vocab_size = self.model.config.block_size, self.model.config.vocab_size
        if len(context) == 0 or len(continuation) == 0:
            missing = "context" if len(context) == 0 else "continuation"
            raise UserError(f"{missing} {number} has no tokens; it needs at least one")
        if len(continuation) > block_size:
            raise UserError(
                f"continuation {number} has {len(continuation)} tokens, more than the model's block_size {block_size}; "
                "shorten it or cut it into windows"
            )
        whole = np.concatenate((np.asarray(context, dtype=np.int32), np.asarray(continuation, dtype=np.int32)))
        if whole.min() < 0 or whole.max() >= vocab_size:
            raise UserError(
                f"text {number} has the token {whole.max()}, outside the model's vocabulary of {vocab_size}"
            )
        whole = whole[-(block_size + 1) :]
        return Scored(whole[:-1], whole[-len(continuation) :])

    def _batches(self, trees: list[Tree]) -> list[list[Tree]]:
        """Trees of about the same size, largest first, in rectangles of at most `max_batch_tokens`."""
        batches: list[list[Tree]] = []
        for tree in sorted(trees, key=lambda tree: -len(tree.ids)):
            if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].ids) > self.max_batch_tokens:
                batches.append([])
            batches[-1].append(tree)
        return batches

    def _layers(self, stem: Stem | None, kept: dict[Stem, Layers]) -> Layers | None:
        """Keys and values of a stem and of those before it; `kept` holds those of its ancestors, and then its own."""
        if stem is None:
            return None
        ancestors: list[Stem] = []
        while (above := (ancestors[-1] if ancestors else stem).parent) is not None:
            ancestors.append(above)
        for other in set(kept) - set(ancestors):
            del kept[other]
        ends = np.full(len(stem.ids), len(stem.ids))
        chain = Tree(stem.ids, np.arange(stem.start, stem.end), ends, predictions=())
        before = None if stem.parent is None else kept[stem.parent]
        part = TreesPart(self.model.config, [chain], before, self._device, keep=True)
        self._forward(part, [chain], lambda hidden, weight, bias: None)
        kept[stem] = part.layers
        return part.layers

    @property
    def _device(self) -> torch.device:
        return self.model.wte.weight.device

    def _forward(self, part: TreesPart, trees: Sequence[Tree], head: HeadFn) -> None:
        context = None
        if self._follows_length:  # each tree is one text
            context = torch.tensor([[len(tree.ids)] for tree in trees], device=self._device).expand_as(part.ids)
            context = context.reshape(1, -1)
        self.num_computed_tokens += sum(len(tree.ids) for tree in trees)
        self.model(
            part.ids.view(1, -1),
            position_ids=part.positions.view(1, -1),
            cache=StepCache([part], context),
            head_fn=head,
        )

    def _run(self, trees: list[Tree], stem: Layers | None, texts: Sequence[Scored]) -> list[tuple[int, Continuation]]:
        """One forward: number and result of each text in it."""
        part = TreesPart(self.model.config, trees, stem, self._device)
        asked = [
            (number, row * part.width + places) for row, tree in enumerate(trees) for number, places in tree.predictions
        ]
        places = np.concatenate([places for _, places in asked])
        targets = np.concatenate([texts[number].targets for number, _ in asked]).astype(np.int64)
        read: list[tuple[Tensor, Tensor]] = []

        def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
            read.append(read_tokens(hidden[0], weight, bias, places, targets, self.model.config.logit_softcap))

        self._forward(part, trees, head)
        logprobs, greedy = read[0]
        values, hits = logprobs.tolist(), greedy.tolist()
        results = []
        begin = 0
        for number, where in asked:
            end = begin + len(where)
            mine = tuple(values[begin:end])
            if math.isnan(sum(mine)):  # every comparison with it is false, and would pass for an answer
                raise UserError(
                    f"the model gives text {number + 1} a probability that is no number (NaN): its weights are "
                    "damaged, or training has diverged; use an earlier checkpoint, or a wider dtype"
                )
            results.append((number, Continuation(float(np.sum(mine)), all(hits[begin:end]), len(where), mine)))
            begin = end
        return results
