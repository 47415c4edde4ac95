"""The density of a spectrum a step at a time, for long runs that are driven from the host."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes, layouts, vectors
from spectrax.krylov import quadrature
from spectrax.krylov.factorization import Factorization
from spectrax.operators import HostOperator, LinearOperator, aslinearoperator
from spectrax.operators.precision import in_working_precision
from spectrax.programs.hoisting import FrozenTree
from spectrax.spectrum.density import SpectralDensity
from spectrax.spectrum.plans import own_eps
from spectrax.spectrum.stepwise import Stepwise, check_host, tall_side
from spectrax.spectrum.stochastic_quadrature import SPECTRA, Finished, SpectrumPlan, check_square, collected, finished

PyTree = Any


class Quadratures(NamedTuple):
    """The quadratures of some probes, and the Krylov factorisations of those that are under way.

    Attributes:
        num_done: How many probes are finished, int32.
        finished: What is kept of them, and zeros for those to come.
        current: The factorisations of the next probes, with a leading axis batch_size, where a step is one product;
            None where it is all of a probe.
    """

    num_done: jax.Array
    finished: Finished
    current: Factorization | None


class StepwiseDensity(Stepwise[Quadratures, SpectralDensity]):
    """The density of a spectrum, some probes or one product of some probes at a time; see `Stepwise`."""

    plan: SpectrumPlan

    def __init__(self, plan: SpectrumPlan, operator: LinearOperator, key: jax.Array):
        self.plan, self.operator, self.key = plan, operator, key

    def init(self) -> Quadratures:
        by_products = isinstance(self.operator, HostOperator)
        return explicit_axes.replicated(
            lambda operator, key: _init(self.plan, self._structs, key, by_products), self.operator, self.key
        )

    def advance(self, state: Quadratures) -> Quadratures:
        if state.current is None:
            return explicit_axes.replicated(functools.partial(_advance, self.plan), self.operator, self.key, state)
        image = self.operator.matmat(_blocks(state.current))
        return _with_images(self.plan, self._structs, self.key, state, image)

    def done(self, state: Quadratures) -> bool:
        return int(state.num_done) >= self.plan.num_probes

    def result(self, state: Quadratures) -> SpectralDensity:
        """Return the density from the probes that are finished.

        Args:
            state: A state in which some are.

        Returns:
            The density.

        Raises:
            ValueError: If no probe is finished.
        """
        done = int(state.num_done)
        if done == 0:
            raise ValueError("no probe is finished: go on until `metrics(state)['num_probes']` is at least one")
        taken = jax.tree.map(lambda leaf: leaf[:done], state.finished)
        return explicit_axes.replicated(functools.partial(collected, self.plan), self.operator, taken)

    def metrics(self, state: Quadratures) -> dict[str, Any]:
        steps = jnp.sum(state.finished.size) + (0 if state.current is None else jnp.sum(state.current.size))
        return {
            "num_matvecs": int(steps) * (1 if self.plan.spectrum == "eigenvalues" else 2),
            "max_matvecs": self.plan.num_probes
            * self.plan.num_steps
            * (1 if self.plan.spectrum == "eigenvalues" else 2),
            "num_probes": int(state.num_done),
        }

    @property
    def _structs(self) -> FrozenTree:
        tall = tall_side(self.operator)
        return FrozenTree((tall.in_struct, tall.out_struct))


def stepwise_density(
    A: Any,
    /,
    *,
    key: jax.Array,
    num_probes: int = 16,
    num_steps: int = 64,
    spectrum: str = "eigenvalues",
    batch_size: int = 1,
) -> StepwiseDensity:
    """Return `spectral_density` as a computation that goes step by step from the host.

    Its result has the trace of f(A) as `result.sum(f)`: the trace itself for f(x) = x (two steps a probe are enough:
    the quadrature is exact for it), the log-determinant for `jnp.log`.

    Args:
        A: As for `spectral_density`, or a `HostOperator` (a curvature operator over the batches of an iterator).
        key: A PRNG key.
        num_probes: How many random vectors.
        num_steps: How many steps for each, at most the dimension.
        spectrum: "eigenvalues" or "singular_values"; of a `HostOperator`, the first.
        batch_size: How many probes run at a time, a divisor of their number. For a `HostOperator` they share a pass
            over the data.

    Returns:
        A `Stepwise` whose result is the `SpectralDensity` of `spectral_density` with the same arguments, to round-off;
        earlier than at the end, that of the probes which are finished. A step is `batch_size` probes. For a
        `HostOperator` it is one product for each of them, hence one pass over the data.

    Raises:
        ValueError: As `spectral_density` does; if `batch_size` does not divide `num_probes`.
        TypeError: As `spectral_density` does; for the singular values of a `HostOperator`, or if A was
            made from one, such as its multiple.

    Cost:
        That of `spectral_density`. A state of a `HostOperator` holds the bases of the probes that are under way,
        batch_size (num_steps + 1) vectors; otherwise a state holds numbers only.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = jnp.diag(jnp.linspace(-1.0, 3.0, 200))
        >>> found = sx.stepwise_density(A, key=jax.random.key(0), num_probes=8, num_steps=32).run()
        >>> negative = found.count(upper=0.0)
        >>> bool(negative.lower <= 50 <= negative.upper)
        True

    Source:
        As `spectral_density`.
    """
    checks.choice("spectrum", spectrum, SPECTRA)
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    if spectrum == "eigenvalues":
        check_square('stepwise_density without spectrum="singular_values"', operator)
    elif isinstance(operator, HostOperator):
        raise TypeError(
            "the singular values of a symmetric operator over an iterator are the moduli of its eigenvalues"
        )
    check_host("stepwise_density", operator)
    checks.key("key", key)
    checks.positive_integer("num_probes", num_probes)
    checks.positive_integer("num_steps", num_steps)
    checks.positive_integer("batch_size", batch_size)
    if num_probes % batch_size:
        raise ValueError(f"batch_size must divide num_probes = {num_probes}, got {batch_size}")
    plan = SpectrumPlan(spectrum, num_probes, min(num_steps, *operator.shape), batch_size, own_eps(given, operator))
    return StepwiseDensity(plan, operator, key)


def _first_states(plan: SpectrumPlan, structs: FrozenTree, key: jax.Array, index: jax.Array) -> Factorization:
    """Return the factorisations of the probes from an index on before their first step, from the same draws as ever."""
    right, left = structs.tree
    left = left if plan.spectrum == "singular_values" else None
    keys, own_keys = (jax.random.split(jax.random.fold_in(key, part), plan.num_probes) for part in (0, 1))
    sides = layouts.sides_of(*structs.tree)

    def one(key: jax.Array, own_key: jax.Array) -> Factorization:
        vector = vectors.normal(key, right)
        start = layouts.constrain(vectors.divide(vector, vectors.norm(vector)), sides.right)
        return quadrature.init(own_key, start, left, plan.num_steps, sides=sides)

    return jax.vmap(one)(*(jax.lax.dynamic_slice_in_dim(part, index, plan.batch_size) for part in (keys, own_keys)))


_kept = jax.vmap(finished)


def _with_finished(plan: SpectrumPlan, state: Quadratures, probes: Factorization) -> Quadratures:
    finished = vectors.set_rows(state.finished, state.num_done, _kept(probes))
    return Quadratures(state.num_done + jnp.int32(plan.batch_size), finished, state.current)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _init(plan: SpectrumPlan, structs: FrozenTree, key: jax.Array, by_products: bool) -> Quadratures:
    current = _first_states(plan, structs, key, jnp.int32(0))
    finished = jax.tree.map(
        lambda leaf: jnp.zeros((plan.num_probes, *leaf.shape[1:]), leaf.dtype), jax.eval_shape(_kept, current)
    )
    return Quadratures(jnp.int32(0), finished, current if by_products else None)


@functools.partial(jax.jit, static_argnums=0)
def _advance(plan: SpectrumPlan, operator: LinearOperator, key: jax.Array, state: Quadratures) -> Quadratures:
    tall = tall_side(operator)
    structs = FrozenTree((tall.in_struct, tall.out_struct))
    matvec, rmatvec = (vectors.stacked(product) for product in tall.loop_products())
    products = (matvec, None) if plan.spectrum == "eigenvalues" else (matvec, rmatvec)
    run = functools.partial(quadrature.run, *products, sides=layouts.sides_of(*structs.tree))
    return _with_finished(plan, state, _each(run, _first_states(plan, structs, key, state.num_done)))


def _each(function: Any, states: Factorization) -> Factorization:
    """Apply a function to each state of a stack; to one by itself, whose loops then stop when it is finished."""
    if states.size.shape[0] > 1:
        return jax.vmap(function)(states)
    return jax.tree.map(lambda leaf: leaf[None], function(jax.tree.map(lambda leaf: leaf[0], states)))


@jax.jit
def _blocks(current: Factorization) -> PyTree:
    """Return the vectors that the next step takes a product with."""
    return jax.vmap(vectors.row)(current.right, current.size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _with_images(plan: SpectrumPlan, structs: FrozenTree, key: jax.Array, state: Quadratures, images: PyTree) -> Any:
    """Make a step whose products are known, and begin the next probes where these are finished."""
    assert state.current is not None
    sides = layouts.sides_of(*structs.tree)

    def one(current: Factorization, image: PyTree) -> Factorization:
        stack = jax.tree.map(lambda leaf: leaf[None], image)
        after = quadrature.step(lambda block: stack, None, current, sides=sides)
        return jax.tree.map(lambda a, b: jnp.where(quadrature.is_finished(current), a, b), current, after)

    current = jax.vmap(one)(state.current, images)

    def next_probes() -> Quadratures:
        after = _with_finished(plan, state, current)
        return after._replace(current=_first_states(plan, structs, key, after.num_done))

    is_over = jnp.all(jax.vmap(quadrature.is_finished)(current))
    return jax.lax.cond(is_over, next_probes, lambda: state._replace(current=current))
