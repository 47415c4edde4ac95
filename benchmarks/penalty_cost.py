"""What a penalty costs in training: one step between renewals, and a whole run with them, against none.

    taskset -c 0 python benchmarks/penalty_cost.py --out benchmarks/results/penalty_cost.json
    python benchmarks/penalty_cost.py --out benchmarks/results/penalty_cost_all_cores.json      on an idle machine

The default model, data and batch of `spectrax train`, in one process: process CPU time if it is pinned to one core, so
that other programs count little, and the time that passes on several. Steps are interleaved: the step without a
penalty, the same compiled program once more, and the step with it. The median of the ratios comes with its 95 %
bootstrap interval, and that of the program against itself beside it. Whole runs are trained from the start in turns of
one renewal interval; compilation is listed apart.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectrax.training import TrainingConfig, load_data
from spectrax.training.experiment import make_experiment


def interval(ratios: np.ndarray) -> dict[str, float]:
    """Return the median of ratios and the 95 % bootstrap interval of it."""
    draws = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def seconds() -> float:
    """Return the CPU time of this process on one core, or the time on the clock on several."""
    return time.process_time() if len(os.sched_getaffinity(0)) == 1 else time.perf_counter()


class Arm:
    """One compiled training step and where its training stands."""

    def __init__(self, config: TrainingConfig, data: Any, arm: str):
        self.experiment = make_experiment(config, data, arm=arm)
        self.data = (jax.numpy.asarray(data.x_train), jax.numpy.asarray(data.y_train))
        began = seconds()
        self.state = jax.block_until_ready(self.experiment.init_state(self.experiment.init_variables()))
        self.init_seconds = seconds() - began
        order = jax.numpy.asarray(self.experiment.order(0))
        began = seconds()
        step = jax.jit(self.experiment._step)  # without donation: the same state is stepped many times below
        self.step = step.lower(self.state, *self.data, order).compile()
        self.compile_seconds = seconds() - began

    def once(self) -> float:
        """Time one step from the current state, which stays."""
        order = jax.numpy.asarray(self.experiment.order(0))
        began = seconds()
        jax.block_until_ready(self.step(self.state, *self.data, order))
        return seconds() - began

    def advance(self, first: int, last: int) -> float:
        """Train the steps first..last and return their time."""
        per_epoch = self.experiment.steps_per_epoch
        began = seconds()
        for step in range(first, last):
            if step == first or step % per_epoch == 0:
                order = jax.numpy.asarray(self.experiment.order(step // per_epoch))
            self.state, _ = self.step(self.state, *self.data, order)
        jax.block_until_ready(self.state)
        return seconds() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/penalty_cost.json"))
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--data", default="mnist5k")
    arguments = parser.parse_args()
    config = TrainingConfig(data=arguments.data)
    data = load_data(config.data, seed=config.seed)
    # for the steps between renewals the interval is out of reach; the whole run below has the real one
    between = dataclasses.replace(config, renew_every=10**9)
    plain, penalised = Arm(config, data, "baseline"), Arm(between, data, "penalty")
    again = Arm(config, data, "baseline")
    times = np.array([[arm.once() for arm in (plain, again, penalised)] for _ in range(arguments.pairs)])[2:]
    result: dict[str, Any] = {
        "environment": {
            "python": platform.python_version(), "jax": jax.__version__, "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg(),
        },
        "step_ms": dict(zip(("plain", "plain again", "penalised"), (1e3 * np.median(times, 0)).tolist(), strict=True)),
        "same program against itself": interval(times[:, 1] / times[:, 0]),
        "step with penalty / without": interval(times[:, 2] / times[:, 0]),
    }  # fmt: skip
    del again
    whole = Arm(config, data, "penalty")
    plain = Arm(config, data, "baseline")
    turn, total = config.renewal_interval(plain.experiment.steps_per_epoch), plain.experiment.total_steps
    starts = range(0, total, turn)
    turns = np.array([[arm.advance(s, min(s + turn, total)) for arm in (plain, whole)] for s in starts])
    result["whole run with renewals / without"] = interval(turns[:, 1] / turns[:, 0]) | {
        "total": float(turns[:, 1].sum() / turns[:, 0].sum()), "seconds": turns.sum(0).tolist(),
    }  # fmt: skip
    result["compilation_seconds"] = {
        "plain": plain.compile_seconds, "penalised": whole.compile_seconds,
        "first renewal, with its compilation": whole.init_seconds,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
