"""Known GPUs have the peak of their data sheet; everything else is unknown, not guessed."""

import time

import pytest
import torch

from lit_gpt.planning import hardware
from lit_gpt.planning.hardware import BF16_PEAKS, cpu_peak_flops, gpu_peak_flops, peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L40", 181.05),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71.0),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_names_as_the_drivers_say_them(name, tera):
    assert gpu_peak_flops(name) == tera * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A10G",
        "NVIDIA A1000",
        "NVIDIA L400",
        "Tesla T4",
        "Tesla V100-SXM2-16GB",
        "NVIDIA X999",
        "",
    ],
)
def test_any_other_device_is_unknown(name):
    assert gpu_peak_flops(name) is None


def test_every_entry_has_a_source():
    assert all(tera > 0 and source for _, tera, source in BF16_PEAKS)


def test_the_cpu_is_measured_once_and_quickly():
    cpu_peak_flops.cache_clear()
    start = time.perf_counter()
    peak = peak_flops(torch.device("cpu"))
    assert time.perf_counter() - start < 2  # 0.3 s and a first matmul, on a busy machine too
    assert 1e9 < peak < 1e14
    start = time.perf_counter()
    assert peak_flops(torch.device("cpu")) == peak
    assert time.perf_counter() - start < 0.01


def test_other_accelerators_are_unknown():
    assert peak_flops(torch.device("mps")) is None


@pytest.mark.parametrize("unit", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_auto_is_bf16_where_the_processor_has_units_for_it(monkeypatch, unit):
    monkeypatch.setattr(hardware, "_has_arm_bf16", lambda: False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == unit)
    assert hardware.fast_precision("cpu") == ("bf16-mixed" if unit else "32-true")


@pytest.mark.parametrize(("has_gpu", "has_bf16"), [(True, True), (True, False), (False, True)])
def test_auto_is_bf16_on_gpus_that_compute_in_it(monkeypatch, has_gpu, has_bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert hardware.fast_precision("cuda") == ("bf16-mixed" if has_gpu and has_bf16 else "32-true")
    assert hardware.fast_precision("mps") == "32-true"
