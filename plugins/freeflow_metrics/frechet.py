"""Fréchet distance between Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson & Landau 1982; FID in Heusel et al. 2017, eq. 6).

    Tr (C1 C2)^(1/2) is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric:
    two float64 eigendecompositions instead of a general matrix square root, no imaginary parts, and singular
    covariances need no special care. Rounding below zero is clamped: the result is never negative.

    Args:
        mean1, mean2: (F,).
        covariance1, covariance2: (F, F), symmetric and positive semi-definite.
    """
    mean1, covariance1, mean2, covariance2 = (x.double() for x in (mean1, covariance1, mean2, covariance2))
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ covariance2 @ root
    trace_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * trace_root
    return max(0.0, float(distance))
