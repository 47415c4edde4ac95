"""The precision of every product, read off the program that is handed to the compiler."""

import re

import jax
import jax.numpy as jnp
import pytest

import spectrax as sx

KEY = jax.random.key(0)
STRUCT = jax.ShapeDtypeStruct((40,), jnp.float32)


def function(v, matrix):
    return jnp.concatenate([matrix @ v, v])  # no precision given


def of_function(matrix, method, which):
    operator = sx.aslinearoperator(function, STRUCT, matrix)
    return sx.svds(operator, 3, which=which, method=method, key=KEY)


def of_jacobian(matrix, method, which):
    operator = sx.jacobian_operator(lambda x, w: jnp.tanh(w @ x), jnp.ones(40), matrix)
    return sx.svds(operator, 3, which=which, method=method, key=KEY)


def of_convolution(matrix, method, which):
    kernel = matrix[:3, :12].reshape(3, 3, 2, 2)
    return sx.svds(sx.conv_operator(kernel, (6, 6), padding="SAME"), 3, which=which, method=method, key=KEY)


def symmetric(matrix, method, which):
    return sx.eigsh(matrix.T @ matrix, 3, which=which, method=method, key=KEY)


def gradient(matrix, method, which):
    return jax.grad(lambda m: of_function(m, method, which).s.sum())(matrix)


CASES = [
    (of_function, sx.Lanczos(), "largest"),
    (of_function, sx.Lanczos(block_size=2), "smallest"),
    (of_function, sx.InverseLanczos(), "smallest"),
    (of_function, sx.Davidson(), "smallest"),
    (of_function, sx.Dense(), "largest"),
    (of_jacobian, sx.Lanczos(), "largest"),
    (of_convolution, sx.Lanczos(), "largest"),
    (of_convolution, sx.Davidson(), "smallest"),
    (symmetric, sx.Lanczos(), "largest_magnitude"),
    (gradient, sx.Lanczos(), "largest"),
]


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(("routine", "method", "which"), CASES)
def test_every_product_is_taken_at_the_highest_precision(routine, method, which, platform):
    matrix = jnp.ones((40, 40))
    lowered = jax.jit(lambda a: routine(a, method, which)).trace(matrix).lower(lowering_platforms=(platform,))
    products = [
        line
        for line in lowered.as_text().splitlines()
        if re.search(r"stablehlo\.(dot_general|convolution)", line) and not re.search(r"tensor<(\d+x)*(i|ui)\d+>", line)
    ]
    assert len(products) >= 4
    sloppy = [line.strip()[:160] for line in products if line.count("HIGHEST") < 2]
    if routine is symmetric:  # the test's own product
        sloppy = [line for line in sloppy if "tensor<40x40xf32>, tensor<40x40xf32>) -> tensor<40x40xf32>" not in line]
    assert not sloppy
