"""Hyperbolic space, curvature -1, in two models: the hyperboloid and the Poincaré ball.

geoopt's models clamp arccosh and artanh, which loses every distance below 1e-7. Here distances are of the
difference of two points: `2 asinh(|p - q|_L / 2)` on the hyperboloid (Ratcliffe 2019, section 3.2), in the
ball `2 artanh |(-y) + z|` with the Möbius difference written without cancellation (Ungar 2008). Far from the
origin the form's two parts nearly cancel too; there it is a sum of squares along and across a direction.
"""

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.lifting import Lifted


def sinhc(length: Tensor) -> Tensor:
    """Returns `sinh(x) / x`, 1 at 0."""
    small = length.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(length), length)
    return torch.where(small, 1 + length.square() / 6, torch.sinh(safe) / safe)


def minkowski(u: Tensor, v: Tensor, *, keepdim: bool = False) -> Tensor:
    """Returns the form `-u_0 v_0 + sum_i u_i v_i` over the last dimension."""
    whole = u * v
    return whole[..., 1:].sum(-1, keepdim=keepdim) - (whole[..., :1] if keepdim else whole[..., 0])


_REACH = 5.0
"""Length up to which a vector keeps 12 digits in the ball: its point is `2 exp(-2 |x|)` from the edge."""


class AbstractHyperbolic(AbstractManifold):
    """What both models share: the curvature, and what follows from it.

    No two points have more than one shortest path, nor a set of points more than one mean (Cartan-Hadamard).
    """

    ndim = 1
    reversible = False

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        del mean, points
        return torch.ones(weights.shape[:-1], dtype=torch.bool, device=weights.device)

    def safe_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns the gradient over a bound of the Hessian, `sum_i w_i t_i coth t_i`."""
        length = self.norm(point.unsqueeze(-2), logs)
        bound = (weights * torch.cosh(length) / sinhc(length)).sum(-1, keepdim=True)
        return gradient / bound

    def mean_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        return self.safe_step(point, logs, weights, gradient)


class Lorentz(AbstractHyperbolic):
    """Points `[..., n + 1]` of the hyperboloid `<p, p>_L = -1, p_0 > 0`; any vector of R^n lifts onto it.

    >>> import torch
    >>> lorentz = Lorentz()
    >>> origin = lorentz.project(torch.zeros(3, dtype=torch.float64))
    >>> reached = lorentz.exp(origin, torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64))
    >>> round(float(lorentz.dist(origin, reached)), 9)
    2.0
    """

    name = "Lorentz"

    def projx(self, x: Tensor) -> Tensor:
        """Keeps the last n coordinates and sets the first by them."""
        space = x[..., 1:]
        return torch.cat([(1 + space.square().sum(-1, keepdim=True)).sqrt(), space], -1)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u + minkowski(x, u, keepdim=True) * x

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return self.proju(x, torch.cat([-u[..., :1], u[..., 1:]], -1))

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """Returns `<u, v>_L` of two tangents as a sum without cancellation.

        A tangent's first coordinate follows from the others, `u_0 = x . u / x_0`, so with their parts along x
        and across it the form is `across . across + along along / x_0^2`.
        """
        other = u if v is None else v
        way = _direction(x[..., 1:])
        along, beside = _apart(u[..., 1:], way)
        along_too, beside_too = _apart(other[..., 1:], way)
        product = (beside * beside_too).sum(-1, keepdim=True) + along * along_too / x[..., :1].square()
        return product if keepdim else product[..., 0]

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        return self.inner(x, u, keepdim=keepdim).sqrt()

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        length = self.norm(x, u, keepdim=True)
        return self.projx(torch.cosh(length) * x + sinhc(length) * u)

    retr = expmap

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        square = _chord_square(point, other)
        distance = 2 * torch.asinh(square.sqrt() / 2)
        space = (other - point - square / 2 * point)[..., 1:] / sinhc(distance)
        time = (point[..., 1:] * space).sum(-1, keepdim=True) / point[..., :1]
        tangent = torch.cat([time, space], -1)
        return tangent, torch.zeros(tangent.shape[:-1], dtype=torch.bool, device=tangent.device)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        distance = 2 * torch.asinh(_chord_square(x, y).sqrt() / 2)
        return distance if keepdim else distance[..., 0]

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns parallel transport along the geodesic."""
        return v + minkowski(y, v, keepdim=True) / (1 - minkowski(x, y, keepdim=True)) * (x + y)

    def magnitude(self, point: Tensor) -> Tensor:
        return point[..., 0]

    def lift(self, values: Tensor) -> Lifted:
        """Puts the first coordinate before `values [..., n]`; nothing is left out."""
        point = self.projx(torch.cat([torch.ones_like(values[..., :1]), values], -1))
        return Lifted(point, torch.zeros_like(values[..., 0]), torch.isfinite(values).all(-1))

    def lower(self, point: Tensor, rest: Tensor) -> Tensor:
        del rest
        return point[..., 1:]

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        if point.shape[-1] < 2:
            return f"the hyperboloid needs vectors of length 2 or more, not {point.shape[-1]}"
        gap = (point - self.projx(point)).abs() / point[..., :1].abs().clamp_min(1)
        if gap.numel() and float(gap.max()) > tolerance:
            return f"the first coordinate is off the hyperboloid by {float(gap.max()):.3g}"
        return None


def _direction(vector: Tensor) -> Tensor:
    """A unit vector along a vector; zero where that is zero."""
    length = vector.norm(dim=-1, keepdim=True)
    return vector / torch.where(length > 0, length, torch.ones_like(length))


def _apart(vector: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """How long a vector is along a unit vector `[..., 1]`, and what lies across it."""
    along = (vector * way).sum(-1, keepdim=True)
    return along, vector - along * way


def _chord_square(x: Tensor, y: Tensor) -> Tensor:
    """`<y - x, y - x>_L` `[..., 1]` of two points of the hyperboloid, as a sum without cancellation.

    With the difference d of their last coordinates in a part a along `s = x + y` and a part b across it, the
    first coordinates differ by `a |s| / s_0`, so the form is `|b|^2 + a^2 (1 - |s|^2 / s_0^2)`, and
    `s_0^2 - |s|^2 = 4 + <y - x, y - x>_L`.
    """
    along, across = _apart(y[..., 1:] - x[..., 1:], _direction(x[..., 1:] + y[..., 1:]))
    share = (along / (x[..., :1] + y[..., :1])).square()
    return (across.square().sum(-1, keepdim=True) + 4 * share) / (1 - share)


class PoincareBall(AbstractHyperbolic):
    """Points `[..., n]` of the open unit ball; a vector of R^n lifts into it by the exponential at zero.

    >>> import torch
    >>> PoincareBall().dist(torch.zeros(2), torch.tensor([0.5, 0.0]))
    tensor(1.0986)
    """

    name = "PoincareBall"
    undefined = "holds NaN or Inf, or is longer than 5, where the ball's edge has taken its digits"

    def projx(self, x: Tensor) -> Tensor:
        """Draws what lies at the edge or beyond it just inside."""
        length = x.norm(dim=-1, keepdim=True)
        most = 1 - 4 * torch.finfo(x.dtype).eps
        return torch.where(length > most, x * (most / length.clamp_min(most)), x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        del x
        return u

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return u / _conformal(x).square()

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        scale = _conformal(x) if keepdim else _conformal(x)[..., 0]
        return scale.square() * (u * (u if v is None else v)).sum(-1, keepdim=keepdim)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        scale = _conformal(x) if keepdim else _conformal(x)[..., 0]
        return scale * u.norm(dim=-1, keepdim=keepdim)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        length = u.norm(dim=-1, keepdim=True)
        half = _conformal(x) * length / 2
        step = torch.where(length > 0, torch.tanh(half) / torch.where(length > 0, length, 1.0), 0.0) * u
        along, across = (x * step).sum(-1, keepdim=True), step.square().sum(-1, keepdim=True)
        own = x.square().sum(-1, keepdim=True)
        moved = (1 + 2 * along + across) * x + (1 - own) * step
        return self.projx(moved / (1 + 2 * along + own * across))

    retr = expmap

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        apart = _difference(point, other)
        length = apart.norm(dim=-1, keepdim=True)
        safe = torch.where(length > 0, length, 1.0)
        stretch = torch.where(length > 0, torch.atanh(length.clamp_max(_most(length))) / safe, 1.0)
        tangent = 2 / _conformal(point) * stretch * apart
        return tangent, torch.zeros(tangent.shape[:-1], dtype=torch.bool, device=tangent.device)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        length = _difference(x, y).norm(dim=-1, keepdim=keepdim)
        return 2 * torch.atanh(length.clamp_max(_most(length)))

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns parallel transport along the geodesic, by way of the hyperboloid."""
        carried = _LORENTZ.transp(to_lorentz(x), to_lorentz(y), _push(x, v))
        time = 1 + to_lorentz(y)[..., :1]
        return carried[..., 1:] / time - to_lorentz(y)[..., 1:] * carried[..., :1] / time.square()

    def magnitude(self, point: Tensor) -> Tensor:
        return _conformal(point)[..., 0]

    def lift(self, values: Tensor) -> Lifted:
        """Takes the exponential at zero of `values [..., n]`, at half its speed: `tanh(|x|) x / |x|`."""
        length = values.norm(dim=-1, keepdim=True)
        scale = torch.where(length > 0, torch.tanh(length) / torch.where(length > 0, length, 1.0), 1.0)
        inside = (length[..., 0] <= _REACH) & torch.isfinite(values).all(-1)
        return Lifted(self.projx(scale * values), torch.zeros_like(values[..., 0]), inside)

    def lower(self, point: Tensor, rest: Tensor) -> Tensor:
        del rest
        length = point.norm(dim=-1, keepdim=True)
        safe = torch.where(length > 0, length, 1.0)
        return point * torch.where(length > 0, torch.atanh(length.clamp_max(_most(length))) / safe, 1.0)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        del tolerance
        length = point.norm(dim=-1)
        if length.numel() and float(length.max()) >= 1:
            return f"a norm is {float(length.max()):.3g}, and the ball is open at 1"
        return None


_LORENTZ = Lorentz()


def to_lorentz(point: Tensor) -> Tensor:
    """Returns points of the ball `[..., n]` as those of the hyperboloid `[..., n + 1]`, an isometry."""
    own = point.square().sum(-1, keepdim=True)
    return torch.cat([(1 + own) / (1 - own), 2 * point / (1 - own)], -1)


def _push(point: Tensor, tangent: Tensor) -> Tensor:
    """Returns tangents of the ball as those of the hyperboloid."""
    room = 1 - point.square().sum(-1, keepdim=True)
    along = 4 * (point * tangent).sum(-1, keepdim=True) / room.square()
    return torch.cat([along, 2 * tangent / room + along * point], -1)


def _conformal(point: Tensor) -> Tensor:
    return 2 / (1 - point.square().sum(-1, keepdim=True))


def _difference(first: Tensor, second: Tensor) -> Tensor:
    """The Möbius difference `(-y) + z`, from `z - y` so that near points keep their digits."""
    apart = second - first
    own, other = first.square().sum(-1, keepdim=True), second.square().sum(-1, keepdim=True)
    scale = 1 - 2 * (first * second).sum(-1, keepdim=True) + own * other
    return ((1 - own) * apart - apart.square().sum(-1, keepdim=True) * first) / scale


def _most(length: Tensor) -> float:
    return 1 - torch.finfo(length.dtype).eps / 2
