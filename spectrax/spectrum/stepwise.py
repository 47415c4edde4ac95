"""Extreme eigenpairs and singular triplets a step at a time, for long runs that are driven from the host."""

import abc
import functools
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, explicit_axes, krylov, layouts, vectors
from spectrax.krylov import bidiagonalization, extremes, tridiagonalization
from spectrax.krylov import search as searching
from spectrax.krylov.factorization import Factorization
from spectrax.krylov.search import Search
from spectrax.operators import HostOperator, LinearOperator, aslinearoperator
from spectrax.operators.precision import in_working_precision
from spectrax.programs.hoisting import FrozenTree
from spectrax.results import EighResult, Status, SVDResult
from spectrax.spectrum import decomposition
from spectrax.spectrum.eigsh import concluded as concluded_pairs
from spectrax.spectrum.eigsh import square_operator
from spectrax.spectrum.methods import InverseLanczos, Lanczos
from spectrax.spectrum.plans import Plan, own_eps, plan_of
from spectrax.spectrum.svds import resolve_method

PyTree = Any
State = TypeVar("State")
Result = TypeVar("Result")


class Stepwise(abc.ABC, Generic[State, Result]):
    """A computation as pure functions over a state of arrays, which the host runs, looks at, saves and takes up again.

    Made by `stepwise_eigsh`, `stepwise_svds` and `stepwise_density`. A state is a NamedTuple of arrays that holds all
    that changes; the object holds what does not, the operator among it, and never changes itself. `run` goes on until a
    state is done; `spectrax.integrations.long_runs.run` writes checkpoints on the way.

    Attributes:
        operator: The operator, in the dtype to compute in.
        plan: Everything static, hashable.
        key: The PRNG key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> search = sx.stepwise_eigsh(jnp.diag(jnp.arange(100.0)), which="largest", key=jax.random.key(0))
        >>> state = search.init()
        >>> while not search.done(state):
        ...     state = search.advance(state)
        >>> round(float(search.result(state).eigenvalues[0]), 3)
        99.0
    """

    operator: LinearOperator
    plan: Any
    key: jax.Array

    @abc.abstractmethod
    def init(self) -> State:
        """Return the state before the first step."""

    @abc.abstractmethod
    def advance(self, state: State) -> State:
        """Return the state after one step more; the old one stays as it is."""

    @abc.abstractmethod
    def done(self, state: State) -> bool:
        """Return whether there is nothing left to do."""

    @abc.abstractmethod
    def result(self, state: State) -> Result:
        """Return the result as it stands; of a state that is not done, that of a run which was cut off."""

    @abc.abstractmethod
    def metrics(self, state: State) -> dict[str, Any]:
        """Return how far a state has come, in plain numbers."""

    def run(self, state: State | None = None) -> Result:
        """Return the result, from a state on or from the beginning."""
        state = self.init() if state is None else state
        while not self.done(state):
            state = self.advance(state)
        return self.result(state)

    def description(self) -> dict[str, Any]:
        """Return what is computed, in words: equal for two objects exactly if one may go on with the other's states.

        The operator is not compared number by number: see `sample`.
        """
        return {
            "computation": type(self).__name__,
            "plan": repr(self.plan),
            "input": repr(_bare(self.operator.in_struct)),
            "output": repr(_bare(self.operator.out_struct)),
            "key": np.asarray(_key_data(self.key)).tolist(),
        }

    def sample(self) -> list[float]:
        """Return some numbers that depend on all of the operator: the norm of a vector's image, and a component of it.

        Returns:
            Numbers that are the same for the same operator but for round-off.
        """
        sample = _sample if isinstance(self.operator, HostOperator) else _sample_at_once
        return [float(number) for number in explicit_axes.replicated(sample, self.operator, self.key)]


class StepwiseSearch(Stepwise[Search, Result]):
    """Some eigenpairs or singular triplets at an end of the spectrum, a step at a time; see `Stepwise`."""

    plan: Plan

    def __init__(self, plan: Plan, operator: LinearOperator, key: jax.Array, v0: PyTree, *, hermitian: bool):
        self.plan, self.operator, self.key, self.v0, self.hermitian = plan, operator, key, v0, hermitian

    def init(self) -> Search:
        tall = tall_side(self.operator)
        structs = FrozenTree((tall.in_struct, tall.out_struct))
        run = functools.partial(_init, self._task, self.plan.block_size, structs)

        def specs(state: Search) -> Search:
            right, left = (layouts.stack_specs(struct) for struct in structs.tree)
            bases = explicit_axes.replicated_specs(state.bases)._replace(
                right=right, left=None if self.hermitian else left
            )
            return explicit_axes.replicated_specs(state)._replace(bases=bases)

        return explicit_axes.with_automatic_axes(
            lambda operator, *given: run(*given), specs, self.operator, self.key, self.v0
        )

    def advance(self, state: Search) -> Search:
        if isinstance(self.operator, HostOperator):
            block = vectors.rows(state.bases.right, state.bases.size, self.plan.block_size)
            return _with_image(self._task, state, self.operator.matmat(block))
        run = functools.partial(_advance, self._task)
        return explicit_axes.with_automatic_axes(run, lambda _: explicit_axes.specs_of(state), self.operator, state)

    def done(self, state: Search) -> bool:
        return bool(state.done)

    def result(self, state: Search) -> Result:
        conclude = _concluded if isinstance(self.operator, HostOperator) else _concluded_at_once
        run = functools.partial(conclude, self.plan, self._task)
        return explicit_axes.with_automatic_axes(run, self._specs, self.operator, state)

    def metrics(self, state: Search) -> dict[str, Any]:
        per_step = 1 if self.hermitian else 2
        return {
            "num_matvecs": per_step * int(state.num_steps),
            "max_matvecs": per_step * self.plan.max_steps,
            "values": np.asarray(state.values).tolist(),
            "challenged": int(state.fixed) > 0,
        }

    def description(self) -> dict[str, Any]:
        start = None if self.v0 is None else [leaf.shape for leaf in jax.tree.leaves(self.v0)]
        return {**super().description(), "hermitian": self.hermitian, "v0": repr(start)}

    def sample(self) -> list[float]:
        start = [] if self.v0 is None else np.asarray(vectors.stack_norms(self.v0)).tolist()
        return super().sample() + start

    def _specs(self, result: Any) -> Any:
        right, left = (layouts.stack_specs(side) for side in (self.operator.in_struct, self.operator.out_struct))
        sides = {"eigenvectors": right} if self.hermitian else {"u": left, "v": right}
        return explicit_axes.replicated_specs(result)._replace(**sides)

    @property
    def _task(self) -> krylov.Task:
        tall = tall_side(self.operator)
        sides = layouts.sides_of(tall.in_struct, tall.out_struct)
        return self.plan.recurrence_task._replace(hermitian=self.hermitian, sides=sides)


def stepwise_eigsh(
    A: Any,
    /,
    k: int = 1,
    *,
    which: str,
    key: jax.Array,
    method: Lanczos | None = None,
    tol: float | None = None,
    max_matvecs: int | None = None,
    v0: PyTree | None = None,
) -> StepwiseSearch[EighResult]:
    """Return `eigsh` by `Lanczos` as a computation that goes step by step from the host.

    Args:
        A: As for `eigsh`, or a `HostOperator` (a curvature operator over the batches of an iterator).
        k: As for `eigsh`.
        which: As for `eigsh`.
        key: A PRNG key.
        method: A `Lanczos` object; default `Lanczos()`.
        tol: As for `eigsh`.
        max_matvecs: As for `eigsh`.
        v0: As for `eigsh`.

    Returns:
        A `Stepwise` whose result is the `EighResult` of `eigsh` with the same arguments, to round-off. A step is a
        cycle of the search: the products up to its next test of convergence, fewer than the subspace has room for. For
        a `HostOperator` it is one product with a block, hence one pass over the data.

    Raises:
        ValueError: As `eigsh` does.
        TypeError: As `eigsh` does; if the method is not `Lanczos`, or A was made from a `HostOperator`, such as its
            multiple: put factors into the loss, or scale the results.

    Cost:
        That of `eigsh`, and for each step one start of a compiled program, with what it computes once for all its
        products. Not under `jit`, `vmap` or `grad`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = jnp.diag(jnp.arange(200.0))
        >>> result = sx.stepwise_eigsh(A, 2, which="largest", key=jax.random.key(0)).run()
        >>> [round(float(value), 2) for value in result.eigenvalues]
        [199.0, 198.0]

    Source:
        As `eigsh`.
    """
    given, operator = square_operator(A, k, which)
    return _search(given, operator, k, which, key, _lanczos(method), tol, max_matvecs, v0, hermitian=True)


def stepwise_svds(
    A: Any,
    /,
    k: int = 1,
    *,
    which: str = "largest",
    key: jax.Array,
    method: Lanczos | None = None,
    tol: float | None = None,
    max_matvecs: int | None = None,
    v0: PyTree | None = None,
) -> StepwiseSearch[SVDResult]:
    """Return `svds` by `Lanczos` as a computation that goes step by step from the host.

    Args:
        A: As for `svds`. Of the symmetric operators over the batches of an iterator `stepwise_eigsh` finds the
            eigenvalues, whose moduli are the singular values.
        k: As for `svds`.
        which: As for `svds`.
        key: A PRNG key.
        method: A `Lanczos` object; default `Lanczos()`.
        tol: As for `svds`.
        max_matvecs: As for `svds`.
        v0: As for `svds`.

    Returns:
        A `Stepwise` whose result is the `SVDResult` of `svds` with the same arguments, to round-off. A step is a cycle
        of the search.

    Raises:
        ValueError: As `svds` does.
        TypeError: As `svds` does; if the method is not `Lanczos`, or A is a `HostOperator` or made from one.

    Cost:
        As for `stepwise_eigsh`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = jnp.diag(jnp.arange(200.0))
        >>> result = sx.stepwise_svds(A, 2, key=jax.random.key(0)).run()
        >>> [round(float(value), 2) for value in result.s]
        [199.0, 198.0]

    Source:
        As `svds`.
    """
    given = aslinearoperator(A)
    if isinstance(given, HostOperator):
        raise TypeError(
            "stepwise_svds takes no operator over the batches of an iterator: it is symmetric, so take stepwise_eigsh "
            'with which="largest_magnitude"'
        )
    operator = in_working_precision(given)
    method = _lanczos(method)
    resolve_method(operator, k, which=which, method=method)
    return _search(given, operator, k, which, key, method, tol, max_matvecs, v0, hermitian=False)


def _lanczos(method: Lanczos | None) -> Lanczos:
    method = Lanczos() if method is None else method
    if not isinstance(method, Lanczos) or isinstance(method, InverseLanczos):
        raise TypeError(f"method must be Lanczos() for a stepwise search, got {method!r}")
    return method


def _search(given, operator, k, which, key, method, tol, max_matvecs, v0, *, hermitian: bool) -> StepwiseSearch:
    checks.key("key", key)
    check_host("stepwise_eigsh" if hermitian else "stepwise_svds", operator)
    if v0 is not None:
        v0 = decomposition.stack_of(v0, tall_side(operator).in_struct)
    plan = plan_of(
        operator, k, which=which, method=method, eps=own_eps(given, operator), tol=tol, max_matvecs=max_matvecs,
        start_count=0 if v0 is None else vectors.count(v0), products_per_step=1 if hermitian else 2,
    )  # fmt: skip
    return StepwiseSearch(plan, operator, key, v0, hermitian=hermitian)


def check_host(name: str, operator: LinearOperator) -> None:
    """Raise if products that run on the host are part of another operator, or have arrays on explicit axes.

    Args:
        name: Of the function, for the message.
        operator: Any operator.

    Raises:
        TypeError: If the operator was made from a `HostOperator`, such as its multiple.
        ValueError: If it is one and has arrays on a mesh with explicit axes.
    """
    if not isinstance(operator, HostOperator):
        parts = jax.tree.leaves(operator, is_leaf=lambda node: isinstance(node, HostOperator))
        if any(isinstance(part, HostOperator) for part in parts):
            raise TypeError(
                f"{name} takes an operator over the batches of an iterator as it is, got one that was made from it "
                f"({type(operator).__name__}): put factors and sums into the loss, or scale the results"
            )
    else:
        checks.automatic_axes("the operator over the batches of an iterator", operator)


def tall_side(operator: LinearOperator) -> LinearOperator:
    """Return the operator, or its adjoint if that one has the longer output."""
    return operator.H if operator.shape[0] < operator.shape[1] else operator


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init(task: krylov.Task, block_size: int, structs: FrozenTree, key: jax.Array, v0: PyTree) -> Search:
    right, left = structs.tree
    start = decomposition.starting_block(key, v0, right, block_size)
    return searching.init(task, start, None if task.hermitian else left, key)


@functools.partial(jax.jit, static_argnums=0)
def _advance(task: krylov.Task, operator: LinearOperator, state: Search) -> Search:
    matvec, rmatvec = (vectors.stacked(product) for product in tall_side(operator).loop_products())

    def step(bases: Factorization) -> Factorization:
        if task.hermitian:
            return tridiagonalization.step(matvec, bases, layout=task.sides.right)
        return bidiagonalization.step(matvec, rmatvec, bases, one_sided=task.one_sided, sides=task.sides)

    return searching.cycle(task, step, state)


@functools.partial(jax.jit, static_argnums=0)
def _with_image(task: krylov.Task, state: Search, image: PyTree) -> Search:
    """Add a block whose product is known, and take the test where it is due."""
    bases = tridiagonalization.step(lambda block: image, state.bases, layout=task.sides.right)
    state = searching.grown(state, bases)
    return jax.lax.cond(searching.wants_more(task, state), lambda: state, lambda: searching.judge(task, state))


def _concluded(plan: Plan, task: krylov.Task, operator: LinearOperator, state: Search) -> Any:
    found = extremes.finalize(task, state)
    result: Any = (concluded_pairs if task.hermitian else decomposition.concluded)(plan, operator, found)
    name, stack = ("eigenvalues", result.eigenvectors) if task.hermitian else ("s", result.v)
    absent = vectors.stack_norms(stack) < 0.5  # of a basis that has fewer directions yet
    known = {part: jnp.where(absent, jnp.nan, getattr(result, part)) for part in (name, "residuals")}
    status = jnp.where(jnp.any(absent), jnp.maximum(result.status, int(Status.NOT_CONVERGED)), result.status)
    return result._replace(**known, converged=result.converged & ~absent, status=status.astype(jnp.int32))


_concluded_at_once = jax.jit(_concluded, static_argnums=(0, 1))


def _sample(operator: LinearOperator, key: jax.Array) -> tuple[jax.Array, ...]:
    image = operator.matvec(vectors.normal(jax.random.fold_in(key, 11), operator.in_struct))
    other = vectors.normal(jax.random.fold_in(key, 12), operator.out_struct)
    inner = vectors.vdot(other, image)
    return vectors.norm(image), *((inner.real, inner.imag) if vectors.is_complex(inner.dtype) else (inner,))


_sample_at_once = jax.jit(_sample)


def _bare(struct: PyTree) -> PyTree:
    """Return a structure without where it lies."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), struct)


def _key_data(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
