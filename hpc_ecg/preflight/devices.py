"""What the planner takes a device to reach. These shares were fixed before a step was measured:

products  7/8 of the best share of the data sheet's rate that is published for a matrix product
          (S. Bekman, Machine Learning Engineering, "Maximum Achievable Matmul FLOPS"; NVIDIA's
          cards that are not listed count as the H100), since those are wider than ours
memory    80 % of the data sheet's bandwidth, as copies of large arrays reach
kernels   6 µs to start one; forward and backward of a layer start about 110
CPU       a product of the published sizes (8 ECGs through fc1) is measured here; the ratios of
          the other rates to it are those of one size: width 384, 2 layers, batch 8, fp32; in bf16
          also what the positional convolution gains is measured
"""

import os
import re
import time
from functools import cache
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.flops import PEAKS, WITHOUT_BF16, peak_flops

PRODUCT_SHARE, MI300_SHARE, NARROWER, MEMORY_SHARE = 0.8, 0.6, 7 / 8, 0.8
LAUNCH_S, KERNELS_PER_LAYER = 6e-6, 110
CPU, CPU_MOVED_PER_FLOP, CPU_ADAM_PER_FLOP = "CPU", 0.053, 0.156


class Device(NamedTuple):
    """A device and its rates: products, convolutions, values that layers move, what AdamW moves.
    `link_gb_s` is one direction to the next device of the node."""

    name: str
    precision: str
    memory_gb: float
    watts: float
    link_gb_s: float
    flops_per_s: float
    conv_flops_per_s: float
    bytes_per_s: float
    adam_bytes_per_s: float

    @property
    def is_gpu(self) -> bool:
        return self.name != CPU


@cache
def device_of(gpu: str, precision: str = "auto") -> Device:
    """The device of a name such as h100, a6000 or what torch calls it; `cpu` is the one here, on
    which a product is measured. ValueError: it is not known, or lacks the precision."""
    name = card_name(gpu)
    if name is None:
        known = ["cpu", *map(_slug, PEAKS)]
        hint = did_you_mean(_slug(gpu), known)
        raise ValueError(f"--gpu {gpu}: no such card; there are {', '.join(known)}{hint}")
    if precision == "auto":
        precision = "fp32" if name in (*WITHOUT_BF16, CPU) else "bf16"
    if name == CPU and precision != "fp16":
        return cpu_device(precision, measure_product(precision), measure_product("fp32"))
    peak = peak_flops(name, precision)
    if peak is None:
        raise ValueError(f"engine.precision={precision}: a {name} lacks it; take another one")
    _, _, memory_gb, watts, memory_gb_s, link_gb_s = PEAKS[name]
    products = NARROWER * peak * (MI300_SHARE if name.startswith("MI3") else PRODUCT_SHARE)
    moved = MEMORY_SHARE * 1e9 * memory_gb_s
    return Device(name, precision, memory_gb, watts, link_gb_s, products, products, moved, moved)


def cpu_device(precision: str, products: float, fp32_products: float) -> Device:
    """This machine's CPU, by its operations per second in products; its power is not known."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    moved, adam = (ratio * fp32_products for ratio in (CPU_MOVED_PER_FLOP, CPU_ADAM_PER_FLOP))
    return Device(CPU, precision, memory_gb, 0, 10, products, products, moved, adam)


def measure_product(precision: str) -> float:
    """Operations per second of a product on this CPU with all threads, median of 5; in CPU time,
    which other load on the machine disturbs less."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(1248, 768, dtype=dtype), torch.ones(768, 3072, dtype=dtype)
    times = []
    for _ in range(7):
        left @ right
        times.append(time.process_time())
    seconds = median(end - begin for begin, end in pairwise(times[1:]))
    return 2 * left.numel() * len(right[0]) * torch.get_num_threads() / seconds


def with_convolution(device: Device, sizes: Architecture) -> Device:
    """The CPU in bf16: what its convolutions gain by that, often less than its products, is
    measured with the positional convolution of these sizes; others as they are."""
    if device.name != CPU or device.precision == "fp32":
        return device
    import torch

    conv = torch.nn.Conv1d(
        *2 * (sizes.encoder_embed_dim,),
        sizes.conv_pos,
        padding=sizes.conv_pos // 2,
        groups=sizes.conv_pos_groups,
    )
    x_BDT, seconds = torch.ones(1, sizes.encoder_embed_dim, 156, requires_grad=True), []
    for kind in (torch.float32, torch.bfloat16):
        times = []
        for _ in range(4):
            times.append(time.process_time())
            conv.to(kind)(x_BDT.to(kind)).sum().backward()
        seconds.append(median(end - begin for begin, end in pairwise(times[1:])))
    fp32_products = device.bytes_per_s / CPU_MOVED_PER_FLOP
    return device._replace(conv_flops_per_s=fp32_products * seconds[0] / seconds[1])


def card_name(text: str) -> str | None:
    """The card of the data sheets, or CPU, that a user or torch calls so; None if there is none."""
    names = [name for name in (*PEAKS, CPU) if _slug(name) == _slug(text)]
    names += [name for name in PEAKS if re.search(rf"\b{name}\b", text) and "MIG" not in text]
    return names[0] if names else None


def _slug(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("rtx").lstrip("-")
