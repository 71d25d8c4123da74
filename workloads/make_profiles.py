"""Makes `profiles.json` of the real data: `python -m workloads.make_profiles [--out FILE]`."""

from __future__ import annotations

import argparse
import json
import re
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd

from workloads import arrivals, lengths
from workloads.scenarios import SCENARIOS

TAIL = (0.985, 0.99, 0.9925, 0.995, 0.9975, 1.0)
GRID = (0.0, 0.005, *(round(0.01 * i, 2) for i in range(1, 99)), *TAIL)
"""Probabilities of the quantiles, dense in the tail that P99 is read from."""
NOTE = (
    "Synthetic profile: quantiles, copulas and arrivals per second. Made by `python -m "
    "workloads.make_profiles` from AzurePublicDataset 2023 (CC-BY 4.0, Patel et al., Splitwise, "
    "ISCA'24), Sarathi-Serve and Vidur's token counts of ShareGPT and arXiv (Apache-2.0, MIT), "
    "HumanEval (MIT), ToolBench and SkyThought (Apache-2.0)."
)


def quantile_table(data: np.ndarray, source: str, limit: int | None) -> dict:
    """Quantiles of each column of int64 [rows, columns], and the copula that gives back their rank
    correlations.

    limit: most tokens of a row; longer rows are left out.
    """
    data = data if limit is None else data[data.sum(axis=1) <= limit]
    # Hazen's quantiles: drawn by interpolation they have the data's mean, however few the rows
    quantiles = np.rint(np.quantile(data, GRID, axis=0, method="hazen").T)
    rank = spearman(data)
    gaussian = 2 * np.sin(np.pi / 6 * rank)  # Pearson's of a Gaussian copula with that Spearman's
    np.fill_diagonal(gaussian, 1.0)
    if limit is not None:
        gaussian = _latent(quantiles, rank[0, 1], limit)
    factor = np.linalg.cholesky(gaussian).round(4).tolist()
    found = {"quantiles": quantiles.astype(int).tolist(), "factor": factor}
    return {"source": source, "rows": len(data), "limit": limit} | found


def spearman(data: np.ndarray) -> np.ndarray:
    """Rank correlations of the columns of [rows, columns], ties at their mean rank."""
    return pd.DataFrame(data).corr("spearman").to_numpy()


def _latent(quantiles: np.ndarray, target: float, limit: int) -> np.ndarray:
    """The copula's correlation of two columns whose draws have the Spearman correlation `target`.

    Found by bisection on draws: a limit on the sum correlates the columns by itself.
    """
    low, high = -0.98, 0.98
    while high - low > 0.005:
        middle = (low + high) / 2
        factor = np.linalg.cholesky(np.array([[1.0, middle], [middle, 1.0]]))
        copula = lengths.Quantiles("", np.array(GRID), quantiles, factor, limit)
        got = spearman(copula.draw(np.random.default_rng(0), 8192))[0, 1]
        low, high = (middle, high) if got < target else (low, middle)
    rho = round((low + high) / 2, 2)
    return np.array([[1.0, rho], [rho, 1.0]])


def burst_table(trace: arrivals.Trace) -> dict:
    """Requests in every second of a trace, and its burstiness for the record."""
    counts = np.bincount(trace.times.astype(int), minlength=int(trace.span)).tolist()
    cv = round(arrivals.burstiness(trace.times)[0], 3)
    return {"source": trace.origin, "cv": cv, "most_per_second": max(counts), "per_second": counts}


def make() -> dict:
    """The whole profile; needs the real data at hand."""
    limits = {s.table: s.max_context for s in SCENARIOS.values() if s.table}
    tables, bursts = {}, {}
    for name, table in lengths.TABLES.items():
        rows = lengths.load(name)
        # of a conversation only the whole has a limit
        single = len(table.columns) == 2 and name in limits
        tables[name] = quantile_table(rows.data, rows.origin, limits[name] if single else None)
    for name in arrivals.STARTS:
        kept = next(s.max_context for s in SCENARIOS.values() if s.arrivals == name)
        for key, limit in ((name, None), (f"{name}/{kept}", kept)):
            trace = arrivals.window(name).fitting(limit or inf)
            bursts[key] = burst_table(trace)
            pairs = np.stack([trace.prompt, trace.output], axis=1)
            tables[key] = quantile_table(pairs, trace.origin, limit)
    return {"note": NOTE, "probabilities": list(GRID), "lengths": tables, "arrivals": bursts}


def text(profile: dict) -> str:
    """JSON with every list of numbers on a line of its own."""
    whole, numbers = json.dumps(profile, indent=1), r"\[[^\[\]{}]*\]"
    return re.sub(numbers, lambda m: f"[{' '.join(m[0][1:-1].split())}]", whole) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workloads.make_profiles", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("profiles.json"))
    out = parser.parse_args().out
    out.write_text(text(make()))
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
