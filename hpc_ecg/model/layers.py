"""The parts of the backbone: conv stem, positional convolution, encoder. Random weights for them,
from a seed and the shapes alone, never from torch's global state.

Modules nest as in the original, so that parameter names agree with its checkpoints. GELU keeps the
input's dtype: torch computes it in fp32 inside and rounds once, which is what the original's cast
to fp32 and back gives (tested), without keeping fp32 activations.
"""
# B batch, C leads or channels, S samples, T tokens, D width

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.attention import SelfAttention
from hpc_ecg.model.dropout import RecordDropout, layer_seeds
from hpc_ecg.model.positional_conv import convolve_by_fft, convolve_unfolded
from hpc_ecg.model.settings import ModelConfig

SAFE_BF16_CHANNELS, SAFE_BF16_KERNEL = 16, 7
"""From so many channels per group, or up to this kernel without groups, oneDNN's bfloat16 conv1d is
right on every processor. With 8 or 12 channels and a kernel of 8 or more, it is off by more than
100 % on AMX (torch 2.13). Other convolutions take fp32 on every CPU, not only on those known to be
wrong: they are small, and the numbers are then the same everywhere."""
CONVOLUTIONS = {"fft": convolve_by_fft, "unfold": convolve_unfolded}
"""Positional convolutions besides the direct one."""


class Conv1d(nn.Conv1d):
    """torch's, in fp32 where oneDNN's bfloat16 kernel is not safe."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        return conv1d(x_BCT, self.weight, self.bias, stride=self.stride)


def conv1d(
    x_BCT: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1,),
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """F.conv1d, in fp32 inside where oneDNN's bfloat16 kernel is not safe on every CPU."""
    convolve = partial(F.conv1d, stride=stride, padding=padding, groups=groups)
    if not _bf16_is_unsafe(x_BCT, weight, groups):
        return convolve(x_BCT, weight, bias)
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        return convolve(x_BCT.float(), weight.float(), bias).bfloat16()


def _bf16_is_unsafe(x_BCT: Tensor, weight: Tensor, groups: int) -> bool:
    _, channels, kernel = weight.shape
    is_safe = channels >= SAFE_BF16_CHANNELS or (groups == 1 and kernel <= SAFE_BF16_KERNEL)
    if x_BCT.device.type != "cpu" or is_safe:
        return False
    return x_BCT.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


class ConvStem(nn.Module):
    """ECG [B, C, S] -> features [B, channels, T]: convolutions without bias, GELU after each;
    after the first also one normalization per channel over time, padding included."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels_in = architecture.in_d
        self.conv_layers = nn.ModuleList()
        for channels, kernel, stride in architecture.conv_feature_layers:
            layer = nn.ModuleDict({"0": Conv1d(channels_in, channels, kernel, stride, bias=False)})
            if not self.conv_layers:
                layer["2"] = ChannelNorm(channels, channels)
            self.conv_layers.append(layer)
            channels_in = channels

    def forward(self, x_BCS: Tensor) -> Tensor:
        for layer in self.conv_layers:
            assert isinstance(layer, nn.ModuleDict)
            for part in layer.values():
                x_BCS = part(x_BCS)
            x_BCS = F.gelu(x_BCS)
        return x_BCS


class ChannelNorm(nn.GroupNorm):
    """GroupNorm, here with one channel per group, in fp32 whatever the input, and cast back."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x_BCT.float(), self.num_groups, weight, bias, self.eps).to(x_BCT.dtype)


class PositionalConv(nn.Module):
    """Weight-normed grouped convolution over tokens, [B, T, D] -> [B, T, D], before GELU.

    weight = g * v / ||v||, one norm per kernel tap; output t sees inputs t - k/2 to t + k/2 - 1 (an
    even kernel gives one output too many: the last is dropped). `kind`: model.positional_conv."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups, self.kind = kernel, groups, "auto"
        self.bias = nn.Parameter(torch.empty(width))
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, kernel))

    def weight(self) -> Tensor:
        v = self.weight_v.float()
        return self.weight_g.float() * v / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight = self.weight().to(self.weight_v.dtype)
        if self.kind in CONVOLUTIONS:
            return CONVOLUTIONS[self.kind](x_BTD, weight, self.bias, self.groups)
        x_BDT, padding = x_BTD.transpose(1, 2), self.kernel // 2
        out_BDT = conv1d(x_BDT, weight, self.bias, padding=padding, groups=self.groups)
        return out_BDT[..., : x_BTD.shape[1]].transpose(1, 2)


class EncoderLayer(nn.Module):
    """One post-norm transformer layer, [B, T, D] -> [B, T, D]."""

    def __init__(self, architecture: Architecture, config: ModelConfig) -> None:
        super().__init__()
        width, inner = architecture.encoder_embed_dim, architecture.encoder_ffn_embed_dim
        self.self_attn = SelfAttention(
            width, architecture.encoder_attention_heads, config.attention_dropout, config.attention
        )
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.attended_dropout = RecordDropout(config.dropout, stream=2)
        self.activation_dropout = RecordDropout(config.activation_dropout, stream=3)
        self.dropout = RecordDropout(config.dropout, stream=4)

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor | None = None, seeds_BT: Tensor | None = None
    ) -> Tensor:
        attended_BTD = self.attended_dropout(self.self_attn(x_BTD, mask_BT, seeds_BT), seeds_BT)
        x_BTD = self.self_attn_layer_norm(x_BTD + attended_BTD)
        inner = self.activation_dropout(self.fc1(x_BTD), seeds_BT, after_gelu=True)
        return self.final_layer_norm(x_BTD + self.dropout(self.fc2(inner), seeds_BT))


class Encoder(nn.Module):
    """LayerNorm, then the layers (post-norm: there is no norm after the last one). With
    `checkpoint_layers`, a layer that trains keeps only its input and is computed again in the
    backward pass: less memory, a third more work, the same gradients."""

    def __init__(self, architecture: Architecture, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(architecture, config) for _ in range(architecture.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(architecture.encoder_embed_dim)
        self.dropout = RecordDropout(config.dropout, stream=2)
        self.checkpoint_layers = False

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor | None = None, seeds_BT: Tensor | None = None
    ) -> Tensor:
        if mask_BT is not None:
            x_BTD = x_BTD.masked_fill(mask_BT[..., None], 0.0)
        x_BTD = self.dropout(self.layer_norm(x_BTD), seeds_BT)
        seeds_LBT = None if seeds_BT is None else layer_seeds(seeds_BT, len(self.layers))
        for number, layer in enumerate(self.layers):
            seeds_BT = None if seeds_LBT is None else seeds_LBT[number]
            if self.checkpoint_layers and layer.training:
                x_BTD = checkpoint(layer, x_BTD, mask_BT, seeds_BT, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, mask_BT, seeds_BT)
        return x_BTD


def randomize_head(head: nn.Linear, seed: int) -> None:
    """Fill a head as the original does: xavier uniform weight, zero bias. The same for every
    checkpoint that the backbone may come from."""
    nn.init.xavier_uniform_(head.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)


def randomize_backbone(backbone: nn.Module, seed: int) -> None:
    """Fill a backbone by the convention of wav2vec 2.0 (fairseq: `init_bert_params`, after BERT's
    normal(0, 0.02) for linears with zero bias; `ConvFeatureExtractionModel`: He normal;
    `make_conv_pos`: normal with std sqrt(4 / (kernel * width)); norms 1 and 0)."""
    generator = torch.Generator().manual_seed(seed + 2**32)  # not the stream of the head
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PositionalConv):
            std = math.sqrt(4 / (module.kernel * module.bias.numel()))
            nn.init.normal_(module.weight_v, std=std, generator=generator)
            nn.init.zeros_(module.bias)
            norm = torch.linalg.vector_norm(module.weight_v.detach(), dim=(0, 1), keepdim=True)
            module.weight_g.data.copy_(norm)
