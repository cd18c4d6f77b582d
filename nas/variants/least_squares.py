"""The last matrix of a subblock by least squares, from sums over calibration text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def fitted(weight_DO: "Tensor", zz_OO: "Tensor", zy_OD: "Tensor", tokens: int) -> "Tensor":
    """W [D, O], float64, of the least sum |W z - y|^2 + penalty |W - weight|^2 over `tokens` inputs, by Cholesky.

    `zz_OO` = Z'Z and `zy_OD` = Z'Y. The penalty is the mean of |z|^2, that of `linear.ridge`, here towards `weight`:
    the fewer tokens, the nearer to it.
    """
    import torch

    weight_DO, zz_OO = weight_DO.double(), zz_OO.double()
    penalty = zz_OO.trace() / tokens
    lower_OO = torch.linalg.cholesky(zz_OO + penalty * torch.eye(len(zz_OO), dtype=torch.float64, device=zz_OO.device))
    off_OD = zy_OD.double() - zz_OO @ weight_DO.T
    better_DO: Tensor = weight_DO + torch.cholesky_solve(off_OD, lower_OO).T
    return better_DO
