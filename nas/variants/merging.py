"""Fewer KV heads out of many, with the least change of scores and of what values give the output.

A group's queries share one key and one value afterwards. Both are chosen by the second moments of the attention's own
input, and queries and output projection are changed to read them, so that nothing is lost which one head can hold:

- Values: of all matrices of a head's rank that which keeps most of sum_h |W_o^h v|^2, by a singular value
  decomposition. What it drops is least for every head's own columns of the output projection.
- Keys: a rotary position turns dimensions i and i + K/2 together, so that what commutes with it are complex factors,
  one a head and frequency. For each frequency the shared key is the first principal component of the group's complex
  keys, weighted by the energy of the queries that read them; the factors go into these queries.
- Groups are of equal size and those of the least damage: what every pair of heads would lose, summed over the pairs
  within groups, by swaps from neighbours until none is better.

A head's norm (Qwen3) is no linear map: there keys are the mean of the group's, and queries stay.
Shapes: D model width, E = D + 1 with a bias or D without, G KV heads, H query heads, K head size, F = K/2 frequencies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inlay.nas.families.shape import Shape
from inlay.nas.modeling.full_inlay import KEY, OUTPUT, QUERY, VALUE

Groups = Sequence[Sequence[int]]
LEAST = 1e-9
"""The least energy of anything, relative to the most: what is never read has a metric too."""


def merged(shape: Shape, state: dict[str, Tensor], moments_EE: Tensor, heads: int, own: int) -> dict[str, Tensor]:
    """The four projections with `heads` KV heads in place of `own`, by layer-local names, in the dtypes of `state`.

    `moments_EE` is the mean of x x' over inputs x of the attention, with a 1 behind each x where projections have a
    bias. Query heads change their order where heads are merged that are no neighbours.
    """
    attention = _Attention(shape, state, moments_EE.double(), own)
    parts = [attention.group(members) for members in attention.groups(heads)]
    found = {
        f"{QUERY}.weight": torch.cat([part.query_HKE for part in parts]).flatten(0, 1),
        f"{KEY}.weight": torch.cat([part.key_KE for part in parts]),
        f"{VALUE}.weight": torch.cat([part.value_KE for part in parts]),
    }
    if shape.qkv_bias:
        found |= {name.replace(".weight", ".bias"): joint[:, -1].clone() for name, joint in found.items()}
        found |= {name: found[name][:, :-1].contiguous() for name in found if name.endswith(".weight")}
    found[f"{OUTPUT}.weight"] = torch.cat([part.output_HDK for part in parts]).permute(1, 0, 2).flatten(1)
    return {name: tensor.to(state[name].dtype) for name, tensor in found.items()}


@dataclass(frozen=True)
class _Group:
    """One new KV head with the query heads that read it, in their new order."""

    query_HKE: Tensor
    key_KE: Tensor
    value_KE: Tensor
    output_HDK: Tensor


class _Attention:
    """The parent's heads, in float64, and the metrics in which they are compared."""

    def __init__(self, shape: Shape, state: dict[str, Tensor], moments_EE: Tensor, own: int) -> None:
        def joint(name: str) -> Tensor:
            weight = state[f"{name}.weight"].double()
            if shape.qkv_bias:
                weight = torch.cat([weight, state[f"{name}.bias"].double()[:, None]], dim=1)
            return weight.view(-1, shape.head_dim, weight.shape[1])

        self.moments_EE = moments_EE
        self.is_normed = shape.qk_norm
        self.query_HKE, self.key_GKE, self.value_GKE = joint(QUERY), joint(KEY), joint(VALUE)
        self.output_HDK = (
            state[f"{OUTPUT}.weight"].double().view(shape.hidden, -1, shape.head_dim).permute(1, 0, 2).contiguous()
        )
        self.count, self.queries = own, len(self.query_HKE) // own

    def groups(self, count: int) -> Groups:
        """So many groups of equal size that merging loses least."""
        if count == 1 or count == self.count:
            return least_damage([[0.0] * self.count] * self.count, count)
        return least_damage(self.damage_GG().tolist(), count)

    def group(self, members: Sequence[int]) -> _Group:
        """The heads `members` as one."""
        readers = [member * self.queries + number for member in members for number in range(self.queries)]
        key_KE, turned_HKE = self._shared_key(members, readers)
        value_KE, output_HDK = self._shared_value(members, readers)
        return _Group(turned_HKE, key_KE, value_KE, output_HDK)

    def _shared_key(self, members: Sequence[int], readers: Sequence[int]) -> tuple[Tensor, Tensor]:
        query_HKE, key_GKE = self.query_HKE[readers], self.key_GKE[members]
        if self.is_normed:
            return key_GKE.mean(0), query_HKE
        energy_FG = self._query_energy_FG[:, members]
        root_FG = energy_FG.sqrt()
        first_FG = torch.linalg.eigh(self._key_FGG[:, members][:, :, members]).eigenvectors[..., -1]
        # k_g is about factor_g k', and k' the sum of weight_g k_g; queries keep their energy.
        factor_FG, weight_FG = first_FG / root_FG, first_FG.conj() * root_FG
        size_F1 = ((energy_FG * factor_FG.abs() ** 2).sum(1) / energy_FG.sum(1)).sqrt()[:, None]
        key_FE = torch.einsum("fg,gfe->fe", weight_FG * size_F1, _complex(key_GKE))
        factor_HF = (factor_FG / size_F1).T.repeat_interleave(self.queries, dim=0)
        return _real(key_FE), _real(_complex(query_HKE) * factor_HF.conj()[..., None])

    def _shared_value(self, members: Sequence[int], readers: Sequence[int]) -> tuple[Tensor, Tensor]:
        size = self.value_GKE.shape[1]
        metric = self._value_GKGK[members][:, :, members].flatten(2).flatten(0, 1)
        first = torch.linalg.eigh(metric).eigenvectors[:, -size:].view(len(members), size, size)
        roots_GKK = self._roots_GKK[members]
        value_KE = torch.einsum("gaj,gab,gbe->je", first, roots_GKK, self.value_GKE[members])
        back_GKK = torch.linalg.solve(roots_GKK, first)
        # As large as the parent's own: an optimizer's steps know no scale.
        own = self.value_GKE[members].square().mean()
        scale = (own / value_KE.square().mean().clamp_min(LEAST * own)).sqrt() if own > 0 else torch.ones_like(own)
        back_HKK = (back_GKK / scale).repeat_interleave(self.queries, dim=0)
        return value_KE * scale, self.output_HDK[readers] @ back_HKK

    @cached_property
    def _roots_GKK(self) -> Tensor:
        """Symmetric roots of what the output projection makes of values: |root v|^2 = sum over readers |W_o v|^2."""
        by_head = self.output_HDK.view(self.count, self.queries, *self.output_HDK.shape[1:])
        metric_GKK = torch.einsum("ghda,ghdb->gab", by_head, by_head)
        values_GK, vectors_GKK = torch.linalg.eigh(metric_GKK)
        most = values_GK.amax().clamp_min(torch.finfo(values_GK.dtype).tiny)
        values_GK = values_GK.clamp_min(LEAST * most)
        roots_GKK: Tensor = vectors_GKK * values_GK.sqrt()[:, None, :] @ vectors_GKK.mT
        return roots_GKK

    @cached_property
    def _value_GKGK(self) -> Tensor:
        """Second moments of all heads' values in the metric of the output projection."""
        rooted_GKE = self._roots_GKK @ self.value_GKE
        return torch.einsum("gae,ef,hbf->gahb", rooted_GKE, self.moments_EE, rooted_GKE)

    @cached_property
    def _query_energy_FG(self) -> Tensor:
        """Mean |q|^2 of a frequency over inputs, summed over the readers of a key."""
        query_HFE = _complex(self.query_HKE)
        moved_HFE = query_HFE @ self.moments_EE.to(query_HFE.dtype)
        energy_HF = (moved_HFE * query_HFE.conj()).real.sum(-1)
        energy_FG = energy_HF.view(self.count, self.queries, -1).sum(1).T
        most = energy_FG.amax().clamp_min(torch.finfo(energy_FG.dtype).tiny)
        filled_FG: Tensor = energy_FG.clamp_min(LEAST * most)
        return filled_FG

    @cached_property
    def _key_FGG(self) -> Tensor:
        """Second moments of all heads' complex keys, frequency by frequency, in the metric of their queries."""
        rooted_GFE = _complex(self.key_GKE) * self._query_energy_FG.T.sqrt()[..., None]
        moved_GFE = rooted_GFE @ self.moments_EE.to(rooted_GFE.dtype)
        return torch.einsum("gfe,hfe->fgh", moved_GFE, rooted_GFE.conj())

    def damage_GG(self) -> Tensor:
        """What every two heads would lose as one, of all that values give and of all that keys are asked for."""
        value_GG = torch.zeros(self.count, self.count, dtype=torch.float64, device=self.moments_EE.device)
        key_GG = torch.zeros_like(value_GG)
        size = self.value_GKE.shape[1]
        for pair in itertools.combinations(range(self.count), 2):
            metric = self._value_GKGK[list(pair)][:, :, list(pair)].flatten(2).flatten(0, 1)
            value_GG[pair] = torch.linalg.eigvalsh(metric)[:-size].sum()
            key_GG[pair] = torch.linalg.eigvalsh(self._key_FGG[:, pair][:, :, pair])[:, 0].sum()
        value_GG /= self._value_GKGK.flatten(2).flatten(0, 1).trace().clamp_min(torch.finfo(torch.float64).tiny)
        key_GG /= self._key_FGG.diagonal(dim1=1, dim2=2).real.sum().clamp_min(torch.finfo(torch.float64).tiny)
        damage_GG = value_GG if self.is_normed else value_GG + key_GG
        return damage_GG + damage_GG.T


def least_damage(damage_GG: Sequence[Sequence[float]], count: int) -> list[list[int]]:
    """`count` groups of equal size, each ascending, where no swap of two heads makes the pairs' damage less."""
    size = len(damage_GG) // count
    groups = [list(range(first, first + size)) for first in range(0, len(damage_GG), size)]

    def gain(one: list[int], other: list[int], a: int, b: int) -> float:
        row_a, row_b = damage_GG[one[a]], damage_GG[other[b]]
        mine = sum(row_a[head] - row_b[head] for place, head in enumerate(one) if place != a)
        theirs = sum(row_b[head] - row_a[head] for place, head in enumerate(other) if place != b)
        return mine + theirs

    while True:
        swaps = [
            (gain(one, other, a, b), one, other, a, b)
            for one, other in itertools.combinations(groups, 2)
            for a in range(size)
            for b in range(size)
        ]
        best, one, other, a, b = max(swaps, key=lambda swap: swap[0], default=(0.0, [], [], 0, 0))
        if best <= LEAST:
            return sorted(sorted(group) for group in groups)
        one[a], other[b] = other[b], one[a]


def _complex(weight: Tensor) -> Tensor:
    """[.., K, E] as [.., F, E]: dimensions i and i + K/2, which a rotary position turns together."""
    real, imaginary = weight.chunk(2, dim=-2)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def _real(weight: Tensor) -> Tensor:
    return torch.cat([weight.real, weight.imag], dim=-2)
