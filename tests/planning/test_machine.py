"""Which hardware computes in bfloat16, asked of made-up devices and of this one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medi3d.planning.machine import find_bf16

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, "AVX512_BF16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "AMX_BF16"),
        ({"avx512_f": True, "avx512_bf16": False}, ""),
        ({"neon": True, "bf16": True}, ""),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    capabilities: dict[str, bool], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert find_bf16(CPU) == found


def test_an_older_pytorch_is_asked_by_its_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert find_bf16(CPU) == "AVX512_BF16"


@pytest.mark.parametrize(("capability", "found"), [((7, 5), ""), ((8, 0), "tensor cores"), ((9, 0), "tensor cores")])
def test_a_gpu_is_asked_for_its_generation(
    capability: tuple[int, int], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: {GPU: capability}[device])
    assert find_bf16(GPU) == found


def test_this_machine_answers_as_its_kernel_does() -> None:
    info = Path("/proc/cpuinfo")
    if not info.is_file() or "flags" not in (text := info.read_text()):
        pytest.skip("no x86 Linux")
    flags = set(text.partition("flags")[2].partition("\n")[0].split())
    expected = "AMX_BF16" if "amx_bf16" in flags else "AVX512_BF16" if "avx512_bf16" in flags else ""
    assert find_bf16(CPU) == expected
