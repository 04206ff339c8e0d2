"""The sections `model` and `loss` of a run's settings."""

import math
from dataclasses import dataclass

from hpc_ecg.config.schema import check_settings, setting

ATTENTION_KINDS = ["auto", "flash", "fa3", "fa4", "cudnn", "efficient", "varlen", "sdpa", "math"]
POSITIONAL_CONV_KINDS = ("auto", "direct", "fft", "unfold")
DROPOUT_KINDS = ("auto", "plain", "compiled", "triton")
REGRESSION_LOSSES = ("mse", "mse2")
LOSSES = ("bce", "as", "bf", "mlsml", *REGRESSION_LOSSES)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes have the names of the original's `cfg.model`."""

    encoder_layers: int | None = None
    """Transformer layers; null = as in init.checkpoint, or the published 12 without one."""
    encoder_embed_dim: int | None = None
    """Width; null = as in init.checkpoint, or 768."""
    encoder_ffn_embed_dim: int | None = None
    """Inner width of the feed-forward block; null = as in init.checkpoint, or 3072."""
    encoder_attention_heads: int | None = None
    """Attention heads; null = as in init.checkpoint, or 12."""
    conv_feature_layers: str | None = None
    """Convolutional stem as (channels, kernel, stride) per layer; null = as in init.checkpoint, or
    `[(256, 2, 2)] * 4`."""
    conv_pos: int | None = None
    """Kernel of the positional convolution in tokens; null = as in init.checkpoint, or 128."""
    conv_pos_groups: int | None = None
    """Groups of the positional convolution; null = as in init.checkpoint, or 16."""
    in_d: int | None = None
    """Leads; null = as in init.checkpoint, or 12."""
    dropout: float = setting(0.0, at_least=0, below=1)
    """Dropout after the positional convolution, the attention and the feed-forward block."""
    attention_dropout: float = setting(0.0, at_least=0, below=1)
    """Dropout on the attention weights. With attention=auto or math the mask belongs to the record,
    as for the other dropouts; the fused kernels use torch's generator, so that their masks depend
    on the number of processes."""
    activation_dropout: float = setting(0.1, at_least=0, below=1)
    """Dropout inside the feed-forward block, after GELU."""
    dropout_input: float = setting(0.0, at_least=0, below=1)
    """Dropout on the projected features of the stem."""
    final_dropout: float = setting(0.0, at_least=0, below=1)
    """Dropout on the tokens before pooling."""
    stem_gradient: float = setting(
        1.0, above=0, at_most=1, hint="to freeze the stem use train.freeze=stem"
    )
    """Factor on the gradient of a trained stem (feature_grad_mult of the original). To freeze the
    stem use train.freeze=stem."""
    attention: str = setting("auto", choices=ATTENTION_KINDS, may_change=True)
    """Attention kernel: auto = by device, precision and dropout (the log says which and why);
    sdpa = torch chooses; flash, cudnn, efficient = this kernel or an error; fa3, fa4 = flash by
    FlashAttention 3 (Hopper) or 4 (Blackwell), where it is installed; varlen = flash without the
    padding (a GPU, half precision, torch 2.10); math = the plain reference."""
    positional_conv: str = setting("auto", choices=POSITIONAL_CONV_KINDS, may_change=True)
    """Positional convolution: direct = torch's own, the reference; fft = by spectra in fp32; unfold
    = as a matrix product; auto = the fastest where engine.kernels measures, otherwise direct."""
    record_dropout: str = setting("auto", choices=DROPOUT_KINDS, may_change=True)
    """How the masks of dropout are made, always the same ones: plain = by torch's operations, the
    reference; compiled = by torch.compile; triton = by our kernel for GPUs; auto = the fastest
    where engine.kernels measures, otherwise plain."""
    pooling: str = setting("mean", choices=("mean", "nonzero"))
    """mean = mean over valid tokens; nonzero = the original's division by the count of exact
    non-zeros per channel (differs only with final_dropout > 0 or a value that is exactly 0)."""

    def __post_init__(self) -> None:
        check_settings(self, "model")
        if self.attention == "varlen" and self.attention_dropout:
            raise ValueError(
                f"model.attention=varlen has no dropout, got {self.attention_dropout} for "
                "model.attention_dropout; use model.attention=auto"
            )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: str = setting("bce", choices=LOSSES)
    """bce = binary cross-entropy on logits; as = asymmetric; bf = binary focal; mlsml = multilabel
    soft margin (bce divided by the number of labels). For regression: mse, and mse2, which differs
    from it only with reduction=positives. as and bf follow the original in float32, saturation
    included: beyond logits of about ±17 they have hardly any gradient, however wrong the model."""
    reduction: str = setting("mean", choices=("mean", "positives"))
    """mean = mean over the labels present; positives = divide by the number of positive labels in
    the global batch, as the original does (mse divides by the number of labels either way)."""
    pos_weight: list[float] | None = setting(None, above=0, below=math.inf)
    """Weight of positives for bce: one number for all labels, or one per label."""
    gamma_neg: float = setting(4.0, at_least=0, below=math.inf)
    """as: focusing exponent for negative labels."""
    gamma_pos: float = setting(0.0, at_least=0, below=math.inf)
    """as: focusing exponent for positive labels."""
    clip: float = setting(0.05, at_least=0, below=math.inf)
    """as: added to the probability of a negative, which is then cut at 1; 0 = nothing."""
    alpha: float = setting(0.25, at_least=0, at_most=1)
    """bf: weight of positives; negatives have 1 - alpha."""
    gamma: float = setting(2.0, at_least=0, below=math.inf)
    """bf: focusing exponent."""
    ipcw: bool = False
    """Weight each label by its column ipcw.<label> (hpc-ecg cohort --censored ipcw), and divide by
    the sum of the weights in the global batch."""

    def __post_init__(self) -> None:
        check_settings(self, "loss")
        if self.pos_weight is not None and self.name != "bce":
            raise ValueError(f"loss.pos_weight is for loss.name=bce, got loss.name={self.name}")
