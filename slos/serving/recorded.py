"""This kit's scheduler in vLLM, recorded step by step."""

from __future__ import annotations

from slos.hardware.recorder import Recording
from slos.serving.vllm_plugin import SLOScheduler


class Recorded(Recording, SLOScheduler):
    """For `--scheduler-cls`; "steps" in `--additional-config` names the CSV file of steps."""
