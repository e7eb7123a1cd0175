"""How fast this CPU does the work of a step: its very products, timed one by one in at most a few seconds.

No data sheet covers the cores that a process may use, and one peak does not tell: here products of small models run at
a third to a whole of the speed of a large square one, and bfloat16 between a tenth and three times that of float32. So
each kind of product of the step is timed at its own sizes, shortened to a few milliseconds where it is long, and what
is not a product as additions of the mean size.
"""

import itertools
import time
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional

from lit_gpt.models.linear import products_of
from lit_gpt.models.training_kernels import causal_attention
from lit_gpt.planning.tracker import Product, Work

MAX_PRODUCT_FLOPS = 4e8
"""Longer products are timed on fewer rows (or heads): by then their speed does not depend on them."""
SHARE_TIMED = 0.98
"""Of the FLOPs; what is left is taken to be as fast as the rest."""
OPERATION_SECONDS = 6e-6
"""Of an operation in Python and autograd, before its kernel: 4 to 9 µs on server CPUs."""
REPEATS, ROUNDS = 3, 3
"""Timings of each kind of product one after another, and rounds over all kinds."""
ADDED_ELEMENTS, MAX_PAIRS = 2**24, 4096
"""Bounds on the pairs of tensors that are added in turn: 128 MiB in all."""


def product_seconds(work: Work) -> dict[str, float]:
    """Return the seconds of a step's products by kind, from timing each kind of product in this process."""
    total = sum(work.products.values())
    timed: list[Product] = []
    timed_flops = 0.0
    for product, flops in sorted(work.products.items(), key=lambda item: -item[1]):
        if timed_flops < SHARE_TIMED * total:
            timed.append(product)
            timed_flops += flops
    speeds = _speeds(timed)
    timed_seconds = sum(work.products[product] / speeds[product] for product in timed)
    seconds: dict[str, float] = {}
    for product, flops in work.products.items():
        speed = speeds[product] if product in speeds else timed_flops / timed_seconds
        seconds[product.kind] = seconds.get(product.kind, 0.0) + flops / speed
    return seconds


_known_speeds: dict[Product, float] = {}
"""FLOP/s of the products that this process has timed."""


def _speeds(products: list[Product]) -> dict[Product, float]:
    """Return the FLOP/s of each kind of product with torch's threads, at its best of a few rounds over all of them.

    A pause of the machine that slows one product for some milliseconds is over in the next round.
    """
    new = [product for product in products if product not in _known_speeds]
    for _ in range(ROUNDS):
        for product in new:
            flops, function = _call(product)
            _known_speeds[product] = max(_known_speeds.get(product, 0.0), flops / _best_seconds(function))
    return {product: _known_speeds[product] for product in products}


def _call(product: Product) -> tuple[float, Callable[[], object]]:
    """Return a function that computes a product as a step does, shortened if it is long, and its FLOPs."""
    dtype = getattr(torch, product.dtype)
    if product.kind == "attention":
        return _attention(product, dtype)
    batch, rows, inner, columns = product.shape
    flops = 2.0 * batch * rows * inner * columns
    if batch > 1 and flops > MAX_PRODUCT_FLOPS:
        batch = max(1, int(batch * MAX_PRODUCT_FLOPS / flops))
        flops = 2.0 * batch * rows * inner * columns
    shortened = flops > MAX_PRODUCT_FLOPS
    if shortened:  # the longest side
        sides = [rows, inner, columns]
        longest = sides.index(max(sides))
        sides[longest] = max(64, int(sides[longest] * MAX_PRODUCT_FLOPS / flops))
        rows, inner, columns = sides
        flops = 2.0 * batch * rows * inner * columns
    if batch > 1:
        a, b = torch.ones(batch, rows, inner, dtype=dtype), torch.ones(batch, inner, columns, dtype=dtype)
        return flops, lambda: a @ b
    x, weight = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    # Training chooses its kernel by the whole size, which a shortened product does not have.
    chosen = None if shortened else products_of(x, weight)
    multiply = functional.linear if chosen is None else chosen.output
    return flops, lambda: multiply(x, weight, None)


def _attention(product: Product, dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    """Return attention, and its FLOPs as a plan counts them: 4 B H T T D forward, 10 backward, half of it if causal."""
    B, H, T, D = product.shape
    half = 0.5 if product.causal else 1.0
    B = max(1, int(B * min(1.0, 2 * MAX_PRODUCT_FLOPS / (4.0 * B * H * T * T * D * half))))
    flops = 4.0 * B * H * T * T * D * half
    mask = None if product.causal else torch.ones(B, 1, T, T, dtype=torch.bool).tril()
    query, key, value = (torch.ones(B, H, T, D, dtype=dtype, requires_grad=True) for _ in range(3))

    def forward() -> torch.Tensor:
        compiled = causal_attention(query, key, value, mask, D**-0.5)  # as the layers do
        if compiled is not None:
            return compiled
        return functional.scaled_dot_product_attention(query, key, value, mask, is_causal=product.causal)

    if not product.backward:
        return flops, forward
    out = forward()
    gradient = torch.ones_like(out)
    return 2.5 * flops, lambda: torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True)


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
    # Over more memory than the caches hold, as a step that goes through all of its tensors.
    count = max(1, min(MAX_PAIRS, ADDED_ELEMENTS // elements))
    order = itertools.cycle([tuple(pair) for pair in torch.ones(count, 2, elements)])

    def add() -> torch.Tensor:
        a, b = next(order)
        return a + b

    return min(_best_seconds(add) for _ in range(ROUNDS))


def _best_seconds(function: Callable[[], object]) -> float:
    """Return the seconds of a call, the fewest of a few; a call of a few microseconds is timed many times over."""
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
    return min(times)
