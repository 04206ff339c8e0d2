"""Random weights: pure functions of a seed and the shapes, never of torch's global state."""

import math

import torch
from torch import nn

from hpc_ecg.model.layers import PositionalConv


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
