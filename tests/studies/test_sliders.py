"""The interactive corner: what a slider says is what is drawn."""

import re
from pathlib import Path
from typing import Any

import pytest
from ipywidgets import VBox
from traitlets import TraitError

from slos.evaluation.plots import name_of
from slos.evaluation.runs import hardware_of
from slos.policies import POLICIES
from slos.studies import sliders


class Shown:
    """In place of a notebook's output: every picture, in order, and the numbers that stand in the
    figures."""

    def __init__(self) -> None:
        self.pictures: list[bytes] = []
        self.titles: list[str] = []
        self.fates: list[dict[str, int]] = []

    def read(self, figure: Any) -> Any:
        self.titles.append(figure.axes[0].get_title())
        texts = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]
        self.fates.append(
            {name: int(count) for name, count in re.findall(r"(\w+) \((\d+)\)", " ".join(texts))}
        )
        return figure

    def display(self, image: Any) -> None:
        self.pictures.append(image.data)

    update = display


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shown:
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path))
    sliders.plt.close("all")  # what other tests left open
    record, answer = Shown(), sliders.answer
    monkeypatch.setattr(sliders, "DisplayHandle", lambda: record)
    monkeypatch.setattr(sliders, "answer", lambda *args: record.read(answer(*args)))
    return record


def controls() -> Any:
    box = sliders.corner("chatbot", hardware_of("chatbot"), 2.0)
    assert isinstance(box, VBox)
    return box.children


def test_a_moved_slider_redraws_with_other_numbers(shown: Shown) -> None:
    load, slo_scale, burst, policy = controls()
    assert not any(slider.continuous_update for slider in (load, slo_scale, burst))
    assert len(shown.pictures) == 1 and shown.pictures[0].startswith(b"\x89PNG"), (
        "drawn before anything moves"
    )
    assert sum(shown.fates[0].values()) == 120 + 50, "a minute of 2 requests/s, and 5 s of 10 more"
    burst.value = 1.0
    assert sum(shown.fates[1].values()) == 120, "no burst"
    load.value = 3.0
    assert sum(shown.fates[2].values()) == 180
    burst.value = 8.0
    assert sum(shown.fates[3].values()) == 180 + 105
    slo_scale.value = 2.0
    policy.value = "vllm"
    assert len(set(shown.pictures)) == len(shown.pictures) == 6
    assert shown.fates[4]["attained"] > shown.fates[3]["attained"], "looser objectives"
    assert shown.titles[4].startswith(name_of("slos-serve")) and shown.titles[5].startswith(
        name_of("vllm")
    )
    assert shown.fates[5]["declined"] == 0 < shown.fates[4]["declined"], "vLLM declines nobody"
    assert not sliders.plt.get_fignums(), "no figure is left open"


def test_only_known_policies_can_be_chosen(shown: Shown) -> None:
    *_, policy = controls()
    assert [name for _, name in policy.options] == list(POLICIES)
    with pytest.raises(TraitError):
        policy.value = "nonsense"
    assert policy.value == "slos-serve" and len(shown.pictures) == 1


def test_values_out_of_bounds_stay_at_the_bound(shown: Shown) -> None:
    load, slo_scale, *_ = controls()
    load.value, slo_scale.value = 1e9, 0.0
    assert (load.value, slo_scale.value) == (3.2, 0.5) and len(shown.pictures) == 3
