"""The top eigenvalue of a Hessian by spectrax, by curvlinops with SciPy, and by hessian-eigenthings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import curvlinops
import hessian_eigenthings
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
import torch

import spectrax as sx

from . import hessian_networks as networks
from .hessian_networks import Network, Params
from .timing import compiled

SEEDS = (0, 1, 2)  # of the random starts; a peer's setting is one that does for all of them
MOST_STEPS = 128
MOST_PRODUCTS = 300  # of power iteration


@dataclasses.dataclass(frozen=True)
class Answer:
    """An eigenvalue, a vector in JAX's layout, and what they took."""

    value: float
    vector: Params
    products: int


@dataclasses.dataclass(frozen=True)
class Arm:
    """A solver with its setting: `run` is what is timed, from a seed to what `answer` reads."""

    setting: str
    run: Callable[[int], Any]
    answer: Callable[[Any], Answer]
    cost: dict[str, float] = dataclasses.field(default_factory=dict)


class Problem:
    """A network with its weights, and its Hessian in both frameworks over so many batches of equal size."""

    def __init__(self, network: Network, params: Params, batches: int, dtype: str = "float32"):
        self.network, self.batches, self.dtype = network, batches, dtype
        inputs, targets = network.data()
        self.params = {name: jnp.asarray(leaf, dtype) for name, leaf in params.items()}
        inputs = jnp.asarray(inputs, inputs.dtype if inputs.dtype == np.int32 else dtype)
        self.data = tuple(
            part if batches == 1 else part.reshape(batches, -1, *part.shape[1:])
            for part in (inputs, jnp.asarray(targets))
        )
        self.loss = networks.loss_of(network)
        self.kind = getattr(torch, dtype)
        self.module = networks.torch_module(network, params, self.kind)
        self.names = [name for name, _ in self.module.named_parameters()]
        self.torch_batches = [
            (x, y.flatten())
            for x, y in zip(*(part.chunk(batches) for part in networks.torch_data(network, self.kind)), strict=True)
        ]

    def operator(self, params: Params, data: Any) -> sx.LinearOperator:
        if self.batches == 1:
            return sx.hessian_operator(self.loss, params, *data)
        return sx.hessian_operator(_on_batch(self.loss), params, batches=data)

    def curvlinops(self) -> scipy.sparse.linalg.LinearOperator:
        weights = list(self.module.parameters())
        mean = torch.nn.CrossEntropyLoss()
        found = curvlinops.HessianLinearOperator(
            self.module, mean, weights, self.torch_batches, check_deterministic=False
        )
        return found.to_scipy(np.dtype(self.dtype))

    def eigenthings(self) -> hessian_eigenthings.HessianOperator:
        loss = hessian_eigenthings.supervised_loss(torch.nn.functional.cross_entropy)
        return hessian_eigenthings.HessianOperator(self.module, self.torch_batches, loss)

    def flat(self, tree: Params) -> np.ndarray:
        """Return a vector in PyTorch's order and layouts."""
        return np.concatenate([networks.in_torch(name, np.asarray(tree[name])).ravel() for name in self.names])

    def tree(self, flat: np.ndarray) -> Params:
        """Return a vector in JAX's layouts: the inverse of `flat`."""
        found, place = {}, 0
        for name, weight in self.module.named_parameters():
            part = flat[place : place + weight.numel()].reshape(weight.shape)
            found[name], place = networks.in_jax(name, part), place + weight.numel()
        return found


@dataclasses.dataclass(frozen=True)
class _OnBatch:
    loss: Callable[..., jax.Array]

    def __call__(self, params: Params, batch: Any) -> jax.Array:
        return self.loss(params, *batch)


def _on_batch(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return _OnBatch(loss)


def ours(problem: Problem, tol: float, size: int | None, *, probe: bool) -> Arm:
    def solve(params: Params, data: Any, key: jax.Array) -> Any:
        method = sx.Lanczos(subspace_size=size, probe=probe)
        H = problem.operator(params, data)
        return sx.eigsh(H, 1, which="largest_magnitude", method=method, tol=tol, key=key)

    program, cost = compiled(solve, problem.params, problem.data, jax.random.key(0))

    def answer(found: Any) -> Answer:
        assert bool(found.converged[0])
        vector = {name: np.asarray(leaf[0], np.float64) for name, leaf in found.eigenvectors.items()}
        return Answer(float(found.eigenvalues[0]), vector, int(found.num_matvecs))

    setting = f"tol={tol:g}" + (f", subspace_size={size}" if size else "")
    return Arm(setting, lambda seed: program(problem.params, problem.data, jax.random.key(seed)), answer, cost)


def arpack(problem: Problem, tol: float, size: int | None) -> Arm:
    operator, count = problem.curvlinops(), [0]

    def product(v: np.ndarray) -> np.ndarray:
        count[0] += 1
        return operator.matvec(v)

    counted = scipy.sparse.linalg.LinearOperator(operator.shape, matvec=product, dtype=operator.dtype)

    def run(seed: int) -> Any:
        count[0] = 0
        start = np.random.default_rng(seed).normal(size=operator.shape[0]).astype(operator.dtype)
        values, vectors = scipy.sparse.linalg.eigsh(counted, 1, which="LM", tol=tol, ncv=size, v0=start)
        return values[0], vectors[:, 0], count[0]

    setting = f"tol={tol:g}" + (f", ncv={size}" if size else "")
    return Arm(setting, run, lambda found: Answer(float(found[0]), problem.tree(found[1]), found[2]))


def eigenthings_lanczos(problem: Problem, steps: int) -> Arm:
    operator = problem.eigenthings()

    def run(seed: int) -> Any:
        return hessian_eigenthings.lanczos(
            operator, k=1, max_iter=steps, which="LM", seed=seed, reorthogonalize=True
        )  # fmt: skip

    return Arm(f"max_iter={steps}", run, lambda found: _eigenthings_answer(problem, found))


def eigenthings_power(problem: Problem, tol: float) -> Arm:
    operator = problem.eigenthings()

    def run(seed: int) -> Any:
        return hessian_eigenthings.deflated_power_iteration(
            operator, k=1, max_iter=MOST_PRODUCTS, tol=tol, seed=seed
        )  # fmt: skip

    return Arm(f"tol={tol:g}", run, lambda found: _eigenthings_answer(problem, found))


def _eigenthings_answer(problem: Problem, found: Any) -> Answer:
    return Answer(float(found.eigenvalues[0]), problem.tree(found.eigenvectors[0].numpy()), found.iterations)


def fewest_steps(problem: Problem, target: float) -> int:
    """Return after how many Lanczos steps of hessian-eigenthings the estimated residual is below the target."""
    operator, steps = problem.eigenthings(), 0
    for seed in SEEDS:
        start = torch.randn(operator.size, dtype=problem.kind, generator=torch.Generator().manual_seed(seed))
        size = 16
        while True:
            found = hessian_eigenthings.lanczos_tridiagonal(operator, start, size)
            a, b = found.alphas.double().numpy(), found.betas.double().numpy()
            last = np.append(b, found.last_beta)
            first = next((m for m in range(2, len(a) + 1) if _estimate(a[:m], b[: m - 1], last[m - 1]) <= target), None)
            if first is not None or size >= MOST_STEPS:
                break
            size *= 2
        steps = max(steps, first or MOST_STEPS)
    return steps


def _estimate(a: np.ndarray, b: np.ndarray, last: float) -> float:
    values, rows = np.linalg.eigh(np.diag(a) + np.diag(b, 1) + np.diag(b, -1))
    top = np.argmax(np.abs(values))
    return abs(last * rows[-1, top] / values[top])
