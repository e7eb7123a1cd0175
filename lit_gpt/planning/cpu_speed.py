"""How fast this CPU does the work of a step: its very products, timed one by one in at most a few seconds.

No data sheet covers the cores that a process may use, and one peak does not tell: here products of small models run at
a third to a whole of the speed of a large square one, and bfloat16 between a tenth and three times that of float32. So
each kind of product of the step is timed at its own sizes, shortened to a few milliseconds where it is long, and what
is not a product as additions of the mean size.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional

from lit_gpt.planning.simulation import Product, Work

MAX_PRODUCT_FLOPS = 4e8
"""Longer products are timed on fewer rows (or heads): by then their speed does not depend on them."""
SHARE_TIMED = 0.98
"""Of the FLOPs; what is left is taken to be as fast as the rest."""
OPERATION_SECONDS = 6e-6
"""Of an operation in Python and autograd, before its kernel: 4 to 9 µs on server CPUs."""
REPEATS = 4


def product_seconds(work: Work) -> dict[str, float]:
    """Return the seconds of a step's products by kind, from timing each kind of product once in this process."""
    total = sum(work.products.values())
    seconds: dict[str, float] = {}
    timed_flops = timed_seconds = 0.0
    rest: list[tuple[Product, float]] = []
    for product, flops in sorted(work.products.items(), key=lambda item: -item[1]):
        if timed_flops < SHARE_TIMED * total:
            took = flops / product_speed(product)
            seconds[product.kind] = seconds.get(product.kind, 0.0) + took
            timed_flops, timed_seconds = timed_flops + flops, timed_seconds + took
        else:
            rest.append((product, flops))
    for product, flops in rest:
        seconds[product.kind] = seconds.get(product.kind, 0.0) + flops * timed_seconds / timed_flops
    return seconds


@cache
def product_speed(product: Product) -> float:
    """Return the FLOP/s of a kind of product with torch's threads, the median of a few repetitions."""
    dtype = getattr(torch, product.dtype)
    if product.kind == "attention":
        return _attention_speed(product, dtype)
    batch, rows, inner, columns = product.shape
    flops = 2.0 * batch * rows * inner * columns
    if batch > 1 and flops > MAX_PRODUCT_FLOPS:
        batch = max(1, int(batch * MAX_PRODUCT_FLOPS / flops))
        flops = 2.0 * batch * rows * inner * columns
    if flops > MAX_PRODUCT_FLOPS:  # shorten the longest side
        sides = [rows, inner, columns]
        longest = sides.index(max(sides))
        sides[longest] = max(64, int(sides[longest] * MAX_PRODUCT_FLOPS / flops))
        rows, inner, columns = sides
        flops = 2.0 * batch * rows * inner * columns
    if batch > 1:
        a, b = torch.ones(batch, rows, inner, dtype=dtype), torch.ones(batch, inner, columns, dtype=dtype)
    else:
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    return flops / _median_seconds(lambda: a @ b)


def _attention_speed(product: Product, dtype: torch.dtype) -> float:
    """Return the speed in the FLOPs that a plan counts: 4 B H T T D forward, 10 backward, half of it if causal."""
    B, H, T, D = product.shape
    half = 0.5 if product.causal else 1.0
    B = max(1, int(B * min(1.0, 2 * MAX_PRODUCT_FLOPS / (4.0 * B * H * T * T * D * half))))
    flops = 4.0 * B * H * T * T * D * half
    mask = None if product.causal else torch.ones(B, 1, T, T, dtype=torch.bool).tril()
    query, key, value = (torch.ones(B, H, T, D, dtype=dtype, requires_grad=product.backward) for _ in range(3))

    def forward() -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value, mask, is_causal=product.causal)

    if not product.backward:
        with torch.no_grad():
            return flops / _median_seconds(forward)
    out = forward()
    gradient = torch.ones_like(out)
    return (
        2.5
        * flops
        / _median_seconds(lambda: torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True))
    )


def other_seconds(work: Work) -> float:
    """Return the seconds of the operations that are no products: their number times one of the mean size."""
    if not work.num_operations:
        return 0.0
    mean = work.moved_bytes / work.num_operations
    # Three tensors of float32 are moved by an addition. In steps of a factor of two, so that the cache is of use.
    elements = 1 << max(6, round(mean / 12).bit_length())
    speed = _addition_seconds(min(elements, 2**23)) / (12 * min(elements, 2**23))
    return speed * work.moved_bytes + work.num_operations * OPERATION_SECONDS


@cache
def _addition_seconds(elements: int) -> float:
    a, b = torch.ones(elements), torch.ones(elements)
    return _median_seconds(lambda: a + b)


def _median_seconds(function: Callable[[], object]) -> float:
    """Return the median seconds of a call; a call of a few microseconds is timed many times over."""
    function()
    start = time.perf_counter()
    function()
    count = max(1, min(200, int(1e-3 / max(time.perf_counter() - start, 1e-7))))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(count):
            function()
        times.append((time.perf_counter() - start) / count)
    return sorted(times)[len(times) // 2]
