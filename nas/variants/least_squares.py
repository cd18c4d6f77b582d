"""The last matrix of a subblock by least squares, and what it needs least, from sums over calibration text."""

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


def refitted(weight_DO: "Tensor", zz_OO: "Tensor", kept: "Tensor", tokens: int) -> "Tensor":
    """Columns [D, kept], float64, for the kept inputs alone, nearest to what all give over `tokens` tokens."""
    rows_KO = zz_OO[kept].double()
    return fitted(weight_DO[:, kept], rows_KO[:, kept], rows_KO @ weight_DO.double().T, tokens)


STEPS_A_HALVING = 90
"""In about so many steps half of the inputs go: products of matrices, instead of one vector after the other."""


def least_missed(weight_DO: "Tensor", zz_OO: "Tensor", count: int, tokens: int, together: int = 1) -> "Tensor":
    """Indices, ascending, of the `count` inputs z that stay when those go which W z misses least.

    What an input's loss costs when all others are fitted anew is |its column|^2 over its diagonal entry of the inverse
    of Z'Z (Optimal Brain Surgeon, Hassibi and Stork 1992, for the rows of a matrix at once). Where neighbours go
    `together`, so many at once, the diagonal entry is a diagonal block, and the cost the trace of their columns'
    products over it. A few go at a time, one where there are few; columns and inverse are then those of a problem that
    never had them. In float64, with `fitted`'s penalty; it takes O^2 operations times the number of those that go.

    T inputs go together, N times so many are left.
    """
    import torch

    zz_OO = zz_OO.double()
    eye_OO = torch.eye(len(zz_OO), dtype=torch.float64, device=zz_OO.device)
    inverse_OO = torch.cholesky_inverse(torch.linalg.cholesky(zz_OO + zz_OO.trace() / tokens * eye_OO))
    weight_DO, left = weight_DO.double(), torch.arange(len(zz_OO), device=zz_OO.device)
    while len(left) > count:
        places_NT = torch.arange(len(left), device=left.device).view(-1, together)
        columns_NTD = weight_DO.T.reshape(-1, together, len(weight_DO))
        blocks_NTT = inverse_OO[places_NT[:, :, None], places_NT[:, None, :]]
        missed_NTT = torch.linalg.solve(blocks_NTT, columns_NTD @ columns_NTD.mT)
        order_N = missed_NTT.diagonal(dim1=1, dim2=2).sum(dim=1).argsort(stable=True)
        going = min((len(left) - count) // together, max(1, len(order_N) // (2 * STEPS_A_HALVING)))
        gone, stay = (places_NT[chosen.msort()].flatten() for chosen in (order_N[:going], order_N[going:]))
        shares_GO = torch.linalg.solve(inverse_OO[gone][:, gone], inverse_OO[gone])
        weight_DO = (weight_DO - weight_DO[:, gone] @ shares_GO)[:, stay]
        inverse_OO = (inverse_OO - inverse_OO[:, gone] @ shares_GO)[stay][:, stay]
        left = left[stay]
    return left
