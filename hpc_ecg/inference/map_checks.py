"""Does a map show what the model has learned? Three checks; if one fails, no map is drawn.

- weights (Adebayo 2018): shuffle the values within every tensor. The map must become another one,
  and deleting what it marks must move the output much less. A network that has learned nothing is
  only one more shuffle: its map may be true to it, and still means nothing.
- deletion: deleting what the map marks must move the output further than any random order.
- seeds: models that differ in their seed alone must have similar maps.

On synthetic AF, models that had learned moved 3.7 to 12 times as far as the strongest shuffle,
40 with random weights at most 1.55 times; seeds of one trained start agreed with 0.43 to 0.95.
"""

import copy
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hpc_ecg.ecg.delineation import FloatArray
from hpc_ecg.inference.attribution import DividedECG, LabelOutput, attribute
from hpc_ecg.log import tracked

BOUNDS = {"shuffles": 3, "orders": 9, "similarity": 0.5, "ratio": 2.0, "agreement": 0.3}
"""Numbers of shuffles and of random orders; the largest rank correlation with a shuffled model's
map, the least effect relative to theirs; the least rank correlation between seeds."""
DELETIONS = 5
Maps = Sequence[tuple[DividedECG, NDArray]]
"""ECGs with their maps by piece [L, P]."""


def _explain(network: LabelOutput, ecgs: Sequence[DividedECG]) -> Maps:
    return [(ecg, ecg.sums(attribute(network, ecg)[0])) for ecg in ecgs]


def check_maps(
    network: LabelOutput, maps: Maps, seeds: Sequence[LabelOutput], seed: int
) -> dict[str, Any]:
    """Check a network's maps; `seeds`: models that differ from each other in their seed alone.

    The figures are means over the maps. `passed`: by check; None: it could not be made. `curves`:
    deletion curves of the first ECG, by its map and by random orders."""
    rng, ecgs = np.random.default_rng(seed), [ecg for ecg, _ in maps]
    orders, (gap, curves) = int(BOUNDS["orders"]), _delete(network, maps)
    deleted = (
        _delete(network, [(ecg, rng.permutation(map_LP.size)) for ecg, map_LP in maps])
        for _ in range(orders)
    )
    random = list(tracked("random orders of deletion", deleted, orders))
    others = [_shuffle(network, seed + n) for n in range(int(BOUNDS["shuffles"]))]
    shuffled = list(tracked("shuffled models", (_explain(o, ecgs) for o in others), len(others)))
    strongest = max(_delete(*pair)[0] for pair in zip(others, shuffled, strict=True))
    similarity = max((_agreement(maps, other) for other in shuffled), key=abs)
    # the reverse of a random order has the area with the other sign
    found = {"gap": gap, "shuffled": strongest, "similarity": similarity}
    found["random"] = max(abs(area) for area, _ in random)
    passed: dict[str, bool | None] = {
        "weights": abs(similarity) <= BOUNDS["similarity"] and gap >= BOUNDS["ratio"] * strongest,
        "deletion": gap > found["random"],
        "seeds": None,
    }
    if len(seeds) > 1:
        pairs = combinations([_explain(other, ecgs) for other in seeds], 2)
        found["agreement"] = float(np.mean([_agreement(*pair) for pair in pairs]))
        passed["seeds"] = found["agreement"] >= BOUNDS["agreement"]
    shown = [curves, *(curves for _, curves in random)]
    return found | {"passed": passed, "has_map": False not in passed.values(), "curves": shown}


def _delete(network: LabelOutput, maps: Maps) -> tuple[float, FloatArray]:
    """Replace more and more pieces by lines, first those that raise the output most by the maps,
    and in reverse. The outputs of the first ECG [2, DELETIONS + 1]; the mean area between both
    curves, over the fraction deleted."""
    curves = []
    for ecg, map_LP in maps:
        order_N = np.argsort(-map_LP.ravel(), kind="stable")
        ranks = np.argsort(order_N), np.argsort(order_N[::-1])
        counts = np.linspace(0, len(order_N), DELETIONS + 1)
        ecgs = [ecg.without((rank_N < n).reshape(ecg.shape)) for rank_N in ranks for n in counts]
        curves.append(network.outputs(ecgs, ecg.samples).reshape(2, -1))
    areas = [np.trapezoid(reverse - first) / DELETIONS for first, reverse in curves]
    return float(np.mean(areas)), curves[0]


def _shuffle(network: LabelOutput, seed: int) -> LabelOutput:
    other, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    for tensor in other.parameters():
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        tensor.data = tensor.data.flatten()[order].view(tensor.shape)
    return other


def _agreement(first: Maps, second: Maps) -> float:
    """Mean Spearman correlation of two models' maps over their pieces; 0 for a constant map."""
    pairs = zip(first, second, strict=True)
    found = [spearmanr(a_LP.ravel(), b_LP.ravel())[0] for (_, a_LP), (_, b_LP) in pairs]
    return float(np.mean(np.nan_to_num(found)))
