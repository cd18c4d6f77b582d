"""`linear`: the subblock's update becomes one matrix applied to its normed input (Puzzle, arXiv 2411.19146, section 2).

It starts from the ridge solution on calibration text: of all matrices the one whose updates are nearest the parent's.
The paper starts from the product of the parent's matrices, `linear_from_products`, which ignores softmax and gate.
"""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import SLOTS, Entry
from inlay.nas.modeling import linear_inlay
from inlay.nas.modeling.full_inlay import OUTPUT, VALUE, query_heads
from inlay.nas.modeling.gated_inlay import DOWN, UP
from inlay.nas.modeling.subblock_inlay import MIXERS, NORMS
from inlay.nas.variants.kind import Kind, Place, Value
from inlay.nas.variants.statistics import Products, Statistic, Sums

if TYPE_CHECKING:
    from torch import Tensor


class Linear(Kind):
    """update = W norm(x), with the parent's norm and no bias."""

    name = "linear"
    slots = SLOTS
    trained = True

    def short(self, value: Value) -> str:
        """`lin`."""
        return "lin"

    def entry(self, value: Value, place: Place) -> Entry:
        """An entry without sizes: the matrix is hidden by hidden."""
        return {"kind": linear_inlay.Linear.name}

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """X'X and X'Y of the parent's subblock."""
        return (Products(place.slot),)

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """The parent's norm and the ridge solution."""
        products = sums.of(Products(place.slot))
        norm, weight = f"{NORMS[place.slot]}.weight", f"{MIXERS[place.slot]}.weight"
        solution_DD = ridge(products["xx"], products["xy"], sums.tokens)
        return {norm: state[norm], weight: solution_DD.to(state[norm].dtype)}


def ridge(xx_DD: "Tensor", xy_DD: "Tensor", tokens: int) -> "Tensor":
    """W [D out, D in] that minimises sum |W x - y|^2 + penalty |W|^2, solved in float64 by Cholesky.

    `xx_DD` = X'X and `xy_DD` = X'Y over `tokens` inputs. The penalty is the mean of |x|^2, D/tokens of the mean of
    X'X's diagonal: the Bayesian one when a linear map explains half of y, roughly what it does for a subblock. A test
    holds it against a grid of penalties on unseen text.
    """
    import torch

    xx_DD = xx_DD.double()
    penalty = xx_DD.trace() / tokens
    lower_DD = torch.linalg.cholesky(xx_DD + penalty * torch.eye(len(xx_DD), dtype=torch.float64, device=xx_DD.device))
    weight_DD: Tensor = torch.cholesky_solve(xy_DD.double(), lower_DD).T.contiguous()
    return weight_DD


def linear_from_products(place: Place, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The paper's start, for comparison: W_o W_v (each token attends to itself alone), W_down W_up (no gate)."""
    shape, norm = place.shape, f"{NORMS[place.slot]}.weight"
    if place.slot == "ffn":
        product_DD = state[f"{DOWN}.weight"].double() @ state[f"{UP}.weight"].double()
    else:
        kv_heads = place.own["kv_heads"]
        value_GKD = state[f"{VALUE}.weight"].double().reshape(kv_heads, shape.head_dim, shape.hidden)
        value_HKD = value_GKD.repeat_interleave(query_heads(place.own, shape) // kv_heads, dim=0)
        product_DD = state[f"{OUTPUT}.weight"].double() @ value_HKD.flatten(0, 1)
    return {norm: state[norm], f"{MIXERS[place.slot]}.weight": product_DD.to(state[norm].dtype)}
