r"""Powers of a matrix applied to vectors, in about the square root of as many products.

Sachdeva and Vishnoi, "Faster Algorithms via Approximation Theory", 2014, section 3: of the Chebyshev expansion

.. math:: x^t = 2^{1 - t} \sum_k \binom{t}{(t - k) / 2} T_k(x), \quad k = t, t - 2, \dots,

half of the term for k = 0, the first :math:`\sqrt{2 t \log(2 / \epsilon)}` polynomials hold all but :math:`\epsilon`
of the sum: 84 products do for 256, where rounding to float32 is tolerated, 128 where rounding to float64 is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["apply_power", "chebyshev_coefficients"]


def apply_power(product: Callable[[Tensor], Tensor], values: Tensor, exponent: int, tolerance: float) -> Tensor:
    """Apply a matrix ``exponent`` times, up to rounding and a tolerance.

    Args:
        product: what the matrix makes of a tensor like ``values``, in fresh memory. Its eigenvalues are real and in
            [-1, 1].
        values: floating point; left as it is.
        exponent: not negative.
        tolerance: as of :func:`chebyshev_coefficients`; relative to the largest value.

    Returns:
        Like ``values``.
    """
    first, coefficients = exponent % 2, chebyshev_coefficients(exponent, tolerance)
    previous, current = values, values
    total = torch.zeros_like(values)
    for degree in range(first + 2 * len(coefficients) - 1):
        if degree == 1:
            current = product(values)
        elif degree:
            previous, current = current, product(current).mul_(2).sub_(previous)
        if degree % 2 == first:
            total.add_(current, alpha=coefficients[degree // 2])
    return total


def chebyshev_coefficients(exponent: int, tolerance: float) -> list[float]:
    """The coefficients of :math:`x^t` in Chebyshev polynomials, without a tail that is smaller than the tolerance.

    Args:
        exponent: t, not negative.
        tolerance: what the left out coefficients may sum to, which is the largest error in [-1, 1].

    Returns:
        Those of :math:`T_k` for k = t mod 2 and every second after it; positive, summing to one.
    """
    first = exponent % 2
    # Neighbouring binomial coefficients have simple ratios; the first is taken for one, and the sum normalises.
    coefficient, degree, terms = 1.0, first, []
    while True:
        terms.append(coefficient if degree else coefficient / 2)
        ratio = ((exponent - degree) // 2) / ((exponent + degree) // 2 + 1)
        coefficient, degree = coefficient * ratio, degree + 2
        # The ratios shrink: a geometric series is above what is left.
        if coefficient <= tolerance * (1 - ratio) * sum(terms):
            break
    return [term / sum(terms) for term in terms]
