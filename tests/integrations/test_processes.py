"""Long runs on several processes of this machine: the same spectrum, another number of them, a peer that is lost."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.integrations import checkpoints

pytest.importorskip("orbax.checkpoint")

WORKER = """
    import os, signal, sys, time
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import spectrax as sx
    from spectrax.integrations import long_runs

    directory, port, count, process, stop, how = sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6]
    jax.distributed.initialize(f"127.0.0.1:{port}", count, process, heartbeat_timeout_seconds=10)
    mesh = Mesh(np.array(jax.devices()), "d")
    assert mesh.size == count == jax.process_count()
    matrix = np.load(directory + "/matrix.npy")
    rows = NamedSharding(mesh, P("d"))
    A = jax.make_array_from_callback(matrix.shape, rows, lambda index: matrix[index])
    options = {"key": jax.random.key(3)}
    if how == "density":  # of a Hessian over batches whose samples lie on all devices
        w = jax.make_array_from_callback((64,), NamedSharding(mesh, P()), lambda index: np.zeros(64, "float32")[index])
        loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
        H = sx.hessian_operator(loss, w, batches=lambda: iter([A, 2 * A]))
        stepwise = sx.stepwise_density(H, num_probes=4, num_steps=8, batch_size=4, **options)
    else:
        stepwise = sx.stepwise_eigsh(A, 2, which="largest", method=sx.Lanczos(subspace_size=10), **options)

    def advance(state, taken=[], advance=stepwise.advance):
        taken.append(None)
        if stop and len(taken) > stop:
            if how == "kill" and process == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "preempt":  # the notice reaches the others in the background
                if process == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)
            if how == "density":
                jax.distributed.shutdown()
                os._exit(7)
        return advance(state)

    stepwise.advance = advance
    every = 1000 if how == "preempt" else 1
    found = long_runs.run(stepwise, directory + "/run", every_steps=every, progress=lambda step, metrics: print(step))
    values = found.nodes if how == "density" else found.eigenvalues
    if process == 0:
        np.save(directory + "/values.npy", np.asarray(values))
    jax.distributed.shutdown()
"""

TRAINING = """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import spectrax as sx

    def trained(place):
        \"\"\"Parameters after three steps with a penalty whose vectors are found anew in the second.\"\"\"
        rng = np.random.default_rng(5)
        params = {name: place(rng.normal(size=(16, 16)).astype("float32") / 4) for name in ("first", "second")}
        x, y = (place(rng.normal(size=(32, 16)).astype("float32")) for _ in range(2))
        penalty = sx.regularizers.condition_number_penalty(block_size=2, renew_every=2)
        optimizer = optax.chain(sx.transforms.add_spectral_penalty(penalty, 0.1, key=jax.random.key(0)), optax.sgd(0.1))

        def loss(params, x, y):
            return jnp.mean((jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2)

        @jax.jit
        def step(params, state, x, y):
            updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        state = jax.jit(optimizer.init)(params)
        for _ in range(3):
            params, state = step(params, state, x, y)
        return params, optax.tree.get(state, "measurements").condition_number
"""

TRAINER = """
    if __name__ == "__main__":
        import sys
        from jax.experimental import multihost_utils
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

        directory, port, count, process = sys.argv[1], *map(int, sys.argv[2:5])
        jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
        rows = NamedSharding(Mesh(np.array(jax.devices()), "d"), P("d"))
        place = lambda array: jax.make_array_from_callback(array.shape, rows, lambda index: array[index])
        params, kappa = trained(place)
        assert all(leaf.sharding.is_equivalent_to(rows, 2) for leaf in params.values()), params
        found = {name: multihost_utils.process_allgather(leaf, tiled=True) for name, leaf in params.items()}
        if process == 0:
            np.savez(directory + "/trained.npz", **found, kappa=np.array([kappa[name] for name in found]))
        jax.distributed.shutdown()
"""


def start(directory, count, *, stop=0, how="search", worker=WORKER):
    """Run the worker in `count` processes; the exit status and the output of each."""
    script = Path(directory) / "worker.py"
    script.write_text(textwrap.dedent(worker))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # with fewer threads than collectives that wait for each other, JAX's pool on a CPU comes to a halt
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16", "PYTHONPATH": str(Path(sx.__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(directory), str(port), str(count), str(process), str(stop), how],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in range(count)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], outputs


@pytest.fixture
def matrix(tmp_path):
    rng = np.random.default_rng(2)
    square = rng.normal(size=(64, 64))
    matrix = ((square + square.T) / 8).astype("float32")
    np.save(tmp_path / "matrix.npy", matrix)
    return matrix


def first_step(output):
    return int(next(line for line in output.splitlines() if line.isdigit()))


def test_a_search_that_four_processes_began_and_two_ended(matrix, tmp_path):
    """One of the four is told to end, as clusters do; all of them save the same step, which no interval asks for."""
    codes, outputs = start(tmp_path, 4, stop=2, how="preempt")
    assert codes == [-signal.SIGINT] * 4, outputs
    (stopped,) = checkpoints.checkpoint_steps(tmp_path / "run")
    assert all(f"{os.sep}run{os.sep}{stopped} holds the state" in output for output in outputs)
    codes, outputs = start(tmp_path, 2)
    assert codes == [0] * 2, outputs
    assert first_step(outputs[0]) == stopped + 1
    values = np.load(tmp_path / "values.npy")
    assert_allclose(values, np.linalg.eigvalsh(matrix.astype(float))[::-1][:2], rtol=1e-5)
    method = sx.Lanczos(subspace_size=10)
    alone = sx.eigsh(matrix, 2, which="largest", key=jax.random.key(3), method=method)
    assert_allclose(values, alone.eigenvalues, atol=2 * float(alone.residuals.max()) + 1e-5)


@pytest.mark.slow
def test_a_density_over_an_iterator_on_two_processes(matrix, tmp_path):
    codes, outputs = start(tmp_path, 2, stop=2, how="density")
    assert codes == [7] * 2, outputs
    codes, outputs = start(tmp_path, 1, how="density")
    assert codes == [0], outputs
    assert first_step(outputs[0]) == 3
    hessian = matrix.T @ matrix * (5 / 128)
    alone = sx.spectral_density(hessian, key=jax.random.key(3), num_probes=4, num_steps=8)
    assert_allclose(np.load(tmp_path / "values.npy"), alone.nodes, atol=1e-4)


def test_the_last_checkpoint_stands_when_a_peer_is_lost(matrix, tmp_path):
    codes, outputs = start(tmp_path, 2, stop=3, how="kill")
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0, outputs
    assert checkpoints.checkpoint_steps(tmp_path / "run") == [2, 3]
    codes, outputs = start(tmp_path, 2)
    assert codes == [0] * 2, outputs
    assert first_step(outputs[0]) == 4
    assert_allclose(np.load(tmp_path / "values.npy"), np.linalg.eigvalsh(matrix.astype(float))[::-1][:2], rtol=1e-5)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_training_steps_with_a_penalty_are_those_of_one_process(count, tmp_path):
    codes, outputs = start(tmp_path, count, worker=textwrap.dedent(TRAINING) + textwrap.dedent(TRAINER))
    assert codes == [0] * count, outputs
    found = np.load(tmp_path / "trained.npz")
    names = {}
    exec(textwrap.dedent(TRAINING), names)
    params, kappa = names["trained"](lambda array: array)
    for number, (name, leaf) in enumerate(params.items()):
        assert_allclose(found[name], leaf, atol=1e-4)
        assert_allclose(found["kappa"][number], kappa[name], rtol=1e-2)
