"""What moved a model's output for one ECG: integrated gradients, occlusion and deletion.

All compare the ECG with one reference: a piece (one segment of one beat in one lead) is replaced by
the straight line between its ends. A flat line would be a bad reference: the first layer normalizes
each channel over time, so between a flat line and the ECG the output jumps where the signal has 1 %
of its size, and the sum of the gradients at 32 points was off by 4 to 17 logits.
"""
# B batch, L leads, S samples, P pieces of a lead, N = L · P pieces, M members of an ensemble

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from hpc_ecg.ecg.delineation import SEGMENTS, FloatArray, segment
from hpc_ecg.ecg.signal import SignalSpec

POINTS, TOLERANCE = (24, 96), 0.1
"""Points of the path (Gauss-Legendre): more if the map's sum is off by more than this."""
BATCH = 8
"""ECGs in memory at a time."""


class DividedECG:
    """An ECG in mV [L, S], recorded up to `samples`, cut into pieces that start at `starts` [P] and
    belong to `segment_P` (numbers in SEGMENTS). ValueError: too few heartbeats."""

    def __init__(self, ecg_LS: NDArray, samples: int, signal: SignalSpec) -> None:
        self.ecg_LS, self.samples = ecg_LS.astype(np.float64), samples
        recorded_LS, rate_hz = self.ecg_LS[:, :samples], signal.sample_rate_hz
        segment_S, self.beats, self.unmeasured = segment(recorded_LS, signal.leads, rate_hz)
        self.starts = np.r_[0, np.flatnonzero(np.diff(segment_S)) + 1]
        self.segment_P = segment_S[self.starts]
        self.shape = (len(ecg_LS), len(self.starts))

    def without(self, is_out_LP: NDArray[np.bool_]) -> FloatArray:
        """The ECG [L, S] with some pieces replaced by the line between their ends."""
        out_LS = self.ecg_LS.copy()
        for p, (start, end) in enumerate(pairwise([*self.starts, self.samples])):
            first_L, last_L = self.ecg_LS[:, [max(start - 1, 0), min(end, self.samples - 1)]].T
            line_LS = np.linspace(first_L, last_L, end - start + 2, axis=1)[:, 1:-1]
            out_LS[is_out_LP[:, p], start:end] = line_LS[is_out_LP[:, p]]
        return out_LS

    def sums(self, map_LS: FloatArray) -> FloatArray:
        """A map summed by piece [L, P]."""
        return np.add.reduceat(map_LS[:, : self.samples], self.starts, axis=1)


class LabelOutput(nn.Module):
    """One label's output [B] of a model or an ensemble: its value in a regression, else the logit
    (of an ensemble, that of the mean probability). In eval mode. `platt`: of each member."""

    def __init__(
        self,
        members: Sequence[nn.Module],
        label: int,
        is_regression: bool,
        platt: Sequence[tuple[float, float]] = (),
    ) -> None:
        super().__init__()
        self.members, self.label = nn.ModuleList(members), label
        self.platt = list(platt) or [(1.0, 0.0)] * len(members)
        self.is_mean = is_regression or len(members) == 1
        self.requires_grad_(False).eval()

    def forward(self, ecg_BLS: Tensor, mask_BS: Tensor | None) -> Tensor:
        logits = (member(ecg_BLS, mask_BS)[:, self.label] for member in self.members)
        pairs = zip(self.platt, logits, strict=True)
        out_MB = torch.stack([slope * logit_B + offset for (slope, offset), logit_B in pairs])
        if self.is_mean:
            return out_MB.mean(dim=0)
        return logsigmoid(out_MB).logsumexp(dim=0) - logsigmoid(-out_MB).logsumexp(dim=0)

    def inputs(self, ecg_BLS: NDArray, samples_B: NDArray) -> tuple[Tensor, Tensor | None]:
        """ECGs and padding mask on the model's device; no mask if nothing is padded."""
        device = next(self.parameters()).device
        is_padded_BS = np.arange(ecg_BLS.shape[2]) >= samples_B[:, None]
        mask_BS = torch.from_numpy(is_padded_BS).to(device) if is_padded_BS.any() else None
        return torch.from_numpy(ecg_BLS.astype(np.float32)).to(device), mask_BS

    @torch.no_grad()
    def outputs(self, ecgs: Sequence[FloatArray], samples: int) -> FloatArray:
        """The output of each ECG [L, S], in batches that are filled, float64."""
        found = []
        for start in range(0, len(ecgs), BATCH):
            ecg_BLS = np.stack([*ecgs[start : start + BATCH], *[ecgs[0]] * BATCH][:BATCH])
            output_B = self(*self.inputs(ecg_BLS, np.full(BATCH, samples)))
            found.append(output_B.double().cpu().numpy())
        return np.concatenate(found)[: len(ecgs)]


def attribute(network: LabelOutput, ecg: DividedECG) -> tuple[FloatArray, float]:
    """Integrated gradients (Sundararajan 2017) from the ECG without any of its pieces: the map
    [L, S], and what its sum lacks of the whole change."""
    reference_LS, samples = ecg.without(np.ones(ecg.shape, bool)), np.array([ecg.samples])
    inputs, mask = network.inputs(ecg.ecg_LS[None], samples)
    reference, _ = network.inputs(reference_LS[None], samples)
    for points in POINTS:
        call = inputs, reference, None, (mask,), points, "gausslegendre", BATCH, True
        map_1LS, missing = IntegratedGradients(network).attribute(*call)
        if abs(float(missing)) <= TOLERANCE:
            break
    return map_1LS[0].double().cpu().numpy(), abs(float(missing))


def occlude(network: LabelOutput, ecg: DividedECG) -> FloatArray:
    """What is lost of the output without a lead's segment: [L + 1, SEGMENTS + 1]; the last row is
    all leads, the last column all segments at once. Above 0: the part raises the output."""
    leads = [*np.eye(ecg.shape[0], dtype=bool), np.ones(ecg.shape[0], bool)]
    parts = [*(ecg.segment_P == number for number in range(len(SEGMENTS))), ecg.segment_P >= 0]
    ecgs = [ecg.without(np.outer(lead, part)) for lead in leads for part in parts]
    whole, *rest = network.outputs([ecg.ecg_LS, *ecgs], ecg.samples)
    return (whole - np.array(rest)).reshape(len(leads), len(parts))
