"""README.md: its policy runs, its commands, files and links are there, its numbers are the
reference run's."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

import slos
from slos import ask
from slos.core.pace import CLIENT, PAPER
from slos.evaluation.stats import geometric_mean, select
from slos.hardware import fit
from slos.policies import OURS, POLICIES
from slos.records.claims import read_claims, read_headlines, verdict
from slos.records.report import against_table
from slos.studies import step_ahead, today
from slos.studies.engine_tables import capacities, errors
from workloads import SCENARIOS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def ran(path: Path = REFERENCE) -> bool:
    """Whether there is a reference run. The folder alone, empty, is none."""
    return path.is_dir() and any(path.iterdir())


def test_what_was_measured_is_what_the_reference_run_measured() -> None:
    found = (
        capacities(pd.read_csv(REFERENCE / "engine.csv"))
        .set_index(["scenario", "status", "system"])["capacity"]
        .sort_index()
    )
    phrases = {
        "bursty": "{}x on a bursty workload of two tiers (simulated: {}x)",
        "steady": "{}x on a steady one ({}x)",
    }
    for workload, phrase in phrases.items():
        two = [found.xs((workload, how)) for how in ("measured", "simulated")]
        ratios = [f"{each['slos-serve'] / each['vllm-v1']:.2f}" for each in two]
        assert phrase.format(*ratios) in " ".join(README.split())
    off = errors(pd.read_csv(REFERENCE / "engine.csv"))["attainment"].abs()
    said = f"off by {off.median():.0f} point in the median, by {off.max():.0f} at most"
    assert said in " ".join(README.split())


# Your own


def test_from_five_measured_steps_and_a_trace_to_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("slos.records.sweep.os.cpu_count", lambda: 1)  # no Ray for so little
    steps = tmp_path / "docs" / "my_steps.csv"
    steps.write_text("\n".join(steps.read_text().splitlines()[:6]))  # a header and five
    said = re.findall(r"python -m slos\.(\S+) (.*docs/my.*)", README)
    commands = {module: shlex.split(options) for module, options in said}
    assert fit.main(commands["hardware.fit"]) == 0
    assert "R2" in capsys.readouterr().out
    asked = [*commands["ask"], "--num-requests", "300", "--seeds", "1"]
    asked += ["--systems", "slos-serve", "vllm-v1"]
    for gpu in ("docs/my_gpu.json", "my_gpu.json"):
        asked[asked.index("--profile") + 1] = gpu
        assert ask.main(asked) == 0
        text = capsys.readouterr().out
        assert "Requests: 40 rows, arrivals of the file" in text
        assert re.search(r"^ *slos-serve +- +\d", text, re.MULTILINE)


# The policy


def test_the_policy_is_short_and_runs_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [policy] = PYTHON
    assert len([line for line in policy.splitlines() if line.strip()]) < 20
    [name] = re.findall(r"save it as `slos/policies/(\w+)\.py`", README)
    (tmp_path / f"{name}.py").write_text(policy)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    [line] = re.findall(r"line in `POLICIES` there: `(.+?)`", README)
    for key, kind in eval(f"{{{line}}}", vars(module)).items():
        monkeypatch.setitem(POLICIES, key, kind)

    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path))
    [tried] = re.findall(r"`import slos` and `(slos\.search\(.+?\))` show", README)
    probes = eval(tried.replace('")', '", num_requests=100, precision=0.1)'), {"slos": slos})
    assert next(p.rate for p in probes if p.capacity) > 0
    assert {p.system for p in probes} == {name}


def test_the_policy_serves_every_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slos.evaluation.runs import hardware_of, serve
    from workloads import build

    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path))
    names: dict[str, object] = {"__name__": "readme"}
    exec(PYTHON[0], names)
    monkeypatch.setitem(POLICIES, "readme", names["Earliest"])
    for scenario in SCENARIOS:
        requests = build(scenario, 1.0, 15).requests
        outcomes = serve(requests, "readme", hardware_of(scenario), "chunk=512")
        assert len(outcomes) == 15 and not any(o.preemptions or o.declined for o in outcomes)


# The commands


def test_the_commands_are_there() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "run_all.sh"), "--help"], capture_output=True, text=True, check=True
    )
    words = set(re.findall(r"\./run_all\.sh ([a-z-]+)", README))
    assert {"test", "smoke", "full", "--help"} <= words
    known = re.search(r"\[(.*)\]", done.stdout)
    assert known and words <= set(re.findall(r"[a-z-]+", known[1]))
    sources = "".join(
        p.read_text() for folder in ("slos", "workloads") for p in (ROOT / folder).rglob("*.py")
    )
    for variable in set(re.findall(r"SLOS_[A-Z]+", README)):
        assert variable in done.stdout or f'"{variable}"' in sources, (
            f"{variable} means nothing to the kit"
        )


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (\w[\w.]*)", README))))
def test_the_modules_run(module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    options = re.findall(rf"python -m {re.escape(module)} (--\w+)", README)
    assert all(option in done.stdout for option in options)


# What it points to


def test_files_of_the_tree_are_there() -> None:
    [tree] = re.findall(r"## What is where\n\n```\n(.*?)```", README, re.DOTALL)
    folder, named = ROOT, set()
    for line in tree.splitlines():
        if line.startswith("   "):  # goes on with the line before
            continue
        name, _, remark = line.strip().partition(" ")
        folder = folder if line.startswith(" ") else ROOT
        places = [
            folder / name,
            *(folder / more for more in re.findall(r"[\w.]+\.(?:py|json)\b", remark)),
        ]
        if name == "results/":
            places += [ROOT / name / more for more in re.findall(r"[\w.]+\.(?:yaml|md)", remark)]
        if name.endswith("/") and not line.startswith(" "):
            folder = ROOT / name
        for place in places:
            assert place.exists(), f"{place.relative_to(ROOT)} is in the tree and not there"
            named.add(place.name)
    there = {p.name for p in (ROOT / "slos").glob("[a-z]*")}
    assert there <= named, f"not in the tree: {there - named}"
    notebooks = {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"\b\d\d_\w+", tree)) == notebooks


def test_files_and_names_in_the_text_are_there() -> None:
    for name in re.findall(r"`((?:slos|workloads|notebooks|results|tests)/[\w./]+)`", README):
        assert name == "slos/policies/earliest.py" or (ROOT / name).exists(), name
    for module, attribute in re.findall(r"`((?:slos|workloads)\.[\w.]+)\.([a-zA-Z]+)`", README):
        there = hasattr(importlib.import_module(module), attribute) or find_spec(
            f"{module}.{attribute}"
        )
        assert there, f"{module}.{attribute}"
    for attribute, path in re.findall(r"`([A-Z]+)` (?:of|in)\s+`(\w+(?:/\w+)+)\.py`", README):
        assert hasattr(importlib.import_module(path.replace("/", ".")), attribute), (
            f"{path}.py has no {attribute}"
        )


def test_links_lead_somewhere() -> None:
    links = [
        link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))
    ]
    assert len(links) >= 4
    for link in links:
        if ran() or not link.startswith("results/reference/"):
            assert (ROOT / link).exists(), f"{link} leads nowhere"


# What it says


def test_the_results_are_those_of_the_reference_run() -> None:
    [block] = re.findall(r"<!-- results[^>]*-->\n(.*?)<!-- /results -->", README, re.DOTALL)
    rows = read_headlines(REFERENCE / "headlines.csv")
    expected = against_table(read_claims(), rows)
    assert block.strip() == expected, f"paste this between the marks:\n{expected}"


def test_the_gains_by_both_rules_are_those_of_the_reference_run() -> None:
    rows = {row.key: row for row in read_headlines(REFERENCE / "headlines.csv")}
    keys = ["best", *(f"best_{rule}" for rule in ("paper_95", "paper_98"))]
    keys += [f"best_client_{target}" for target in (90, 95, 98)]
    gains = [f"{rows[f'capacity_vs_{key}'].value:.2f}x" for key in keys]
    text = " ".join(README.split())
    assert (
        "{}, {} and {} of the best baseline, by the clients' {}, {} and {}".format(*gains) in text
    )
    published = rows["published_vs_best"].value
    assert f"the best engine as the paper had it, {published:.2f}x" in text
    claims = [(rows[c.key].value, c) for c in read_claims() if c.key in rows and c.value]
    missed = sum(verdict(value, claim) != "OK" for value, claim in claims)
    assert f"Of the paper's {len(claims)} numbers {missed} fall short by over 5 %" in text


def test_todays_gains_are_those_of_the_reference_run() -> None:
    found = today.table(pd.read_csv(REFERENCE / "today.csv", keep_default_na=False))
    found, text = found[found["drafts"] == 0], " ".join(README.split())
    others = today.means(found[found["asked"] == "90 %"]).set_index(["profile", "objectives"])
    names = ("8b-a100", "8b-h200", "70b-h100x4")
    a100, h200, large = (others.loc[(f"llama-3.1-{n}", "paper"), "gain"] for n in names)
    qwen = others.loc[("qwen3-8b-h100", "paper"), "gain"]
    said = f"{a100:.2f}x on an A100, {h200:.2f}x on the H200 below, {qwen:.2f}x with Qwen3-8B"
    assert f"Under the paper's the mean is {said}, {large:.2f}x with Llama-3.1-70B" in text
    found = found[found["profile"] == today.MAIN]
    gains = found[found["asked"] == "90 %"].set_index("scenario")["gain"]
    means = today.means(found).set_index(["asked", "objectives"])
    order = ("chatbot-8k", "coding-8k", "summarization-8k", "tool-calling-8k", "reasoning-32k")
    for whose, end in (("MLPerf", "-mlperf"), ("paper", "")):
        each = [gains[name + end] for name in (*order, "mixed-8k")]
        cells = [f"{x:.3g}x" if x >= 10 else f"{x:.2f}x" for x in each]
        mean = means.loc["90 %", whose]
        cells.append(f"{mean['gain']:.2f}x [{mean['low']:.2f}, {mean['high']:.2f}]")
        assert f"{whose}'s | {' | '.join(cells)} |" in README
    mlperf, paper = (means.loc["98 %", whose] for whose in ("MLPerf", "paper"))
    spread = f"[{paper['low']:.2g}, {paper['high']:.2g}]"
    said = f"At 98 % the means are {mlperf['gain']:.2f}x and {paper['gain']:.1f}x {spread}"
    assert said in text
    strict = found[(found["asked"] == "98 %") & ~found["scenario"].str.endswith("-mlperf")]
    *rest, mixed, coding = sorted(strict["gain"])
    assert f"(coding {coding:.0f}x, mixed {mixed:.0f}x, others to {max(rest):.1f}x)" in text
    mlperf, paper = (means.loc["90 %, clients' rule", whose] for whose in ("MLPerf", "paper"))
    assert f"by the clients' rule {mlperf['gain']:.2f}x and {paper['gain']:.2f}x" in text


def test_where_ours_is_behind_is_said() -> None:
    rows = pd.read_csv(REFERENCE / "waterfall.csv", keep_default_na=False)
    rows = rows[rows["profile"].str.startswith("opt-30b") & rows["scenario"].eq("coding")]
    tried = rows.groupby(["system", "setting", "router", "topology", "seed"])["rate"].first()
    loads = tried.unstack().dropna().agg(geometric_mean, axis=1)  # of those with every seed
    ratio = loads[OURS].max() / loads.drop(OURS).max()
    assert f"OPT-30B's coding with drafts ({ratio:.2f}x)" in " ".join(README.split())


def test_the_lead_over_later_schedulers_is_that_of_the_reference_run() -> None:
    found = pd.read_csv(REFERENCE / "arena.csv", keep_default_na=False)
    drafted = set(found.loc[found["drafts"] > 0, "scenario"])

    def lead(names: set[str], **where: object) -> str:
        place = {"target": 0.9, "drafts": 0, "replicas": 1, "rule": PAPER} | where
        rows = select(found[found["scenario"].isin([*names])], **place)
        best = rows.groupby([rows["system"] == OURS, "scenario"])["capacity"].max()
        assert len(best) == 2 * len(names)
        return f"{geometric_mean(best[True] / best[False]):.2f}x"

    text, every = " ".join(README.split()), set(found["scenario"])
    strict = lead(every, rule=CLIENT), lead(every, target=0.98)
    assert "ours has {} by the clients' rule, {} at 98 %".format(*strict) in text
    changed = lead(drafted), lead(drafted, replicas=4), lead(drafted, drafts=10)
    assert "of OPT models {}, {} on 4 replicas, {} with drafts".format(*changed) in text


def test_the_loads_with_learned_lengths_are_those_of_the_reference_run() -> None:
    found = pd.read_csv(REFERENCE / "unknown_lengths.csv", keep_default_na=False)
    learned = select(found, predictor="quantile")
    ratios = 100 * select(learned, rule=PAPER)["ratio"]
    strict = 100 * select(learned, rule=CLIENT).set_index("scenario")["ratio"]
    others = strict.drop("tool-calling")
    text = " ".join(README.split())
    assert f"ours carries {ratios.min():.0f} to {ratios.max():.0f} % of that load" in text
    rival = select(found, predictor="best baseline", rule=CLIENT, scenario="tool-calling").iloc[0]
    over = strict["tool-calling"] / (100 * rival["ratio"])
    whose = {"vllm-v1": "vLLM V1", "sarathi": "Sarathi-Serve"}[rival["system"]]
    tools = f"but in tool calling {strict['tool-calling']:.0f} %, {over:.2f}x of {whose}"
    assert f"{others.min():.0f} to {others.max():.0f} %, {tools}" in text
    assert f"At most {100 * learned['late_requests'].max():.1f} % are late" in text


def test_what_deciding_a_step_ahead_costs_is_that_of_the_reference_run() -> None:
    found = pd.read_csv(REFERENCE / "step_ahead.csv", keep_default_na=False)
    found["mlperf"] = found["scenario"].str.endswith("-mlperf")
    over = found.assign(ours=found["system"] == OURS).pivot_table(
        "capacity", ["profile", "mlperf", "decided", "scenario"], "ours", "max"
    )
    gains = over[True] / over[False]
    means = gains.groupby(level=[0, 1, 2]).agg(geometric_mean).map("{:.2f}x".format)
    end, ahead = step_ahead.WAYS
    tight, on_it = (means[profile, False] for profile in (today.MAIN, step_ahead.MEASURED))
    falls = [f"from {mean[end]} to {mean[ahead]}" for mean in (tight, on_it)]
    said = "falls {}, on the H200 {} (MLPerf's {})".format(*falls, means[today.MAIN, True, ahead])
    assert said in " ".join(README.split())


def test_it_is_of_a_length_to_be_read_and_names_no_place() -> None:
    lines = README.splitlines()
    assert len(lines) <= 230 and max(map(len, lines)) <= 120
    for word in ("/root", "/home", "http://"):
        assert word not in README
    for block in PYTHON:
        ast.parse(block)
