"""`linear`: the subblock's update becomes one matrix applied to its normed input (Puzzle, arXiv 2411.19146, section 2).

It starts from the ridge solution on calibration text: of all matrices the one whose updates are nearest the parent's.
The paper starts from the product of the parent's matrices, `linear_from_products`, which ignores softmax and gate.
"""

from typing import TYPE_CHECKING, Final

from inlay.nas.families.shape import (
    ATTENTION,
    ATTENTION_NORM,
    DOWN,
    FFN,
    FFN_NORM,
    OUTPUT,
    SLOTS,
    UP,
    VALUE,
    Entry,
    Shape,
    Slot,
)
from inlay.nas.variants.kind import Kind, Value

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums

_NAMES: Final[dict[Slot, tuple[str, str]]] = {
    "attention": (f"{ATTENTION_NORM}.weight", f"{ATTENTION}.weight"),
    "ffn": (f"{FFN_NORM}.weight", f"{FFN}.weight"),
}


class Linear(Kind):
    """update = W norm(x), with the parent's norm and no bias."""

    name = "linear"
    slots = SLOTS
    trained = True

    def entry(self, value: Value, slot: Slot, shape: Shape, layer: int) -> Entry:
        """An entry without sizes: the matrix is hidden by hidden."""
        return {"kind": "linear"}

    def start(
        self, value: Value, slot: Slot, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None"
    ) -> "dict[str, Tensor]":
        """The parent's norm and the ridge solution. Needs `sums` with products."""
        products = None if sums is None else sums.products(slot)
        if sums is None or products is None:
            raise ValueError("`linear` starts from X'X and X'Y; run calibrate with products first.")
        norm, weight = _NAMES[slot]
        return {norm: state[norm], weight: ridge(*products, sums.tokens).to(state[norm].dtype)}


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


def linear_from_products(slot: Slot, shape: Shape, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The paper's start, for comparison: W_o W_v (each token attends to itself alone), W_down W_up (no gate)."""
    norm, weight = _NAMES[slot]
    if slot == "ffn":
        product_DD = state[f"{DOWN}.weight"].double() @ state[f"{UP}.weight"].double()
    else:
        value_GKD = state[f"{VALUE}.weight"].double().reshape(shape.kv_heads, shape.head_dim, shape.hidden)
        value_HKD = value_GKD.repeat_interleave(shape.q_heads // shape.kv_heads, dim=0)
        product_DD = state[f"{OUTPUT}.weight"].double() @ value_HKD.flatten(0, 1)
    return {norm: state[norm], weight: product_DD.to(state[norm].dtype)}
