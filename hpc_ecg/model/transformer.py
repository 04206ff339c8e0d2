"""The model: an ECG goes in, one logit per label comes out.

`ECGTransformer` (the backbone) is DeepECG-SSL's wav2vec2-style encoder: conv stem -> LayerNorm ->
Linear -> positional convolution -> LayerNorm -> post-norm encoder layers. `ECGClassifier` adds the
mean over tokens and a linear head. Parameter names: `backbone.` + the name in base_ssl.pt, and
`head.`. Numbers agree with the original within 1e-5 (tests/test_transformer.py).
"""
# B batch, C leads, S samples, T tokens, D width, K labels

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.attention import SelfAttention
from hpc_ecg.model.dropout import RecordDropout, token_seeds
from hpc_ecg.model.layers import (
    ConvStem,
    Encoder,
    PositionalConv,
    randomize_backbone,
    randomize_head,
)
from hpc_ecg.model.settings import ModelConfig

FREEZABLE = ("none", "stem", "backbone")


class ECGTransformer(nn.Module):
    """The backbone: ECG -> token features."""

    def __init__(self, architecture: Architecture, config: ModelConfig) -> None:
        super().__init__()
        width, features = architecture.encoder_embed_dim, architecture.conv_feature_layers[-1][0]
        self.architecture, self.stem_gradient = architecture, config.stem_gradient
        self.encoder = Encoder(architecture, config)
        self.feature_extractor = ConvStem(architecture)
        # Like the original, no projection where the widths agree already.
        self.post_extract_proj = nn.Linear(features, width) if features != width else nn.Identity()
        conv_pos = PositionalConv(width, architecture.conv_pos, architecture.conv_pos_groups)
        self.conv_pos = nn.ModuleDict({"pos_conv": nn.Sequential(conv_pos)})
        self.layer_norm = nn.LayerNorm(features)
        self.dropout_input = RecordDropout(config.dropout_input, stream=1)

    def extract(
        self, ecg_BCS: Tensor, padding_mask: Tensor | None = None, seeds_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Token features [B, T, D] of ECGs in mV [B, C, S]; and the token mask [B, T] (True =
        padded) for a padding mask [B, S] or [B, C, S], or None without one."""
        x_BTD = self.embed(ecg_BCS)
        seeds_BT = token_seeds(seeds_B, x_BTD.shape[1])
        x_BTD = self.dropout_input(x_BTD, seeds_BT)
        mask_BT = None if padding_mask is None else self.token_mask(padding_mask, x_BTD.shape[1])
        x_BTD = x_BTD + F.gelu(self.conv_pos["pos_conv"](x_BTD))
        return self.encoder(x_BTD, mask_BT, seeds_BT), mask_BT

    forward = extract

    def embed(self, ecg_BCS: Tensor) -> Tensor:
        """Conv stem, LayerNorm and projection: [B, C, S] -> [B, T, D]."""
        x_BCT = self.feature_extractor(ecg_BCS)
        if self.stem_gradient != 1.0:  # forward unchanged to the bit: the difference is exactly 0
            x_BCT = x_BCT.detach() + (x_BCT - x_BCT.detach()) * self.stem_gradient
        return self.post_extract_proj(self.layer_norm(x_BCT.transpose(1, 2)))

    def token_mask(self, padding_mask: Tensor, num_tokens: int) -> Tensor:
        """[B, S] or [B, C, S] (the leads of a row must agree) -> [B, T], True = padded.

        A row too short for one token gets no token masked, as in the original."""
        if padding_mask.ndim == 3:
            if not bool((padding_mask == padding_mask[:, :1]).all()):
                raise ValueError("padding_mask [B, C, S] must agree over the leads of each record")
            padding_mask = padding_mask[:, 0]
        valid_B = (~padding_mask).sum(-1)
        for _, kernel, stride in self.architecture.conv_feature_layers:
            valid_B = ((valid_B - kernel) // stride + 1).clamp(min=0)
        position_T = torch.arange(num_tokens, device=valid_B.device)
        return (position_T >= valid_B[:, None]) & (valid_B > 0)[:, None]


class ECGClassifier(nn.Module):
    """Backbone, mean over tokens, linear head. Frozen parts stay in eval mode under `train()`."""

    def __init__(self, architecture: Architecture, num_labels: int, config: ModelConfig) -> None:
        super().__init__()
        if num_labels < 1:
            raise ValueError(f"the model needs at least one label, got {num_labels}")
        self.backbone = ECGTransformer(architecture, config)
        self.head = nn.Linear(architecture.encoder_embed_dim, num_labels)
        self.final_dropout = RecordDropout(config.final_dropout, stream=3)
        self.pooling = config.pooling
        self.frozen: list[nn.Module] = []
        self.use_kernels(config.attention, config.positional_conv, config.record_dropout)

    def use_kernels(self, attention: str, positional_conv: str, record_dropout: str) -> None:
        """Set the kernels, by the names of their settings: other algorithms, the same numbers."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.kind = attention
            elif isinstance(module, PositionalConv):
                module.kind = positional_conv
            elif isinstance(module, RecordDropout):
                module.kind = record_dropout

    @property
    def stem(self) -> ConvStem:
        return self.backbone.feature_extractor

    @property
    def architecture(self) -> Architecture:
        return self.backbone.architecture

    def forward(
        self, ecg_BCS: Tensor, padding_mask: Tensor | None = None, seeds_B: Tensor | None = None
    ) -> Tensor:
        """Logits [B, K] of ECGs in mV [B, C, S]. `padding_mask` is [B, S] or [B, C, S], True =
        padded (give None for an all-False one, which only costs time); `seeds_B` is int64 and
        decides dropout (see dropout.py)."""
        return self.classify(self.features(ecg_BCS, padding_mask, seeds_B))

    def features(
        self, ecg_BCS: Tensor, padding_mask: Tensor | None = None, seeds_B: Tensor | None = None
    ) -> Tensor:
        """The head's input: pooled tokens [B, D], in float32."""
        x_BTD, mask_BT = self.backbone(ecg_BCS, padding_mask, seeds_B)
        with torch.autocast(x_BTD.device.type, enabled=False):
            return self.pool(x_BTD.float(), mask_BT, seeds_B)

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """Logits [B, K], in float32 whatever the autocast: in bf16 one ECG in a hundred would tie
        with another."""
        with torch.autocast(pooled_BD.device.type, enabled=False):
            return F.linear(pooled_BD, self.head.weight.float(), self.head.bias.float())

    def pool(
        self, x_BTD: Tensor, mask_BT: Tensor | None = None, seeds_B: Tensor | None = None
    ) -> Tensor:
        """Mean over the tokens that count, as `model.pooling` defines them -> [B, D]."""
        x_BTD = self.final_dropout(x_BTD, token_seeds(seeds_B, x_BTD.shape[1]))
        if mask_BT is not None:
            x_BTD = x_BTD.masked_fill(mask_BT[..., None], 0.0)
        if self.pooling == "nonzero":
            return x_BTD.sum(1) / (x_BTD != 0).sum(1)
        if mask_BT is None:
            return x_BTD.mean(1)
        return x_BTD.sum(1) / (~mask_BT).sum(1, keepdim=True)

    def freeze(self, part: str, num_layers: int = 0) -> None:
        """Freeze `none`, the conv `stem` or the whole `backbone`, and also the first `num_layers`
        encoder layers with everything before them; the rest trains.

        Frozen parts have no gradient and stay in eval mode. Call this before building the optimizer
        and any distributed wrapper. ValueError: no such part, or more layers than there are."""
        if part not in FREEZABLE:
            raise ValueError(f"a frozen part must be one of {', '.join(FREEZABLE)}, got {part!r}")
        encoder = self.backbone.encoder
        layers = encoder.layers
        if not 0 <= num_layers <= len(layers):
            raise ValueError(
                f"train.freeze_layers must be from 0 to {len(layers)}, got {num_layers}"
            )
        self.frozen = []
        if part != "none":
            self.frozen = [self.stem if part == "stem" else self.backbone]
        if num_layers:
            before = [part for part in self.backbone.children() if part is not encoder]
            self.frozen += [*before, encoder.layer_norm, encoder.dropout, *layers[:num_layers]]
        self.requires_grad_(True)
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile one encoder layer in place, for all layers to share: the whole model would take
        as many times longer to compile as it has layers."""
        # Each kind of batch (whole or short, padded or not, train or eval) is a recompilation;
        # beyond its limit of 8, torch would run uncompiled.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        for layer in self.backbone.encoder.layers:
            layer.compile(*args, **kwargs)

    def train(self, mode: bool = True) -> "ECGClassifier":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def build_model(
    architecture: Architecture, num_labels: int, config: ModelConfig, seed: int = 0
) -> ECGClassifier:
    """Build a model on the CPU with random weights that depend on `seed` alone."""
    model = build_empty(architecture, num_labels, config)
    randomize_backbone(model.backbone, seed)
    randomize_head(model.head, seed)
    return model


def build_on_meta(
    architecture: Architecture, num_labels: int, config: ModelConfig | None = None
) -> ECGClassifier:
    """Build a model without memory behind its parameters: names, shapes and counts."""
    with torch.device("meta"):
        return ECGClassifier(architecture, num_labels, config or ModelConfig())


def build_empty(
    architecture: Architecture, num_labels: int, config: ModelConfig | None = None
) -> ECGClassifier:
    """Build a model on the CPU with unset weights. (`to_empty` would import all of sympy.)"""
    model = build_on_meta(architecture, num_labels, config)
    memory = {name: torch.empty(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(memory, assign=True)
    return model
