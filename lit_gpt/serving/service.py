"""What all routes share: the model, its limits, its counters, and the requests that are worked on."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field

from starlette.requests import Request

from lit_gpt.serving.active import ActiveRequest
from lit_gpt.serving.admission import Admission
from lit_gpt.serving.errors import ApiError, shown
from lit_gpt.serving.guards.base import Guard
from lit_gpt.serving.guards.chain import GuardChain
from lit_gpt.serving.limits import Limits
from lit_gpt.serving.metrics import Metrics
from lit_gpt.serving.model import ServedModel
from lit_gpt.serving.token_text import TokenText

CLOSE_SECONDS = 10
"""For the engine's thread to end."""


@dataclass
class Service:
    """One model behind one address.

    Attributes:
        served: The model.
        limits: For every client.
        admission: Of sequences in the engine.
        embedding_admission: Of texts to embed, which do not go through the engine.
        metrics: For Prometheus.
        tokens: Bytes of tokens.
        guards: That texts going in and out pass, in order.
        guard_chain: The same at work.
        active: Requests in the engine.
        embedder: One thread, so that embeddings take turns.
        builder: Two threads for requests that ask for a form, so that the grammars of some hold up no others.
    """

    served: ServedModel
    limits: Limits
    guards: InitVar[Sequence[Guard]] = ()
    guard_chain: GuardChain = field(init=False)
    admission: Admission = field(init=False)
    embedding_admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)
    tokens: TokenText = field(init=False)
    active: set[ActiveRequest] = field(init=False, default_factory=set)
    embedder: ThreadPoolExecutor = field(init=False)
    builder: ThreadPoolExecutor = field(init=False)

    def __post_init__(self, guards: Sequence[Guard]) -> None:
        self.admission = Admission(self.served.max_batch_size, self.limits.queued)
        self.embedding_admission = Admission(self.limits.prompts, self.limits.queued)
        self.metrics = Metrics(self.served.stats, self.admission)
        self.guard_chain = GuardChain(guards, self.metrics)
        self.tokens = TokenText(self.served.tokenizer)
        self.embedder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self.builder = ThreadPoolExecutor(max_workers=2, thread_name_prefix="build")

    @classmethod
    def of(cls, request: Request) -> "Service":
        """The one that answers a request."""
        service = request.app.state.service
        assert isinstance(service, Service)
        return service

    def check_model(self, name: str) -> None:
        """Refuse a request for another model.

        Raises:
            ApiError: 404.
        """
        if name != self.served.name:
            message = f"the model {shown(name)} does not exist; this server has {self.served.name!r}"
            raise ApiError(404, message, "model_not_found", "model")

    def start(self, sequences: int) -> ActiveRequest:
        """Take places for a request.

        Raises:
            ApiError: If there are none.
        """
        try:
            ticket = self.admission.enter(sequences)
        except ApiError as error:
            self.metrics.rejected.labels(error.code or "too_many_sequences").inc()
            raise
        return ActiveRequest(self.served, self.metrics, ticket, self.limits.request_seconds, self.active)

    def stop_accepting(self) -> None:
        """Turn new requests away; those accepted go on."""
        self.admission.draining = self.embedding_admission.draining = True

    def end_all(self) -> None:
        """End what is still worked on."""
        for request in list(self.active):
            request.end(ApiError(503, "the server is shutting down", "shutting_down"))

    def close(self) -> None:
        """After the last request: end the engine's thread."""
        self.end_all()
        for threads in (self.embedder, self.builder):
            threads.shutdown(wait=False, cancel_futures=True)
        # Its thread is a daemon: a step that never ends cannot keep the process from leaving.
        closing = threading.Thread(target=self.served.loop.close, kwargs={"drain": False}, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
