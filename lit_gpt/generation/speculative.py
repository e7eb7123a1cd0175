"""Speculative decoding: draft tokens are generated cheaply, and the model verifies several of them in one forward.

A forward over k + 1 tokens takes little longer than over one, because decoding is limited by reading the weights. The
draft tokens come from a smaller model, from the block with which the model itself was trained to predict one token more
(multi-token prediction), or from the text (what followed the last few tokens at their previous occurrence).

Verification here is the simplest exact method: at each position the token is sampled from the model's own distribution
with the request's own random number, as without drafts; if it equals the draft token, the next position's logits are
already available. So the text is identical, token for token, and so is its distribution. For deterministic drafts
(look-up or greedy) this accepts as often as the rejection scheme of Leviathan et al. 2023 (arXiv:2211.17192); other
drafts are sampled with the same random number as the verification, so that similar distributions give equal tokens.

C model width, T tokens, V vocabulary.
"""

import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.checks import check_between
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.cache import can_truncate, common_prefix
from lit_gpt.generation.request import Request
from lit_gpt.generation.sampler import candidates, invert, uniform
from lit_gpt.models import GPT, Cache
from lit_gpt.models.cache import ChunkPart, LayerState, StepState
from lit_gpt.models.mixers import Context, TokenMixer
from lit_gpt.models.multi_token import MultiTokenBlock

MAX_DRAFT_TOKENS = 64


def check_draft_tokens(number: int | None, fewest: int = 0) -> None:
    """Raise a UserError if the number of tokens to propose at a time is out of bounds; None is accepted."""
    check_between("draft_tokens", number, fewest, MAX_DRAFT_TOKENS)


class Proposer(Protocol):
    """Proposes the next tokens of a sequence.

    If it has a method `observe(request, start, hidden)`, the engine calls it in every forward, before the head, with
    the hidden states (T, C) of each request's tokens from position `start` on.
    """

    def propose(self, request: Request, count: int) -> list[int]:
        """Return at most `count` tokens that may follow `request.ids`."""
        ...


class PromptLookup:
    """Proposes what followed the last tokens at an earlier occurrence ("Prompt lookup decoding", Saxena 2023).

    Args:
        longest: Number of last tokens to search for; fewer are tried if they do not occur.
        shortest: Fewest last tokens to search for.
        adaptive: Propose for a request only while its proposals are right often enough to pay for verifying them, and
            now and then to see whether they have become so.
    """

    def __init__(self, longest: int = 3, shortest: int = 1, adaptive: bool = False) -> None:
        self._longest, self._shortest, self._adaptive = longest, shortest, adaptive
        self._records: weakref.WeakKeyDictionary[Request, _Record] = weakref.WeakKeyDictionary()

    def propose(self, request: Request, count: int) -> list[int]:
        """Return at most `count` tokens, those after the latest match."""
        if not self._adaptive:
            return self._look_up(request.ids, count)
        record = self._records.setdefault(request, _Record())
        record.judge(request.ids)
        if not record.proposes(len(request.ids)):
            return []
        drafts = self._look_up(request.ids, count)
        if drafts:
            record.drafts, record.length = drafts, len(request.ids)
        return drafts

    def _look_up(self, tokens: Sequence[int], count: int) -> list[int]:
        ids = np.array(tokens)
        for length in range(min(self._longest, len(ids) - 1), self._shortest - 1, -1):
            earlier = np.lib.stride_tricks.sliding_window_view(ids[:-1], length)
            places = np.flatnonzero((earlier == ids[-length:]).all(axis=1))
            if len(places):
                start = int(places[-1]) + length
                return [int(token) for token in ids[start : start + count]]
        return []


class _Record:
    """How often the proposals for a request were right."""

    def __init__(self) -> None:
        self.drafts: list[int] = []
        """The last proposal."""
        self.length = 0
        """Length of the sequence when it was made."""
        self._average = 2 * _WORTHWHILE
        """Tokens of a proposal that were right, a moving average."""

    def judge(self, ids: Sequence[int]) -> None:
        """Count the tokens of the last proposal that the sequence continued with."""
        if self.drafts:
            right = common_prefix(self.drafts, ids[self.length :])
            self._average += 0.3 * (right - self._average)
            self.drafts = []

    def proposes(self, length: int) -> bool:
        return self._average >= _WORTHWHILE or length - self.length >= _TRIAL


_WORTHWHILE = 1.0
"""Right tokens per proposal above which proposals save time: verifying one costs up to half a token more than none."""
_TRIAL = 32
"""Tokens after which a proposal is tried although the last ones were wrong."""


class DraftModel:
    """A smaller model with the same vocabulary.

    Args:
        model: Draft model, on the device where it runs.

    Raises:
        UserError: If tokens cannot be removed from a layer's state.
    """

    def __init__(self, model: GPT) -> None:
        if not can_truncate(model):
            raise UserError(
                "draft_model has a layer with a recurrent state, from which rejected tokens cannot be removed; "
                "choose a draft model with attention layers only"
            )
        self._model = model.eval()
        self._states: weakref.WeakKeyDictionary[Request, tuple[Cache, list[int]]] = weakref.WeakKeyDictionary()

    @torch.no_grad()
    def propose(self, request: Request, count: int) -> list[int]:
        """Sample `count` tokens, or as many as fit in the draft model's context."""
        block_size = self._model.config.block_size
        count = min(count, block_size - len(request.ids))
        if count < 1 or max(request.ids) >= self._model.config.vocab_size:
            return []  # models with one tokenizer may pad their vocabularies differently
        _drop_finished(self._states)
        # Capacity for this sequence only: the engine's cache may be far smaller than full contexts for all its rows.
        whole = len(request.ids) + request.params.max_new_tokens - request.num_new
        cache, known = self._states.get(request) or (Cache(self._model, 1, min(block_size, whole)), [])
        same = min(common_prefix(known, request.ids), len(request.ids) - 1)
        cache.truncate(min(same, cache.length))
        unread = request.ids[cache.length :]
        drafts: list[int] = []
        for number in range(count):
            drafts.append(draw(self._logits(unread, cache), request, number))
            unread = drafts[-1:]
        self._states[request] = cache, [*request.ids, *drafts[:-1]]
        return drafts

    def _logits(self, ids: Sequence[int], cache: Cache) -> Tensor:
        device = self._model.wte.weight.device
        inputs = torch.tensor([list(ids)], device=device)
        softcap = self._model.config.logit_softcap

        def last(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            logits = F.linear(hidden[:, -1], weight, bias)
            return logits if softcap is None else softcap * torch.tanh(logits / softcap)

        logits: Tensor = self._model(inputs, cache=cache.step(len(ids)), head_fn=last)
        return logits.float()


class MultiTokenDrafts:
    """Proposes tokens with the model's own first multi-token-prediction block (DeepSeek-V3, arXiv:2412.19437).

    At position i the block reads the model's hidden state and the token at i + 1, and predicts the token at i + 2, the
    one that the model has yet to compute. Further drafts take the block's output in place of the model's hidden state
    (as EAGLE, arXiv:2401.15077), for which it was not trained, so they are less often right.

    The engine passes on the hidden states of every forward (`observe`). The states of a prefix that it copied from
    another request are not known here; the block then reads only what comes after.

    Args:
        model: The model that verifies, on its device.
        block: Its first multi-token-prediction block, with trained weights, on the same device.

    Raises:
        UserError: If tokens cannot be removed from the block's state.
    """

    def __init__(self, model: GPT, block: MultiTokenBlock) -> None:
        self._model, self._block = model, block.eval()
        if not self._new_state(1).can_truncate:
            raise UserError(
                "the block of multi-token prediction has a recurrent state, from which rejected tokens cannot be "
                "removed; set draft_tokens to 0"
            )
        self._records: weakref.WeakKeyDictionary[Request, _Observed] = weakref.WeakKeyDictionary()

    def observe(self, request: Request, start: int, hidden: Tensor) -> None:
        """Take the hidden states (T, C) of a request's tokens from position `start` on, before the head."""
        _drop_finished(self._records)
        if request.params.max_new_tokens == 1:
            return
        record = self._records.get(request)
        if record is None or not record.base <= start <= record.base + len(record.hidden):
            capacity = len(request.ids) + request.params.max_new_tokens - request.num_new + MAX_DRAFT_TOKENS
            record = _Observed(start, self._new_state(min(capacity, self._model.config.block_size)), hidden[:0])
            self._records[request] = record
        # Hidden states of rejected draft tokens are overwritten.
        record.hidden = torch.cat((record.hidden[: start - record.base], hidden))
        # A chunk of a prompt is read at once; the positions of the last token and of drafts wait for the next token.
        if start + len(hidden) < len(request.ids):
            self._read(request, record, start + len(hidden))

    @torch.no_grad()
    def propose(self, request: Request, count: int) -> list[int]:
        """Sample `count` tokens; none if the hidden states of the last tokens are not known."""
        record, known = self._records.get(request), len(request.ids) - 1
        count = min(count, self._model.config.block_size - len(request.ids))
        if record is None or count < 1 or not record.base < known <= record.base + len(record.hidden):
            return []
        hidden = self._read(request, record, known)
        drafts: list[int] = []
        for number in range(count):
            logits = self._model._head(hidden[:, -1:], None)[0].float()
            drafts.append(draw(logits, request, number))
            if number + 1 < count:
                # The states of drafts are overwritten by the next call, which starts after the known tokens.
                hidden = self._run(request, record, hidden[:, -1:], drafts[-1:], known + number)
        return drafts

    def _read(self, request: Request, record: "_Observed", end: int) -> Tensor:
        """Run the block over the hidden states up to position `end`; return its output (1, T, C)."""
        start, count = record.base, end - record.base
        output = self._run(request, record, record.hidden[:count][None], request.ids[start + 1 : end + 1], start)
        record.base, record.hidden = end, record.hidden[count:]
        return output

    def _run(self, request: Request, record: "_Observed", hidden: Tensor, tokens: list[int], start: int) -> Tensor:
        """Return the block's output (1, T, C) for T positions from `start` on, and store their keys and values."""
        model, device, T = self._model, hidden.device, len(tokens)
        positions = torch.arange(start, start + T, device=device)[None]
        scaling = model.config.rope_scaling
        follows = scaling is not None and scaling.follows_length
        lengths = torch.full_like(positions, max(start + T, len(request.ids))) if follows else None
        context = Context(positions, rotations=model._decoding_rotations(positions, lengths))
        part = ChunkPart([record.state], 0, start - record.first, T)
        embedding = model._embed(torch.tensor([tokens], device=device), positions)
        dtype = self._block.proj.weight.dtype  # packed weights compute in float32, embeddings keep their own dtype
        output: Tensor = self._block(hidden.to(dtype), embedding.to(dtype), context, StepState([part], 0))
        return output

    def _new_state(self, capacity: int) -> LayerState:
        mixer: TokenMixer = self._block.block.attn
        weight = self._block.proj.weight
        # The margin equals the row length: a windowed layer keeps all tokens, so any number of them can be removed.
        return mixer.new_state(1, capacity, capacity, weight.dtype, weight.device)


class _Observed:
    """A request's state of the block, and the hidden states that the block has yet to read."""

    def __init__(self, first: int, state: LayerState, hidden: Tensor) -> None:
        self.first = first
        """Position of the first token in the state."""
        self.state = state
        self.base = first
        """Position of the first of the hidden states; the block has read those before it."""
        self.hidden = hidden
        """(T, C)."""


def _drop_finished(states: MutableMapping[Request, Any]) -> None:
    """Free a proposer's states of finished requests, which the engine itself keeps for prefix reuse."""
    for finished in [request for request in states if request.finished]:
        del states[finished]


def draw(logits: Tensor, request: Request, number: int) -> int:
    """Sample the draft token after `number` others with the random number that its verification will use."""
    if request.params.temperature == 0:
        return int(logits.argmax())
    values, ids = candidates(logits, [request.params])
    chosen = int(invert(values.softmax(dim=-1), [uniform(request.seed, request.num_new + number)]))
    return chosen if ids is None else int(ids[0, chosen])


@dataclass(frozen=True)
class Speculation:
    """Settings of speculative decoding.

    Args:
        proposer: Proposes draft tokens.
        num_tokens: Number of draft tokens per iteration.
        most_rows: Maximum number of sequences decoding at once for which drafts are proposed: a pass over many
            sequences is limited by arithmetic, not by reading the weights.

    Raises:
        UserError: If the number is out of bounds.
    """

    proposer: Proposer
    num_tokens: int = 4
    most_rows: int | None = None

    def __post_init__(self) -> None:
        check_draft_tokens(self.num_tokens, fewest=1)

    @classmethod
    def of(cls, tokenizer: Tokenizer, num_tokens: int, draft: tuple[GPT, Tokenizer]) -> "Speculation":
        """Return speculation with a draft model and its tokenizer.

        Raises:
            UserError: If the draft model has another tokenizer.
        """
        model, other = draft
        if other.fingerprint != tokenizer.fingerprint:
            raise UserError("the draft model's tokenizer differs from the model's; choose one with the same tokenizer")
        return cls(DraftModel(model), num_tokens)
