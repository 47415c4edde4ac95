"""Everything that looks at a jaxpr: what a function closes over, what a program contains, its fast form, its layers."""

from spectrax.programs.canonical import canonical
from spectrax.programs.equations import equations, primitives_on
from spectrax.programs.hoisting import Direct, FrozenTree, Hoisted, Program, hoist

__all__ = ["Direct", "FrozenTree", "Hoisted", "Program", "canonical", "equations", "hoist", "primitives_on"]
