"""The spectra of all layers at many samples, each by itself, with one layer's matrix in memory at a time."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.networks.landscape.factors import check_size, multiplies_one_vector, padded, values_of
from spectrax.networks.landscape.operators import LayerProblem, where_finite
from spectrax.networks.landscape.spectra import LayerSpectrum
from spectrax.networks.layer_finding import Network, network
from spectrax.operators import jacobian_operator
from spectrax.operators.precision import in_working_precision
from spectrax.programs.hoisting import compiled
from spectrax.programs.layers import trace
from spectrax.programs.sequencing import one_by_one

PyTree = Any
CHUNK_ROWS = 512  # outputs of the samples that are worked on at a time


def layer_spectra(
    net: Any, params: PyTree, x: PyTree, /, *, layers: Sequence[str] | None = None, bias: bool = False,
    chunk_size: int | None = None, max_bytes: int | None = None,
) -> dict[str, LayerSpectrum]:  # fmt: skip
    """Return the singular values of every layer's matrix Q at each of many samples by itself.

    What `layer_spectrum` gives for one layer and one sample, in one compiled program: one sweep backwards through the
    network finds the matrices of all layers, and each is decomposed, and forgotten, before the sweep goes on.

    Args:
        net: As in `layer_operator`.
        params: As in `layer_operator`.
        x: Many samples, along a leading axis.
        layers: The names of the layers, as in `find_layers`; all of them if None.
        bias: As in `layer_operator`.
        chunk_size: How many samples are worked on at a time. The program holds one layer's matrices of so many samples.
            A number that divides that of the samples compiles once, any other twice. By default about as many as have
            CHUNK_ROWS outputs together, at least one: small matrices gain from a larger batch, large ones don't.
        max_bytes: How large the matrix of one layer and sample may be, in place of the limits on shapes.

    Returns:
        The spectra by name, in the order of application, each with `values` of shape (samples, min(outputs, weights))
        and a leading axis on what follows from them. `num_samples` is one.

    Raises:
        TypeError: As `layer_operator`; or if `layers` is a single name.
        ValueError: If there is no such layer, no sample, or the matrix of a layer is larger than the limits or than
            `max_bytes`; the message names the layer.

    Cost:
        For each sample as many products as the network has outputs, for all layers together, and one decomposition,
        without vectors, for each layer: of the matrix M D of outputs x units for a layer that multiplies one vector, of
        Q itself for any other. On CPU the memory is four to eight such matrices for each sample of a chunk, whatever
        the number of layers, and for few outputs some vectors of each layer.

    Derivatives:
        Forward and reverse, first ones right for distinct values. Reverse mode keeps the decompositions of all layers
        and samples.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> net = sx.models.mlp(10, width=32, depth=2)
        >>> variables = net.init(jax.random.key(0), (8,))
        >>> found = sx.landscape.layer_spectra(net, variables, jnp.ones((5, 8)))
        >>> {name: spectrum.values.shape for name, spectrum in found.items()}
        {'dense_1': (5, 10), 'dense_3': (5, 10), 'dense_5': (5, 10)}
        >>> found["dense_5"].rank.tolist()
        [10, 10, 10, 10, 10]

    Source:
        As `layer_operator`.
    """
    function, arrays = network(net, params)
    if chunk_size is not None:
        checks.positive_integer("chunk_size", chunk_size)
    points = jax.tree.map(jnp.asarray, x)
    leaves = jax.tree.leaves(points)
    for leaf in leaves:
        checks.inexact("x", leaf.dtype)
    if any(leaf.ndim == 0 for leaf in leaves) or {leaf.shape[0] for leaf in leaves} in ({0}, set()):
        raise ValueError(f"x must have a leading axis of at least one sample, got {[leaf.shape for leaf in leaves]}")
    if len({leaf.shape[0] for leaf in leaves}) > 1:
        raise ValueError(f"x must have one length of its leading axis, got {[leaf.shape for leaf in leaves]}")
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names or None, got the string {layers!r}")
    wanted = None if layers is None else tuple(layers)
    work = _Spectra(function, wanted, bias, chunk_size, max_bytes)
    return dict(compiled(work, vectors.structure(arrays), vectors.structure(points))(arrays, points))


@dataclasses.dataclass(frozen=True)
class _Spectra:
    """The spectra by layer, as a function of the parameters and the samples."""

    network: Network
    layers: tuple[str, ...] | None
    bias: bool
    chunk_size: int | None
    max_bytes: int | None

    def __call__(self, arrays: list[jax.Array], points: PyTree) -> collections.OrderedDict[str, LayerSpectrum]:
        first = vectors.row(points, 0)
        with jax.default_matmul_precision("highest"):
            found = trace(self.network, arrays, first)
        names = self.network.names(found.sites)
        for name in self.layers or ():
            checks.choice("layers", name, tuple(names))
        problems = [
            LayerProblem(self.network, arrays, first, False, name, place, site, found.followed)
            for place, (name, site) in enumerate(zip(names, found.sites, strict=True))
            if self.layers is None or name in self.layers
        ]
        if not problems:
            return collections.OrderedDict()
        out_struct = vectors.structure(found.output)
        spectra = [self._spectrum(problem, out_struct) for problem in problems]
        samples = jax.tree.leaves(points)[0].shape[0]
        chunk_size = min(samples, self.chunk_size or max(CHUNK_ROWS // vectors.size(out_struct), 1))
        if self.chunk_size is None:
            divisors = (size for size in range(chunk_size, chunk_size // 2, -1) if samples % size == 0)
            chunk_size = next(divisors, chunk_size)
        values = jax.lax.map(lambda x: self._values(problems, arrays, x), points, batch_size=chunk_size)
        return collections.OrderedDict(
            (problem.name, dataclasses.replace(spectrum, values=padded(own, spectrum.values.shape[0])))
            for problem, spectrum, own in zip(problems, spectra, values, strict=True)
        )

    def _spectrum(self, problem: LayerProblem, out_struct: PyTree) -> LayerSpectrum:
        """Return what is known of a spectrum before its values are, if these can be had."""
        weights = vectors.structure(problem.weights(bias=self.bias))
        outputs, num_weights = vectors.size(out_struct), vectors.size(weights)
        shape = (outputs, problem.site.output.size if multiplies_one_vector(problem.site) else num_weights)
        dtype = vectors.result_dtype((weights, out_struct))
        check_size(problem.name, shape, dtype, self.max_bytes, "or leave it out by layers=")
        nothing = jnp.zeros(min(outputs, num_weights))
        return LayerSpectrum(nothing, num_weights, 1, vectors.eps((weights, out_struct)), max(shape))

    def _values(self, problems: list[LayerProblem], arrays: list[jax.Array], x: PyTree) -> list[jax.Array]:
        """Return the singular values of all layers at one sample."""
        with jax.default_matmul_precision("highest"):
            found = trace(self.network, arrays, x)
        sites = found.sites
        taps, weights, shapes = {}, {}, []
        for problem in problems:
            here = dataclasses.replace(problem, site=sites[problem.place])
            if multiplies_one_vector(here.site):
                taps[here.place] = jnp.zeros_like(here.site.output)
            else:
                weights[here.place] = here.weights(bias=self.bias)
                shapes.append((here.place, here.site.output.shape))
        changed = _Changed(self.network, tuple(shapes), self.bias)
        operator = in_working_precision(jacobian_operator(changed, (taps, weights), arrays, x))
        rmatvec = operator.loop_products()[1]

        def rows(u: PyTree) -> list[PyTree]:
            of_taps, of_weights = rmatvec(u)
            return [(of_taps if p.place in of_taps else of_weights)[p.place] for p in problems]

        def spectrum(index: int, matrix: PyTree) -> jax.Array:
            values, site = values_of(vectors.as_matrix(matrix)), sites[problems[index].place]
            if not multiplies_one_vector(site):
                return values
            z = site.input.astype(vectors.working_dtype(site.input.dtype))
            length = vectors.norm({"z": z, "one": jnp.ones((int(self.bias),), z.dtype)})
            return length.astype(values.dtype) * values

        identity = jnp.eye(operator.shape[0], dtype=operator.dtype)
        spectra = one_by_one(rows, vectors.from_matrix(identity, operator.out_struct), spectrum)
        return [where_finite(found.output, values) for values in spectra]


@dataclasses.dataclass(frozen=True)
class _Changed:
    """The network's output as a function of what is added behind some layers, and of the weights of others."""

    network: Network
    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    bias: bool

    def __call__(self, changes: tuple[dict, dict], arrays: list[jax.Array], x: PyTree) -> PyTree:
        taps, weights = changes
        if self.bias:
            taps = taps | {place: jnp.broadcast_to(weights[place]["bias"], shape) for place, shape in self.shapes}
            weights = {place: own["weight"] for place, own in weights.items()}
        return trace(self.network, arrays, x, taps=taps, weights=weights).output
