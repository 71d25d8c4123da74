"""Workloads: scenarios, their lengths and arrivals, and the requests made of them.

`build("chatbot", rate=2.0, num_requests=500)` makes requests; `python -m workloads` shows what they
look like next to the paper's figures. The real data comes from the folder that `SLOS_DATA` names,
or from the cache that `python -m workloads --download` fills; without either everything is made
from a *synthetic profile*.
"""

from workloads.arrivals import load_azure
from workloads.build import Workload, build
from workloads.scenarios import SCENARIOS

__all__ = ["SCENARIOS", "Workload", "build", "load_azure"]
