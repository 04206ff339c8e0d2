"""Operations per record and peak operations of devices, for model FLOPs utilization (MFU).

A multiply and an add are two operations; only matrix products and convolutions count, for a model
with one label. With T tokens, width D, inner width I, g groups and kernel k:

  conv layer         2 x channels out x channels in x kernel x its number of outputs
  projection         2 T x channels x D
  positional conv    2 (T + 2 (k // 2) - k + 1) D (D / g) k
  encoder layer      8 T D^2 (q, k, v, out) + 4 T^2 D (attention) + 4 T D I (feed-forward)
  head               2 D
"""
# T tokens, D width

import re

from hpc_ecg.model.architecture import Architecture, num_tokens

# TFLOP/s of half-precision matrix products (dense, accumulated in fp32) and of fp32 without TF32,
# from the data sheets of NVIDIA (Turing, Ampere and Ada cards: their architecture whitepapers) and
# AMD (whose fp32 is that of matrix products). Then GB of memory, W, GB/s of memory, and GB/s to the
# next GPU in one direction (NVLink, Infinity Fabric or PCIe). The first name that matches counts.
PEAKS = {
    "GB200": (2500, 80, 186, 1200, 8000, 900),
    "B200": (2250, 75, 180, 1000, 8000, 900),
    "H200 NVL": (835.5, 60, 141, 600, 4800, 450),
    "H200": (989.4, 67, 141, 700, 4800, 450),
    "GH200": (989.4, 67, 96, 700, 4000, 450),
    "H100 NVL": (835.5, 60, 94, 400, 3900, 300),
    "H100 PCIe": (756.5, 51, 80, 350, 2000, 64),
    "H100": (989.4, 67, 80, 700, 3350, 450),
    "A100-SXM4-40GB": (312, 19.5, 40, 400, 1555, 300),
    "A100": (312, 19.5, 80, 400, 2039, 300),
    "A40": (149.7, 37.4, 48, 300, 696, 32),
    "A30": (165, 10.3, 24, 165, 933, 32),
    "A10": (125, 31.2, 24, 150, 600, 32),
    "L40S": (362, 91.6, 48, 350, 864, 32),
    "L40": (181, 90.5, 48, 300, 864, 32),
    "L4": (121, 30.3, 24, 72, 300, 32),
    "RTX 6000 Ada": (364.2, 91.1, 48, 300, 960, 32),
    "RTX A6000": (154.8, 38.7, 48, 300, 768, 32),
    "RTX 4090": (165.2, 82.6, 24, 450, 1008, 32),
    "RTX 3090": (71, 35.6, 24, 350, 936, 32),
    "T4": (65, 8.1, 16, 70, 320, 16),
    "V100S": (130, 16.4, 32, 250, 1134, 16),
    "V100-PCIE": (112, 14, 16, 250, 900, 16),
    "V100": (125, 15.7, 32, 300, 900, 150),
    "MI325X": (1307.4, 163.4, 256, 1000, 6000, 448),
    "MI300X": (1307.4, 163.4, 192, 750, 5300, 448),
    "MI300A": (980.6, 122.6, 128, 550, 5300, 384),
    # one of its two dies, which is what torch calls a device
    "MI250X": (191.5, 47.9, 64, 280, 1638, 50),
    "MI210": (181, 45.3, 64, 300, 1638, 64),
}
WITHOUT_BF16 = ("T4", "V100S", "V100-PCIE", "V100")


def forward_flops(architecture: Architecture, num_samples: int) -> int:
    """Operations of one forward pass for a record of `num_samples` samples."""
    return sum(flops for _, flops, _ in _products(architecture, num_samples))


def training_flops(
    architecture: Architecture, num_samples: int, freeze: str = "none", freeze_layers: int = 0
) -> int:
    """Operations of the forward and backward pass, for a model frozen by `ECGClassifier.freeze`.

    The gradient with respect to weights costs as much as the forward pass again, and so does that
    with respect to inputs. Parts below the lowest trained one need neither; the first products of
    the lowest trained part need no gradient of their input. What activation checkpointing computes
    twice is counted once."""
    lowest = lowest_trained(architecture, freeze, freeze_layers)
    total = 0
    for part, flops, is_first in _products(architecture, num_samples):
        backward = 0 if part < lowest else 1 if part == lowest and is_first else 2
        total += flops * (1 + backward)
    return total


def lowest_trained(architecture: Architecture, freeze: str, freeze_layers: int = 0) -> int:
    """The lowest part that trains: 0 is the stem, 1 lies before the encoder layers, which follow;
    the last is the head."""
    lowest = {"none": 0, "stem": 1, "backbone": architecture.encoder_layers + 2}[freeze]
    return max(lowest, freeze_layers + 2) if freeze_layers else lowest


def peak_flops(device_name: str, precision: str) -> float | None:
    """Operations per second by the data sheet, for fp32, bf16 or fp16; None for a device that is
    not in the table, lacks the precision, or is a part of one (MIG)."""
    if "MIG" in device_name:
        return None
    for name, (half, single, *_) in PEAKS.items():
        if re.search(rf"\b{name}\b", device_name):
            if precision == "bf16" and name in WITHOUT_BF16:
                return None
            return (single if precision == "fp32" else half) * 1e12
    return None


def _products(architecture: Architecture, num_samples: int) -> list[tuple[int, int, bool]]:
    """(part, operations, whether the product takes the part's input unchanged), bottom up: part 0
    is the stem, part 1 lies before the encoder layers, then the layers, then the head. Part 1
    begins with a norm that trains."""
    tokens, width = num_tokens(architecture, num_samples), architecture.encoder_embed_dim
    products: list[tuple[int, int, bool]] = []
    channels_in, length = architecture.in_d, num_samples
    for channels, kernel, stride in architecture.conv_feature_layers:
        length = (length - kernel) // stride + 1
        products.append((0, 2 * channels * channels_in * kernel * length, not products))
        channels_in = channels
    if channels_in != width:
        products.append((1, 2 * tokens * channels_in * width, False))
    kernel = architecture.conv_pos
    outputs = tokens + 2 * (kernel // 2) - kernel + 1
    weights = width * (width // architecture.conv_pos_groups) * kernel
    products.append((1, 2 * outputs * weights, False))
    inner = architecture.encoder_ffn_embed_dim
    after_input = 2 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * inner
    for layer in range(architecture.encoder_layers):
        products += [(2 + layer, 6 * tokens * width**2, True), (2 + layer, after_input, False)]
    return [*products, (2 + architecture.encoder_layers, 2 * width, True)]
