"""Sampling from a module's own model during training, through the project's engine."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lit_gpt.checks import check_at_least
from lit_gpt.data.chat import ChatRenderer
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion, Engine, SamplingParams
from lit_gpt.models import GPT
from lit_gpt.models.fused import prepare_for_decoding
from lit_gpt.models.kernel_choice import can_keep_choices
from lit_gpt.models.packed import prepare_for_inference
from lit_gpt.modules.base import GPTModule

Prompt = dict[str, Any]
"""A prompt of a batch; its token ids are in `ids`."""


class Sampler:
    """Samples completions from a module's current model, on the device where it trains.

    Args:
        max_new_tokens: maximum number of tokens per completion.
        engine_batch_size: number of completions sampled at once, which bounds the KV cache.
        num_logged_samples: number of completions written to the log as text each time.

    Raises:
        UserError: a number is out of bounds.
    """

    def __init__(self, max_new_tokens: int, engine_batch_size: int, num_logged_samples: int) -> None:
        check_at_least("max_new_tokens", max_new_tokens, 1)
        check_at_least("engine_batch_size", engine_batch_size, 1)
        check_at_least("num_logged_samples", num_logged_samples, 0)
        self.max_new_tokens = max_new_tokens
        self.engine_batch_size = engine_batch_size
        self.num_logged_samples = num_logged_samples
        self.shown: list[str] = []
        """The latest completions, as rendered by `shown_answer`."""
        self.tokenizer: Tokenizer | None = None
        self.stop_ids: tuple[int, ...] = ()

    def prepare(self, module: GPTModule) -> None:
        """Lay out the weights for decoding, once, before the first optimizer step, unless `sample` uses a copy.

        A matrix product is rounded differently in another memory layout. So the layout must be the same in every step,
        also after a resume in the middle of a rollout, when the first step samples nothing; and a parameter's layout
        must not change between optimizer steps, because the optimizer's moments and DDP's buckets have the layout that
        the parameter had when they were created.
        """
        assert module.model is not None
        if not _samples_from_copy(module):
            prepare_for_decoding(module.model)

    def sample(
        self, module: GPTModule, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Completion]]:
        """Sample completions from the current model.

        Args:
            module: the module that has the model.
            prompts: prompts with their token ids as `ids`.
            seeds: for each prompt, one seed per completion.
            temperature: sampling temperature.

        Returns:
            For each prompt, its completions.

        Raises:
            UserError: neither the data nor `init_from` has a tokenizer.
        """
        if not prompts:
            return []
        if self.tokenizer is None:
            self._load_tokenizer(module)
        assert self.tokenizer is not None
        model: Any = module.model
        training, is_copy = model.training, _samples_from_copy(module)
        requests = [(prompt["ids"], seed) for prompt, each in zip(prompts, seeds, strict=True) for seed in each]
        longest = max(len(ids) for ids, _ in requests)
        params = [
            SamplingParams(
                max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed, stop_token_ids=self.stop_ids
            )
            for _, seed in requests
        ]
        # A new engine each time, so that its cache is freed while the policy trains. Without autocast, because the
        # cache has the dtype of the weights.
        with torch.autocast(module.device.type, enabled=False):
            engine = Engine(
                _packed_copy(model, self.engine_batch_size) if is_copy else model,
                self.tokenizer,
                max_batch_size=min(self.engine_batch_size, len(requests)),
                max_length=min(module.config.block_size, longest + self.max_new_tokens),
                prepare=is_copy or not module.training,  # in training, `prepare` has already done it
            )
            completions = iter(engine.generate([ids for ids, _ in requests], params))
        engine.forget()  # frees cache and copy now
        model.train(training)
        return [[next(completions) for _ in each] for each in seeds]

    def _load_tokenizer(self, module: GPTModule) -> None:
        path = module.data_info.tokenizer_path
        if path is None and module._source is not None:
            path = module._source.tokenizer_path
        if path is None:
            raise UserError("there is no tokenizer: use a DataModule that has one, or an init_from that does")
        self.tokenizer = load_tokenizer(path)
        self.stop_ids = ChatRenderer(self.tokenizer).stop_ids

    def write_shown(self, module: GPTModule, stage: str) -> None:
        """Write the latest completions to every logger that supports text."""
        if not self.shown or not module.trainer.is_global_zero:
            return
        # In training the current step has not been counted yet.
        step = module.trainer.global_step + (stage == "train")
        for logger in module.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_text"):
                writer.add_text(f"{stage}/completions", "\n\n---\n\n".join(self.shown), step)


def _samples_from_copy(module: GPTModule) -> bool:
    """Return whether to sample from a packed copy: on a CPU, if every layer is lit_gpt's or torch's and has no hook.

    A layer of another package may hold what cannot be copied, or compute something else once its matrices are packed.
    """
    # Processes, and a resumed run, must compute with the same kernels.
    if module.device.type != "cpu" or module._adapter is not None or not can_keep_choices():
        return False
    return all(
        type(part).__module__.startswith(("lit_gpt.models.", "torch.nn.modules."))
        and not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
        for part in module.model.modules()  # type: ignore[union-attr]
    )


def _packed_copy(model: GPT, num_rows: int) -> GPT:
    """Return a copy of a model on a CPU for decoding, whose matrices are packed (see `lit_gpt.models.packed`).

    Everything else shares its memory with the model, which is not changed. The copy is made for each rollout, because
    the weights change in between: that takes about as long as decoding a few tokens.

    Args:
        model: The model that is trained.
        num_rows: Largest number of sequences that decode at the same time; kernels are chosen for it.
    """
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    copied = copy.deepcopy(model, shared).eval()
    prepare_for_inference(copied, tokens=num_rows)
    return copied


def shown_answer(title: str, prompt: str, answer: str, finished: bool) -> str:
    """Return prompt and completion verbatim, as Markdown."""
    prompt, answer = ("\n".join(f"    {line}" for line in text.splitlines()) or "    " for text in (prompt, answer))
    end = "" if finished else " (cut off by a limit)"
    return f"{title}\n\n{prompt}\n\nwas answered{end}:\n\n{answer}"
