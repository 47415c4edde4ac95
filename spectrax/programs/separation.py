"""Linear functions that depend on a point: what they need from the point apart from the product with a vector."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jax_core

from spectrax.programs.canonical import canonical

PyTree = Any


class Separated:
    """A linear function of a vector that depends on a point, in two programs: `at` the point, and `apply`.

    The numbers that `apply` needs are those that depend on the point (`at` computes them, for many points under
    `jax.vmap`) and those that do not, which are shared by all points and were computed when this was made.

    Attributes:
        point_program: The jaxpr of `at`.
        linear_program: The jaxpr of the product.
        local_struct: The shapes and dtypes of what depends on the point.
        made: The arrays computed for all points together, beside those that the function was given.
        out_struct: The structure of the image.
    """

    def __init__(self, products: Callable[[PyTree], Callable], point_struct: PyTree, struct: PyTree, given: PyTree):
        """Separate a function.

        Args:
            products: Takes a point to the linear function there.
            point_struct: The structure of a point.
            struct: The structure of a vector.
            given: The arrays that exist anyway, which do not count as `made`.
        """
        found = []

        def residuals(point: PyTree) -> list[jax.Array]:
            closed, out_struct = jax.make_jaxpr(canonical(products(point), struct), return_shape=True)(struct)
            found.append((closed.jaxpr, out_struct))
            return list(closed.consts)

        closed = jax.make_jaxpr(canonical(residuals, point_struct))(point_struct)
        self.linear_program, self.out_struct = found[-1]
        known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        # what does not depend on the point was computed by `canonical` and is a constant here
        self._shared = {
            place: atom.val if isinstance(atom, jax_core.Literal) else known[atom]
            for place, atom in enumerate(closed.jaxpr.outvars)
            if isinstance(atom, jax_core.Literal) or atom in known
        }
        self._closed, self.point_program = closed, closed.jaxpr
        self._places = [place for place in range(len(closed.jaxpr.outvars)) if place not in self._shared]
        avals = [closed.jaxpr.outvars[place].aval for place in self._places]
        self.local_struct = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        present = {id(leaf) for leaf in jax.tree.leaves(given)}
        computed = {id(leaf): leaf for leaf in [*self._shared.values(), *closed.consts] if hasattr(leaf, "dtype")}
        self.made = [leaf for name, leaf in computed.items() if name not in present]

    def at(self, point: PyTree) -> list[jax.Array]:
        """Return what the product needs and depends on the point."""
        results = jax_core.jaxpr_as_fun(self._closed)(*jax.tree.leaves(point))
        return [results[place] for place in self._places]

    def apply(self, local: list[jax.Array], vector: PyTree) -> PyTree:
        """Return the product with a vector at the point that `local` belongs to."""
        values = dict(self._shared) | dict(zip(self._places, local, strict=True))
        consts = [values[place] for place in range(len(values))]
        closed = jax_core.ClosedJaxpr(self.linear_program, consts)
        outs = jax_core.jaxpr_as_fun(closed)(*jax.tree.leaves(vector))
        return jax.tree.structure(self.out_struct).unflatten(outs)
