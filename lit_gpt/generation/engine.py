"""The engine: runs many requests through one model; requests join and leave between iterations (continuous batching).

An iteration is one forward pass over one row of tokens: the last token of every decoding sequence, and as many tokens
of the waiting prompts as `prefill_chunk` allows. So the weights are read once for all of them, and a long prompt does
not stall the other requests. Requests are admitted first come, first served, as soon as the cache has capacity for
everything that they may generate; an admitted request always runs to its end, so none starves or is preempted.

Stages of an iteration: end cancelled requests; admit waiting ones (`cache.Admission`); plan which tokens go through the
model (`StepPlan`); forward; sample the next tokens (`sampler`); move the rows of finished, decoding and prefilling
requests to their sections of the cache.

N tokens of an iteration, V vocabulary.
"""

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.checks import check_at_least
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.cache import (
    Admission,
    CacheBlock,
    build_blocks,
    cache_bytes,
    can_truncate,
    tokens_that_fit,
)
from lit_gpt.generation.constraints import build_matcher
from lit_gpt.generation.request import Completion, Matcher, Request, SampledToken, SamplingParams, TokenEvent
from lit_gpt.generation.sampler import sample_tokens
from lit_gpt.generation.speculative import Speculation
from lit_gpt.models import GPT
from lit_gpt.models.cache import ChunkPart, DecodePart, DecodeStep, LayerState, PaddedDecodePart
from lit_gpt.models.fused import layout_of, prepare_for_decoding
from lit_gpt.models.gpt import softcapped_logits
from lit_gpt.pages.text import human_bytes
from lit_gpt.planning.free_memory import free_memory

RING_MARGIN = 1
"""Tokens that can be removed from the end of a sliding-window row, to be recomputed, while it still has a full window.
With speculation, the number of draft tokens is added."""
FREE_SHARE = 0.75
"""Share of the device's free memory that a cache of default size may take at most."""
MIN_KEYS = 128
"""Compiled decoding attends over at least this many keys, to limit the number of shapes."""
MAX_GRAPHS = 64
"""Maximum number of compiled shapes; others run uncompiled."""


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of the engine's load."""

    num_waiting: int
    num_running: int
    cache_tokens_used: int
    """Capacity of the rows in use, including what their requests may still generate."""
    cache_tokens_total: int
    cache_bytes: int
    """Maximum memory of the whole cache; on a CPU it is taken as it is used."""
    prompt_tokens: int
    """Prompt tokens computed since the engine was created (without reused ones)."""
    reused_tokens: int
    """Prompt tokens that were reused from cached prefixes instead of being computed."""
    generated_tokens: int
    """Tokens sampled since the engine was created."""
    steps: int
    """Engine iterations with a forward pass since the engine was created."""


@dataclass(frozen=True)
class PendingSample:
    """A request and the row of logits from which its next token is sampled, or several rows with draft tokens."""

    request: Request
    row: int
    """Row of the logits after the sequence so far; the rows of the draft tokens follow."""
    drafts: list[int] = field(default_factory=list)


class StepPlan:
    """The tokens of one forward pass, and the samples taken after it.

    Args:
        with_contexts: Whether RoPE depends on the length of each sequence (some scalings).
        padded: Whether to run with fixed shapes; if so, it only decodes the rows of one block.
    """

    def __init__(self, with_contexts: bool, padded: bool = False) -> None:
        self.padded = padded
        self.parts: list[DecodePart | ChunkPart] = []
        self.pending_samples: list[PendingSample] = []
        self.logit_indices: list[int] = []
        """Ascending indices among the N tokens at which logits are needed."""
        self.num_tokens: list[tuple[Request, int]] = []
        """Each request and the number of its tokens whose states this pass makes valid (not counting draft tokens)."""
        self.spans: list[tuple[Request, int, int]] = []
        """Each request, the position of its first token in this pass, and the number of its tokens, in order."""
        self.num_prompt_tokens = 0
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._contexts: list[int] | None = [] if with_contexts else None

    def decode(self, block: CacheBlock[Request]) -> None:
        """Add one token for each decoding sequence of a block."""
        decoding = block.entries[: block.num_decoding]
        lengths = [request.num_cached for request in decoding]
        self.parts.append(DecodePart(block.states, lengths))
        first = len(self.logit_indices)
        self.logit_indices += range(len(self._ids), len(self._ids) + len(decoding))
        self.pending_samples += [PendingSample(request, first + row) for row, request in enumerate(decoding)]
        self.num_tokens += [(request, 1) for request in decoding]
        self.spans += [(request, request.num_cached, 1) for request in decoding]
        self._ids += [request.ids[-1] for request in decoding]
        self._positions += lengths
        if self._contexts is not None:
            self._contexts += [length + 1 for length in lengths]

    def prefill(self, request: Request, budget: int) -> int:
        """Add the next chunk of a prompt, at most `budget` tokens; return its length."""
        start = request.num_cached
        count = min(len(request.ids) - start, budget)
        assert request.block is not None
        self.parts.append(ChunkPart(request.block.states, request.row, start, count))
        self.num_tokens.append((request, count))
        self.spans.append((request, start, count))
        self.num_prompt_tokens += count
        self._ids += request.ids[start : start + count]
        self._positions += range(start, start + count)
        if self._contexts is not None:
            self._contexts += [len(request.ids)] * count
        if start + count == len(request.ids):
            self.pending_samples.append(PendingSample(request, len(self.logit_indices)))
            self.logit_indices.append(len(self._ids) - 1)
        return count

    def verify(self, request: Request, drafts: list[int]) -> None:
        """Add the last token of a sequence and the draft tokens after it."""
        start, count = request.num_cached, 1 + len(drafts)
        assert request.block is not None
        self.parts.append(ChunkPart(request.block.states, request.row, start, count))
        self.num_tokens.append((request, 1))
        self.spans.append((request, start, count))
        self.pending_samples.append(PendingSample(request, len(self.logit_indices), drafts))
        self.logit_indices += range(len(self._ids), len(self._ids) + count)
        self._ids += [request.ids[-1], *drafts]
        self._positions += range(start, start + count)
        if self._contexts is not None:
            self._contexts += range(start + 1, start + count + 1)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return token ids, positions and lengths of their sequences, each (1, N) int64."""
        contexts = None if self._contexts is None else torch.tensor([self._contexts], device=device)
        return torch.tensor([self._ids], device=device), torch.tensor([self._positions], device=device), contexts


class Engine:
    """Runs requests with continuous batching. Not thread-safe: use it from one thread (`EngineLoop` creates one).

    Args:
        model: Model, on the device where it runs; it is set to eval mode.
        tokenizer: The model's tokenizer; None = events have no text, and only `stop_token_ids` end a request.
        max_batch_size: Maximum number of running requests; the others wait.
        cache_tokens: Capacity of the cache in tokens; None = enough for `max_batch_size` sequences of `max_length`, or
            what fits in three quarters of the device's free memory.
        prefill_chunk: Maximum number of prompt tokens computed per iteration.
        max_length: Maximum length of prompt and new tokens of a request; None = block_size, or what fits in the cache
            if that is less.
        reuse_prefixes: Copy the state of a prefix that another request has cached, instead of recomputing it.
        re_prefill_when_full: When a sequence fills the context, start a new context from its last half and continue,
            instead of ending the request.
        compile: Decode with fixed shapes through `torch.compile`: faster on a GPU, after some seconds per new shape.
        speculation: Settings of speculative decoding; None = decode one token at a time.
        prepare: Lay out the model's matrices for decoding, in place (see `lit_gpt.models.fused`).

    Raises:
        UserError: If a number is out of bounds, the cache does not fit in the device's free memory, or a layer's state
            does not allow speculation.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer | None,
        max_batch_size: int = 16,
        cache_tokens: int | None = None,
        prefill_chunk: int = 512,
        max_length: int | None = None,
        reuse_prefixes: bool = True,
        re_prefill_when_full: bool = False,
        compile: bool = False,
        speculation: Speculation | None = None,
        prepare: bool = True,
    ) -> None:
        block_size = model.config.block_size
        limits = {"max_batch_size": max_batch_size, "prefill_chunk": prefill_chunk}
        limits |= {"max_length": block_size if max_length is None else max_length}
        limits |= {"cache_tokens": limits["max_length"] if cache_tokens is None else cache_tokens}
        for name, value in limits.items():
            check_at_least(name, value, 1)
        if max_length is not None and max_length > block_size:
            raise UserError(f"max_length {max_length} is longer than the model's block_size {block_size}; lower it")
        if max_length is not None and cache_tokens is not None and cache_tokens < max_length:
            raise UserError(
                f"cache_tokens {cache_tokens} is less than one sequence of max_length {max_length}; raise it"
            )
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}; "
                "use the model's own tokenizer"
            )
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.max_batch_size, self.prefill_chunk = max_batch_size, prefill_chunk
        self.re_prefill_when_full = re_prefill_when_full
        if speculation is not None and not can_truncate(model):
            kinds = {model.config.token_mixer(layer) for layer in range(model.config.n_layer)}
            raise UserError(
                f"speculation removes rejected draft tokens, which the state of a layer of this model cannot (layers: "
                f"{', '.join(sorted(kinds))}); leave out draft_model and draft_tokens"
            )
        self.device = model.wte.weight.device
        autocast = torch.is_autocast_enabled(self.device.type)
        own_dtype = model.state_dtype or model.wte.weight.dtype
        self._dtype = torch.get_autocast_dtype(self.device.type) if autocast else own_dtype
        self._prepares = prepare
        self._layout: tuple[object, ...] = ()
        self._compiled = torch.compile(self._run_padded, dynamic=False) if compile else None
        model.eval()
        self._prepare()
        self._speculation = speculation
        self._observe = None if speculation is None else getattr(speculation.proposer, "observe", None)
        margin = RING_MARGIN + (0 if speculation is None else speculation.num_tokens)
        self.cache_tokens, self.max_length = self._cache_size(cache_tokens, max_length, margin)
        """Capacity of the cache, and maximum length of prompt and completion of a request, in tokens."""
        max_length, shape = self.max_length, (self.max_length, max_batch_size, margin, self._dtype)
        self._blocks: list[CacheBlock[Request]] = build_blocks(model, self.cache_tokens, *shape, self.device)
        self._cache_bytes = cache_bytes(model, self.cache_tokens, *shape)
        self._admission = Admission(model, self._blocks, max_length, max_batch_size, reuse_prefixes)
        scaling = self.config.rope_scaling
        self._depends_on_length = scaling is not None and scaling.follows_length
        self._known: dict[str, Request] = {}
        """All unfinished requests by their ids."""
        self._waiting: deque[Request] = deque()
        self._in_prefill: list[Request] = []
        """Admitted requests whose prompts are not completely computed, in order of admission."""
        self._cancelled: list[Request] = []
        self._pending_events: list[TokenEvent] = []
        """Events of requests that were ended in an iteration that then failed."""
        self._prompt_tokens = self._generated_tokens = self._steps = 0

    def _cache_size(self, cache_tokens: int | None, max_length: int | None, margin: int) -> tuple[int, int]:
        """Return the capacity of the cache and the maximum length of a sequence, both in tokens and fit for memory.

        Raises:
            UserError: If they do not fit.
        """
        length, rows = self.config.block_size if max_length is None else max_length, self.max_batch_size
        free = free_memory(self.device)
        if cache_tokens is None:
            size = tokens_that_fit(self.model, int(FREE_SHARE * free), length, rows, margin, self._dtype)
            wanted = f"max_length {length}"
        else:
            length = min(length, cache_tokens)
            size, wanted = cache_tokens, f"cache_tokens {cache_tokens}"
        if max_length is None:
            if cache_tokens is None and 0 < size < length:
                warnings.warn(
                    f"free memory of {human_bytes(free)} has room for a context of {size} tokens, instead of the "
                    f"model's {length}",
                    stacklevel=3,
                )
            length = min(length, size)
        needed = cache_bytes(self.model, max(size, length, 1), max(length, 1), rows, margin, self._dtype)
        if size < length or size < 1 or needed > free:
            fit = tokens_that_fit(self.model, free, max(length, 1), rows, margin, self._dtype)
            raise UserError(
                f"{wanted} needs {human_bytes(needed)} of memory for the cache and {human_bytes(free)} are free on "
                f"{self.device}, which holds {fit} tokens; lower it"
            )
        return size, length

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> Matcher | None:
        """Reject a request that can never run; may be called from any thread.

        Returns:
            The matcher of the request's constraint, for `add`; None = it has no constraint. Building a matcher may take
            a second, so it is done in the caller's thread and not in the engine's, where all other requests would wait.

        Raises:
            UserError: If the prompt is empty, too long or has an unknown token, or the constraint cannot be satisfied.
        """
        self._check_numbers(prompt_ids, params)
        if params.constraint is None:
            return None
        if self.tokenizer is None:
            raise UserError("a constraint needs a tokenizer, and the engine has none")
        return build_matcher(params.constraint, self.tokenizer, self.config.vocab_size, params.stop_token_ids)

    def _check_numbers(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        if len(prompt_ids) == 0:
            raise UserError("the prompt has no tokens; begin with some text or with the separator token")
        if len(prompt_ids) > self.max_length:
            raise UserError(f"the prompt has {len(prompt_ids)} tokens, more than the {self.max_length} that fit")
        vocab_size = self.config.vocab_size
        tokens = (*params.logit_bias, *params.stop_token_ids)
        for token in (min(prompt_ids), max(prompt_ids), *tokens):
            if not 0 <= token < vocab_size:
                raise UserError(f"token {token} is outside the model's vocabulary of {vocab_size}")

    def add(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        matcher: Matcher | None = None,
    ) -> None:
        """Queue a request.

        Args:
            prompt_ids: Token ids of the prompt, at least one.
            params: Sampling settings and stop conditions.
            request_id: Identifies the request in its events.
            matcher: Result of `check`, or a matcher used instead of `params.constraint`; None = `check` is called here.

        Raises:
            UserError: As `check`, or if the id is in use.
        """
        if request_id in self._known:
            raise UserError(f"request id {request_id!r} is in use; choose another")
        if matcher is None:
            matcher = self.check(prompt_ids, params)
        else:
            self._check_numbers(prompt_ids, params)
        num_re_prefill = max(1, self.max_length // 2) if self.re_prefill_when_full else None
        request = Request(request_id, list(prompt_ids), params, self.tokenizer, matcher, num_re_prefill)
        self._known[request_id] = request
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """End a request; its last event comes with the next `step`. Unknown or finished ids are ignored."""
        if request_id in self._known:
            self._cancelled.append(self._known[request_id])

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do in an iteration."""
        return bool(self._known)

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Run one engine iteration, a forward pass over all running requests; return its events, [] if idle."""
        if self.model.training or (self._prepares and layout_of(self.model) != self._layout):
            self.model.eval()
            self._prepare()
        self._pending_events += self._end_cancelled()
        self._admit()
        plans = [plan for plan in self._plan() if plan.parts]
        logits = [self._forward(plan) for plan in plans]
        events, self._pending_events = self._pending_events, []
        if not plans:
            return events
        self._steps += 1
        # Before any token is accepted, because accepting moves rows with `num_cached` tokens.
        for plan in plans:
            self._prompt_tokens += plan.num_prompt_tokens
            for request, num_tokens in plan.num_tokens:
                request.num_cached += num_tokens
        for plan, rows in zip(plans, logits, strict=True):
            events += self._sample(rows, plan.pending_samples)
        for plan in plans:
            for sample in plan.pending_samples:
                self._settle(sample.request)
        return events

    def stats(self) -> EngineStats:
        """Return a snapshot of the engine's load."""
        running = len(self._known) - len(self._waiting)
        return EngineStats(
            num_waiting=len(self._waiting),
            num_running=running,
            cache_tokens_used=sum(block.num_active * block.capacity for block in self._blocks),
            cache_tokens_total=self.cache_tokens,
            cache_bytes=self._cache_bytes,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._admission.reused_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Complete several prompts in batches.

        Prefixes kept from earlier calls are freed first, because the model's weights may have changed. The model is
        in eval mode during the call and returns to its previous mode afterwards.

        Args:
            prompts: Token ids of each prompt, at least one.
            params: Sampling settings for all prompts, or one per prompt.

        Returns:
            Completions in the order of the prompts.

        Raises:
            UserError: As for `add`; no prompt has been run then.
            RuntimeError: If the engine has other requests.
        """
        if self._known:
            raise RuntimeError(f"{len(self._known)} other requests are in the engine; step it until they have ended")
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise UserError(
                f"{len(prompts)} prompts and {len(each)} sampling settings; give one for all, or one per prompt"
            )
        matchers = [self.check(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        was_training = self.model.training
        self.forget()
        names = [f"generate-{number}" for number in range(len(prompts))]
        events: dict[str, list[TokenEvent]] = {name: [] for name in names}
        for name, prompt, one, matcher in zip(names, prompts, each, matchers, strict=True):
            self.add(prompt, one, name, matcher)
        try:
            while self._known:
                for event in self.step():
                    events[event.request_id].append(event)
        finally:
            if self._known:  # left over by an exception: reset for the next call
                self.fail_all("interrupted")
            self.model.train(was_training)
        return [
            Completion.of(list(prompt), events[name], one.logprobs is not None)
            for name, prompt, one in zip(names, prompts, each, strict=True)
        ]

    @torch.inference_mode()
    def fail_all(self, error: str) -> list[TokenEvent]:
        """End every request after an error that no single request caused, and reset the engine."""
        events, self._pending_events = self._pending_events, []
        events += [request.end("error", error) for request in self._known.values()]
        for request in self._known.values():
            if request.block is not None:
                self._admission.release(request)
        self._admission.forget()
        self._known.clear()
        self._waiting.clear()
        self._in_prefill.clear()
        self._cancelled.clear()
        return events

    def _prepare(self) -> None:
        """Lay out the model for decoding, again if it has been moved or given other weights."""
        if self._prepares:
            # Parameters must remain usable for training.
            with torch.inference_mode(False), torch.no_grad():
                prepare_for_decoding(self.model)
            self._layout = layout_of(self.model)

    @torch.inference_mode()
    def forget(self) -> None:
        """Free all rows of finished requests, which are kept for prompts that begin like them.

        Such rows and their requests refer to each other. Call this before an engine is dropped; otherwise cache and
        model stay in memory until Python looks for cycles.
        """
        self._admission.forget()

    def _end_cancelled(self) -> list[TokenEvent]:
        events = []
        for request in self._cancelled:
            if request.finished:
                continue
            events.append(request.end("cancelled"))
            if request.block is None:
                self._waiting.remove(request)
            self._settle(request)
        self._cancelled.clear()
        return events

    def _admit(self) -> None:
        """Admit waiting requests, first come, first served: one that does not fit yet blocks those behind it."""
        while self._waiting and self._admission.place(self._waiting[0]):
            self._in_prefill.append(self._waiting.popleft())

    def _plan(self) -> list[StepPlan]:
        """Plan one forward pass: every decoding sequence, then chunks of prompts in order of admission.

        Compiled decoding uses separate passes, one per block.
        """
        if self._speculation is None:
            self._start_decoding()
        plans = [StepPlan(self._depends_on_length)]
        total = sum(block.num_decoding for block in self._blocks)
        for block in self._blocks:
            decoding = block.entries[: block.num_decoding]
            proposals = [self._propose(request, total) for request in decoding]
            if any(proposals):
                for request, drafts in zip(decoding, proposals, strict=True):
                    plans[0].verify(request, drafts)
            elif decoding and self._compiled is not None:
                plans.append(StepPlan(self._depends_on_length, padded=True))
                plans[-1].decode(block)
            elif decoding:
                plans[0].decode(block)
        budget = self.prefill_chunk
        for request in self._in_prefill:
            if budget == 0:
                break
            if self._admission.copy_prefix(request):
                budget -= plans[0].prefill(request, budget)
        return plans

    def _start_decoding(self) -> None:
        """Move a request to decoding if prefix reuse has cached all of its tokens except the last one."""
        for request in list(self._in_prefill):
            if self._admission.copy_prefix(request) and not request.in_prefill:
                assert request.block is not None
                request.block.start_decoding(request.row)
                self._in_prefill.remove(request)

    def _propose(self, request: Request, num_decoding: int) -> list[int]:
        if self._speculation is None or num_decoding > (self._speculation.most_rows or num_decoding):
            return []
        left = min(request.params.max_new_tokens - request.num_new - 1, self.max_length - len(request.ids))
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.kind == "longrope" and len(request.ids) <= scaling.original_block_size:
            left = min(left, scaling.original_block_size - len(request.ids))  # beyond it, every key must be recomputed
        count = min(self._speculation.num_tokens, left)
        drafts = self._speculation.proposer.propose(request, count) if count > 0 else []
        # A draft model's vocabulary may be padded to a larger size.
        return list(takewhile(lambda token: token < self.config.vocab_size, drafts))

    def _forward(self, plan: StepPlan) -> Tensor:
        """Return logits (number of samples, V); the head runs only at the positions that are sampled from."""
        ids, positions, context_lengths = plan.tensors(self.device)
        if plan.padded:
            (part,) = plan.parts
            assert isinstance(part, DecodePart)
            return self._forward_padded(part, ids)
        indices = plan.logit_indices

        def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if self._observe is not None:
                states = (hidden[0] / self.config.logit_scale).split([count for _, _, count in plan.spans])
                for (request, start, _), part in zip(plan.spans, states, strict=True):
                    self._observe(request, start, part)
            return self._head(hidden if len(indices) == hidden.shape[1] else hidden[:, indices], weight, bias)

        logits: Tensor = self.model(
            ids, cache=DecodeStep(plan.parts, positions, context_lengths, self._prepares), head_fn=head
        )
        return logits

    def _forward_padded(self, part: DecodePart, ids: Tensor) -> Tensor:
        """Decode with fixed shapes: rows and keys are padded to the next power of two, with one graph per pair.

        Padding rows repeat the first sequence: they write the same states again, and their logits are discarded.

        Args:
            part: The n decoding rows of one block.
            ids: (1, n) int64, the last token of each row.

        Returns:
            (n, V) logits.
        """
        assert self._compiled is not None
        n, block_states = len(part.lengths), part.states
        block = next(block for block in self._blocks if block.states is block_states)
        B = min(_next_power(n), block.num_rows(block.capacity))
        rows = torch.tensor([*range(n), *[0] * (B - n)], device=ids.device)
        positions = torch.tensor(part.lengths, device=ids.device)[rows]
        num_keys = min(block.capacity, max(MIN_KEYS, _next_power(max(part.lengths) + 1)))
        context_lengths = positions[None] + 1 if self._depends_on_length else None
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            logits = self._compiled(ids[:, rows], positions, rows, block.states, num_keys, context_lengths)
        return logits[:n]

    def _run_padded(
        self,
        ids: Tensor,
        positions: Tensor,
        rows: Tensor,
        states: list[LayerState],
        num_keys: int,
        context_lengths: Tensor | None,
    ) -> Tensor:
        part = PaddedDecodePart(states, positions, rows, num_keys)
        cache = DecodeStep([part], positions[None], context_lengths, self._prepares)
        logits: Tensor = self.model(ids, cache=cache, head_fn=self._head)
        return logits

    def _head(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return logits (N, V) of hidden states (1, N, C)."""
        if self.config.logit_softcap is not None:
            return softcapped_logits(hidden[0], weight, bias, self.config.logit_softcap)
        return F.linear(hidden[0], weight, bias)

    def _sample(self, logits: Tensor, samples: list[PendingSample]) -> list[TokenEvent]:
        """Sample and accept the next tokens: single ones batched, then draft tokens one after another."""
        single = [sample for sample in samples if not sample.drafts]
        events = []
        if single:
            rows = logits if len(single) == logits.shape[0] else logits[[sample.row for sample in single]]
            requests = [sample.request for sample in single]
            for request, sampled in zip(requests, sample_tokens(rows, requests), strict=True):
                events.append(self._accept(request, sampled))
        for sample in samples:
            request = sample.request
            for number in range(1 + len(sample.drafts) if sample.drafts else 0):
                if number > 0:
                    request.num_cached += 1  # the previous draft token was right, so its cached state is valid
                row = sample.row + number
                sampled = sample_tokens(logits[row : row + 1], [request])[0]
                events.append(self._accept(request, sampled))
                draft = sample.drafts[number] if number < len(sample.drafts) else None
                if request.finished or sampled.token != draft:
                    break
        return events

    def _accept(self, request: Request, sampled: SampledToken) -> TokenEvent:
        """Accept a token; an error in a request's text or constraint ends only that request."""
        try:
            if request.fault is not None:
                raise request.fault
            event = request.accept(sampled, self.max_length)
        except Exception as error:
            event = request.end("error", f"{type(error).__name__}: {error}")
        self._generated_tokens += 1
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.kind == "longrope" and len(request.ids) == scaling.original_block_size + 1:
            request.restart()  # from here on the frequencies differ: every key must be recomputed
        return event

    def _settle(self, request: Request) -> None:
        """Move a request's row to the section of its block that matches its new state."""
        block = request.block
        if request.finished:
            self._known.pop(request.request_id)
            if request in self._in_prefill:
                self._in_prefill.remove(request)
            if block is not None:
                self._admission.release(request)
            return
        assert block is not None
        if request.is_decoding and request.in_prefill:
            block.re_prefill(request.row)
            self._in_prefill.append(request)
        elif not request.is_decoding and not request.in_prefill:
            block.start_decoding(request.row)
            self._in_prefill.remove(request)


def generate(
    model: GPT,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
) -> Tensor:
    """Continue token ids without a tokenizer; a shortcut for `Engine.generate` that does not change weight layouts.

    When the context is full, a new one starts from its last half, so texts may become arbitrarily long.

    Args:
        model: Model, on the device of `input_ids`.
        input_ids: (B, T) int64, at least one token and at most block_size.
        max_new_tokens: Maximum number of new tokens.
        temperature: Divides the logits; 0 = greedy decoding.
        top_k: Sample only from this many most likely tokens.
        top_p: Sample only from the most likely tokens up to this cumulative probability.
        stop_tokens: A row ends with the first of these tokens; generation ends when all rows have ended.
        seed: Seed of the sampling; row i has seed + i. None = a different one each time.

    Returns:
        (B, T + N) int64: prompts and completions; a row that has ended repeats its stop token.

    Raises:
        UserError: If a prompt is empty, too long or has an unknown token, or a setting is out of bounds.
    """
    B = input_ids.shape[0]
    params = SamplingParams(max_new_tokens, temperature, top_k, top_p, stop_token_ids=tuple(stop_tokens))
    each = [replace(params, seed=None if seed is None else seed + row) for row in range(B)]
    was_training = model.training
    length = input_ids.shape[1] + max_new_tokens
    limit = length if length <= model.config.block_size else None
    engine = Engine(
        model, None, max_batch_size=B, max_length=limit, reuse_prefixes=False, re_prefill_when_full=True, prepare=False
    )
    try:
        completions = engine.generate(input_ids.tolist(), each)
    finally:
        model.train(was_training)
    for completion in completions:
        if completion.error is not None:
            raise RuntimeError(completion.error)
    longest = max(len(completion.token_ids) for completion in completions)
    rows = [ids + ids[-1:] * (longest - len(ids)) for ids in (completion.token_ids for completion in completions)]
    return torch.cat([input_ids, torch.tensor(rows, device=input_ids.device)], dim=1)


def _next_power(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
