"""People with seventeen keypoints, and the two-wheelers they ride: skeletons in metres, seen from any heading."""

from __future__ import annotations

import math
import random

import cv2
import numpy as np

from .canvas import CIRCLE, OCTAGON, Sprite, capsules, hull
from .palette import COLOURS, HAIR, RGB, SKIN, jitter, named, shade

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
SHIRTS = ("red", "blue", "green", "yellow", "orange", "white", "black", "purple", "pink", "gray", "brown")
TROUSERS = ("blue", "black", "gray", "brown", "white", "green")
_RING10 = CIRCLE[[0, 2, 5, 7, 10, 12, 14, 17, 19, 22]]


Point3 = tuple[float, float, float]


def _limb(start: Point3, lengths: tuple[float, float], angles: tuple[float, float], out: float) -> list[Point3]:
    """Two bones from start; angles in the walking plane, 0 hangs down, positive swings forward; out leans sideways."""
    joints = [start]
    for length, angle in zip(lengths, angles, strict=True):
        x, y, z = joints[-1]
        joints.append((x + length * math.sin(angle), y + length * -math.cos(angle), z + length * out))
    return joints


def _pose(
    rng: random.Random, pose: str
) -> tuple[float, float, list[tuple[float, float]], list[tuple[float, float]], float]:
    """Height of the hips, lean of the trunk, angles of both legs and both arms (left, right), spread of the arms."""
    if pose == "walking":
        a, bend = rng.uniform(0.25, 0.6), rng.uniform(0.1, 0.7)
        legs = [(a, a - 0.1), (-a * 0.7, -a * 0.7 - bend)]
        arms = [(-a, -a + rng.uniform(0.1, 0.7)), (a, a + rng.uniform(0.1, 0.9))]
        if rng.random() < 0.5:
            legs.reverse()
            arms.reverse()
        return 0.93 - 0.08 * a, rng.uniform(0.0, 0.12), legs, arms, 0.06
    if pose == "sitting":
        bend = rng.uniform(1.35, 1.6)
        legs = [(bend, rng.uniform(-0.25, 0.2)), (bend - 0.08, rng.uniform(-0.25, 0.2))]
        return 0.5, rng.uniform(-0.1, 0.1), legs, [(0.3, rng.uniform(0.9, 1.5)), (0.3, rng.uniform(0.9, 1.5))], 0.05
    if pose == "riding":
        phase = rng.uniform(0.0, 1.0)
        first, second = (1.25 - 0.5 * phase, 0.0 - 0.2 * phase), (0.55 + 0.6 * phase, -0.55 + 0.5 * phase)
        return 0.98, 0.45, [first, second], [(0.85, 1.0), (0.85, 1.0)], 0.0
    legs = [(rng.uniform(-0.06, 0.1), 0.0), (rng.uniform(-0.1, 0.06), 0.0)]
    arms = [(rng.uniform(-0.15, 0.2), rng.uniform(0.0, 0.8)), (rng.uniform(-0.15, 0.2), rng.uniform(0.0, 0.8))]
    if pose == "waving":
        arms[rng.randrange(2)] = (rng.uniform(2.2, 2.6), rng.uniform(2.7, 3.3))
    return 0.94, rng.uniform(-0.04, 0.06), legs, arms, rng.uniform(0.05, 0.2)


def person(sprite: Sprite, rng: random.Random, *, pose: str | None = None, seat: float = 0.0) -> None:
    """Draws a person and sets its keypoints; seat lifts a rider's hips to that height."""
    pose = pose or rng.choice(("walking", "walking", "standing", "waving"))
    shirt, trousers = rng.choice(SHIRTS), rng.choice(TROUSERS)
    child = pose in ("walking", "standing", "waving") and rng.random() < 0.15
    size = rng.uniform(0.62, 0.75) if child else rng.uniform(0.93, 1.06)
    sprite.attributes.update(colour=shirt, trousers=trousers, pose=pose, age="child" if child else "adult")
    body = _skeleton(rng, pose, seat) * size
    skin = jitter(rng, rng.choice(SKIN), 6)
    clothes = _Clothes(
        shirt=named(rng, shirt), trousers=named(rng, trousers), skin=skin, hair=jitter(rng, rng.choice(HAIR), 8),
        sleeves=rng.random() < 0.6, shorts=rng.random() < 0.2, hat=rng.random() < 0.15,
    )  # fmt: skip
    _draw_person(sprite, body, size, clothes)


class _Clothes:
    __slots__ = ("shirt", "trousers", "skin", "hair", "sleeves", "shorts", "hat")

    def __init__(
        self, *, shirt: RGB, trousers: RGB, skin: RGB, hair: RGB, sleeves: bool, shorts: bool, hat: bool
    ) -> None:
        self.shirt, self.trousers, self.skin, self.hair = shirt, trousers, skin, hair
        self.sleeves, self.shorts, self.hat = sleeves, shorts, hat


def _skeleton(rng: random.Random, pose: str, seat: float) -> np.ndarray:
    """(18, 3) joints in COCO order and the middle of the head, in metres for an adult of 1.72 m."""
    hip_height, lean, leg_angles, arm_angles, spread = _pose(rng, pose)
    hip = seat or hip_height
    up_x, up_y = math.sin(lean), math.cos(lean)
    neck_x, neck_y = 0.52 * up_x, hip + 0.52 * up_y
    head_x, head_y = neck_x + 0.18 * math.sin(lean * 0.4), neck_y + 0.18 * math.cos(lean * 0.4)
    joints: list[Point3] = [(0.0, 0.0, 0.0)] * 18
    joints[0] = (head_x + 0.12, head_y + -0.01, 0.0)
    for k, z in ((0, -1.0), (1, 1.0)):
        joints[1 + k] = (head_x + 0.10, head_y + 0.035, 0.04 * z)
        joints[3 + k] = (head_x, head_y + 0.01, 0.10 * z)
        shoulder = (neck_x - 0.02 * up_x, neck_y + -0.05 - 0.02 * up_y, 0.19 * z)
        arm = _limb(shoulder, (0.28, 0.26), arm_angles[k], spread * z)
        leg = _limb((0.0, hip, 0.09 * z), (0.44, 0.44), leg_angles[k], 0.02 * z)
        joints[5 + k], joints[7 + k], joints[9 + k] = arm
        joints[11 + k], joints[13 + k], joints[15 + k] = leg
    joints[17] = (head_x, head_y, 0.0)
    out = np.array(joints)
    if not seat and pose != "sitting":
        out[:17, 1] -= out[15:17, 1].min() - 0.07
        out[17, 1] += out[0, 1] - (out[17, 1] - 0.01)
    return out


# (from, to, radius at both ends, what covers it)
_BONES = (
    (5, 7, 0.052, 0.045, "sleeve"), (7, 9, 0.043, 0.034, "arm"), (6, 8, 0.052, 0.045, "sleeve"),
    (8, 10, 0.043, 0.034, "arm"), (11, 13, 0.085, 0.06, "thigh"), (13, 15, 0.058, 0.042, "shin"),
    (12, 14, 0.085, 0.06, "thigh"), (14, 16, 0.058, 0.042, "shin"),
)  # fmt: skip


_HAND = OCTAGON * 0.05


def _draw_person(sprite: Sprite, body: np.ndarray, size: float, wear: _Clothes) -> None:
    view, unit = sprite.view, sprite.view.scale * size
    joints, head = body[:17], body[17]
    px = view.project(body)
    eye = view.eye / math.sqrt(float((view.eye**2).sum()))
    near = (joints @ eye).tolist()
    tint = {
        "sleeve": wear.shirt, "arm": wear.shirt if wear.sleeves else wear.skin,
        "thigh": wear.trousers, "shin": wear.skin if wear.shorts else wear.trousers,
    }  # fmt: skip
    trunk_depth = float((joints[[5, 6, 11, 12]] @ eye).mean())
    parts: list[tuple[float, int]] = [((near[a] + near[b]) / 2, k) for k, (a, b, *_) in enumerate(_BONES)]
    # Upper arms share the trunk's depth when the person faces the camera: draw them with the far or near side.
    parts += [(trunk_depth, -1)]
    parts.sort()
    points = px.tolist()
    limbs = [(*points[a], *points[b], ra * unit, rb * unit) for a, b, ra, rb, _ in _BONES]
    belt, *bones = capsules([(*points[11], *points[12], 0.095 * unit, 0.095 * unit), *limbs])
    shapes: list[tuple[int, np.ndarray]] = []
    for depth, k in parts:
        if k < 0:
            trunk = _trunk(px, unit)
            sprite.fill_pixels(belt, wear.trousers)
            sprite.fill_pixels(trunk, wear.shirt)
            shapes += [(-1, belt), (-1, trunk)]
            continue
        _, b, _, _, what = _BONES[k]
        gain = 0.8 if depth < trunk_depth - 0.02 else 1.0
        sprite.fill_pixels(bones[k], shade(tint[what], gain))
        shapes.append((k, bones[k]))
        if what == "shin":
            _shoe(sprite, joints[b], size, unit)
        elif what == "arm":
            sprite.fill_pixels(px[b] + _HAND * unit, shade(wear.skin, gain))
    _head(sprite, joints, head, px, unit, eye, wear)
    sprite.keypoints = _keypoints(px, joints, head, eye, shapes, unit)


def _trunk(px: np.ndarray, unit: float) -> np.ndarray:
    corners = px[[5, 6, 11, 12]]
    corners[2:] += 0.14 * (corners[:2] - corners[2:])
    radii = np.array([0.075, 0.075, 0.088, 0.088]) * unit
    return hull((corners[:, None] + _RING10[None] * radii[:, None, None]).reshape(-1, 2))


def _shoe(sprite: Sprite, ankle: np.ndarray, size: float, unit: float) -> None:
    sole = sprite.view.project(np.stack([ankle + (-0.03, -0.03, 0), ankle + (0.15 * size, -0.035, 0)]))
    heel, toe = sole.tolist()
    sprite.fill_pixels(capsules([(*heel, *toe, 0.045 * unit, 0.035 * unit)])[0], (40, 36, 36))


def _head(
    sprite: Sprite, joints: np.ndarray, head: np.ndarray, px: np.ndarray, unit: float, eye: np.ndarray, wear: _Clothes
) -> None:
    neck_base = (px[5] + px[6]) / 2
    centre = px[17]
    neck = capsules([(*neck_base.tolist(), *centre.tolist(), 0.05 * unit, 0.05 * unit)])[0]
    sprite.fill_pixels(neck, shade(wear.skin, 0.85))
    back = sprite.view.project(np.stack([head + (-0.035, 0.035, 0.0), head + (-0.01, 0.07, 0.0)]))
    face, hair = CIRCLE * (0.095 * unit, 0.125 * unit) + centre, CIRCLE * (0.11 * unit, 0.12 * unit) + back[0]
    front = eye[0]
    if front < -0.35:
        sprite.fill_pixels(face, wear.skin)
        sprite.fill_pixels(hair, wear.hair)
    else:
        sprite.fill_pixels(hair, wear.hair)
        sprite.fill_pixels(face, wear.skin)
        top = CIRCLE[12:25]  # y down: the upper half
        cap = np.concatenate([top, CIRCLE[:1], [(0.85, -0.42), (-0.85, -0.42)]]) * (0.1 * unit, 0.13 * unit) + centre
        sprite.fill_pixels(hull(cap), wear.hair)
        dark = (40, 26, 24)
        for k in (1, 2):
            if (joints[k] - head) @ eye > 0.02:
                sprite.fill_pixels(px[k] + OCTAGON * max(0.5, 0.016 * unit), dark)
        if unit > 40:
            sprite.fill_pixels(px[0] + OCTAGON * 0.018 * unit, shade(wear.skin, 0.8))
    if wear.hat:
        brim = CIRCLE * (0.13 * unit, 0.04 * unit) + centre - (0, 0.06 * unit)
        crown = CIRCLE * (0.1 * unit, 0.09 * unit) + centre - (0, 0.1 * unit)
        sprite.fill_pixels(crown, wear.shirt)
        sprite.fill_pixels(brim, shade(wear.shirt, 0.7))


def _keypoints(
    px: np.ndarray,
    joints: np.ndarray,
    head: np.ndarray,
    eye: np.ndarray,
    shapes: list[tuple[int, np.ndarray]],
    unit: float,
) -> np.ndarray:
    """(17, 3) x, y and 2 (seen) or 1 (hidden by the person's own body)."""
    out = np.full((17, 3), 2.0, np.float32)
    out[:, :2] = px[:17]
    for k in range(5):
        out[k, 2] = 2.0 if float((joints[k] - head) @ eye) > -0.012 else 1.0
    last = {}
    for n, (bone, _) in enumerate(shapes):
        for joint in _BONES[bone][:2] if bone >= 0 else ():
            last[joint] = n
    points = [(x, y) for x, y in px.tolist()]
    for n, (bone, shape) in enumerate(shapes):
        own = _BONES[bone][:2] if bone >= 0 else (5, 6, 11, 12)
        later = [joint for joint, drawn in last.items() if n > drawn and joint not in own]
        outline = shape.astype(np.float32) if later else shape
        for joint in later:
            if cv2.pointPolygonTest(outline, points[joint], True) > 0.03 * unit:
                out[joint, 2] = 1.0
    return out


def _wheel(sprite: Sprite, x: float, radius: float, width: float, *, spokes: bool, tyre: RGB = (26, 26, 28)) -> None:
    ring = np.zeros((25, 3))
    ring[:24, :2] = CIRCLE * radius + (x, radius)
    ring[24] = ring[0]
    if not spokes:
        sprite.hull(np.concatenate([ring + (0, 0, width / 2), ring - (0, 0, width / 2)]), tyre)
        inner = ring[:24].copy()
        inner[:, :2] = (inner[:, :2] - (x, radius)) * 0.55 + (x, radius)
        sprite.fill(inner, (120, 122, 126))
        return
    sprite.line(ring, tyre, width)
    thin = (150, 150, 154)
    for k in range(0, 12, 3):
        sprite.line(ring[[k, k + 12]], thin, 0.006)
    sprite.line(ring, tyre, width)


def bicycle(sprite: Sprite, rng: random.Random) -> None:
    colour = rng.choice(("red", "blue", "green", "yellow", "orange", "black", "white", "purple", "pink"))
    sprite.attributes.update(colour=colour)
    paint = named(rng, colour)
    radius = 0.34
    rear, front = (-0.52, radius), (0.52, radius)
    seat, head, crank = (-0.2, 0.86), (0.36, 0.84), (-0.08, 0.3)
    _wheel(sprite, rear[0], radius, 0.05, spokes=True)
    _wheel(sprite, front[0], radius, 0.05, spokes=True)
    for a, b in ((rear, crank), (rear, seat), (seat, crank), (crank, head), (seat, head), (head, front)):
        sprite.line(_flat3(a, b), paint, 0.05)
    bar = np.array([(0.33, 0.98, -0.26), (0.4, 1.0, 0.0), (0.33, 0.98, 0.26)])
    sprite.line(_flat3(head, (0.38, 1.0)), (60, 60, 64), 0.04)
    sprite.line(bar, (36, 36, 40), 0.05)
    sprite.line(_flat3((-0.2, 0.86), (-0.22, 0.95)), (60, 60, 64), 0.04)
    sprite.hull(
        np.array([(-0.36, 0.97, -0.07), (-0.36, 0.97, 0.07), (-0.08, 0.96, 0.0), (-0.34, 0.92, 0.0)]), (30, 28, 28)
    )
    sprite.line(np.array([(-0.16, 0.16, -0.1), (-0.08, 0.3, 0.0), (0.0, 0.44, 0.1)]), (70, 70, 74), 0.03)


def motorcycle(sprite: Sprite, rng: random.Random) -> None:
    colour = rng.choice(("red", "blue", "green", "yellow", "orange", "black", "white"))
    sprite.attributes.update(colour=colour)
    paint = named(rng, colour)
    rear, front, radius = -0.68, 0.7, 0.32
    parts = [
        (rear, lambda: _wheel(sprite, rear, radius, 0.16, spokes=False)),
        (front, lambda: _fork(sprite, front, radius)),
    ]
    parts.sort(key=lambda part: part[0] * sprite.view.eye[0])
    parts[0][1]()
    if sprite.view.eye[0] > 0:
        _motor_rear(sprite, paint)
    engine = np.array([(x, y, z) for x in (-0.3, 0.3) for y in (0.25, 0.6) for z in (-0.16, 0.16)])
    sprite.hull(engine, (58, 58, 62))
    tank = np.array([(-0.1, 0.66, -0.15), (-0.1, 0.66, 0.15), (0.42, 0.7, 0.0), (0.05, 0.98, -0.1), (0.05, 0.98, 0.1),
                     (0.38, 0.94, 0.08), (0.38, 0.94, -0.08)])  # fmt: skip
    sprite.hull(tank, paint)
    if sprite.view.eye[0] <= 0:
        _motor_rear(sprite, paint)
    parts[1][1]()
    bar = np.array([(0.3, 1.05, -0.38), (0.45, 1.02, 0.0), (0.3, 1.05, 0.38)])
    sprite.line(bar, (40, 40, 44), 0.05)
    lamp = sprite.view.project(np.array([(0.62, 0.9, 0.0)]))[0]
    if sprite.view.eye[0] > 0:
        sprite.fill_pixels(lamp + CIRCLE * (0.12 * sprite.view.scale), paint)
        sprite.fill_pixels(lamp + CIRCLE * (0.09 * sprite.view.scale), (244, 240, 214))


def _fork(sprite: Sprite, front: float, radius: float) -> None:
    _wheel(sprite, front, radius, 0.13, spokes=False)
    for z in (-0.09, 0.09):
        sprite.line(np.array([(front, radius, z), (0.42, 1.0, z)]), (160, 162, 166), 0.05)


def _motor_rear(sprite: Sprite, paint: RGB) -> None:
    seat = np.array([(-0.72, 0.8, -0.1), (-0.72, 0.8, 0.1), (-0.05, 0.74, -0.13), (-0.05, 0.74, 0.13),
                     (-0.7, 0.9, -0.1), (-0.7, 0.9, 0.1), (-0.1, 0.82, -0.1), (-0.1, 0.82, 0.1)])  # fmt: skip
    sprite.hull(seat, (34, 32, 34))
    tail = np.array([(-0.95, 0.74, -0.09), (-0.95, 0.74, 0.09), (-0.5, 0.62, -0.12), (-0.5, 0.62, 0.12),
                     (-0.9, 0.84, -0.08), (-0.9, 0.84, 0.08), (-0.45, 0.78, 0.0)])  # fmt: skip
    sprite.hull(tail, paint)
    if sprite.view.eye[0] < 0:
        lamp = sprite.view.project(np.array([(-0.95, 0.79, 0.0)]))[0]
        sprite.fill_pixels(lamp + CIRCLE * (0.07 * sprite.view.scale), COLOURS["red"])
    sprite.line(np.array([(-0.9, 0.4, 0.15), (0.0, 0.3, 0.16)]), (170, 170, 172), 0.08)


def _flat3(a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    return np.array([(*a, 0.0), (*b, 0.0)])
