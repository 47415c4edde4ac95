"""A bound as a record: what it says, whether its hypotheses hold, and how far inside the truth lies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# What holds of a quantity without any hypothesis, which is the lower bound where the hypotheses don't hold.
LEAST = {
    "singular values": 0.0,
    "smallest singular value": 0.0,
    "Ky Fan sums": 0.0,
    "sum of squares": 0.0,
    "condition number": 1.0,
    "distance from rho^p I": 0.0,
    "relative change": 0.0,
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("applies", "lower", "upper", "actual", "round_off"),
    meta_fields=("name", "quantity", "statement"),
)
@dataclasses.dataclass(frozen=True)
class Bound:
    """A two-sided bound on a spectral quantity, together with its actual value.

    `lower`, `upper`, `actual` and `round_off` have the shape of the quantity, `applies` is a scalar; under `vmap` all
    of them gain its axes. Where `applies` is false the bounds are the trivial ones: 1 for condition numbers, 0 for
    other quantities that cannot be negative, otherwise -inf; and inf above. So `lower <= actual <= upper` is never a
    false claim. A statement of equality has `lower == upper`. The strings are static.

    Attributes:
        name: The row of the catalogue, such as "A4"; unique within the list that a function returns.
        quantity: What is bounded: "singular values", "condition number", and so on.
        statement: The hypotheses and the bound, as a formula.
        applies: Whether the hypotheses hold, decided by what was computed; where they ask for a strict inequality, with
            a margin for round-off. False where the input, or what follows from it, is NaN.
        lower: The lower bound.
        upper: The upper bound.
        actual: The value of the quantity itself, or None where it is too costly to be had.
        round_off: How far `actual` may lie outside by rounding alone: 10 max(m, n) eps times the norms involved,
            carried through the square roots and quotients of the formula. It is inf where the dtype leaves no digit, as
            for the condition number of a matrix that is numerically singular.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> weyl = perturbation.identity_shift_bounds(jnp.diag(jnp.array([2.0, -1.0])), 0.5)[0]
        >>> weyl.name, weyl.quantity, weyl.lower.tolist(), weyl.upper.tolist(), weyl.actual.tolist()
        ('A1', 'singular values', [1.5, 0.5], [2.5, 1.5], [2.5, 0.5])
        >>> weyl.slack.tolist(), bool(weyl.holds.all())
        ([0.0, 0.0], True)
    """

    name: str
    quantity: str
    statement: str
    applies: jax.Array
    lower: jax.Array
    upper: jax.Array
    actual: jax.Array | None
    round_off: jax.Array

    @property
    def slack(self) -> jax.Array | None:
        """How far the actual value lies inside its bounds: the distance to the nearer one, negative outside."""
        if self.actual is None:
            return None
        # differences of two infinities: an infinite bound leaves infinite room
        below = jnp.where(jnp.isinf(self.lower) & (self.lower < 0), jnp.inf, self.actual - self.lower)
        below = jnp.where(self.actual == self.lower, 0, below)
        above = jnp.where(self.upper == jnp.inf, jnp.inf, self.upper - self.actual)
        return jnp.where(jnp.isnan(self.actual), jnp.nan, jnp.minimum(below, above))

    @property
    def holds(self) -> jax.Array | None:
        """Whether the actual value lies within its bounds, up to `round_off`; false where it is NaN."""
        if self.actual is None:
            return None
        above = (self.actual >= self.lower) | (self.actual >= self.lower - self.round_off)
        below = (self.actual <= self.upper) | (self.actual <= self.upper + self.round_off)
        return ((above & below) | (self.round_off == jnp.inf)) & ~jnp.isnan(self.actual)


def bound(
    name: str,
    quantity: str,
    statement: str,
    *,
    actual: jax.Array,
    applies: jax.Array | bool = True,
    lower: jax.Array | None = None,
    upper: jax.Array | None = None,
    round_off: jax.Array,
    unit: jax.Array | None = None,
) -> Bound:
    """Return a `Bound`, trivial where its hypotheses don't hold or a number is NaN.

    Args:
        name: The row of the catalogue.
        quantity: What is bounded.
        statement: The bound as a formula.
        actual: The actual value.
        applies: Whether the hypotheses hold; a scalar.
        lower: The lower bound, None where that side is not bounded; broadcast to the shape of `actual`.
        upper: The upper bound, likewise.
        round_off: The allowance for rounding; broadcast likewise.
        unit: By what all numbers are to be multiplied.

    Returns:
        The record.
    """
    least = LEAST.get(quantity, -jnp.inf)
    shape, unit = actual.shape, jnp.ones((), actual.dtype) if unit is None else unit
    flushed = 2 * float(jnp.finfo(actual.dtype).tiny)  # what is lost where results are too small for the dtype
    actual, round_off = actual * unit, jnp.broadcast_to(jax.lax.stop_gradient(round_off), shape) * unit + flushed
    lower = jnp.full(shape, least, actual.dtype) if lower is None else jnp.broadcast_to(lower, shape) * unit
    upper = jnp.full(shape, jnp.inf, actual.dtype) if upper is None else jnp.broadcast_to(upper, shape) * unit
    # 0 * inf as well, where the unit's power leaves the range of the dtype
    numbers = [jnp.all(~jnp.isnan(x)) for x in (actual, lower, upper)]
    applies = jnp.all(jnp.stack([jnp.asarray(applies), *numbers]))
    lower = jnp.where(applies, jnp.maximum(lower, least), least)
    upper = jnp.where(applies, upper, jnp.inf)
    return Bound(name, quantity, statement, applies, lower, upper, actual, round_off)
