"""The emulated card has CUDA's rules, limits and answers, so that tests on it mean something."""

import pytest
from card_process import CardProcessError


def describe():
    import torch

    tensor = torch.ones(2, device="cuda")
    return {
        "device": str(tensor.device),
        "count": torch.cuda.device_count(),
        "names": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "free": [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())],
        "capability": list(torch.cuda.get_device_capability()),
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "architectures": torch.cuda.get_arch_list(),
        "cuda": torch.version.cuda,
    }


def test_describes_its_cards(card):
    seen = card.run(describe, cards=2, name=["First", "Second"], memory=[2**30, 2**31], used_by_others=0)
    assert (seen["device"], seen["count"], seen["names"]) == ("cuda:0", 2, ["First", "Second"])
    assert seen["free"] == [2**30 - 8, 2**31]
    assert seen["bfloat16"] and seen["cuda"] == "13.0" and seen["architectures"][0] == "sm_75"


def test_honours_visible_devices(card):
    seen = card.run(describe, cards=2, name=["First", "Second"], environment={"CUDA_VISIBLE_DEVICES": "1"})
    assert seen["names"] == ["Second"]


def compute_on_cpu_and_card():
    import fake_card
    import torch

    left = torch.randn(3, 4, device="cuda", requires_grad=True)
    fake_card.reset_counters()
    errors = []
    for right in (torch.ones(3, 4), torch.ones(3, 4, device="cuda:1")):
        try:
            left + right
        except RuntimeError as error:
            errors.append(str(error))
    total = (left * torch.tensor(2.0)).sum()
    total.backward()
    return {"errors": errors, "gradient": left.grad.tolist(), "waits": sum(fake_card.WAITS.values())}


def test_refuses_tensors_on_different_devices(card):
    seen = card.run(compute_on_cpu_and_card, cards=2)
    assert "cuda:0 and cpu" in seen["errors"][0] and "cuda:1" in seen["errors"][1]
    assert seen["gradient"] == [[2.0] * 4] * 3


def exceed_memory():
    import fake_card
    import torch

    kept = torch.empty(2**20, dtype=torch.uint8, device="cuda")
    try:
        torch.empty(2**20, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        return {"message": str(error), "peak": fake_card.peak_bytes(), "used": torch.cuda.memory_allocated()}
    return {"kept": len(kept)}


def test_limits_memory(card):
    seen = card.run(exceed_memory, memory=2**21, used_by_others=2**19)
    assert "CUDA out of memory. Tried to allocate 1.0 MiB" in seen["message"]
    assert seen["peak"] == seen["used"] == 2**20


def test_has_no_kernels_for_an_old_card(card):
    with pytest.raises(CardProcessError, match="no kernel image is available for execution on the device"):
        card.run(describe, capability=(6, 1))


def is_available():
    import torch

    return torch.cuda.is_available()


def test_old_driver_makes_cuda_unavailable(card):
    assert card.run(is_available) is True
    assert card.run(is_available, driver="535.104.05", driver_cuda=(12, 2)) is False
    assert "driver on your system is too old (found version 12020)" in card.last.stderr


def scale_gradients():
    import torch

    layer = torch.nn.Linear(4, 4, device="cuda")
    optimizer, scaler = torch.optim.AdamW(layer.parameters(), fused=True), torch.amp.GradScaler("cuda")
    before = layer.weight.detach().clone()
    for factor in (1e9, 1e-3):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = layer(torch.full((2, 4), 0.1, device="cuda")).float().sum() * factor
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return {"scale": scaler.get_scale(), "moved": not torch.equal(before, layer.weight)}


def test_gradient_scaler_skips_overflow(card):
    seen = card.run(scale_gradients)
    assert seen["scale"] < 65536.0 and seen["moved"]


def use_tools():
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.ones(1, device="cuda")
    end.record()
    torch.cuda.synchronize()
    torch.manual_seed(5)
    first = torch.rand(2, device="cuda")
    with torch.random.fork_rng(devices=[0]):
        torch.rand(9, device="cuda")
    second = torch.rand(2, device="cuda")
    torch.manual_seed(5)
    torch.rand(9)  # the CPU's generator is a different one
    again = torch.rand(4, device="cuda")
    return {"milliseconds": start.elapsed_time(end), "same": torch.equal(torch.cat([first, second]), again)}


def test_timing_and_random_state(card):
    seen = card.run(use_tools)
    assert seen["milliseconds"] > 0 and seen["same"]


def ask_nvml():
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return [pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetName(handle), memory.total, memory.free]


def test_management_library_describes_the_cards(card):
    seen = card.run(ask_nvml, nvml={}, memory=2**31, used_by_others=2**30)
    assert seen == ["580.95.05", "Emulated card", 2**31, 2**30]
