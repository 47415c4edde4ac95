"""What a penalty acts on: parameters as matrices by explicit axes, and Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx
from spectrax.regularizers import MatrixAxes, jacobian_maps, matrix_maps


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def dense(operator):
    return np.asarray(operator.to_dense())


def test_a_kernel_of_two_axes_is_the_map_from_inputs_to_outputs():
    kernel = normal(5, 3)
    operators = matrix_maps()({"layer": {"kernel": kernel, "bias": jnp.ones(3)}, "scale": jnp.ones(())})
    assert list(operators) == ["layer/kernel"]
    assert_array_equal(dense(operators["layer/kernel"]), np.asarray(kernel).T)
    x = normal(5, seed=1)
    assert_allclose(operators["layer/kernel"] @ x, x @ kernel, rtol=1e-5, atol=1e-5)


def test_names_are_paths_through_dicts_lists_and_tuples_in_the_order_of_the_tree():
    params = {"b": [normal(2, 2), (normal(2, 3), normal(2))], "a": {"w": normal(3, 2)}}
    assert list(matrix_maps()(params)) == ["a/w", "b/0", "b/1/0"]


def test_integers_and_vectors_are_no_matrices():
    params = {"table": jnp.ones((3, 3), jnp.int32), "bias": normal(3), "w": normal(3, 2)}
    assert list(matrix_maps()(params)) == ["w"]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (MatrixAxes(0, 1), lambda w: w.T),
        (MatrixAxes(1, 0), lambda w: w),
        (MatrixAxes(-2, -1), lambda w: w.T),
    ],
)
def test_axes_of_a_matrix(axes, expected):
    w = normal(4, 3)
    assert_array_equal(dense(matrix_maps(axes)({"w": w})["w"]), expected(np.asarray(w)))


@pytest.mark.parametrize("axes", [MatrixAxes(0, (1, 2)), MatrixAxes((0,), (-2, -1))], ids=["positive", "negative"])
def test_several_axes_of_one_side_are_one_index_in_the_order_given(axes):
    w = normal(5, 2, 3)
    matrix = dense(matrix_maps(axes)({"w": w})["w"])
    assert matrix.shape == (6, 5)
    x = np.asarray(normal(5, seed=1))
    assert_allclose(matrix @ x, np.einsum("d,dhk->hk", x, w).reshape(-1), rtol=1e-5, atol=1e-6)


def test_the_order_of_axes_counts():
    w = normal(5, 2, 3)
    matrix = dense(matrix_maps(MatrixAxes(0, (2, 1)))({"w": w})["w"])
    assert_array_equal(matrix, np.asarray(w).transpose(2, 1, 0).reshape(6, 5))


def test_a_convolution_kernel_is_reshaped_only_on_request():
    kernel = normal(3, 3, 4, 6)
    with pytest.raises(ValueError, match=r"conv/kernel has shape \(3, 3, 4, 6\).*linear_maps.*MatrixAxes"):
        matrix_maps()({"conv": {"kernel": kernel}})
    matrix = dense(matrix_maps(MatrixAxes((0, 1, 2), 3))({"conv": {"kernel": kernel}})["conv/kernel"])
    assert_array_equal(matrix, np.asarray(kernel).reshape(36, 6).T)


@pytest.mark.parametrize(
    ("axes", "take", "count"),
    [
        (MatrixAxes(1, 2), lambda w, i: w[i].T, 4),
        (MatrixAxes(2, 1), lambda w, i: w[i], 4),
        (MatrixAxes(0, 1), lambda w, i: w[:, :, i].T, 3),
        (MatrixAxes(0, 2), lambda w, i: w[:, i].T, 2),
    ],
)
def test_remaining_axes_give_a_matrix_for_each_index(axes, take, count):
    w = normal(4, 2, 3)
    operators = matrix_maps(axes)({"w": w})
    assert list(operators) == [f"w[{i}]" for i in range(count)]
    for i in range(count):
        assert_array_equal(dense(operators[f"w[{i}]"]), take(np.asarray(w), i))


def test_two_batch_axes_have_names_with_two_indices():
    w = normal(2, 3, 4, 3)
    operators = matrix_maps(MatrixAxes(2, 3))({"w": w})
    assert list(operators) == [f"w[{i},{j}]" for i in range(2) for j in range(3)]
    assert_array_equal(dense(operators["w[1,2]"]), np.asarray(w)[1, 2].T)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (MatrixAxes(0, 3), r"axis 3 does not exist in w, which has 3 axes"),
        (MatrixAxes(-4, 1), r"axis -4 does not exist in w"),
        (MatrixAxes(0, (0, 1)), r"disjoint and non-empty"),
        (MatrixAxes(2, -1), r"disjoint and non-empty"),
        (MatrixAxes((), 1), r"disjoint and non-empty"),
        (MatrixAxes(0, ()), r"disjoint and non-empty"),
    ],
)
def test_axes_that_form_no_matrix(axes, message):
    with pytest.raises(ValueError, match=message):
        matrix_maps(axes)({"w": normal(4, 2, 3)})


@pytest.mark.parametrize("params", [{}, {"bias": jnp.ones(3)}, {"table": jnp.ones((2, 2), jnp.int32)}])
def test_a_tree_without_a_matrix(params):
    with pytest.raises(ValueError, match="no matrix to act on"):
        matrix_maps()(params)


def test_maps_are_hashable_so_that_jit_can_keep_them():
    assert hash(matrix_maps(MatrixAxes(0, (1, 2)))) == hash(matrix_maps(MatrixAxes(0, (1, 2))))
    assert matrix_maps() == matrix_maps()
    assert jacobian_maps(jnp.dot) == jacobian_maps(jnp.dot)


def test_gradients_reach_the_parameters_through_the_operators():
    w, probe = normal(4, 2, 3), normal(2, seed=1)
    gradient = jax.grad(lambda w: jnp.sum(matrix_maps(MatrixAxes(1, 2))({"w": w})["w[2]"] @ probe))(w)
    expected = np.zeros((4, 2, 3), np.float32)
    expected[2] = np.asarray(probe)[:, None]
    assert_allclose(gradient, expected, rtol=1e-6)


def test_the_jacobian_at_a_sample(x64):
    w, x = np.random.default_rng(0).standard_normal((3, 4)), np.random.default_rng(1).standard_normal(4)

    def model(params, x):
        return jnp.tanh(params["w"] @ x)

    operators = jacobian_maps(model)({"w": jnp.asarray(w)}, jnp.asarray(x))
    assert list(operators) == ["jacobian"]
    expected = (1 - np.tanh(w @ x) ** 2)[:, None] * w
    assert_allclose(dense(operators["jacobian"]), expected, rtol=1e-12)


def test_the_jacobian_differentiates_in_the_parameters(x64):
    w, x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4))), jnp.ones(4)
    maps = jacobian_maps(lambda params, x: jnp.tanh(params @ x))
    gradient = jax.grad(lambda w: jnp.sum(maps(w, x)["jacobian"].to_dense() ** 2))(w)

    def value(w):
        return np.sum(((1 - np.tanh(w @ np.ones(4)) ** 2)[:, None] * w) ** 2)

    h, w = 1e-6, np.asarray(w)
    steps = [h * np.eye(12)[i].reshape(3, 4) for i in range(12)]
    expected = np.array([(value(w + step) - value(w - step)) / (2 * h) for step in steps]).reshape(3, 4)
    assert_allclose(gradient, expected, rtol=1e-7, atol=1e-8)


def test_the_names_are_exported_where_users_look():
    assert sx.regularizers.matrix_maps is matrix_maps
    assert sx.regularizers.jacobian_maps is jacobian_maps
    assert sx.regularizers.MatrixAxes is MatrixAxes


def test_two_parameters_of_one_path_are_refused():
    with pytest.raises(ValueError, match="two parameters have the path a/b: rename one of them"):
        matrix_maps()({"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}})


def test_axes_that_are_named_twice_are_refused():
    with pytest.raises(ValueError, match=r"the axes \(0, 0\) of kernel must differ"):
        matrix_maps(MatrixAxes((0, -2), 1))({"kernel": jnp.ones((2, 3))})
