"""Everything that looks at a jaxpr: what a function closes over, what a program contains, its fast form, its layers."""

from spectrax.programs.canonical import canonical
from spectrax.programs.equations import equations, primitives_on
from spectrax.programs.hoisting import Direct, FrozenTree, Hoisted, Program, hoist
from spectrax.programs.layers import Activation, Site, Trace, trace
from spectrax.programs.piecewise import Form, form_of

__all__ = [
    "Activation",
    "Direct",
    "Form",
    "FrozenTree",
    "Hoisted",
    "Program",
    "Site",
    "Trace",
    "canonical",
    "equations",
    "form_of",
    "hoist",
    "primitives_on",
    "trace",
]
