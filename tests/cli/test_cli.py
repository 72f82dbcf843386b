"""The command line as a user meets it: what it prints, what it writes, and one clear line for every mistake."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from visionllm.cli import main

Make = Callable[..., Any]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def saved(make_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk: everything it sees is a box, its replies and its context are short."""
    model = make_model(context=256, threshold=0.0)
    model.config.max_new_tokens = 24
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def photo(tmp_path: Path, picture: Make) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(80, 60).pixels).save(path)
    return path


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch, dictate: Make, reply_ids: Make) -> Make:
    """Make the model that the command line loads route some phrases, one tuple of them for each picture."""

    def patch(*phrases: tuple[str, ...]) -> None:
        from visionllm import VisionLLM

        load = VisionLLM.from_pretrained

        def loaded(*arguments: Any, **settings: Any) -> Any:
            model = load(*arguments, **settings)
            scripts = [reply_ids(model, row) for row in phrases]
            dictate(model, *scripts)
            return model

        monkeypatch.setattr(VisionLLM, "from_pretrained", loaded)

    return patch


# --- asking ---------------------------------------------------------------------------------------------------------


def test_ask_prints_reply_and_table_and_draws(
    saved: Path, photo: Path, tmp_path: Path, run: Run, speaking: Make
) -> None:
    speaking(("car", "red dog"))
    out = tmp_path / "new" / "drawn.png"
    status, printed, error = run("ask", "detect cars and red dogs", photo, "--model", saved, "--out", out)
    assert (status, error) == (0, "")
    assert "detect cars and red dogs" in printed
    assert "<ref>car</ref>[DET]" in printed
    assert all(word in printed for word in ("phrase", "score", "x1", "y2", "photo.png"))
    assert "car: 20 found" in printed
    with Image.open(out) as drawing, Image.open(photo) as before:
        assert drawing.size == before.size
        assert np.any(np.asarray(drawing) != np.asarray(before.convert("RGB")))


def test_nothing_found_is_said(saved: Path, photo: Path, run: Run, speaking: Make) -> None:
    speaking(())
    status, printed, _ = run("ask", "what is here?", photo, "--model", saved)
    assert status == 0
    assert "reply:" in printed
    assert "score" not in printed  # no empty table


def test_several_pictures_go_to_a_folder(saved: Path, tmp_path: Path, picture: Make, run: Run, speaking: Make) -> None:
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path, size in zip(paths, ((80, 60), (60, 80)), strict=True):
        Image.fromarray(picture(*size).pixels).save(path)
    speaking(("car",), ("dog",))
    status, printed, _ = run("ask", "detect things", *paths, "--model", saved, "--out", tmp_path / "out")
    assert status == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one.png", "two.png"]
    assert "car: 20 found" in printed
    assert "dog: 20 found" in printed


def test_json_is_json_alone(saved: Path, photo: Path, tmp_path: Path, run: Run, speaking: Make) -> None:
    speaking(("car",))
    status, printed, error = run(
        "ask", "detect cars", photo, "--model", saved, "--json", "--out", tmp_path / "drawn.png"
    )
    assert status == 0
    value = json.loads(printed)
    assert value["prompt"] == "detect cars"
    assert value["pictures"] == [{"name": "photo.png", "width": 80, "height": 60}]
    assert list(value["results"]) == ["detection"]
    assert "drawn.png" in error


def stored_pictures(folder: Path, pixels: np.ndarray) -> dict[str, tuple[int, int]]:
    """Pictures as cameras, scanners and the web store them -> (width, height) of the upright picture."""
    image = Image.fromarray(pixels)
    width, height = image.size
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")  # 16 bit
    image.convert("CMYK").save(folder / "print.jpg")
    image.quantize(16).save(folder / "palette.png", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "moving.gif", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)])
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    return {"deep.png": (width, height), "print.jpg": (width, height), "palette.png": (width, height),
            "turned.jpg": (height, width), "moving.gif": (width, height), "dot.png": (1, 1)}  # fmt: skip


def test_every_kind_of_picture_is_answered(
    saved: Path, tmp_path: Path, picture: Make, run: Run, speaking: Make
) -> None:
    sizes = stored_pictures(tmp_path, picture(80, 60).pixels)
    speaking(*[("car",)] * len(sizes))
    status, printed, error = run("ask", "detect cars", *(tmp_path / name for name in sizes), "--model", saved, "--json")
    assert (status, error) == (0, "")
    answers = json.loads(printed)
    for (name, (width, height)), answer in zip(sizes.items(), answers, strict=True):
        assert answer["pictures"] == [{"name": name, "width": width, "height": height}]
        boxes = np.array([box["box_xyxy"] for box in answer["results"]["detection"][0]["boxes"]])
        assert len(boxes)
        assert boxes.min() >= 0
        assert (boxes <= [width, height, width, height]).all()


# --- mistakes -------------------------------------------------------------------------------------------------------


def told(status: int, printed: str, error: str, *words: str) -> None:
    """One line on standard error that names the matter, status 2, and nothing else."""
    assert status == 2
    assert printed == ""
    assert error.startswith("error: "), error
    assert error.endswith("\n"), error
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error


def png(width: int, height: int) -> bytes:
    """A PNG whose header states a size and whose data hold next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file"]),
        (b"", ["0 bytes"]),
        (b"<html>not found</html>", ["JPEG"]),  # what a failed download leaves
        (b"\x89PNG\r\n\x1a\n\0\0", ["damaged"]),  # cut in its header
        ("half", ["cut off"]),  # cut in its data
        (png(60_000, 60_000), ["60000 x 60000"]),  # refused before it is decoded
    ],
    ids=["missing", "zero bytes", "not a picture", "cut header", "truncated", "over-large"],
)
def test_a_bad_picture(
    content: bytes | str | None, words: list[str], saved: Path, photo: Path, tmp_path: Path, run: Run
) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        whole = photo.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    told(*run("ask", "detect cars", path, "--model", saved), "bad.png", *words)


def test_one_bad_picture_of_several_is_named(saved: Path, photo: Path, tmp_path: Path, run: Run) -> None:
    told(*run("ask", "detect cars", photo, tmp_path / "gone.png", "--model", saved), "gone.png")
    # Known before the model is loaded: nobody waits for an answer that cannot be saved.
    told(*run("ask", "detect cars", photo, "--out", tmp_path / "a.gif", "--model", tmp_path / "none"), "a.gif", ".png")


def test_regions_are_points_and_boxes(saved: Path, photo: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionllm import Box, Point, VisionLLM

    seen: list[Any] = []
    monkeypatch.setattr(VisionLLM, "ask_many", lambda _, requests, **options: seen.extend(requests) or [])
    regions = ["--region", "40,30.5", "--region", "5,5,40,30"]
    assert run("ask", "segment <region>, <region>", photo, "--model", saved, *regions)[0] == 0
    point, box = seen[0][2]
    assert (type(point), point.x, point.y) == (Point, 40, 30.5)
    assert (type(box), box.x1, box.y1, box.x2, box.y2) == (Box, 5, 5, 40, 30)


def test_regions_of_every_kind_in_several_pictures(
    saved: Path, photo: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionllm import VisionLLM

    bright = np.zeros((60, 80), np.uint8)
    bright[10:20, 5:40] = 200
    Image.fromarray(bright).save(tmp_path / "mask@2.png")
    seen: list[Any] = []
    monkeypatch.setattr(VisionLLM, "ask_many", lambda _, requests, **options: seen.extend(requests) or [])
    texts = ["scribble:1,2,30.5,40@2", "polygon:1,2,30,40,5,6", f"mask:{tmp_path / 'mask@2.png'}@1", "7,8@2"]
    regions = [word for text in texts for word in ("--region", text)]
    prompt = " ".join(["segment", *["<region>"] * 4])
    assert run("ask", prompt, photo, photo, "--together", "--model", saved, *regions)[0] == 0
    ((pictures, _, (scribble, polygon, mask, point)),) = seen
    assert pictures == [photo, photo]
    assert [region.picture for region in (scribble, polygon, mask, point)] == [1, 0, 0, 1]
    assert scribble.points_xy == [(1, 2), (30.5, 40)]
    assert polygon.points_xy == [(1, 2), (30, 40), (5, 6)]
    assert (mask.shape == (bright > 0)).all()
    assert (point.x, point.y) == (7, 8)


def test_pictures_that_are_asked_about_together_are_told_and_drawn_apart(
    saved: Path, tmp_path: Path, picture: Make, run: Run, speaking: Make
) -> None:
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path, size in zip(paths, ((80, 60), (60, 80)), strict=True):
        Image.fromarray(picture(*size).pixels).save(path)
    speaking(("cars in picture 2",))
    out = tmp_path / "out"
    status, printed, error = run(
        "ask", "detect cars in picture 2", *paths, "--together", "--model", saved, "--out", out
    )
    assert (status, error) == (0, "")
    assert printed.count("reply:") == 1
    assert "two.jpg" in printed.split("drawn")[0]
    assert "one.png" not in printed.split("drawn")[0]  # nothing was found there: no table
    with Image.open(out / "one.png") as one, Image.open(out / "two.png") as two:
        assert (one.size, two.size) == ((80, 60), (60, 80))
        assert np.array_equal(np.asarray(one), picture(80, 60).pixels)


def test_a_report_goes_to_a_file(saved: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["eval", "--dataset", "scenes", "--model", saved, "--limit", 1]
    told(*run(*arguments, "--json", tmp_path), "is a folder; name a file in it")
    told(*run("score", "configs/scores/nano.yaml", "--model", saved, "--out", saved / "config.json"), "out: ", "cannot")


def test_a_folder_that_cannot_be_made(saved: Path, photo: Path, run: Run) -> None:
    """It is told before anything is asked."""
    told(*run("ask", "detect cars", photo, "--model", saved, "--out", photo / "x.png"), "photo.png: cannot be made a")


BAD_REGIONS = [
    "5",
    "1,2,3",
    "left",
    "1,2,3,4,5",
    "",
    "1,2@0",
    "1,2@",
    "polygon:1,2,3",
    "polygon:",
    "point:1,2",
    "mask:none.png",
]


@pytest.mark.parametrize("region", BAD_REGIONS)
def test_a_bad_region(region: str, saved: Path, photo: Path, run: Run) -> None:
    told(*run("ask", "segment <region>", photo, "--model", saved, "--region", region), f"--region {region}:")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("threshold=1", ["--option threshold=1", "DECODER.KEY=VALUE"]),
        ("objects.threshold", ["--option objects.threshold", "such as"]),
        ("objects.treshold=0.1", ["treshold"]),
        ("objects.threshold=high", ["threshold"]),
        ("painter.seed=1", ["painter"]),
    ],
)
def test_a_bad_option(option: str, words: list[str], saved: Path, photo: Path, run: Run) -> None:
    told(*run("ask", "detect cars", photo, "--model", saved, "--option", option), *words)


def test_an_option_reaches_its_decoder(saved: Path, photo: Path, run: Run, speaking: Make) -> None:
    found = []
    for threshold in (0.0, 1.0):
        speaking(("car",))
        option = f"objects.threshold={threshold}"
        status, printed, _ = run("ask", "detect cars", photo, "--model", saved, "--json", "--option", option)
        assert status == 0
        found.append(printed.count("box"))
    assert found[0] > found[1], found


@pytest.mark.parametrize("judge", ["shows", "shows=", "=embedded"])
def test_a_bad_judge(judge: str, saved: Path, run: Run) -> None:
    told(*run("eval", "--dataset", "scenes", "--model", saved, "--judge", judge), f"--judge {judge}", "METRIC=MODEL")


def test_a_prompt_without_a_picture(saved: Path, tmp_path: Path, run: Run) -> None:
    """It is answered in words; there is nothing to draw on, which is said."""
    status, out, _ = run("ask", "hello", "--model", saved, "--json")
    assert status == 0
    assert json.loads(out)["pictures"] == []
    status, _, err = run("ask", "hello", "--model", saved, "--out", tmp_path / "x.png")
    assert status == 2
    assert err == "error: there is no picture to draw on; the answer is its text\n"


@pytest.mark.parametrize("prompt", ["make the car blue", "upscale this picture", "detect all cars"])
@pytest.mark.parametrize("more", [[], ["--json"], ["--out", "x.png"]], ids=["plain", "json", "out"])
def test_a_prompt_that_needs_a_picture(prompt: str, more: list[str], run: Run) -> None:
    status, out, err = run("ask", prompt, *more)
    assert (status, err.count("\n")) == (2, 1)
    assert "needs a picture; name one behind the prompt" in err
    if more == ["--json"]:
        assert json.loads(out)["unserved"]


def test_pictures_that_were_made_are_saved_with_their_recipe(
    photo: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are, beside nothing, and each by itself; the recipe makes them again. A bar tells the steps."""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)
    for prompt, more, names in (
        ("upscale this picture", [photo], ["a.png"]),
        ("make it night", [photo, "--option", "editing.steps=2", "--option", "editing.seed=3"], ["b.png"]),
        ("draw a car", ["--option", "generation.count=2", "--option", "generation.steps=2"], ["c_1.png", "c_2.png"]),
    ):
        status, _, err = run("ask", prompt, *more, "--out", tmp_path / f"{names[0][0]}.png")
        assert status == 0, err
        assert ("drawing: [##########" in err and err.endswith("] 2/2\n")) == ("steps=2" in " ".join(map(str, more)))
        for name in names:
            again = tmp_path / f"again_{name}"
            status, _, err = run("replay", tmp_path / name, *[one for one in more if one is photo], "--out", again)
            assert status == 0, err
            with Image.open(tmp_path / name) as one, Image.open(again) as other:
                assert np.array_equal(np.asarray(one), np.asarray(other))
    status, _, err = run("replay", tmp_path / "b.png", "--out", tmp_path / "d.png")
    assert (status, err.count("\n")) == (2, 1)
    assert "of other pictures than the 0 given" in err


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", ["prompt", "empty"]), (" \n", ["prompt", "empty"]), ("a very long wish " * 400, ["prompt", "256"])],
    ids=["empty", "blank", "longer than the context"],
)
def test_a_bad_prompt(prompt: str, words: list[str], saved: Path, photo: Path, run: Run) -> None:
    told(*run("ask", prompt, photo, "--model", saved), *words)


def test_a_checkpoint_that_is_not_there(photo: Path, tmp_path: Path, run: Run) -> None:
    told(*run("ask", "detect cars", photo, "--model", tmp_path / "nowhere"), "nowhere")


def test_an_unknown_data_set(saved: Path, run: Run) -> None:
    from visionllm import catalogue

    told(*run("eval", "--dataset", "carla_street", "--model", saved), "'carla_street'", *catalogue())


def test_an_unknown_split(saved: Path, run: Run) -> None:
    told(*run("eval", "--dataset", "scenes", "--split", "test", "--model", saved), "scenes", "'test'", "val")


def coco(**changes: Any) -> dict[str, Any]:
    """One picture with one box, as COCO writes it, some of it changed."""
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "photo.png", "width": 80, "height": 60}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{**box, **changes}],
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(coco())[:-30], ["not valid JSON"]),
        (json.dumps(coco(bbox=[float("nan"), 4, 20, 20])), ["NaN"]),
        (json.dumps(coco(bbox=[4, 4, 20])), ["annotations[0].bbox"]),
        (json.dumps(coco(category_id=7)), ["annotations[0].category_id", "7"]),
        (json.dumps({**coco(), "annotations": coco()["annotations"] * 2}), ["annotations[1]", "share the id 1"]),
        (json.dumps([]), ["COCO"]),
    ],
    ids=["cut off", "NaN", "three numbers", "unknown category", "duplicate ids", "not COCO"],
)
def test_broken_annotations(text: str, words: list[str], saved: Path, photo: Path, run: Run) -> None:
    folder = photo.parent
    (folder / "boxes.json").write_text(text)
    card = {"name": "mine", "task": "detection", "format": "coco", "root": str(folder), "license": "MIT",
            "splits": {"val": {"images": ".", "annotations": "boxes.json"}}}  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(card))
    told(*run("eval", "--dataset", folder / "mine.yaml", "--model", saved), "boxes.json", *words)


# --- training configs -----------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, tiny_settings: Make) -> Path:
    """A training config that could run anywhere."""
    model, recipe = tmp_path / "model.yaml", tmp_path / "run.yaml"
    model.write_text(yaml.safe_dump(tiny_settings()))
    recipe.write_text(yaml.safe_dump({
        "model": "model.yaml",
        "data": [{"dataset": "scenes", "weight": 3.0}, {"dataset": "phrases", "weight": 1.0}],
        "train": {"out": str(tmp_path / "run"), "steps": 4, "batch_size": 2},
    }))  # fmt: skip
    return recipe


def test_plan_prints_shares_and_parameters_and_trains_nothing(config: Path, tmp_path: Path, run: Run) -> None:
    status, printed, error = run("train", config, "--plan", "train.steps=6")
    assert (status, error) == (0, "")
    assert "6 steps of 2 samples = 12 samples" in printed
    assert all(word in printed for word in ("scenes", "75.0%", "phrases", "25.0%"))
    assert all(word in printed for word in ("mllm", "link_queries", "objects", "M parameters"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train.stepz=3"], ["run.yaml", "train.stepz", "did you mean steps?"]),
        (["optim.lr_scales.decoders=0"], ["run.yaml", "optim.lr_scales", "did you mean lr_scale?"]),
        (["train.steps=many"], ["run.yaml", "train.steps", "'many'"]),
        (["train.steps"], ["'train.steps'", "key=value"]),
        (["train.steps.more=3"], ["train.steps.more=3"]),
        (["train.steps=["], ["train.steps=[", "YAML"]),
        (["model.decoders.objects.longets=64"], ["decoders.objects", "longets", "did you mean longest?"]),
    ],
    ids=["typo", "typo above", "not a number", "no value", "below a value", "not YAML", "a decoder's key"],
)
def test_a_bad_key_or_override(words: list[str], named: list[str], config: Path, run: Run) -> None:
    told(*run("train", config, "--plan", *words), *named)


def test_an_unknown_key_of_the_file(config: Path, run: Run) -> None:
    values = yaml.safe_load(config.read_text())
    values["train"]["batchsize"] = 4
    config.write_text(yaml.safe_dump(values))
    told(*run("train", config, "--plan"), "run.yaml", "train.batchsize", "did you mean batch_size?")


def test_a_config_that_is_not_there(tmp_path: Path, run: Run) -> None:
    told(*run("train", tmp_path / "gone.yaml", "--plan"), "gone.yaml", "no such file")


# --- words the command line does not know ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["look"], ["ask"], ["ask", "detect cars", "a.png", "--colour"], ["eval"], ["train"],
     ["eval", "--dataset", "scenes", "--limit", "few"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_status_2(arguments: list[str], run: Run) -> None:
    status, printed, error = run(*arguments)
    assert status == 2
    assert printed == ""
    assert "Traceback" not in error
    assert error


def test_data_lists_the_catalogue(run: Run) -> None:
    from visionllm import catalogue

    status, printed, _ = run("data")
    assert status == 0
    assert tuple(printed.split()) == catalogue()
