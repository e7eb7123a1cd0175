"""Metrics for Prometheus, in a dedicated registry, because several servers may run in one process."""

import time
from collections import deque
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lit_gpt.generation.engine import EngineStats
from lit_gpt.serving.admission import Admission

RATE_SECONDS = 10.0
"""Averaging window of the token rate."""
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class TokenRate:
    """Tokens per second over a sliding window.

    Args:
        window_seconds: Length of the averaging window, in seconds.
        clock: Returns monotonic time in seconds.
    """

    def __init__(self, window_seconds: float = RATE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window_seconds
        self._clock = clock
        self._counts: deque[list[float]] = deque()  # [second, tokens]

    def add(self, tokens: int) -> None:
        """Count tokens generated now."""
        second = float(int(self._clock()))
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1][1] += tokens
        else:
            self._counts.append([second, tokens])
            self._expire()

    def value(self) -> float:
        """Return tokens per second."""
        self._expire()
        return sum(tokens for _, tokens in self._counts) / self._window

    def _expire(self) -> None:
        while self._counts and self._counts[0][0] < self._clock() - self._window:
            self._counts.popleft()


class Metrics:
    """All metrics of a server.

    Args:
        stats: Returns the engine's statistics; called at each scrape.
        admission: Admission control, which counts sequences in flight.
    """

    def __init__(self, stats: Callable[[], EngineStats], admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.rate = TokenRate()
        self.requests = Counter(
            "lit_gpt_requests",
            "Requests answered, by route and HTTP status.",
            ["route", "code"],
            registry=self.registry,
        )
        self.rejected = Counter(
            "lit_gpt_rejected", "Requests rejected before any work, by reason.", ["reason"], registry=self.registry
        )
        self.guarded = Counter(
            "lit_gpt_guarded",
            "Findings of guards, by guard, direction (input, output) and action (redact, block).",
            ["guard", "direction", "action"],
            registry=self.registry,
        )
        self.ended = Counter(
            "lit_gpt_sequences", "Sequences that ended, by finish reason.", ["finish_reason"], registry=self.registry
        )
        self.prompt_tokens = Counter("lit_gpt_prompt_tokens", "Tokens of accepted prompts.", registry=self.registry)
        self.generated_tokens = Counter("lit_gpt_generated_tokens", "Tokens generated.", registry=self.registry)
        self.first_token = Histogram(
            "lit_gpt_time_to_first_token_seconds",
            "Time from a request's acceptance to its first token, including the time in the queue.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.between_tokens = Histogram(
            "lit_gpt_time_per_output_token_seconds",
            "Mean time between the tokens of a sequence after its first.",
            buckets=_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "lit_gpt_request_seconds",
            "Time from a request's first byte to the last byte of its answer.",
            ["route"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(stats, admission, self.rate))
        ProcessCollector(registry=self.registry)

    def record_generated_token(self) -> None:
        """Count one generated token."""
        self.generated_tokens.inc()
        self.rate.add(1)

    def text(self) -> bytes:
        """Render all metrics in the Prometheus text exposition format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engine's statistics at each scrape, so that they are current."""

    def __init__(self, stats: Callable[[], EngineStats], admission: Admission, rate: TokenRate) -> None:
        self._stats = stats
        self._admission = admission
        self._rate = rate

    def collect(self) -> Iterable[Metric]:
        """Return the current gauges and counters."""
        stats = self._stats()
        gauges = {
            "queue_sequences": ("Sequences that wait for a slot in the batch.", stats.num_waiting),
            "running_sequences": ("Sequences in the batch.", stats.num_running),
            "in_flight_sequences": ("Sequences accepted and not yet answered.", self._admission.in_flight),
            "queue_limit_sequences": (
                "Sequences that may run or wait.",
                self._admission.capacity,
            ),
            "cache_used_tokens": ("Tokens in the KV cache.", stats.cache_tokens_used),
            "cache_limit_tokens": ("Capacity of the KV cache in tokens.", stats.cache_tokens_total),
            "cache_bytes": ("Memory of the KV cache.", stats.cache_bytes),
            "tokens_per_second": (f"Tokens generated per second, over {RATE_SECONDS:.0f} seconds.", self._rate.value()),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"lit_gpt_{name}", text, value=float(value))
        counters = {
            "engine_steps": ("Forward passes over the batch.", stats.steps),
            "reused_prompt_tokens": ("Prompt tokens served from the prefix cache, not prefilled.", stats.reused_tokens),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"lit_gpt_{name}", text, value=float(value))
