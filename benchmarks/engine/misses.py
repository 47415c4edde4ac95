"""The section "misses": repeated singular values at both ends, and how many copies are missed without a word."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

from .cases import with_values
from .sections import Row, Settings
from .timing import limit
from .verification import missed

MULTIPLICITIES = (2, 3, 6, 20)
TOLERANCES = {"float64": (1e-2, 1e-4, 1e-6, 1e-10), "float32": (1e-2, 1e-4, 1e-6)}


def section(settings: Settings) -> Iterator[Row]:
    methods = {"Lanczos": sx.Lanczos(), "Lanczos, no probe": sx.Lanczos(probe=False), "inverse": sx.InverseLanczos()}
    for dtype, tolerances in TOLERANCES.items():
        if settings.quick and dtype == "float32":
            continue
        for which in ("largest", "smallest"):
            for multiplicity in (3,) if settings.quick else MULTIPLICITIES:
                for tol in tolerances[1:2] if settings.quick else tolerances:
                    for name, method in methods.items():
                        if name == ("inverse" if which == "largest" or settings.quick else ""):
                            continue

                        def row(
                            m: int = multiplicity, w: str = which, t: float = tol, d: str = dtype,
                            method: Any = method, name: str = name,
                        ) -> dict[str, Any]:  # fmt: skip
                            with jax.enable_x64(d == "float64"):
                                return repeated(
                                    m, w, t, d, method, judged=name != "Lanczos, no probe", settings=settings
                                )

                        yield f"{name} {which}, multiplicity {multiplicity}, {dtype} to {tol:.0e}", row


def repeated(
    multiplicity: int, which: str, tol: float, dtype: str, method: Any, *, judged: bool, settings: Settings
) -> dict[str, Any]:
    """Solve for all copies and one value more, from as many starts and matrices as there are seeds."""
    shape, k = (400, 250), multiplicity + 1
    values = sx.testing.repeated(shape[1], multiplicity=multiplicity)
    solve = jax.jit(lambda A, key: sx.svds(A, k, which=which, method=method, tol=tol, key=key))
    counts = {"silent": 0, "flagged": 0, "copies_missed_silently": 0, "not_converged": 0}
    matvecs = []
    for seed in range(settings.seeds):
        matrix = with_values(values, shape, seed).astype(dtype)
        truth = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        result = solve(jnp.asarray(matrix), jax.random.key(seed))
        uncertainty = 20 * float(np.finfo(dtype).eps) * truth[0]
        s, residuals = np.asarray(result.s), np.asarray(result.residuals)
        count = missed(s, residuals, truth, smallest=which == "smallest", uncertainty=uncertainty)
        converged = bool(np.all(result.converged))
        counts["not_converged"] += not converged
        counts["silent" if converged else "flagged"] += count > 0
        counts["copies_missed_silently"] += count if converged else 0
        matvecs.append(int(result.num_matvecs))
    limits = [limit("runs with a silent miss", counts["silent"], 0)] if judged else []
    return {"k": k, "seeds": settings.seeds, "matvecs": float(np.median(matvecs)), **counts, "limits": limits}
