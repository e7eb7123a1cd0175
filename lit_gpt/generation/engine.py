"""The engine: many requests through one model, joining and leaving between steps.

A step is one forward over one row of tokens: the last token of every text that is being written, and as much of the
waiting prompts as `prefill_chunk` allows. So the weights are read once for all of them, and a long prompt does not
stop the others. Requests are admitted first come first served, as soon as the cache has room for all that they may
write; what has been admitted always runs to its end, so nothing starves and nothing is taken back.

N tokens of a step, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.admission import Admission
from lit_gpt.generation.constraints import build_matcher
from lit_gpt.generation.params import Completion, SamplingParams, TokenEvent
from lit_gpt.generation.request import Drawn, Matcher, Request
from lit_gpt.generation.sampler import draw
from lit_gpt.generation.speculative import Speculation
from lit_gpt.generation.step_plan import Drawing, StepPlan
from lit_gpt.models import GPT
from lit_gpt.models.batch_cache import Slab, build_slabs, bytes_per_token
from lit_gpt.models.flat import FlatModel
from lit_gpt.models.fused import prepare_for_decoding
from lit_gpt.models.gpt import softcapped_logits
from lit_gpt.models.static_step import StaticDecoder
from lit_gpt.models.step_cache import DecodePart, StepCache

RING_MARGIN = 1
"""A row whose last token is taken back, to be read again, still has its window; guesses add to this."""


@dataclass(frozen=True)
class EngineStats:
    """What the engine is doing."""

    num_waiting: int
    num_running: int
    cache_tokens_used: int
    """Of rows that are in use, whole: what their requests may still write is reserved."""
    cache_tokens_total: int
    cache_bytes: int
    """What the whole cache takes at most."""
    prompt_tokens: int
    """Read so far, since the engine was made (without those whose keys were reused)."""
    reused_tokens: int
    """Prompt tokens that prefix reuse has saved."""
    generated_tokens: int
    steps: int


class Engine:
    """Not thread-safe: one thread calls it (`EngineLoop` makes that thread).

    Args:
        model: On the device where it shall run, whole on it. It is put into eval mode; its matrices are laid out for
            decoding in place (see `lit_gpt.models.fused`).
        tokenizer: The model's own.
        max_batch_size: Requests running at once; the others wait.
        cache_tokens: Room of the cache, in tokens; None = for `max_batch_size` texts of `max_length`.
        prefill_chunk: Prompt tokens read in one step.
        max_length: Prompt and new tokens of one request, at most; None = block_size, or `cache_tokens` if less.
        reuse_prefixes: Copy the keys of a beginning that another text has, instead of computing them again.
        reread_when_full: Where a text fills the context, read its last half as a fresh context and go on, instead of
            ending it.
        compile: Decode with fixed shapes through `torch.compile`: pays on a GPU, after some seconds for each new shape.
        speculation: Guess tokens and verify several in one forward; None = one at a time.

    Raises:
        UserError: If a number is out of bounds.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_batch_size: int = 16,
        cache_tokens: int | None = None,
        prefill_chunk: int = 512,
        max_length: int | None = None,
        reuse_prefixes: bool = True,
        reread_when_full: bool = False,
        compile: bool = False,
        speculation: Speculation | None = None,
    ) -> None:
        block_size = model.config.block_size
        limits = {"max_batch_size": max_batch_size, "prefill_chunk": prefill_chunk}
        limits |= {"max_length": block_size if max_length is None else max_length}
        limits |= {"cache_tokens": limits["max_length"] if cache_tokens is None else cache_tokens}
        for name, value in limits.items():
            if value < 1:
                raise UserError(f"{name} is {value}, it must be at least 1")
        if max_length is not None and max_length > block_size:
            raise UserError(f"max_length {max_length} is longer than the model's block_size {block_size}; lower it")
        if max_length is None:
            max_length = block_size if cache_tokens is None else min(block_size, cache_tokens)
        if cache_tokens is None:
            cache_tokens = max_batch_size * max_length
        if cache_tokens < max_length:
            raise UserError(
                f"cache_tokens {cache_tokens} has no room for one text of max_length {max_length}; raise it"
            )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}; "
                "use the model's own tokenizer"
            )
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.max_batch_size, self.max_length = max_batch_size, max_length
        """Of one request, in tokens: prompt and what is written."""
        self.cache_tokens, self.prefill_chunk = cache_tokens, prefill_chunk
        self.reread_when_full = reread_when_full
        self.device = next(model.parameters()).device
        self._dtype = model.wte.weight.dtype
        self._compile = compile
        model.eval()
        self._prepare()
        self._speculation = speculation
        margin = RING_MARGIN + (0 if speculation is None else speculation.num_tokens)
        self._slabs: list[Slab[Request]] = build_slabs(
            model.config, cache_tokens, max_length, max_batch_size, margin, self._dtype, self.device
        )
        self._admission = Admission(self.config, self._slabs, max_length, max_batch_size, reuse_prefixes)
        scaling = self.config.rope_scaling
        self._depends_on_length = scaling is not None and scaling.kind in ("dynamic", "longrope")
        self._known: dict[str, Request] = {}
        """All that have not ended, by their ids."""
        self._waiting: deque[Request] = deque()
        self._reading: list[Request] = []
        """Admitted and not yet read to the end, in order of admission."""
        self._cancelled: list[Request] = []
        self._untold: list[TokenEvent] = []
        """Of requests that have been ended in a step that then failed."""
        self._prompt_tokens = self._generated_tokens = self._steps = 0

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> Matcher | None:
        """Refuse a request that can never run; any thread may ask.

        Returns:
            What follows the request's constraint, for `add`; None = it has none. To build it may take a second, which
            a thread of its own has, and the engine's, where every other request would wait, has not.

        Raises:
            UserError: A prompt that is empty, too long or has an unknown token, or a constraint that cannot be met.
        """
        self._check_numbers(prompt_ids, params)
        if params.constraint is None:
            return None
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
            prompt_ids: At least one token.
            params: How to draw, and where to end.
            request_id: Comes back in its events.
            matcher: From `check`, or which tokens are allowed instead of `params.constraint`; None = `check` is asked.

        Raises:
            UserError: As `check`, or if the id is in use.
        """
        if request_id in self._known:
            raise UserError(f"request id {request_id!r} is in use; choose another")
        if matcher is None:
            matcher = self.check(prompt_ids, params)
        else:
            self._check_numbers(prompt_ids, params)
        reread = max(1, self.max_length // 2) if self.reread_when_full else None
        request = Request(request_id, list(prompt_ids), params, self.tokenizer, matcher, reread)
        self._known[request_id] = request
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """End a request; its last event comes with the next `step`. Unknown or ended ids are ignored."""
        if request_id in self._known:
            self._cancelled.append(self._known[request_id])

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._known)

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """One forward over all running requests; [] when there is nothing to do."""
        if self.model.training or (self._flat is not None and not self._flat.is_current()):
            self.model.eval()
            self._prepare()
        self._untold += self._end_cancelled()
        self._admit()
        plans = [plan for plan in self._plan() if plan.parts]
        logits = [self._forward(plan) for plan in plans]
        events, self._untold = self._untold, []
        if not plans:
            return events
        self._steps += 1
        # Before any token is taken in: rows may then change places, with all that they hold.
        for plan in plans:
            self._prompt_tokens += plan.num_prompt_tokens
            for request, num_tokens in plan.fed:
                request.num_cached += num_tokens
        for plan, rows in zip(plans, logits, strict=True):
            events += self._draw(rows, plan.drawing)
        for plan in plans:
            for drawing in plan.drawing:
                self._settle(drawing.request)
        return events

    def stats(self) -> EngineStats:
        """What the engine is doing."""
        running = len(self._known) - len(self._waiting)
        return EngineStats(
            num_waiting=len(self._waiting),
            num_running=running,
            cache_tokens_used=sum(slab.num_active * slab.capacity for slab in self._slabs),
            cache_tokens_total=self.cache_tokens,
            cache_bytes=self.cache_tokens * bytes_per_token(self.config, self._dtype),
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._admission.reused_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Run several prompts to their ends, batched.

        Prefixes kept from earlier calls are forgotten first: the model's weights may have changed since. The model
        is in eval mode meanwhile, and then in the mode it had.

        Args:
            prompts: Token ids, each at least one.
            params: For all of them, or one each.

        Returns:
            In the order of the prompts.

        Raises:
            UserError: As `add`; then nothing has run.
            RuntimeError: If other requests are in the engine.
        """
        if self._known:
            raise RuntimeError(f"{len(self._known)} other requests are in the engine; step it until they have ended")
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(each)} settings; give one for all, or one each")
        matchers = [self.check(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        was_training = self.model.training
        self._forget()
        names = [f"generate-{number}" for number in range(len(prompts))]
        events: dict[str, list[TokenEvent]] = {name: [] for name in names}
        for name, prompt, one, matcher in zip(names, prompts, each, matchers, strict=True):
            self.add(prompt, one, name, matcher)
        try:
            while self._known:
                for event in self.step():
                    events[event.request_id].append(event)
        finally:
            if self._known:  # left by an exception: the next call finds an engine as new
                self.fail_all("interrupted")
            self.model.train(was_training)
        return [
            Completion.of(list(prompt), events[name], one.logprobs is not None)
            for name, prompt, one in zip(names, prompts, each, strict=True)
        ]

    @torch.inference_mode()
    def fail_all(self, error: str) -> list[TokenEvent]:
        """End every request after a fault that was not any one request's; the engine is as new then."""
        events, self._untold = self._untold, []
        events += [request.end("error", error) for request in self._known.values()]
        for request in self._known.values():
            if request.slab is not None:
                self._admission.release(request)
        self._admission.forget()
        self._known.clear()
        self._waiting.clear()
        self._reading.clear()
        self._cancelled.clear()
        return events

    def _prepare(self) -> None:
        """Lay the model out for decoding; again where it has been moved or given other weights since."""
        # Parameters must stay what training can use.
        with torch.inference_mode(False), torch.no_grad():
            prepare_for_decoding(self.model)
            self._flat = FlatModel.of(self.model)
        if self._compile:
            self._static = StaticDecoder(self._flat or self.model, self.config, self._head)

    @torch.inference_mode()
    def _forget(self) -> None:
        """Give up what is kept of ended requests."""
        self._admission.forget()

    def _end_cancelled(self) -> list[TokenEvent]:
        events = []
        for request in self._cancelled:
            if request.finished:
                continue
            events.append(request.end("cancelled"))
            if request.slab is None:
                self._waiting.remove(request)
            self._settle(request)
        self._cancelled.clear()
        return events

    def _admit(self) -> None:
        """First come, first served: one that does not fit yet lets nobody pass."""
        while self._waiting and self._admission.place(self._waiting[0]):
            self._reading.append(self._waiting.popleft())

    def _plan(self) -> list[StepPlan]:
        """Every text that is being written, then pieces of prompts, in order of admission: one forward for all.

        Compiled decoding has forwards of its own, one for each slab.
        """
        if self._speculation is None:
            self._start_those_read()
        plans = [StepPlan(self._depends_on_length)]
        for slab in self._slabs:
            writing = slab.owners[: slab.num_decoding]
            guesses = [self._guess(request) for request in writing]
            if any(guesses):
                for request, drafts in zip(writing, guesses, strict=True):
                    plans[0].verify(request, drafts)
            elif writing and self._compile:
                plans.append(StepPlan(self._depends_on_length, static=True))
                plans[-1].decode(slab)
            elif writing:
                plans[0].decode(slab)
        budget = self.prefill_chunk
        for request in self._reading:
            if budget == 0:
                break
            if self._admission.copy_prefix(request):
                budget -= plans[0].read_chunk(request, budget)
        return plans

    def _start_those_read(self) -> None:
        """Prompts of which all but the last token was copied go on with those that are written, in one rectangle."""
        for request in list(self._reading):
            if self._admission.copy_prefix(request) and not request.is_reading:
                assert request.slab is not None
                request.slab.start_decoding(request.row)
                self._reading.remove(request)

    def _guess(self, request: Request) -> list[int]:
        if self._speculation is None:
            return []
        left = min(request.params.max_new_tokens - request.num_new - 1, self.max_length - len(request.ids))
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.kind == "longrope" and len(request.ids) <= scaling.original_block_size:
            left = min(left, scaling.original_block_size - len(request.ids))  # beyond it all is read again
        count = min(self._speculation.num_tokens, left)
        guesses = self._speculation.proposer.propose(request, count) if count > 0 else []
        # A draft model's vocabulary may be padded beyond this one's.
        return list(takewhile(lambda token: token < self.config.vocab_size, guesses))

    def _forward(self, plan: StepPlan) -> Tensor:
        """Logits (number of draws, V): the head runs on the positions that are drawn from, and no others."""
        ids, positions, contexts = plan.tensors(self.device)
        if plan.static:
            (part,) = plan.parts
            assert isinstance(part, DecodePart)
            return self._static(part.slab, ids, part.lengths, self._depends_on_length)
        places = plan.places

        def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return self._head(hidden if len(places) == hidden.shape[1] else hidden[:, places], weight, bias)

        forward = self.model if self._flat is None else self._flat
        logits: Tensor = forward(ids, position_ids=positions, cache=StepCache(plan.parts, contexts), head_fn=head)
        return logits

    def _head(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(1, N, C) → (N, V)."""
        if self.config.logit_softcap is not None:
            return softcapped_logits(hidden[0], weight, bias, self.config.logit_softcap)
        return F.linear(hidden[0], weight, bias)

    def _draw(self, logits: Tensor, drawings: list[Drawing]) -> list[TokenEvent]:
        """Draw and take in the next tokens: one each in one go, then guesses one after another."""
        single = [drawing for drawing in drawings if not drawing.drafts]
        events = []
        if single:
            rows = logits if len(single) == logits.shape[0] else logits[[drawing.row for drawing in single]]
            requests = [drawing.request for drawing in single]
            for request, drawn in zip(requests, draw(rows, requests), strict=True):
                events.append(self._accept(request, drawn))
        for drawing in drawings:
            request = drawing.request
            for number in range(1 + len(drawing.drafts) if drawing.drafts else 0):
                if number > 0:
                    request.num_cached += 1  # the guess before was right, so its keys are
                row = drawing.row + number
                drawn = draw(logits[row : row + 1], [request])[0]
                events.append(self._accept(request, drawn))
                guess = drawing.drafts[number] if number < len(drawing.drafts) else None
                if request.finished or drawn.token != guess:
                    break
        return events

    def _accept(self, request: Request, drawn: Drawn) -> TokenEvent:
        """Take in a token; a fault in one request's text or form ends that request alone."""
        try:
            if request.fault is not None:
                raise request.fault
            event = request.accept(drawn, self.max_length)
        except Exception as error:
            event = request.end("error", f"{type(error).__name__}: {error}")
        self._generated_tokens += 1
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.kind == "longrope" and len(request.ids) == scaling.original_block_size + 1:
            request.num_cached = 0  # another table from here on: every key has to be computed again
        return event

    def _settle(self, request: Request) -> None:
        """Bring a request's row to where its state belongs."""
        slab = request.slab
        if request.finished:
            self._known.pop(request.request_id)
            if request in self._reading:
                self._reading.remove(request)
            if slab is not None:
                self._admission.release(request)
            return
        assert slab is not None
        if request.is_decoding and request.is_reading:
            slab.reread(request.row)
            self._reading.append(request)
        elif not request.is_decoding and not request.is_reading:
            slab.start_decoding(request.row)
            self._reading.remove(request)
