"""The sizes of the model: what a user asks for, and what that resolves to.

`ModelConfig` (the `model` section) may leave every size open; `Architecture` has none open. Open
sizes come from the checkpoint, and a size that contradicts it is an error. Names are those of the
original's `cfg.model`, so that a size is called the same everywhere.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hpc_ecg.model.settings import ModelConfig

ConvLayers = tuple[tuple[int, int, int], ...]

LARGEST_SIZE = 2**20
LONGEST_STEM = 32
TERM = re.compile(r"\s*(\[.*\])\s*(?:\*\s*(\d{1,3}))?\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Resolved sizes; the defaults are the published ones (90,374,017 parameters, one label)."""

    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    conv_feature_layers: ConvLayers = ((256, 2, 2),) * 4
    conv_pos: int = 128
    conv_pos_groups: int = 16
    in_d: int = 12


SIZE_NAMES = tuple(f.name for f in fields(Architecture))


def resolve_architecture(config: ModelConfig, checkpoint: Architecture | None) -> Architecture:
    """The sizes to build, given those of the checkpoint. ValueError: an explicit size that differs
    from the checkpoint's, or sizes that do not divide."""
    settings = architecture_to_settings(checkpoint or Architecture())
    requested = {name: getattr(config, name) for name in SIZE_NAMES}
    settings |= {name: size for name, size in requested.items() if size is not None}
    architecture = architecture_from_settings(settings, "model.")
    for name in SIZE_NAMES:
        if checkpoint and getattr(architecture, name) != getattr(checkpoint, name):
            asked, theirs = requested[name], architecture_to_settings(checkpoint)[name]
            raise ValueError(
                f"model.{name}={asked}, but the weights of init.checkpoint have {theirs}; "
                f"leave model.{name} unset to take theirs"
            )
    return architecture


def num_tokens(architecture: Architecture, num_samples: int) -> int:
    """Number of tokens that the stem makes of `num_samples` samples; at least 0."""
    for _, kernel, stride in architecture.conv_feature_layers:
        num_samples = max((num_samples - kernel) // stride + 1, 0)
    return num_samples


def architecture_to_settings(architecture: Architecture) -> dict[str, int | str]:
    """The sizes under the original's names, `conv_feature_layers` as the original's string."""
    settings = {name: getattr(architecture, name) for name in SIZE_NAMES}
    return settings | {"conv_feature_layers": format_conv_layers(architecture.conv_feature_layers)}


def architecture_from_settings(settings: Mapping[str, object], where: str) -> Architecture:
    """An Architecture from values under the original's names (`cfg.model`, our metadata).

    `where` is the prefix for error messages (`model.` or `base_ssl.pt: cfg.model.`). ValueError: a
    size that is missing, out of range, or does not divide the width."""
    missing = [name for name in SIZE_NAMES if name not in settings]
    if missing:
        raise ValueError(f"{where}{missing[0]} is missing; every size must be stated")
    sizes = {name: settings[name] for name in SIZE_NAMES if name != "conv_feature_layers"}
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
            raise ValueError(
                f"{where}{name} must be between 1 and {LARGEST_SIZE}, got {show_value(size)}"
            )
    text = settings["conv_feature_layers"]
    layers = parse_conv_layers(text, f"{where}conv_feature_layers")
    architecture = Architecture(conv_feature_layers=layers, **sizes)  # type: ignore[arg-type]
    for name in ("encoder_attention_heads", "conv_pos_groups"):
        if architecture.encoder_embed_dim % getattr(architecture, name):
            raise ValueError(
                f"{where}{name}={getattr(architecture, name)} must divide "
                f"encoder_embed_dim={architecture.encoder_embed_dim}"
            )
    return architecture


def format_conv_layers(layers: ConvLayers) -> str:
    """`[(256, 2, 2)] * 4`, as the original writes it, or the plain list if the layers differ."""
    if len(set(layers)) == 1:
        return f"[{layers[0]}] * {len(layers)}"
    return repr(list(layers))


def parse_conv_layers(text: object, name: str) -> ConvLayers:
    """Read (channels, kernel, stride) per layer from the original's text, lists joined by `+` that
    `* n` may follow, without evaluating it; the number of layers is bounded."""
    layers: list[Any] = []
    try:
        terms = [TERM.fullmatch(term) for term in str(text)[: 40 * LONGEST_STEM + 1].split("+")]
        for part, times in (term.groups() if term else ("", "") for term in terms):
            layers += ast.literal_eval(part) * int(times or 1)
        sizes = [size for layer in layers for size in (*layer, *[0] * (len(layer) != 3))]
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        sizes = [0]
    is_whole = all(type(size) is int and 1 <= size <= LARGEST_SIZE for size in sizes)
    if not is_whole or not 1 <= len(layers) <= LONGEST_STEM or not isinstance(text, str):
        raise ValueError(
            f"{name} must be a list of (channels, kernel, stride) such as '[(256, 2, 2)] * 4' "
            f"with 1 to {LONGEST_STEM} layers, got {show_value(text)}"
        )
    return tuple((channels, kernel, stride) for channels, kernel, stride in layers)


def show_value(value: object) -> str:
    """A value from a file, which may be anything, as text: plain ones cut short, else the type."""
    plain = value is None or isinstance(value, int | float | str)
    return repr(value)[:80] if plain else f"a {type(value).__name__}"
