"""Peak speed of known accelerators, for model FLOPs utilization (MFU).

The table contains dense bfloat16 tensor-core peaks with float32 accumulation, from the vendors' data sheets (which
often print the value with 2:4 sparsity, twice as high). MFU is relative to the bfloat16 peak whatever the training
precision, as in PaLM (arXiv:2204.02311, appendix B). A device that is not in the table has no MFU: no peak is assumed.
No data sheet covers the CPU cores that a process may use, so a CPU's float32 peak is measured.
"""

import re
import time
from functools import cache
from pathlib import Path

import torch

TERA = 1e12

_HOPPER = "NVIDIA H100 data sheet (with sparsity: twice this)"
_AMPERE = "NVIDIA A100 data sheet"
_ADA = "NVIDIA Ada GPU architecture white paper, appendix A (BF16 tensor, FP32 accumulate)"

BF16_PEAKS: tuple[tuple[str, float, str], ...] = (
    (r"GB200", 2500.0, "NVIDIA GB200 NVL72 data sheet (360 PFLOP/s with sparsity on 72 GPUs)"),
    (r"B200", 2250.0, "NVIDIA HGX B200 data sheet (36 PFLOP/s with sparsity on 8 GPUs)"),
    (r"H200 NVL", 835.5, "NVIDIA H200 data sheet (1,671 with sparsity)"),
    (r"(GH200|H200)", 989.4, "NVIDIA H200 data sheet (1,979 with sparsity)"),
    (r"H100 NVL", 835.5, _HOPPER),
    (r"H100 PCIe", 756.5, _HOPPER),
    (r"(H100|H800)( SXM5)?( 80GB HBM3)?", 989.4, _HOPPER),
    (r"(A100|A800)([- ](SXM4|PCIE|PCIe))?([- ](40|80)GB)?( PCIe)?", 312.0, _AMPERE),
    (r"A30", 165.0, "NVIDIA A30 data sheet"),
    (r"A40", 149.7, "NVIDIA A40 data sheet"),
    (r"A10", 125.0, "NVIDIA A10 data sheet"),
    (r"RTX A6000", 154.8, "NVIDIA RTX A6000 data sheet (309.7 with sparsity)"),
    (r"L40S", 362.05, "NVIDIA L40S data sheet"),
    (r"L40", 181.05, "NVIDIA L40 data sheet"),
    (r"L4", 121.0, "NVIDIA L4 data sheet (242 with sparsity)"),
    (r"RTX 6000 Ada Generation", 364.2, "NVIDIA RTX 6000 Ada data sheet (FP8 with sparsity: 1,457)"),
    (r"GeForce RTX 4090", 165.2, _ADA),
    (r"GeForce RTX 4080", 97.5, _ADA),
    (r"GeForce RTX 3090", 71.0, "NVIDIA Ampere GA102 white paper, table 2 (BF16 tensor, FP32 accumulate)"),
    (r"GeForce RTX 3080", 59.5, "NVIDIA Ampere GA102 white paper, table 2 (BF16 tensor, FP32 accumulate)"),
    (r"GeForce RTX 5090", 209.5, "NVIDIA RTX Blackwell GPU architecture white paper (BF16 tensor, FP32 accumulate)"),
    (r"AMD Instinct MI300X", 1307.4, "AMD Instinct MI300X data sheet"),
    (r"AMD Instinct MI325X", 1307.4, "AMD Instinct MI325X data sheet"),
)
"""(pattern of the full device name without the vendor, peak in TFLOP/s, source)."""


def gpu_peak_flops(name: str) -> float | None:
    """Return the dense bfloat16 peak of a GPU in FLOP/s, or None if it is not in the table.

    Args:
        name: device name as returned by `torch.cuda.get_device_name`. Memory sizes are ignored; a laptop version, a MIG
            slice or any other suffix counts as a different device.
    """
    bare = re.sub(r"^(NVIDIA|Tesla)\s+", "", name.strip())
    for pattern, tera, _ in BF16_PEAKS:
        if re.fullmatch(rf"{pattern}(\s+\d+GB)?", bare):
            return tera * TERA
    return None


@cache
def cpu_peak_flops(seconds: float = 0.3, dtype: torch.dtype = torch.float32) -> float:
    """Measure this process's peak in FLOP/s with torch's threads: the fastest of several square matmuls.

    Measured once per process. It is the speed of a large matmul, not the theoretical peak of the hardware.
    """
    n, best = 1024, float("inf")
    a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
    out = a @ b
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def fast_precision(kind: str) -> str:
    """Return what `trainer.precision: auto` means: `bf16-mixed` on devices that compute in bfloat16, else `32-true`.

    Args:
        kind: kind of the devices that a run uses: `cpu` or `cuda`; for all others, `32-true`.
    """
    if kind == "cuda":
        has_units = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_units = kind == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() or _has_arm_bf16()
        )
    return "bf16-mixed" if has_units else "32-true"


def _has_arm_bf16() -> bool:
    try:
        flags = re.search(r"^Features\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return False
    return flags is not None and "bf16" in flags[1].split()


def peak_flops(device: torch.device) -> float | None:
    """Return the peak of one device in FLOP/s: from the table (CUDA), measured (CPU), or None if unknown."""
    if device.type == "cpu":
        return cpu_peak_flops()
    if device.type == "cuda":
        return gpu_peak_flops(torch.cuda.get_device_name(device))
    return None
