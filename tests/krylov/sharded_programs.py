"""What `test_sharding` runs on eight host devices, in a process of its own; prints its findings as JSON."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import spectrax as sx
from spectrax import krylov, layouts, vectors
from spectrax.krylov import bidiagonalization, davidson, factorization, random_stack, tridiagonalization
from spectrax.layouts import sides_of

SPECS = {"both": ("data", "model"), "data": ("data",), "model": (None, "model"), "copies": ()}
SHAPES = {"both": (16, 8), "data": (32,), "model": (8, 16), "copies": (5,)}
LANCZOS = sx.Lanczos(subspace_size=16)
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


@functools.cache
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def placed(array, *spec):
    return jax.device_put(array, NamedSharding(mesh(), PartitionSpec(*spec)))


def diagonal(seed=0):
    """Entries by which vectors are multiplied: an operator without any communication of its own."""
    rng = np.random.default_rng(seed)
    return {name: placed(np.float32(rng.uniform(0.5, 2, shape)), *SPECS[name]) for name, shape in SHAPES.items()}


def collectives(compiled):
    """The number of each collective in a program, and those that stand in branches of conditionals apart."""
    text = compiled.as_text()
    branches = set()
    for line in text.splitlines():
        if " conditional(" in line:
            inside = re.findall(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))", line)
            branches |= {name.strip().lstrip("%") for group in inside for part in group for name in part.split(",")}
    counts, name = {"always": {}, "in branches": {}}, ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        name = head.group(1) if head else name
        for kind in COLLECTIVES:
            if re.search(rf" {kind}(-start)?\(", line):
                where = counts["in branches" if name in branches else "always"]
                where[kind] = where.get(kind, 0) + 1
    return counts


def steps():
    entries = diagonal()
    struct = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), entries)
    sides = sides_of(struct, struct)

    def times(stack):
        return jax.tree.map(lambda a, rows: a * rows, entries, stack)

    found = {}
    key = jax.random.key(0)
    for width in (1, 4):
        start = jax.jit(lambda key, width=width: random_stack(key, struct, width))(key)
        for kind in ("symmetric", "pair"):
            left = struct if kind == "pair" else None
            state = jax.jit(lambda start, left=left: factorization.init(key, start, left, 12, sides=sides))(start)
            if kind == "pair":
                step = jax.jit(lambda s: bidiagonalization.step(times, times, s, sides=sides))
            else:
                step = jax.jit(lambda s: tridiagonalization.step(times, s, layout=sides.right))
            found[f"{kind}, {width}"] = collectives(step.lower(state).compile())
            state = step(step(state))
            rows = np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in state.right.values()], 1)
            used = rows[: int(state.size) + width]
            found[f"{kind}, {width}"]["defect"] = float(np.abs(used @ used.T - np.eye(len(used))).max())
            found[f"{kind}, {width}"]["kept"] = all(
                leaf.sharding.is_equivalent_to(NamedSharding(mesh(), PartitionSpec(None, *SPECS[name])), leaf.ndim)
                for name, leaf in state.right.items()
            )
    task = krylov.Task(k=1, which="smallest", subspace_size=8, max_steps=20, tol=1e-5, round_off=1e-6, sides=sides)
    start = random_stack(key, struct, 1)
    state = jax.jit(lambda start: davidson.init(task, times, times, None, start, struct, key))(start)
    step = jax.jit(lambda s: davidson.step(task, times, times, None, s))
    found["davidson"] = collectives(step.lower(state).compile())
    operator = sx.aslinearoperator((multiplied, struct), entries)
    trace = jax.jit(lambda operator: sx.trace(operator, max_matvecs=16, key=key, method=sx.XTrace(), full=True))
    exact = sum(float(jnp.sum(leaf)) for leaf in entries.values())
    quantity = jax.device_get(trace(operator))
    within = bool(quantity.lower <= exact <= quantity.upper)
    found["trace"] = {**collectives(trace.lower(operator).compile()), "within": within}
    return found


def slices():
    """Combinations as TPUs make them, with slices of a few entries: how far they are off, and what is communicated."""
    entries = diagonal()
    coefficients = np.float32(np.random.default_rng(3).normal(size=(3, 5)))
    stack = {name: placed(np.stack([np.asarray(leaf) + i for i in range(5)]), None, *SPECS[name])
             for name, leaf in entries.items()}  # fmt: skip
    layout = layouts.layout_of(layouts.placed(vectors.structure(entries), entries))
    whole, vectors._SLICE = vectors._SLICE, 4
    combined = jax.jit(
        lambda c, stack: layouts.piecewise(
            lambda c, part: jax.tree.map(functools.partial(vectors._by_slices, c), part), c, stack, layout
        )
    )
    compiled = combined.lower(coefficients, stack).compile()
    vectors._SLICE = whole
    found = compiled(coefficients, stack)
    wrong = [np.abs(found[name] - np.tensordot(coefficients, stack[name], 1)).max() for name in stack]
    kept = all(found[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim) for name, leaf in stack.items())
    return {"wrong": float(max(wrong)), "collectives": collectives(compiled), "kept": kept}


def multiplied(vector, entries):
    return jax.tree.map(jnp.multiply, vector, entries)


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["a"] + params["b"]) @ params["c"] - y) ** 2)


def results():
    """The same problems on all devices and on one: differences over what the residuals allow, and shardings."""
    rng = np.random.default_rng(1)
    params = {
        "a": np.float32(rng.normal(size=(16, 8)) / 4),
        "b": np.float32(rng.normal(size=8)),
        "c": np.float32(rng.normal(size=(8, 16)) / 3),
    }
    places = {
        "fully": {"a": ("data", "model"), "b": ("data",), "c": ("model", "data")},
        "tensor": {"a": (None, "model"), "b": ("model",), "c": ("model",)},
        "data": {"a": (), "b": (), "c": ()},
    }
    x, y = (np.float32(rng.normal(size=(64, 16))) for _ in range(2))
    matrix = np.float32(rng.normal(size=(64, 32)))
    whole = sx.hessian_operator(loss, params, x, y)
    single = sx.eigsh(whole, 3, which="largest", method=LANCZOS, key=jax.random.key(0))
    alone = sx.svds(matrix, 3, method=LANCZOS, key=jax.random.key(0))
    found = {}
    for name, specs in places.items():
        inside = {leaf: placed(params[leaf], *specs[leaf]) for leaf in params}
        data = [placed(a, "data") for a in (x, y)]
        operator = sx.hessian_operator(loss, inside, *data)
        result = sx.eigsh(operator, 3, which="largest", method=LANCZOS, key=jax.random.key(0))
        found[name] = compared(result.eigenvalues, single.eigenvalues, result, single, result.eigenvectors, specs)
        found[name]["subspace"] = subspace(result.eigenvectors, single.eigenvectors, result.eigenvalues)
        if name == "fully":
            densities = [
                sx.spectral_density(one, key=jax.random.key(2), num_probes=2, num_steps=20) for one in (operator, whole)
            ]
            means = [jnp.sum(one.nodes * one.weights, -1) for one in densities]
            found[name]["mean"] = float(jnp.max(jnp.abs(means[0] - means[1]) / jnp.abs(means[1])))
    entries = diagonal()
    struct = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), entries)
    function = sx.aslinearoperator((multiplied, struct), entries)
    result = sx.eigsh(function, 3, which="smallest", method=LANCZOS, key=jax.random.key(0))
    exact = np.sort(np.concatenate([np.ravel(leaf) for leaf in entries.values()]))[:3][::-1]
    found["function"] = compared(result.eigenvalues, exact, result, result, result.eigenvectors, SPECS)
    found["under jit"] = under_jit(params, places["fully"], x, y, single)
    for name, spec in {"rows": ("data",), "both sides": ("data", "model")}.items():
        result = sx.svds(placed(matrix, *spec), 3, method=LANCZOS, key=jax.random.key(0))
        rows, columns = (*spec, None)[:2]
        found[name] = compared(result.s, alone.s, result, alone, {"u": result.u, "v": result.v},
                               {"u": (rows,), "v": (columns,)})  # fmt: skip
    return found


def under_jit(params, specs, x, y, single):
    """Traced parameters on automatic axes, whose shardings are given: bases that are kept, one all-reduce a pass."""
    shardings = {leaf: NamedSharding(mesh(), PartitionSpec(*spec)) for leaf, spec in specs.items()}
    inside = {leaf: jax.device_put(params[leaf], shardings[leaf]) for leaf in params}

    def top(params):
        H = 2 * sx.hessian_operator(loss, params, x, y)
        return sx.eigsh(sx.with_shardings(H, shardings), 3, which="largest", method=LANCZOS, key=jax.random.key(0))

    result = jax.jit(top)(inside)
    return compared(result.eigenvalues / 2, single.eigenvalues, result, single, result.eigenvectors, specs)


def explicit():
    """Relative differences from one device where the axes of the mesh are explicit, and types of vectors."""
    typed = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    rng, key = np.random.default_rng(2), jax.random.key(0)
    matrix = np.float32(rng.normal(size=(64, 32)))
    gram = np.float32(matrix.T @ matrix / 64)
    places = NamedSharding(typed, PartitionSpec("data", "model"))
    quantities = {
        "svds": lambda a, g: sx.svds(a, 2, method=LANCZOS, key=key).s,
        "svds, dense": lambda a, g: sx.svds(a, 2).s,
        "eigsh": lambda a, g: sx.eigsh(g, 2, which="largest", method=LANCZOS, key=key).eigenvalues,
        "spectral_norm": lambda a, g: sx.spectral_norm(a, method=LANCZOS, key=key),
        "spectral_norm_bound": lambda a, g: sx.spectral_norm_bound(a, key=key).value,
        "condition_number": lambda a, g: sx.condition_number(a),
        "frobenius_norm": lambda a, g: sx.frobenius_norm(a),
        "nuclear_norm": lambda a, g: sx.nuclear_norm(a),
        "spectral_density": lambda a, g: sx.spectral_density(g, key=key, num_probes=2, num_steps=8).sum(jnp.exp).value,
        "trace": lambda a, g: sx.trace(g, max_matvecs=12, key=key),
        "logdet": lambda a, g: sx.logdet(g),
        "gradient": lambda a, g: jax.grad(lambda a: sx.svds(a, 2, method=LANCZOS, key=key).s.sum())(a),
    }  # fmt: skip
    found = {}
    for name, quantity in quantities.items():
        alone = np.asarray(quantity(matrix, gram))
        spread = np.asarray(jax.jit(quantity)(*(jax.device_put(a, places) for a in (matrix, gram))))
        found[name] = float(np.abs(spread - alone).max() / np.abs(alone).max())
    eager = sx.svds(jax.device_put(matrix, places), 2, method=LANCZOS, key=key)
    found["eager"] = float(np.abs(np.asarray(eager.s) - np.linalg.svd(matrix)[1][:2]).max())
    types = [str(jax.typeof(leaf)) for leaf in (eager.u, eager.v, eager.s)]
    placed_matrix, placed_gram = (jax.device_put(a, places) for a in (matrix, gram))
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    inverse = sx.preconditioners.from_matrix(placed_matrix)
    bottom = sx.svds(
        placed_matrix, 1, which="smallest", preconditioner=inverse, method=sx.Davidson(max_steps=32), key=key
    )
    found["preconditioned"] = float(abs(bottom.s[0] - exact[-1]) / exact[-1])
    batches = jax.device_put(np.float32(rng.normal(size=(4, 8, 32))), NamedSharding(typed, PartitionSpec("data")))
    point = jax.device_put(matrix[0], NamedSharding(typed, PartitionSpec("model")))
    curved = sx.hessian_operator(lambda p, x: jnp.mean(jnp.tanh(x @ p) ** 2), point, batches=batches)
    whole = sx.hessian_operator(lambda p, x: jnp.mean(jnp.tanh(x @ p) ** 2), matrix[0], batches=np.asarray(batches))
    exact_hessian = np.asarray(whole.to_dense())
    found["batches"] = float(np.abs(np.asarray(curved.to_dense()) - exact_hessian).max() / np.abs(exact_hessian).max())
    product = sx.product_log_singular_values([placed_gram, placed_gram]).log_values
    found["product"] = float(np.abs(np.exp(product) * 64**2 / exact**4 - 1).max() / 4)
    search = sx.stepwise_eigsh(placed_gram, 2, which="largest", method=LANCZOS, key=key)
    state = search.init()
    pairs = search.run(state)
    found["stepwise"] = float(np.abs(np.asarray(pairs.eigenvalues) * 64 / exact[:2] ** 2 - 1).max())
    steps = [str(jax.typeof(leaf)) for leaf in (state.bases.right, pairs.eigenvectors)]
    found["jacobians"], jacobians = explicit_jacobians(typed, matrix)
    return {"differences": found, "types": types, "steps": steps, "jacobians": jacobians}


def explicit_jacobians(typed, matrix):
    """The relative difference from NumPy of tanh(W x) at samples that lie over an axis; types, and what is refused."""
    samples, weights = np.float32(np.random.default_rng(5).normal(size=(16, 32))), matrix[:8] / 4
    xs = jax.device_put(samples, NamedSharding(typed, PartitionSpec("data")))
    copies = jax.device_put(weights, NamedSharding(typed, PartitionSpec()))

    def f(x, w):
        return jnp.tanh(w @ x)

    @jax.jit
    def both(xs, w):
        spectrum = sx.jacobian_spectrum(f, xs, w, chunk_size=16, statistics=("singular_values", "condition_number"))
        return sx.batched_jacobian(f, xs, w, chunk_size=16), *spectrum[:2]

    dense, values, conditions = both(xs, copies)
    exact = (1 - np.tanh(samples @ weights.T) ** 2)[:, :, None] * weights
    s = np.linalg.svd(exact, compute_uv=False)
    difference = max(np.abs(dense - exact).max() / np.abs(exact).max(), np.abs(values - s).max() / s.max())
    counts = collectives(both.lower(xs, copies).compile())
    try:
        sx.batched_jacobian(lambda x: jnp.tanh(copies @ x), xs)
        refused = False
    except ValueError as error:
        refused = "give the function its arrays as arguments" in str(error)
    said = {
        "types": [str(jax.typeof(leaf)) for leaf in (dense, values, conditions)],
        "collectives": sum(sum(kinds.values()) for kinds in counts.values()),
        "refused": refused,
    }
    return float(difference), said


def compared(values, others, result, other, tree, specs):
    allowed = result.residuals + other.residuals + 4e-6 * values[0]
    return {
        "excess": float(jnp.max(jnp.abs(values - others) / allowed)),
        "converged": bool(result.converged.all()) and bool(other.converged.all()),
        "kept": all(
            leaf.sharding.is_equivalent_to(NamedSharding(mesh(), PartitionSpec(None, *specs[name])), leaf.ndim)
            for name, leaf in tree.items()
        ),
    }


def subspace(stack, other, values):
    """The sine of the largest angle between the spans of the vectors, beside residual over gap at round-off."""
    a, b = (
        np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in tree.values()], 1)
        for tree in (stack, other)
    )
    return float(np.linalg.norm(a - (a @ b.T) @ b, 2))


if __name__ == "__main__":
    said = {
        "devices": jax.device_count(),
        "steps": steps(),
        "slices": slices(),
        "results": results(),
        "explicit": explicit(),
    }
    json.dump(said, sys.stdout)
