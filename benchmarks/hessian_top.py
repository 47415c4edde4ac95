"""The largest eigenvalue of a Hessian beside curvlinops with SciPy and hessian-eigenthings, at equal residual.

    taskset -c 0 python benchmarks/hessian_top.py            all; half an hour, goes on where it was interrupted
    taskset -c 0 python benchmarks/hessian_top.py --fresh    all, from the beginning
    taskset -c 0 python benchmarks/hessian_top.py --quick    small networks: shows that it works
    python benchmarks/hessian_top.py --table                 the tables of the page, made from the results

A small transformer and a small CNN, over all the data at once and over four mini-batches, in float32. Both frameworks
have the same weights and data, and first of all the losses, gradients and products with the Hessian are compared, in
float64 and float32. Residuals |H v - x v| / |x| are taken with one and the same product for all, in float64.

Ours is `eigsh` on `hessian_operator` with the tolerance as it is: without the probe, as peers have none, with a smaller
subspace, and as it is unless told otherwise. Of the settings of a peer
that reach the same residual from three random starts the cheapest counts, which a user would have to guess: the
tolerance and the subspace of SciPy, and the number of steps of hessian-eigenthings' Lanczos iteration, which does not
stop by itself. Power iteration gets the tolerance.

Process CPU time on one core, medians of interleaved runs over the starts; compilation of ours apart.
"""

import argparse
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from engine import hessian_networks as networks
from engine import hessian_top
from engine.timing import compiled, environment, installed, interleaved, interval

import spectrax as sx

QUICK_RESULTS = Path(__file__).parents[1] / "runs" / "benchmarks" / "hessian_top_quick.json"
NETWORKS = {"transformer": networks.Transformer(), "CNN": networks.Convolutional()}
QUICK = {"transformer": networks.Transformer(width=16, blocks=1, heads=2, context=8, samples=8),
         "CNN": networks.Convolutional((4, 8), (2, 2), 16)}  # fmt: skip
TRAINING_STEPS = 30
TARGETS = (1e-3, 1e-5)  # residuals to reach
PARTS = ((1, TARGETS[0]), (1, TARGETS[1]), (4, TARGETS[0]))  # numbers of batches, and residuals
AGREEMENT = {"float64": 1e-10, "float32": 3e-5}
LOOSER = (100, 10, 1)  # tolerances of SciPy, in units of the target
SIZES = (None, 10)  # of its subspace, 20 unless given
SMALL = 12  # subspace of ours beside the default
IN_LOOP = 10


def agreement(network: networks.Network, params: networks.Params) -> dict[str, dict[str, float]]:
    """Return by how much losses, gradients and products of the frameworks differ, after a check that it is little."""
    import torch
    from engine.hessian_solvers import Problem

    found: dict[str, dict[str, float]] = {}
    for dtype, bound in AGREEMENT.items():
        with jax.enable_x64(dtype == "float64"):
            problem = Problem(network, params, 1, dtype)
            rng = np.random.default_rng(1)
            v = {name: jnp.asarray(rng.normal(size=leaf.shape), dtype) for name, leaf in params.items()}
            with jax.default_matmul_precision("highest"):
                value, gradient = jax.jit(jax.value_and_grad(problem.loss))(problem.params, *problem.data)
            image = problem.flat(applied(problem.operator(problem.params, problem.data), v))
            ((inputs, targets),) = problem.torch_batches
            loss = torch.nn.functional.cross_entropy(problem.module(inputs), targets)
            slope = torch.autograd.grad(loss, list(problem.module.parameters()))
            flat = problem.flat(v)
            found[dtype] = {
                "loss": float(abs(loss.item() - value) / abs(value)),
                "gradient": difference(
                    np.concatenate([part.numpy().ravel() for part in slope]), problem.flat(gradient)
                ),
                "curvlinops": difference(problem.curvlinops() @ flat, image),
                "eigenthings": difference(problem.eigenthings().matvec(torch.as_tensor(flat)).numpy(), image),
            }
        assert max(found[dtype].values()) <= bound, f"the frameworks disagree: {found}"
    return found


@jax.jit
def applied(operator: sx.LinearOperator, v: networks.Params) -> networks.Params:
    return operator.matvec(v)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def residual_of(network: networks.Network, params: networks.Params) -> Callable[[Any], float]:
    """Return the function that takes an answer's relative residual with the product in float64."""
    from engine.hessian_solvers import Problem

    with jax.enable_x64(True):
        problem = Problem(network, params, 1, "float64")
        operator = problem.operator(problem.params, problem.data)

    def residual(answer: Any) -> float:
        with jax.enable_x64(True):
            length = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in answer.vector.values()))
            v = {name: np.asarray(leaf, np.float64) / length for name, leaf in answer.vector.items()}
            image = applied(operator, v)
        squares = [np.sum(np.square(np.asarray(image[name]) - answer.value * v[name])) for name in v]
        return float(np.sqrt(sum(squares)) / abs(answer.value))

    return residual


def reading(arm: Any, residual: Callable[[Any], float]) -> dict[str, Any]:
    """Return what an arm finds from every start."""
    from engine.hessian_solvers import SEEDS

    answers = [arm.answer(arm.run(seed)) for seed in SEEDS]
    return {"setting": arm.setting, "eigenvalues": [answer.value for answer in answers],
            "products": [answer.products for answer in answers],
            "residuals": [residual(answer) for answer in answers], **arm.cost}  # fmt: skip


def cheapest(arms: Iterator[Any], target: float, residual: Callable[[Any], float]) -> tuple[Any, dict[str, Any]]:
    """Return the first arm whose residuals reach the target, with what it finds; the last one if none does."""
    arm = None
    for arm in arms:
        if residual(arm.answer(arm.run(0))) <= target:
            found = reading(arm, residual)
            if max(found["residuals"]) <= target:
                return arm, found
    return arm, reading(arm, residual)


def solvers(problem: Any, target: float, residual: Callable[[Any], float]) -> dict[str, tuple[Any, dict[str, Any]]]:
    from engine import hessian_solvers as solving

    found = {
        name: cheapest(iter([solving.ours(problem, target, size, probe=probe)]), target, residual)
        for name, size, probe in (
            (hessian_top.OURS, None, False),
            (hessian_top.SMALL, SMALL, False),
            (hessian_top.PROBED, None, True),
        )
        if not probe or target == max(TARGETS)
    }
    tried = [
        cheapest((solving.arpack(problem, factor * target, size) for factor in LOOSER), target, residual)
        for size in SIZES
    ]
    found[hessian_top.ARPACK] = min(tried, key=lambda one: sum(one[1]["products"]))
    first = solving.fewest_steps(problem, target)
    steps = (solving.eigenthings_lanczos(problem, count) for count in itertools.count(first))
    found[hessian_top.LANCZOS] = cheapest(itertools.islice(steps, 6), target, residual)
    found[hessian_top.POWER] = cheapest(iter([solving.eigenthings_power(problem, target)]), target, residual)
    return found


def measure(problem: Any, target: float, residual: Callable[[Any], float], runs: int) -> dict[str, Any]:
    from engine.hessian_solvers import SEEDS

    found = solvers(problem, target, residual)
    calls = {}
    for name, (arm, _) in found.items():
        seeds = itertools.cycle(SEEDS)
        calls[name] = lambda arm=arm, seeds=seeds: arm.run(next(seeds))
    seconds = interleaved(calls, runs)
    rows = {name: row for name, (_, row) in found.items()}
    for name, row in rows.items():
        row |= {"cpu_ms": float(1e3 * np.nanmedian(seconds[name])), "reached": max(row["residuals"]) <= target,
                "over_ours": interval(seconds[name] / seconds[hessian_top.OURS])}  # fmt: skip
    return {"target": target, "runs": runs, "load": os.getloadavg()[0], "arms": rows}


def products(problem: Any, runs: int) -> dict[str, Any]:
    """Time one product in each framework: ours in a loop, with what is done once, and alone."""
    import torch

    rng = np.random.default_rng(2)
    v = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in problem.params.items()}
    flat = problem.flat(v)
    flat /= np.linalg.norm(flat)
    parts = [torch.as_tensor(flat)]

    def looped(params: networks.Params, data: Any, v: networks.Params, count: jax.Array) -> Any:
        matvec, _ = problem.operator(params, data).loop_products()

        def scaled(_: Any, u: networks.Params) -> networks.Params:
            image = matvec(u)
            size = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in image.values()))
            return jax.tree.map(lambda leaf: leaf / size, image)

        return jax.lax.fori_loop(0, count, scaled, v)

    program, _ = compiled(looped, problem.params, problem.data, v, jnp.asarray(IN_LOOP, jnp.int32))
    short, long = jnp.asarray(IN_LOOP, jnp.int32), jnp.asarray(2 * IN_LOOP, jnp.int32)
    scipy_operator, operator = problem.curvlinops(), problem.eigenthings()
    seconds = interleaved(
        {
            "short": lambda: program(problem.params, problem.data, v, short),
            "long": lambda: program(problem.params, problem.data, v, long),
            "curvlinops": lambda: scipy_operator.matvec(flat),
            "hessian-eigenthings": lambda: operator.matvec(parts[0]),
        },
        runs,
        always=True,
    )
    each = np.median(seconds["long"] - seconds["short"]) / IN_LOOP
    return {"runs": runs, "spectrax": float(1e3 * each), "curvlinops": float(1e3 * np.median(seconds["curvlinops"])),
            "spectrax, once": float(1e3 * (np.median(seconds["short"]) - IN_LOOP * each)),
            "hessian-eigenthings": float(1e3 * np.median(seconds["hessian-eigenthings"]))}  # fmt: skip


def run(path: Path, *, quick: bool, runs: int) -> None:
    import torch
    from engine.hessian_solvers import Problem

    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}, "rows": {}}
    result["environment"] = environment()
    result["environment"]["packages"] |= {name: installed(name) for name in hessian_top.PACKAGES}

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")

    chosen = QUICK if quick else NETWORKS
    trained = {name: networks.trained(network, TRAINING_STEPS) for name, network in chosen.items()}
    for (batches, target), (name, network) in itertools.product(PARTS, chosen.items()):
        key, params = f"{name}, {batches} batches, {target:g}", trained[name]
        if name not in result["networks"]:
            result["networks"][name] = {
                "parameters": sum(leaf.size for leaf in params.values()), "samples": network.samples,
                "training_steps": TRAINING_STEPS, "differences": agreement(network, params),
            }  # fmt: skip
            keep()
        if key not in result["rows"]:
            problem, residual = Problem(network, params, batches), residual_of(network, params)
            same = (row for row in result["rows"].values() if (row["network"], row["batches"]) == (name, batches))
            known = next(same, None)
            row = {"network": name, "batches": batches,
                   "products": known["products"] if known else products(problem, runs)}  # fmt: skip
            result["rows"][key] = row | measure(problem, target, residual, runs)
            print(key, json.dumps(result["rows"][key], indent=1), flush=True)
            keep()
    print(hessian_top.markdown(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--quick", action="store_true", help="small networks, and three runs")
    parser.add_argument("--table", action="store_true", help="write the tables of the page from the results")
    arguments = parser.parse_args()
    if arguments.table:
        hessian_top.write_page()
        return
    path = QUICK_RESULTS if arguments.quick else hessian_top.RESULTS
    if arguments.fresh or arguments.quick:
        path.unlink(missing_ok=True)
    run(path, quick=arguments.quick, runs=3 if arguments.quick else arguments.runs)


if __name__ == "__main__":
    main()
