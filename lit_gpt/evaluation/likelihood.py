"""Log-likelihoods of given continuations, as needed by multiple choice, bias pairs and membership inference.

Stages: texts become token ids (`TextPairs`), ids become trees in which a shared beginning is stored once
(`prefix_trees`), trees of about the same size go through the model in one forward, and the LM head runs only at the
positions that predict a requested token.

Results equal those of one text after another up to rounding. A RoPE scaling that depends on a text's length makes the
hidden states of its beginning depend on its end, so for such a model nothing is shared.

N tokens of a forward, M positions that predict, C model width, V vocabulary.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.checks import check_at_least
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.prefix_trees import Layers, ScoredText, SharedPrefix, Tree, TreesPart, plan_trees
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.generation.text import opened
from lit_gpt.models import GPT
from lit_gpt.models.cache import DecodeStep
from lit_gpt.models.head import HeadFn
from lit_gpt.objectives.cross_entropy import default_chunk_size

Opening = Literal["auto", "trained", "hf"]
"""Opening tokens of a text: those of training, those of lm-eval's `hf` model, or auto: `hf` for published models."""
AT_ONCE = 1024
"""Number of texts that are encoded in one call."""


class TextPairs:
    """Encodes contexts and continuations, split as in lm-eval.

    The tokens of two texts are not the tokens of their concatenation: a word's token includes the space before it. So
    spaces at the end of a context move to the front of its continuation, context and continuation are encoded together,
    and the continuation is what comes after as many tokens as the context has by itself.

    Args:
        tokenizer: Tokenizer of the model.
        opening_ids: Tokens at the start of each text; None: those of training.
        parse_special: Whether special tokens spelled out in a text become these tokens, as chat templates require.
    """

    def __init__(
        self, tokenizer: Tokenizer, opening_ids: Sequence[int] | None = None, parse_special: bool = False
    ) -> None:
        self.tokenizer, self.parse_special = tokenizer, parse_special
        self.opening_ids = list(tokenizer.opening_ids if opening_ids is None else opening_ids)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of each context, including the opening tokens, and of each continuation.

        An empty context becomes the opening tokens, or the separator. If the last token of a context includes the whole
        continuation, the continuation is encoded alone.
        """
        moved = [_with_spaces_moved(context, continuation) for context, continuation in pairs]
        contexts = list(dict.fromkeys(context for context, _ in moved))
        ids = dict(zip(contexts, self.encode_texts(contexts), strict=True))
        lengths = {context: len(found) for context, found in ids.items()}
        opened_ids = {context: self.open(found) for context, found in ids.items()}  # one list for all its continuations
        encoded = []
        for start in range(0, len(moved), AT_ONCE):
            some = moved[start : start + AT_ONCE]
            wholes = self.encode_texts([context + continuation for context, continuation in some])
            for (context, continuation), whole in zip(some, wholes, strict=True):
                after = whole[lengths[context] :]
                if not after and continuation:
                    after = self.encode_texts([continuation])[0]
                encoded.append((opened_ids[context], after))
        return encoded

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts without opening tokens."""
        if self.parse_special:
            return [encoding.ids for encoding in self._parsing.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [ids.tolist() for ids in self.tokenizer.encode_batch(texts)]

    def open(self, ids: list[int]) -> list[int]:
        """Return a text with its opening tokens; a text that already has them from a chat template is unchanged."""
        if self.opening_ids and self.parse_special and ids[: len(self.opening_ids)] == self.opening_ids:
            return ids
        return [*self.opening_ids, *ids] or opened(self.tokenizer, [])

    @cached_property
    def _parsing(self) -> Any:
        """A copy of the tokenizer that parses special tokens; the one for training data does not."""
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(self.tokenizer.backend.to_str())
        backend.encode_special_tokens = False
        return backend


def _with_spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def read_tokens(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    requested: np.ndarray,
    targets: np.ndarray,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability (M,) float32 of each target, and whether it is the most probable token (M,) bool.

    The head runs on the requested positions only, chunk by chunk, so that no full (N, V) logits tensor exists.

    Args:
        hidden: (N, C) final hidden states.
        weight: (V, C) weight of the LM head.
        bias: (V,) bias of the LM head, or None.
        requested: (M,) rows of `hidden` to read. Branches of a tree may request several tokens at one position, for
            which the head runs once.
        targets: (M,) token ids.
        softcap: Logits z become cap · tanh(z / cap).
    """
    unique, which = np.unique(requested, return_inverse=True)
    rows, of_row, wanted = (torch.from_numpy(x).to(hidden.device) for x in (unique, which, targets))
    order = np.argsort(which, kind="stable")
    size = default_chunk_size(hidden, weight)
    begins = np.arange(0, len(unique), size)
    logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    greedy = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    asking = np.split(order, np.searchsorted(which[order], begins[1:]))
    for begin, numbers in zip(begins.tolist(), asking, strict=True):
        logits = F.linear(hidden[rows[begin : begin + size]], weight, bias).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        mine = torch.from_numpy(numbers).to(hidden.device)
        row, token = of_row[mine] - begin, wanted[mine]
        chosen = logits[row, token]
        highest, best = logits.max(1, keepdim=True)
        # log Σ exp z, in place: the logits are most of the memory traffic here.
        total = highest + logits.sub_(highest).exp_().sum(1, keepdim=True).log_()
        logprobs[mine] = chosen - total[row, 0]
        greedy[mine] = best[row, 0] == token
    return logprobs, greedy


BATCH_TOKENS_CPU = 1024
"""Fits into a CPU's cache: larger batches were measured to be slower."""
BATCH_TOKENS = 16384
"""Enough to keep an accelerator busy."""


class Continuation(NamedTuple):
    """The log-likelihood of a continuation.

    Attributes:
        logprob: Sum over its tokens, in nats.
        is_greedy: Whether each token is the most probable one at its position.
        num_tokens: Number of tokens.
        token_logprobs: Log-probability of each token, in nats.
    """

    logprob: float
    is_greedy: bool
    num_tokens: int
    token_logprobs: tuple[float, ...]


class LogLikelihoods:
    """Computes log-likelihoods with a model.

    Args:
        model: Model, on its device; its training mode is restored after each call.
        tokenizer: Tokenizer of the model.
        max_batch_tokens: Maximum number of tokens of one forward; a single text may be longer. None = chosen by device.
        pairs: Encoder of texts; None opens each text as in training.

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
        check_at_least("max_batch_tokens", max_batch_tokens, 1)
        self.model, self.tokenizer, self.max_batch_tokens = model, tokenizer, max_batch_tokens
        self.pairs = pairs or TextPairs(tokenizer)
        scaling = model.config.rope_scaling
        self._follows_length = scaling is not None and scaling.follows_length and model.config.positions == "rope"
        self._branches = all(state.can_branch for state in model.new_states(1, 1))
        """Whether texts can share a prefix in one forward; not for recurrent layers, which read one text per row."""
        self.num_computed_tokens = 0
        """Tokens that went through the model so far, without padding."""

    def of_texts(self, pairs: Sequence[tuple[str, str]], progress: Progress = no_progress) -> list[Continuation]:
        """Return the log-likelihoods of continuations of texts.

        Args:
            pairs: (context, continuation); see `TextPairs` for how they are cut into tokens.
            progress: Called with the number of pairs done.

        Returns:
            One result for each pair, in order.

        Raises:
            UserError: If a continuation is empty or longer than the model's context.
        """
        encoded = self.pairs.encode(pairs)
        return self.of_ids([context for context, _ in encoded], [continuation for _, continuation in encoded], progress)

    def of_ids(
        self,
        contexts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        progress: Progress = no_progress,
    ) -> list[Continuation]:
        """Return the log-likelihoods of continuations of token sequences.

        A sequence that is too long is truncated on the left: the model reads the last `block_size` of the tokens before
        the last one, as lm-eval's `hf` model does.

        Args:
            contexts: Token ids of each context, at least one, including the opening tokens.
            continuations: Token ids of each continuation, at least one.
            progress: Called with the number of sequences done.

        Returns:
            One result for each sequence, in order.

        Raises:
            UserError: If a sequence is empty, longer than the model's context, or has a token outside the vocabulary,
                or the model returns NaN.
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
                kept: dict[SharedPrefix, Layers] = {}
                share = self._branches and not self._follows_length
                for prefix, trees in plan_trees(texts, self.max_batch_tokens, share=share):
                    layers = self._layers(prefix, kept)
                    for batch in self._batches(trees):
                        for number, result in self._run(batch, layers, texts):
                            results[number] = result
                            done += 1
                        progress(done, len(texts))
        finally:
            self.model.train(was_training)
        return [result for result in results if result is not None]

    def _scored(self, context: Sequence[int], continuation: Sequence[int], number: int) -> ScoredText:
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
        return ScoredText(whole[:-1], whole[-len(continuation) :])

    def _batches(self, trees: list[Tree]) -> list[list[Tree]]:
        """Batch trees of about the same size, largest first, in rectangles of at most `max_batch_tokens`."""
        batches: list[list[Tree]] = []
        for tree in sorted(trees, key=lambda tree: -len(tree.ids)):
            if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].ids) > self.max_batch_tokens:
                batches.append([])
            batches[-1].append(tree)
        return batches

    def _layers(self, prefix: SharedPrefix | None, kept: dict[SharedPrefix, Layers]) -> Layers | None:
        """Return keys and values of a shared prefix and its ancestors; `kept` caches those of the current chain."""
        if prefix is None:
            return None
        ancestors: list[SharedPrefix] = []
        while (above := (ancestors[-1] if ancestors else prefix).parent) is not None:
            ancestors.append(above)
        for other in set(kept) - set(ancestors):
            del kept[other]
        ends = np.full(len(prefix.ids), len(prefix.ids))
        chain = Tree(prefix.ids, np.arange(prefix.start, prefix.end), ends, predictions=())
        before = None if prefix.parent is None else kept[prefix.parent]
        part = TreesPart(self.model.config, [chain], before, self._device, keep=True)
        self._forward(part, [chain], lambda hidden, weight, bias: None)
        kept[prefix] = part.layers
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
        if not self._branches:  # nothing is shared: each row is one text followed by padding
            self.model(part.ids, head_fn=lambda hidden, *weights: head(hidden.flatten(0, 1)[None], *weights))
            return
        cache = DecodeStep([part], part.positions.view(1, -1), context)
        self.model(part.ids.view(1, -1), cache=cache, head_fn=head)

    def _run(
        self, trees: list[Tree], prefix: Layers | None, texts: Sequence[ScoredText]
    ) -> list[tuple[int, Continuation]]:
        """Run one forward; return number and result of each text in it."""
        part = TreesPart(self.model.config, trees, prefix, self._device)
        asked = [
            (number, row * part.width + positions)
            for row, tree in enumerate(trees)
            for number, positions in tree.predictions
        ]
        positions = np.concatenate([positions for _, positions in asked])
        targets = np.concatenate([texts[number].targets for number, _ in asked]).astype(np.int64)
        read: list[tuple[Tensor, Tensor]] = []

        def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
            read.append(read_tokens(hidden[0], weight, bias, positions, targets, self.model.config.logit_softcap))

        self._forward(part, trees, head)
        logprobs, greedy = read[0]
        values, hits = logprobs.tolist(), greedy.tolist()
        results = []
        begin = 0
        for number, where in asked:
            end = begin + len(where)
            mine = tuple(values[begin:end])
            if math.isnan(sum(mine)):  # every comparison with NaN is false, which would count as an answer
                raise UserError(
                    f"the model gives text {number + 1} the probability NaN: its weights are "
                    "damaged, or training has diverged; use an earlier checkpoint, or a wider dtype"
                )
            results.append((number, Continuation(float(np.sum(mine)), all(hits[begin:end]), len(where), mine)))
            begin = end
        return results
