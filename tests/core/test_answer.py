"""Answer: results are found by what tasks declare, never by a name known here."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionllm.core import answer as answer_module
from visionllm.core import task as task_module
from visionllm.core.answer import Answer, LinkResult, Result, Trace
from visionllm.core.detections import Detections
from visionllm.core.errors import PictureError, VisionLLMError
from visionllm.core.registry import Registry
from visionllm.core.sample import Picture
from visionllm.core.superlink import LinkMeta
from visionllm.core.task import Task, Token

STREET = Picture(pixels=np.full((60, 80, 3), 90, np.uint8), name="street.jpg")
TABLE = Picture(pixels=np.full((30, 30, 3), 20, np.uint8), name="table.jpg")


class Depths:
    """What a plugin might bring: a result without COCO entries or HTML."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    @property
    def scores(self) -> np.ndarray:
        return np.ones(len(self.values), np.float32)

    @classmethod
    def merge(cls, results: Any, picture: Picture | None = None) -> Depths:
        return cls([value for result in results for value in result.values])

    def statements(self) -> list[str]:
        return [f"depth {value}" for value in self.values]

    def to_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def draw(self, picture: Any = None) -> Image.Image:
        return picture

    def save(self, path: str | Path) -> None: ...


class Made(Depths):
    """Pictures that were made: they stand beside the one that was shown."""

    made = True

    def draw(self, picture: Any = None) -> Image.Image:
        sheet = Image.new("RGB", (picture.width + 10, picture.height))
        sheet.paste(picture, (0, 0))
        return sheet


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks that give boxes and one of a plugin; names that mean nothing."""
    known: Registry[Task] = Registry("task")
    results: Registry[type[Result]] = Registry("result")
    results.add("detections", Detections)
    results.add("depths", Depths)
    results.add("made", Made)
    for name, token, result in (
        ("alpha", "[A]", "detections"),
        ("beta", "[B]", "detections"),
        ("gamma", "[C]", "depths"),
        ("delta", "[D]", "made"),
    ):
        task = Task(
            name=name, tokens=(Token(text=token, queries=4),), decoder="some", result=result, verb=None, templates="",
            metric="", loss_weights={},
        )  # fmt: skip
        known.add(name, task)
    for module in (answer_module, task_module):
        monkeypatch.setattr(module, "TASKS", known)
    monkeypatch.setattr(answer_module, "RESULT_TYPES", results)


def boxes(phrase: str, count: int, picture: Picture = STREET) -> Detections:
    return Detections(
        boxes_xyxy=np.tile(np.array([[1, 1, 20, 20]], np.float32), (count, 1)),
        scores=np.full(count, 0.75, np.float32),
        labels=np.zeros(count, np.int64),
        phrases=(phrase,),
        presence=np.array([0.9 if count else 0.1], np.float32),
        size=picture.size,
        picture=picture,
        picture_name=picture.name,
    )


def link(task: str, token: str, phrase: str, result: Any, media: int = 0) -> LinkResult:
    meta = LinkMeta(sample=0, turn=0, task=task, token=token, phrase=phrase, media=(media,))
    return LinkResult(meta=meta, decoder="some", result=result)


def street() -> Answer:
    return Answer(
        text="<ref>car</ref>[A] <ref>bus</ref>[A] <ref>dog</ref>[B] <ref>far</ref>[C]",
        links=(
            link("alpha", "[A]", "car", boxes("car", 2)),
            link("alpha", "[A]", "bus", boxes("bus", 0)),
            link("beta", "[B]", "dog", boxes("dog", 1)),
            link("gamma", "[C]", "far", Depths([0.5])),
        ),
        pictures=(STREET,),
        prompt="detect <all>",
        trace=Trace(positions=(3, 7, 11, 15), seconds={"generate": 0.25}, model="abc", seed=5),
    )


def test_results_are_found_by_their_type() -> None:
    answer = street()
    assert answer.detections.phrases == ("car", "bus", "dog")
    assert answer.detections.counts.tolist() == [2, 0, 1]
    assert answer.depths.values == [0.5]


def test_results_by_task() -> None:
    results = street().results
    assert list(results) == ["alpha", "beta", "gamma"]
    assert results["alpha"].phrases == ("car", "bus")
    assert results["beta"].phrases == ("dog",)


def test_nothing_routed_is_an_empty_result() -> None:
    answer = Answer(text="Hello.", pictures=(STREET,))
    assert len(answer.detections) == 0
    assert answer.detections.size == (80, 60)
    assert answer.depths.values == []
    assert answer.results == {}
    assert "its text" in answer.explain()
    assert str(answer) == "Hello."
    assert len(Answer(text="").detections) == 0


def test_unknown_attribute_names_what_exists() -> None:
    with pytest.raises(AttributeError, match=r"no 'masks'.*depths, detections"):
        _ = street().masks
    assert not hasattr(street(), "masks")
    assert {"detections", "depths", "results"} <= set(dir(street()))


def test_copies() -> None:
    assert copy.copy(street()).detections.phrases == ("car", "bus", "dog")
    assert copy.deepcopy(street()).text == street().text
    assert pickle.loads(pickle.dumps(Answer(text="x"))).text == "x"  # noqa: S301 - our own bytes


def test_several_pictures() -> None:
    answer = Answer(
        text="",
        links=(
            link("alpha", "[A]", "car", boxes("car", 1)),
            link("alpha", "[A]", "cup", boxes("cup", 2, TABLE), media=1),
        ),
        pictures=(STREET, TABLE),
        trace=Trace(positions=(3, 9)),
    )
    assert answer.on(1).explain().splitlines()[4].split()[:4] == ["0", "9", "[A]", "cup"]
    assert answer.on(0).detections.phrases == ("car",)
    assert answer.on(1).detections.phrases == ("cup",)
    assert answer.draw(1).size == (30, 30)
    assert "cup" in answer._repr_html_()
    with pytest.raises(VisionLLMError, match="different pictures"):
        _ = answer.detections
    with pytest.raises(PictureError, match="no picture 2"):
        answer.on(2)
    json.dumps(answer.to_dict(), allow_nan=False)


def test_str_states_what_is_absent() -> None:
    lines = str(street()).splitlines()
    assert lines[0] == street().text
    assert "car: 2 found (presence 0.90)" in lines
    assert "bus: none found (presence 0.10)" in lines


def test_explain_is_a_table_of_links() -> None:
    text = street().explain()
    row = next(line for line in text.splitlines() if "bus" in line and "alpha" in line)
    assert row.split()[:7] == ["1", "7", "[A]", "bus", "4", "alpha", "some"]
    assert "none found" in row
    assert "generate 250 ms" in text
    assert "abc" in text
    # No trace: still a table.
    assert "alpha" in Answer(text="", links=street().links).explain()


def test_plain_values() -> None:
    plain = json.loads(json.dumps(street().to_dict(), allow_nan=False))
    assert [len(plain["results"][task]) for task in ("alpha", "beta", "gamma")] == [2, 1, 1]
    assert plain["pictures"] == [{"name": "street.jpg", "width": 80, "height": 60}]
    assert len(street().to_coco(image_id=3)) == 3


def test_draw_and_save(tmp_path: Path) -> None:
    assert (np.asarray(street().draw()) != STREET.pixels).any()
    street().save(tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").size == (80, 60)
    street().save(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["text"] == street().text
    with pytest.raises(PictureError, match="no picture to draw on"):
        Answer(text="no picture").save(tmp_path / "none.png")


def test_what_was_made_stands_beside_what_was_found_whatever_came_first() -> None:
    made, found = link("delta", "[D]", "dog", Made([1.0])), link("alpha", "[A]", "car", boxes("car", 2))
    drawn = [Answer(text="", links=links, pictures=(STREET,)).draw() for links in ((made, found), (found, made))]
    assert drawn[0].size == (90, 60)
    assert drawn[0].tobytes() == drawn[1].tobytes()


def test_html_escapes() -> None:
    html = street()._repr_html_()
    assert "<ref>" not in html
    assert "&lt;all&gt;" in html


def test_repr_is_short() -> None:
    assert "Detections(2 boxes: car 2, bus none)" in repr(street())
