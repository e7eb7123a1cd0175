"""Table of devices for planning: memory, bandwidth, power, interconnect and price, each with its source.

Sizes and speeds are from the vendors' data sheets; bf16 peaks are in `hardware.py`. Prices are on-demand market prices
on the given date, and change: set `price_per_hour` for a real budget. The cost of a device without a price is not
forecast.
"""

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from lit_gpt.errors import UserError
from lit_gpt.planning.hardware import cpu_peak_flops, gpu_peak_flops
from lit_gpt.suggest import nearest

GB = 1e9
_PRICES = "middle of the range of specialised clouds, mercatus-ai.com/blog/cloud-gpu-pricing, May 2026"


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: Name that users write, such as `h100`.
        kind: `cpu` or `cuda`.
        memory: Memory in bytes.
        peak_flops: Peak in FLOP/s: dense bf16 on CUDA, measured float32 matrix products on a CPU.
        bandwidth: Memory bandwidth in bytes/s.
        link: Bandwidth between the devices of a node, in bytes/s per direction.
        network: Bandwidth between nodes, in bytes/s per device.
        watts: Power at full load (thermal design power).
        price_per_hour: Price in US dollars per hour; None: unknown.
        price_source: Source and date of the price.
        half_speed: Speed of bfloat16 matrix products relative to float32, on a CPU.
        attention_share: Share of a GPU's peak that attention kernels reach on long sequences.
    """

    name: str
    kind: str
    memory: float
    peak_flops: float
    bandwidth: float
    link: float
    network: float
    watts: float
    price_per_hour: float | None = None
    price_source: str = ""
    half_speed: float = 1.0
    attention_share: float = 0.4


# name: (name in the driver, memory in GB, bandwidth in TB/s, link in GB/s per direction, watts, dollars per hour)
_GPUS: dict[str, tuple[str, float, float, float, float, float | None]] = {
    "h100": ("NVIDIA H100 80GB HBM3", 80, 3.35, 450, 700, 3.00),
    "h100-pcie": ("NVIDIA H100 PCIe", 80, 2.0, 64, 350, None),
    "h200": ("NVIDIA H200", 141, 4.8, 450, 700, 4.00),
    "b200": ("NVIDIA B200", 180, 7.7, 900, 1000, None),
    "a100-80gb": ("NVIDIA A100-SXM4-80GB", 80, 2.039, 300, 400, 1.30),
    "a100-40gb": ("NVIDIA A100-SXM4-40GB", 40, 1.555, 300, 400, None),
    "l40s": ("NVIDIA L40S", 48, 0.864, 32, 350, None),
    "l4": ("NVIDIA L4", 24, 0.3, 32, 72, None),
    "a10": ("NVIDIA A10", 24, 0.6, 32, 150, None),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 24, 1.008, 32, 450, None),
    "rtx-3090": ("NVIDIA GeForce RTX 3090", 24, 0.936, 32, 350, None),
    "mi300x": ("AMD Instinct MI300X", 192, 5.3, 448, 750, None),
}
_ATTENTION_SHARES = {"h100": 0.34, "h100-pcie": 0.34, "h200": 0.34, "a100-80gb": 0.62, "a100-40gb": 0.62}
"""FlashAttention-2, causal, heads of 128 channels: 335 of 989 TFLOP/s on H100 (arXiv:2407.08608, figure 5), 190 of 312
on A100 (arXiv:2307.08691, figure 4); it has no instructions of Hopper, so it reaches less of a newer peak."""
NETWORK = 50e9
"""Network bandwidth between nodes in bytes/s per GPU: one 400 Gbit/s adapter for each, as in a DGX H100."""
CPU_WATTS = 10.0
"""Power of one busy server core: a 64-core processor takes 280 W, 4.4 W per core; memory and fans about double it."""


def find_device(name: str) -> Device:
    """Return a device by name; `cpu` is this machine.

    Raises:
        UserError: If no device has this name.
    """
    if name == "cpu":
        return this_cpu()
    if name not in _GPUS:
        raise UserError(
            f"device {name!r} is not in the table; nearest: {nearest(name, [*_GPUS, 'cpu'])}. To add one, give its "
            "memory, speed and power as a YAML file: device: {name, kind: cuda, memory, peak_flops, bandwidth, link, "
            "network, watts, price_per_hour}"
        )
    driver, memory, bandwidth, link, watts, price = _GPUS[name]
    peak = gpu_peak_flops(driver)
    assert peak is not None
    source = _PRICES if price is not None else ""
    share = _ATTENTION_SHARES.get(name, Device.attention_share)
    return Device(
        name,
        "cuda",
        memory * GB,
        peak,
        bandwidth * 1e12,
        link * GB,
        NETWORK,
        watts,
        price,
        source,
        attention_share=share,
    )


def read_device(values: Any) -> Device:
    """Return a device from the fields of a YAML file, or by its name.

    Raises:
        UserError: If a field is missing or unknown.
    """
    from lit_gpt.instantiate import construct

    return find_device(values) if isinstance(values, str) else construct(Device, values, "device")


def this_cpu() -> Device:
    """Return this machine's CPU as a device, with speeds measured with torch's number of threads."""
    cores = torch.get_num_threads()
    memory = psutil.virtual_memory().total
    peak = cpu_peak_flops()
    half = cpu_peak_flops(dtype=torch.bfloat16) / peak
    return Device("cpu", "cpu", memory, peak, _copy_speed(), GB, GB, cores * CPU_WATTS, 0.0, "your own", half)


def _copy_speed() -> float:
    """Return the memory bandwidth in bytes/s, measured by copying a tensor that is larger than the caches."""
    import time

    source = torch.ones(16 * 2**20)
    target = torch.empty_like(source)
    target.copy_(source)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * 4 / best
