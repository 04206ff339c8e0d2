"""Memory and memory traffic of a training step, from sizes alone; tests compare with torch.

With T tokens, D width, I inner width, H heads, e bytes of a product's operand and f of a norm's
input (both 4 in fp32; else 2, but f is 4 on a GPU, where autocast normalizes in fp32 and casts the
input of q, k and v three times), a layer keeps T D (6 e, or 8 e with casts, + 2 f) + 2 T I e, masks
of a byte, and 4 H T for fused attention or H T^2 (4, or 6 in half precision) for the plain one.
"""

from dataclasses import replace
from typing import NamedTuple

from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model.architecture import Architecture, num_tokens
from hpc_ecg.model.flops import forward_flops, lowest_trained, training_flops
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.preflight.devices import Device

FORWARD_PASSES, BACKWARD_PASSES, HASH_BYTES = 2, 3, 24
"""A value that is kept is written and read; then it is read, and its gradient is written and read.
A record's dropout makes three passes over int32."""
CONTEXT_GB, USABLE = 1.0, 0.9
"""Memory of CUDA's context and libraries; share of the memory that a run may fill."""
SHARED = {"ddp": "", "zero1": "m", "zero2": "gm", "zero3": "wgm", "fsdp2": "wgm"}
"""What the processes share out: weights, gradients, moments."""


class Workload(NamedTuple):
    """What is trained, how, and where."""

    sizes: Architecture
    num_samples: int
    num_labels: int
    model: ModelConfig
    engine: EngineConfig
    device: Device
    freeze: str = "none"
    freeze_layers: int = 0

    @property
    def lowest(self) -> int:
        return lowest_trained(self.sizes, self.freeze, self.freeze_layers)

    @property
    def is_half(self) -> bool:
        return self.device.precision != "fp32"

    @property
    def hashed(self) -> int:
        """Values per record and layer whose dropout makes a mask that is kept."""
        is_plain = self.model.record_dropout in ("auto", "plain")  # auto: until it is measured
        values = num_tokens(self.sizes, self.num_samples) * self.sizes.encoder_ffn_embed_dim
        return values * (is_plain and self.model.activation_dropout > 0)

    def flops(self, backward: bool = True) -> int:
        """Operations per record of a step, or of its forward pass alone."""
        forward = forward_flops(self.sizes, self.num_samples)
        training = training_flops(self.sizes, self.num_samples, self.freeze, self.freeze_layers)
        return training + forward * self.engine.activation_checkpointing if backward else forward

    def products_s(self, backward: bool = True) -> float:
        """Seconds per record of these operations; what is below the layers is convolutions."""
        below = self._replace(sizes=replace(self.sizes, encoder_layers=0)).flops(backward)
        layers_s = (self.flops(backward) - below) / self.device.flops_per_s
        return layers_s + below / self.device.conv_flops_per_s


def part_parameters(sizes: Architecture, num_labels: int = 1) -> list[int]:
    """Parameters of the stem, of what lies before the encoder layers, of each layer, of the head;
    `flops.lowest_trained` counts the same parts."""
    width, inner = sizes.encoder_embed_dim, sizes.encoder_ffn_embed_dim
    channels, stem = sizes.in_d, 2 * sizes.conv_feature_layers[0][0]
    for channels_out, kernel, _ in sizes.conv_feature_layers:
        stem += channels_out * channels * kernel
        channels = channels_out
    before = 2 * channels + 3 * width + (channels + 1) * width * (channels != width)
    before += (width * (width // sizes.conv_pos_groups) + 1) * sizes.conv_pos
    layer = 4 * width * (width + 1) + (2 * width + 1) * inner + 5 * width
    return [stem, before, *[layer] * sizes.encoder_layers, (width + 1) * num_labels]


def part_bytes(work: Workload) -> list[int]:
    """Bytes per record that each of these parts keeps for its backward pass, if it trains."""
    sizes, model, e = work.sizes, work.model, 2 if work.is_half else 4
    tokens, has_casts = num_tokens(sizes, work.num_samples), work.is_half and work.device.is_gpu
    f, width, length, outputs = 4 if has_casts else e, sizes.encoder_embed_dim, work.num_samples, []
    for channels, kernel, stride in sizes.conv_feature_layers:
        length = (length - kernel) // stride + 1
        outputs.append(channels * length)
    # GELU and the next convolution keep their input, the first norm its own in fp32
    stem = e * (sizes.in_d * work.num_samples + 2 * sum(outputs) - outputs[-1]) + 4 * outputs[0]
    before = tokens * (channels * (f + e * (channels != width)) + width * (2 * e + f))
    layer = tokens * width * ((8 if has_casts else 6) * e + 2 * f + 2 * (model.dropout > 0))
    layer += 2 * e * tokens * sizes.encoder_ffn_embed_dim + work.hashed
    drops, rows = model.attention_dropout > 0, sizes.encoder_attention_heads * tokens
    is_auto_plain = drops or (work.is_half and not has_casts)  # as `attention.choose_kind` does
    is_plain = model.attention == "math" or (model.attention == "auto" and is_auto_plain)
    plain = tokens * (4 + 2 * work.is_half + drops * (1 if work.is_half else 5))
    return [stem, before, *[layer + rows * (plain if is_plain else 4)] * sizes.encoder_layers, 0]


def kept_bytes(work: Workload) -> int:
    """Bytes per record of a micro-batch that are kept from the forward to the backward pass."""
    parts = part_bytes(work)
    if work.engine.activation_checkpointing:  # a layer that trains keeps its input and seeds
        e = 2 if work.is_half and not work.device.is_gpu else 4
        kept = num_tokens(work.sizes, work.num_samples) * (work.sizes.encoder_embed_dim * e + 8)
        parts[2:-1] = [kept] * work.sizes.encoder_layers
    return sum(parts[work.lowest :])


def traffic_bytes(work: Workload, backward: bool = True) -> int:
    """Bytes per record that a step, or its forward pass alone, moves outside of products. On a CPU,
    values in bf16 cost as much as in fp32, in which they are computed."""
    if not work.device.is_gpu:
        work = work._replace(device=work.device._replace(precision="fp32"))
    parts = part_bytes(work)
    layers = parts[max(2, work.lowest) : -1]
    if not backward:
        return FORWARD_PASSES * sum(parts)
    again = sum(layers) * work.engine.activation_checkpointing
    moved = FORWARD_PASSES * (sum(parts) + again) + BACKWARD_PASSES * sum(parts[work.lowest :])
    return moved + HASH_BYTES * work.hashed * len(layers)


def memory_gb(work: Workload, processes: int, micro_batch: int) -> dict[str, float]:
    """10^9 bytes that a process needs, by what for. What is shared out, see SHARED; sharded weights
    are gathered two layers at a time, ZeRO keeps its share of the weights again, DDP copies
    gradients into buckets. At the peak, one layer's gradients stand beside what is kept."""
    parts, kind = part_parameters(work.sizes, work.num_labels), work.engine.parallel
    share = {part: processes if part in SHARED[kind] else 1 for part in "wgm"}
    total, trained = 4 * sum(parts), 4 * sum(parts[work.lowest :])
    extra = 8 * parts[2] * (share["w"] > 1) + trained / processes * kind.startswith("zero")
    gb = {
        "weights": total / share["w"] + extra + total / 2 * work.is_half,
        "gradients": trained / share["g"] + trained * (kind == "ddp" and processes > 1),
        "moments": 2 * trained / share["m"],
        "activations": (kept_bytes(work) + part_bytes(work)[2]) * micro_batch,
        "context": CONTEXT_GB * 1e9 * work.device.is_gpu,
    }
    return {name: size / 1e9 for name, size in gb.items()}


def largest_micro_batch(work: Workload, processes: int) -> int:
    """Most records of a micro-batch that fit; 0 if not even one does."""
    room = USABLE * work.device.memory_gb - sum(memory_gb(work, processes, 0).values())
    return max(0, int(room / memory_gb(work, processes, 1)["activations"]))
