"""The positional convolution over tokens by other algorithms than torch's, with the same numbers.

By FFT: products of spectra in fp32, a thirtieth of the operations at the published sizes. By
unfolding: for each group a matrix product of windows of the input with BLOCK shifted copies of the
weight, one for each output of a window, so that it is wide enough for matrix units. Both give
output t from inputs t - K//2 to t + K - 1 - K//2.
"""
# B batch, T tokens, D width, K kernel, G groups, I and O channels of a group, N windows or spectrum

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

BLOCK = 8


def convolve_by_fft(x_BTD: Tensor, weight_DIK: Tensor, bias_D: Tensor, groups: int) -> Tensor:
    """[B, T, D] -> [B, T, D]."""
    num_tokens, kernel = x_BTD.shape[1], weight_DIK.shape[-1]
    before, dtype = kernel // 2, _result_dtype(x_BTD)
    length = next_fast_len(num_tokens + before, real=True)
    with torch.autocast(x_BTD.device.type, enabled=False):
        padded_BDT = F.pad(x_BTD.float().transpose(1, 2), (before, length - num_tokens - before))
        x_BGIN = torch.fft.rfft(padded_BDT).unflatten(1, (groups, -1))
        weight_DIN = torch.fft.rfft(weight_DIK.float(), n=length).conj()
        weight_GOIN = weight_DIN.unflatten(0, (groups, -1))
        out_BDN = torch.einsum("bgin,goin->bgon", x_BGIN, weight_GOIN).flatten(1, 2)
        out_BDT = torch.fft.irfft(out_BDN, n=length)[..., :num_tokens]
        return (out_BDT.transpose(1, 2) + bias_D).to(dtype)


def convolve_unfolded(x_BTD: Tensor, weight_DIK: Tensor, bias_D: Tensor, groups: int) -> Tensor:
    """[B, T, D] -> [B, T, D]."""
    num_records, num_tokens, width = x_BTD.shape
    kernel, dtype = weight_DIK.shape[-1], _result_dtype(x_BTD)
    missing = -num_tokens % BLOCK
    padding = (kernel // 2, kernel - 1 - kernel // 2 + missing)
    padded_BDT = F.pad(x_BTD.to(dtype).transpose(1, 2), padding)
    x_BGINK = padded_BDT.unfold(2, kernel + BLOCK - 1, BLOCK).unflatten(1, (groups, -1))
    windows = x_BGINK.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)  # [G, B N, I K]
    weight_GOIK = weight_DIK.to(dtype).unflatten(0, (groups, -1))
    shifted = [F.pad(weight_GOIK, (shift, BLOCK - 1 - shift)) for shift in range(BLOCK)]
    weight = torch.stack(shifted, 1).flatten(3).flatten(1, 2)  # [G, BLOCK O, I K]
    out = (windows @ weight.transpose(1, 2)).view(groups, num_records, -1, width // groups)
    return out.permute(1, 2, 0, 3).flatten(2)[:, :num_tokens] + bias_D.to(dtype)


def _result_dtype(x_BTD: Tensor) -> torch.dtype:
    """The dtype of torch's own convolution of this input."""
    kind = x_BTD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_BTD.dtype
