"""The one transform object: it carries picture, boxes, points and masks through resize, pad, crop and flip, and back.

Coordinates are pixel EDGES: pixel i covers [i, i + 1), a picture covers [0, width] x [0, height].
Sizes are (width, height).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from visionllm.core.boxes import box_area, clip_boxes

Size = tuple[int, int]


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Geometry:
    """An affine map from an input picture to an output picture.

    Args:
        matrix: (2, 3) float64, output_xy = matrix @ (input_x, input_y, 1).
        input_size: (width, height).
        output_size: (width, height).
    """

    matrix: np.ndarray
    input_size: Size
    output_size: Size

    def __post_init__(self) -> None:
        assert self.matrix.shape == (2, 3), self.matrix.shape
        assert self.matrix.dtype == np.float64, self.matrix.dtype
        assert abs(np.linalg.det(self.matrix[:, :2])) > 0, "a geometry must be invertible"
        assert min(*self.input_size, *self.output_size) > 0, (self.input_size, self.output_size)

    @classmethod
    def identity(cls, size: Size) -> Geometry:
        return cls.resize(size, size)

    @classmethod
    def resize(cls, size: Size, output_size: Size) -> Geometry:
        """Stretch the whole picture over the output."""
        return _scaled(size, output_size, output_size)

    @classmethod
    def fit(cls, size: Size, box: int | Size, *, multiple: int = 1) -> Geometry:
        """Resize with the aspect kept and pad at the right and at the bottom.

        Args:
            size: of the picture.
            box: length of the longest side, or the (width, height) of the output that the picture is to fit into.
            multiple: the output's sides are rounded up to multiples of it.
        """
        longest = isinstance(box, int)
        bounds: Size = (box, box) if isinstance(box, int) else box
        scale = min(bounds[0] / size[0], bounds[1] / size[1])
        # Never below one pixel: a 1 x 10,000 picture stays a picture.
        content = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        width, height = (-(-side // multiple) * multiple for side in (content if longest else bounds))
        return _scaled(size, content, (width, height))

    @classmethod
    def crop(cls, size: Size, box_xyxy: tuple[int, int, int, int]) -> Geometry:
        """Cut out a box of whole pixels; where it reaches beyond the picture, the output is padded."""
        x1, y1, x2, y2 = box_xyxy
        matrix = np.array([[1, 0, -x1], [0, 1, -y1]], np.float64)
        return cls(matrix=matrix, input_size=size, output_size=(x2 - x1, y2 - y1))

    @classmethod
    def hflip(cls, size: Size) -> Geometry:
        """Swap left and right."""
        return cls(matrix=np.array([[-1, 0, size[0]], [0, 1, 0]], np.float64), input_size=size, output_size=size)

    @property
    def mirrors(self) -> bool:
        """Whether left and right change sides, so that a caller may re-word or forbid it."""
        return bool(np.linalg.det(self.matrix[:, :2]) < 0)

    def then(self, after: Geometry) -> Geometry:
        """This one first, ``after`` on its output. Nothing is cut at the edges of the picture in between."""
        assert self.output_size == after.input_size, (self.output_size, after.input_size)
        matrix = (_square(after.matrix) @ _square(self.matrix))[:2]
        return Geometry(matrix=matrix, input_size=self.input_size, output_size=after.output_size)

    def inverse(self) -> Geometry:
        matrix = np.linalg.inv(_square(self.matrix))[:2]
        return Geometry(matrix=matrix, input_size=self.output_size, output_size=self.input_size)

    def points(self, points_xy: np.ndarray) -> np.ndarray:
        """(..., 2) -> (..., 2) float32, not clipped."""
        points = np.asarray(points_xy, np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]
        return points.astype(np.float32)

    def boxes_exact(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """(..., 4) -> (..., 4) float32: the upright boxes around the moved ones, not clipped."""
        return self._boxes(boxes_xyxy).astype(np.float32)

    def boxes(
        self, boxes_xyxy: np.ndarray, *, min_visible: float = 0.25, min_side: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move boxes and cut them at the edges of the output.

        Args:
            boxes_xyxy: (N, 4), input pixels.
            min_visible: part of a box's area that must stay inside the output for the box to be kept.
            min_side: width and height in output pixels that must remain.

        Returns:
            (N, 4) float32 clipped boxes in output pixels, and (N,) bool: which of them to keep.
        """
        moved = self._boxes(boxes_xyxy)
        clipped = clip_boxes(moved, self.output_size)
        visible = box_area(clipped) >= min_visible * box_area(moved)
        large = ((clipped[..., 2:] - clipped[..., :2]) >= min_side - 1e-6).all(-1)
        return clipped.astype(np.float32), visible & large

    def undo_boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """(..., 4) boxes in output pixels -> float32 boxes in input pixels, clipped to the input picture."""
        return clip_boxes(self.inverse()._boxes(boxes_xyxy), self.input_size).astype(np.float32)

    def picture(self, pixels: np.ndarray, *, padding: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
        """(H, W, 3) uint8 of the input size -> (H, W, 3) uint8 of the output size; shrinking averages over areas."""
        return self._warp(pixels, padding)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) bool -> (H, W) bool: an output pixel is set where half of it is covered."""
        return self._warp(np.asarray(mask, bool).astype(np.uint8) * 255, (0, 0, 0)) >= 128

    def _boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        boxes = np.asarray(boxes_xyxy, np.float64)
        corners = boxes[..., [0, 1, 2, 1, 0, 3, 2, 3]].reshape(*boxes.shape[:-1], 4, 2)
        moved = corners @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.concatenate([moved.min(-2), moved.max(-2)], -1)

    def _warp(self, pixels: np.ndarray, padding: tuple[int, int, int]) -> np.ndarray:
        assert pixels.shape[:2] == self.input_size[::-1], (pixels.shape, self.input_size)
        canvas = np.empty((self.output_size[1], self.output_size[0], *pixels.shape[2:]), np.uint8)
        canvas[:] = padding if pixels.ndim == 3 else padding[0]
        source = self._source_window()
        if source is None:
            return canvas
        x1, y1, x2, y2 = source
        inner = Geometry.crop(self.input_size, source).inverse().then(self)
        window = pixels[y1:y2, x1:x2]
        place = inner._whole_pixels()
        if place is None:
            return inner._interpolate(window, padding)
        left, top, right, bottom = place
        if inner.matrix[0, 0] < 0:
            window = window[:, ::-1]
        if inner.matrix[1, 1] < 0:
            window = window[::-1]
        canvas[top:bottom, left:right] = _resize(window, (right - left, bottom - top))
        return canvas

    def _source_window(self) -> tuple[int, int, int, int] | None:
        """Input pixels (x1, y1, x2, y2) that reach the output; fractional edges get a rim for interpolation."""
        box = self.inverse()._boxes(np.array([0, 0, *self.output_size]))
        near = np.round(box)
        fractional = np.abs(box - near) > 1e-6
        low = np.where(fractional, np.floor(box) - 2, near)
        high = np.where(fractional, np.ceil(box) + 2, near)
        x1, y1, x2, y2 = np.clip([*low[:2], *high[2:]], 0, [*self.input_size, *self.input_size]).astype(int)
        return (int(x1), int(y1), int(x2), int(y2)) if x2 > x1 and y2 > y1 else None

    def _whole_pixels(self) -> tuple[int, int, int, int] | None:
        """Where the whole input lands, if upright and on whole pixels inside the output; else None."""
        if np.abs(self.matrix[[0, 1], [1, 0]]).max() > 1e-9:
            return None
        box = self._boxes(np.array([0, 0, *self.input_size]))
        near = np.round(box)
        if np.abs(box - near).max() > 1e-6 or (near[:2] < 0).any() or (near[2:] > self.output_size).any():
            return None
        left, top, right, bottom = near.astype(int).tolist()
        return (left, top, right, bottom) if right > left and bottom > top else None

    def _interpolate(self, pixels: np.ndarray, padding: tuple[int, int, int]) -> np.ndarray:
        (width, height), scale = self.input_size, np.linalg.norm(self.matrix[:, :2], axis=0)
        smaller = (min(width, int(np.ceil(width * scale[0]))), min(height, int(np.ceil(height * scale[1]))))
        rest = self
        if smaller != self.input_size:
            # Bilinear sampling alone skips pixels when it shrinks; averaging first leaves a scale of about one.
            shrink = Geometry.resize(self.input_size, smaller)
            pixels, rest = _resize(pixels, shrink.output_size), shrink.inverse().then(self)
        # OpenCV counts from pixel centres, we from edges: half a pixel in, half a pixel out.
        matrix = rest.matrix.copy()
        matrix[:, 2] += rest.matrix[:, :2].sum(1) / 2 - 0.5
        return cv2.warpAffine(
            np.ascontiguousarray(pixels),
            matrix,
            self.output_size,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=padding,
        )


def _scaled(size: Size, content: Size, output_size: Size) -> Geometry:
    matrix = np.diag([content[0] / size[0], content[1] / size[1]])
    return Geometry(matrix=np.hstack([matrix, np.zeros((2, 1))]), input_size=size, output_size=output_size)


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack([matrix, [0.0, 0.0, 1.0]])


def _resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Average over areas along sides that shrink, bilinear along sides that grow; the same array if nothing changes."""
    height, width = pixels.shape[:2]
    smaller = (min(width, size[0]), min(height, size[1]))
    pixels = np.ascontiguousarray(pixels)
    if smaller != (width, height):
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    if smaller != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return pixels
