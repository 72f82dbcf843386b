"""Keypoints of every layout: names in plain words, sides that change in a mirror, flags as they are meant."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError, ConfigError, ShapeError, UnknownNameError
from visionllm.core.geometry import Geometry
from visionllm.core.poses import Pose, Skeleton, plain_names
from visionllm.core.sample import Record
from visionllm.core.skeletons import load_skeleton, skeleton_names
from visionllm.datasets.formats import CocoReader, MpiiReader, Place, ScenesReader
from visionllm.datasets.formats.coco import CocoSplit
from visionllm.datasets.formats.mpii import MpiiSplit
from visionllm.datasets.formats.scenes import ScenesSplit
from visionllm.datasets.transforms import shrunk

POSES = frozenset({"poses"})
Root = Callable[..., Path]


def place(root: Path) -> Place:
    return Place(dataset="set", root=root.resolve(), needs=POSES)


def poses_of(record: Record) -> list[Pose]:
    return [pose for pose in record.poses if pose is not None]


# --- the twelve fixtures ---------------------------------------------------------------------------------------------

# folder: file, keys of the split, number of points, people or animals with a pose, a name and its mirror image
SETS: dict[str, tuple[str, dict[str, Any], int, int, tuple[str, str]]] = {
    "300w": ("test_300w.json", {"skeleton": "face_68"}, 68, 2, ("right eye outer corner", "left eye outer corner")),
    "aic": ("test_aic.json", {"skeleton": "aic_14"}, 14, 9, ("right wrist", "left wrist")),
    "animalpose": ("test_animalpose.json", {}, 20, 2, ("left front paw", "right front paw")),
    "ap10k": ("test_ap10k.json", {"skeleton": "ap10k_17"}, 17, 2, ("left back paw", "right back paw")),
    "coco": ("test_coco.json", {}, 17, 12, ("left ear", "right ear")),
    "crowdpose": ("test_crowdpose.json", {"skeleton": "crowdpose_14"}, 14, 4, ("left hip", "right hip")),
    "fly": ("test_fly.json", {}, 32, 2, ("left foreleg 1", "right foreleg 1")),
    "horse10": ("test_horse10.json", {"skeleton": "horse_22"}, 22, 3, ("near hind hock", "off hind hock")),
    "humanart": ("test_humanart.json", {"points": ["keypoints_21"]}, 21, 4, ("left toe", "right toe")),
    "locust": ("test_locust.json", {"skeleton": "locust_35"}, 35, 2, ("left antenna tip", "right antenna tip")),
    "macaque": ("test_macaque.json", {}, 17, 2, ("left knee", "right knee")),
}


@pytest.fixture
def fixtures(tmp_path: Path) -> Path:
    """The official layouts; Human-Art's file names begin two folders higher."""
    root = Path(os.environ["VISIONLLM_DATA"], "pose_formats")
    shutil.copytree(root / "humanart", tmp_path / "humanart" / "HumanArt" / "images")
    shutil.copy(root / "humanart" / "test_humanart.json", tmp_path / "humanart")
    for name in {*SETS, "mpii"} - {"humanart"}:
        shutil.copytree(root / name, tmp_path / name)
    return tmp_path


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
@pytest.mark.parametrize("name", SETS)
def test_a_real_layout_is_read(fixtures: Path, name: str) -> None:
    file, keys, count, known, (word, mirrored) = SETS[name]
    reader = CocoReader.open(CocoSplit(images=".", annotations=file, **keys), place(fixtures / name))
    records = [reader.read(i) for i in range(len(reader))]
    poses = [pose for record in records for pose in poses_of(record)]
    assert len(poses) == known
    for pose in poses:
        skeleton = pose.skeleton
        assert len(skeleton) == count
        flips = skeleton.flips
        assert [flips[i] for i in flips] == list(range(count))  # twice is never
        assert skeleton.keypoints[flips[skeleton.keypoints.index(word)]] == mirrored
        assert all(word == word.strip().lower() and "_" not in word for word in skeleton.keypoints)
    # A point is where the file says it is, in a picture that holds it.
    entries = {e["id"]: e for e in json.loads((fixtures / name / file).read_text())["annotations"]}
    for record in records:
        for pose, number in zip(record.poses, record.extra["annotation_id"].tolist(), strict=True):
            raw = np.array(entries[number][keys.get("points", ["keypoints"])[0]], float).reshape(-1, 3)
            if pose is None:
                assert not raw[:, 2].any()
                continue
            assert (pose.visibility == raw[:, 2]).all()
            np.testing.assert_allclose(pose.points_xy[pose.known], raw[pose.known, :2], rtol=1e-6)
            inside = (pose.points_xy >= 0) & (pose.points_xy <= np.array(record.picture.size))
            assert inside.all(1)[pose.known].mean() > 0.95


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
def test_mpii_counts_from_one(fixtures: Path) -> None:
    reader = MpiiReader.open(MpiiSplit(images=".", annotations="test_mpii.json"), place(fixtures / "mpii"))
    raw = json.loads((fixtures / "mpii" / "test_mpii.json").read_text())
    assert sum(len(reader.read(i).poses) for i in range(len(reader))) == len(raw)
    first = reader.read(0)
    assert first.source.file == raw[0]["image"]
    np.testing.assert_allclose(first.poses[0].points_xy, np.array(raw[0]["joints"]) - 1, rtol=1e-6)
    middle, half = np.array(raw[0]["center"]) - 1, raw[0]["scale"] * 100
    expected = np.clip([*(middle - half), *(middle + half)], 0, np.tile(first.picture.size, 2))
    np.testing.assert_allclose(first.boxes_xyxy[0], expected, rtol=1e-5)
    # Most joints lie in the person's square.
    for index in range(len(reader)):
        record = reader.read(index)
        for pose, (x1, y1, x2, y2) in zip(record.poses, record.boxes_xyxy, strict=True):
            x, y = pose.points_xy[pose.known].T
            assert ((x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)).mean() > 0.7


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
def test_whole_bodies_are_put_together(fixtures: Path) -> None:
    """Body, feet, face and hands stand in fields of their own; without a skeleton for all of them it is told."""
    fields = ["keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts"]
    file = "test_coco_wholebody.json"
    split = CocoSplit(images=".", annotations=file, points=fields)
    reader = CocoReader.open(split, place(fixtures / "coco"))
    with pytest.raises(AnnotationError, match=r"399 numbers of keypoints, 17 points of person have 51"):
        reader.read(0)
    whole = CocoSplit(images=".", annotations=file, points=fields, skeleton="wholebody_133")
    with pytest.raises(AnnotationError, match=r"the flag 0\.0\d+; .* name `least` in the card's split"):
        CocoReader.open(whole, place(fixtures / "coco")).read(3)
    reader = CocoReader.open(whole.model_copy(update={"least": 0.3}), place(fixtures / "coco"))
    entries = {entry["id"]: entry for entry in json.loads((fixtures / "coco" / file).read_text())["annotations"]}
    hands = 0
    for record in (reader.read(i) for i in range(len(reader))):
        for pose, number in zip(record.poses, record.extra["annotation_id"].tolist(), strict=True):
            entry = entries[number]
            if pose is None:
                assert not any(any(entry[field][2::3]) for field in fields)
                continue
            # Each point under the name that its field and place give it.
            for field, at, word in (
                ("keypoints", 9, "left wrist"), ("foot_kpts", 2, "left heel"), ("face_kpts", 8, "chin"),
                ("face_kpts", 33, "nose base"), ("lefthand_kpts", 0, "left hand wrist"),
                ("righthand_kpts", 20, "right hand little finger 4"),
            ):  # fmt: skip
                row = pose.skeleton.keypoints.index(word)
                flag = entry[field][3 * at + 2]
                assert pose.visibility[row] == (flag if flag in (0, 1, 2) else flag >= 0.3)
                if pose.known[row]:
                    np.testing.assert_allclose(pose.points_xy[row], entry[field][3 * at : 3 * at + 2], rtol=1e-6)
            # A hand begins where the arm ends.
            wrist, hand = (pose.skeleton.keypoints.index(word) for word in ("left wrist", "left hand wrist"))
            if pose.known[[wrist, hand]].all():
                hands += 1
                height = entry["bbox"][3]
                assert np.abs(pose.points_xy[wrist] - pose.points_xy[hand]).max() < 0.1 * height
    assert hands


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", skeleton_names())
def test_every_skeleton_is_sound(name: str) -> None:
    skeleton = load_skeleton(name)
    assert skeleton.flips
    assert len(skeleton) == int(name.rpartition("_")[2])


def test_names_in_plain_words() -> None:
    raw = [
        "L_F_Elbow",
        "R_B_Paw",
        "forelegR1",
        "eyeL",
        "Head top",
        "left_eye",
        "TailBase",
        "root_of_tail",
        "Right Knee",
    ]
    assert plain_names(raw) == (
        "left front elbow", "right back paw", "right foreleg 1", "left eye", "head top", "left eye", "tail base",
        "root of tail", "right knee",
    )  # fmt: skip


def pose() -> Pose:
    skeleton = Skeleton(name="x", keypoints=("nose", "left eye", "right eye"), edges=((0, 1), (0, 2)))
    points = np.array([[50, 40], [60, 30], [95, 30]], np.float32)
    return Pose(points_xy=points, visibility=np.array([2, 1, 2], np.int8), skeleton=skeleton)


def test_sides_change_names_in_a_mirror() -> None:
    there = pose().moved(Geometry.hflip((100, 80)))
    assert there.points_xy.tolist() == [[50, 40], [5, 30], [40, 30]]
    assert there.visibility.tolist() == [2, 2, 1]
    back = there.moved(Geometry.hflip((100, 80)))
    assert back.points_xy.tolist() == pose().points_xy.tolist()
    assert back.visibility.tolist() == pose().visibility.tolist()


def test_what_leaves_the_picture_is_unknown() -> None:
    there = pose().moved(Geometry.crop((100, 80), (40, 0, 80, 80)))
    assert there.visibility.tolist() == [2, 1, 0]
    assert there.points_xy.tolist() == [[10, 40], [20, 30], [0, 0]]


def test_scenes_bring_the_poses_of_people() -> None:
    split = ScenesSplit(length=20, seed=5, size=(160, 120))
    reader = ScenesReader.open(split, Place(dataset="scenes", needs=POSES))
    seen = 0
    for index in range(20):
        record = reader.read(index)
        for found, label in zip(record.poses, record.labels, strict=True):
            assert found is None or record.names[label] == "person"
            seen += found is not None
        small = shrunk(record, 80)
        for one, other in zip(poses_of(record), poses_of(small), strict=True):
            np.testing.assert_allclose(other.points_xy[other.known], one.points_xy[other.known] / 2, atol=1e-3)
    assert seen > 5


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"keypoints": [1, 2, 2, 3]}, r"annotations\[0\]: 4 numbers of keypoints, 2 points of cat have 6"),
        ({"keypoints": [1, 2, 2, 3, 4, 5]}, r"annotations\[0\]: 'right ear' has the flag 5; 0 is unknown"),
        ({"keypoints": [1, 2, 2, 3, "x", 1]}, r"annotations\[0\]: keypoints must be numbers x, y, flag"),
        ({"keypoints": "all"}, r"annotations\[0\]: keypoints must be numbers x, y, flag"),
        ({"keypoints": [1, 2, 2, 3, 4, 1], "category_id": 90}, r"annotations\[0\]: has keypoints, but its category"),
    ],
)
def test_bad_keypoints_name_file_record_and_field(coco_root: Root, entry: dict[str, Any], words: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0].update(entry)
        content["categories"][1].update(keypoints=["left_ear", "right_ear"], skeleton=[[1, 2]])

    split = CocoSplit(images="images", annotations="train.json")
    with pytest.raises(AnnotationError, match=r"set\[0\] \(0\.png\): .*train\.json: " + words) as caught:
        CocoReader.open(split, place(coco_root(change))).read(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("category", "words"),
    [
        ({"keypoints": ["left_ear", "nose"]}, r"'left ear' has no 'right ear'"),
        ({"keypoints": ["nose", "tail"], "skeleton": [[1, 3]]}, r"edge \[0, 2\] leads to no point of 2"),
        ({"keypoints": ["nose", "nose"]}, r"'nose' stands twice"),
        ({"keypoints": [3]}, r"categories\[1\]\.keypoints"),
        ({"keypoints": ["nose"], "skeleton": [1]}, r"categories\[1\]\.skeleton"),
    ],
)
def test_a_bad_schema_is_told_on_opening(coco_root: Root, category: dict[str, Any], words: str) -> None:
    root = coco_root(lambda content: content["categories"][1].update(category))
    with pytest.raises(AnnotationError, match=words):
        CocoReader.open(CocoSplit(images="images", annotations="train.json"), place(root))


def test_unknown_schemas_and_bad_poses() -> None:
    with pytest.raises(UnknownNameError, match=r"no skeleton 'coco_18' \(did you mean 'coco_17'\?\)"):
        load_skeleton("coco_18")
    with pytest.raises(ShapeError, match="has 3 points"):
        Pose(points_xy=np.zeros((2, 2), np.float32), visibility=np.zeros(2, np.int8), skeleton=pose().skeleton)
    with pytest.raises(ShapeError, match="visibility must be 0, 1 or 2"):
        Pose(points_xy=np.zeros((3, 2), np.float32), visibility=np.full(3, 3, np.int8), skeleton=pose().skeleton)
    with pytest.raises(ShapeError, match="2 sigmas for 3 points"):
        Skeleton(name="x", keypoints=("a", "b", "c"), sigmas=(0.1, 0.2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"joints": [[1, 2]]}, r"entry 0\.joints: expected finite numbers of shape \(16, 2\), got \(1, 2\)"),
        ({"scale": "big"}, r"entry 0\.scale: expected numbers, got 'big'"),
        ({"image": "../x.jpg"}, "entry 0.image: .* must be a relative path"),
        ({"image": 3}, "entry 0.image: expected a file name"),
    ],
)
def test_bad_mpii_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    good = {"image": "a.jpg", "joints": [[5, 5]] * 16, "joints_vis": [1] * 16, "center": [5, 5], "scale": 0.1}
    (tmp_path / "a.json").write_text(json.dumps([{**good, **change}]))
    with pytest.raises(AnnotationError, match=words):
        MpiiReader.open(MpiiSplit(images=".", annotations="a.json"), place(tmp_path))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(AnnotationError, match="expected a list of people; is it MPII"):
        MpiiReader.open(MpiiSplit(images=".", annotations="a.json"), place(tmp_path))


def test_a_skeleton_file_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from visionllm.core import skeletons

    monkeypatch.setattr(skeletons, "config_folder", lambda kind: tmp_path)
    for name, text, words in (
        ("a", "keypoints: [nose]\nedges: [[nose, tail]]\n", "edges: 'tail' is not among the keypoints"),
        ("b", "keypoints: [left eye]\n", "'left eye' has no 'right eye'"),
        ("c", "points: [nose]\n", "points: unknown key"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            skeletons.load_skeleton.__wrapped__(name)
