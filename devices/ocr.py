"""Reads the text in an image with up to three models: detector (where lines are) → classifier (which way up) → recogniser.

Lines are found in the detector's probability map as in Differentiable Binarization (Liao et al., arXiv 1911.08947), text is
read off the recogniser by greedy CTC decoding (Graves et al., ICML 2006). Sizes and thresholds are those that PP-OCR's
models were made for (Du et al., arXiv 2009.09941; as RapidOCR uses them), all of them in the program's stages. Every crop
runs by itself: what is read of one does not hang on its neighbours. numpy and Pillow only.
"""

import math
import os

import numpy as np

TURNED = 1  # the classifier's second class: upside down
STANDING = 1.5  # a crop that is so many times higher than wide is a line that stands on end
SAME_LINE = 0.5  # of a box's height: boxes whose tops differ by less stand beside each other


class Ocr:
    """Stages are {"component": role, …}; without a detector the whole image is one line, without a classifier none is turned."""

    def __init__(self, program, sessions, folder, components):
        self.sessions = sessions
        self.stages = {stage["component"]: stage for stage in program["stages"]}
        self.input_names = ["pixels"]
        self.output_names = ["text", "boxes", "scores"]
        self.observe = None  # called with (role, feeds) before a model runs: how a component's inputs are recorded
        with open(os.path.join(folder, self.stages["recogniser"]["characters"]), encoding="utf-8") as handle:
            self.characters = ["", *handle.read().rstrip("\n").split("\n"), " "]  # the blank, those of the list, the space

    def run(self, feeds):
        """{"pixels": [height, width, 3]} → text (code points, lines end with 10), boxes [lines, 4, 2], scores [lines]."""
        from PIL import Image

        image = Image.fromarray(feeds["pixels"])
        boxes = self.detect(image) if "detector" in self.stages else [corners_of(*image.size)]
        crops = [crop(image, box) for box in boxes]
        turned = self.turned(crops)
        if 2 * sum(turned) > len(boxes):  # the image is upside down: its last line comes first
            boxes, crops, turned = boxes[::-1], crops[::-1], turned[::-1]
        upright = [line.rotate(180) if over else line for line, over in zip(crops, turned)]
        lines = [(box, *self.read(line)) for box, line in zip(boxes, upright)]
        lines = [line for line in lines if line[1] and line[2] >= self.stages["recogniser"]["threshold"]]
        text = "".join(line[1] + "\n" for line in lines)
        return {
            "text": np.array([ord(character) for character in text], dtype=np.int32),
            "boxes": np.array([line[0] for line in lines], dtype=np.float32).reshape(-1, 4, 2),
            "scores": np.array([line[2] for line in lines], dtype=np.float32),
        }

    def answer(self, outputs):
        text = "".join(map(chr, outputs["text"])).split("\n")[:-1]
        return {"lines": [{"text": t, "box": box.tolist()} for t, box in zip(text, np.round(outputs["boxes"]).astype(int))]}

    def call(self, role, value):
        session = self.sessions[role]
        feeds = {session.get_inputs()[0].name: value}
        if self.observe:
            self.observe(role, feeds)
        return session.run(None, feeds)[0]

    def detect(self, image):
        """Corners of every line of text in reading order."""
        stage = self.stages["detector"]
        size = detector_size(image.size, stage["longest"])
        scale = np.array([image.width / size[0], image.height / size[1]])
        found = self.call("detector", normalised(image.resize(size, 2))[None])[0, 0]
        boxes = [clipped(box * scale, image.size) for box in lines_of(found, stage)]
        return reading_order([box for box in boxes if min(sides(box)) > 3])

    def turned(self, crops):
        """Which crops are upside down; where the classifier is not sure of one, all of the image's lines decide together."""
        if "classifier" not in self.stages or not crops:
            return [False] * len(crops)
        stage = self.stages["classifier"]
        scores = [self.call("classifier", fitted(line, stage["height"], stage["width"], stage["width"])[None])[0] for line in crops]
        together = sum(score[TURNED] - score[1 - TURNED] for score in scores) > 0
        return [bool(score.argmax() == TURNED) if score.max() > stage["threshold"] else bool(together) for score in scores]

    def read(self, line):
        """(text, mean probability of its characters)."""
        stage = self.stages["recogniser"]
        return ctc_text(self.call("recogniser", fitted(line, stage["height"], stage["width"], None)[None])[0], self.characters)


def detector_size(size, longest):
    """(width, height) in multiples of 32, the longest side at most `longest`."""
    scale = min(1.0, longest / max(size))
    return tuple(max(32, round(side * scale / 32) * 32) for side in size)


def normalised(image):
    """[3, height, width] in -1 to 1, blue first, as PP-OCR's models were trained."""
    pixels = np.asarray(image, dtype=np.float32)[:, :, ::-1]
    return np.ascontiguousarray((pixels / 255 - 0.5).transpose(2, 0, 1) * 2)


def fitted(line, height, least, most):
    """A crop scaled to `height`, then grey to the right up to `least` wide; wider than `most` it is squeezed."""
    width = max(1, math.ceil(height * line.width / line.height))
    width = min(width, most or width)
    result = np.zeros((3, height, max(width, least)), dtype=np.float32)
    result[:, :, :width] = normalised(line.resize((width, height), 2))
    return result


def ctc_text(scores, characters):
    """Greedy CTC decoding of [steps, characters]: repeats once, no blanks; with the mean probability of what is left."""
    best = scores.argmax(-1)
    kept = (best != 0) & np.concatenate([[True], best[1:] != best[:-1]])
    text = "".join(characters[index] for index in best[kept])
    return text, float(scores.max(-1)[kept].mean()) if kept.any() else 0.0


def lines_of(probability, stage):
    """Boxes [4, 2] around connected regions of a probability map [height, width], grown by what training shrank them by."""
    mask = probability > stage["binarize"]
    mask[1:] |= mask[:-1].copy()  # a dilation by one pixel, so that thin gaps do not cut a line
    mask[:, 1:] |= mask[:, :-1].copy()
    sums = np.concatenate([np.zeros((len(probability), 1)), probability.astype(np.float64).cumsum(1)], axis=1)
    boxes = []
    for runs in components(mask):
        rows, starts, ends = runs.T
        score = (sums[rows, ends] - sums[rows, starts]).sum() / (ends - starts).sum()
        centre, axes, extent = smallest_rectangle(np.concatenate([np.stack([starts, rows], 1), np.stack([ends - 1, rows], 1)]))
        if score < stage["threshold"] or extent.min() < stage["smallest"]:
            continue
        grown = extent + 2 * stage["unclip"] * extent.prod() / (2 * extent.sum())
        boxes.append(ordered(centre + 0.5 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * grown @ axes))
    return boxes


def components(mask):
    """Regions of a mask that touch (corners too), each as its runs [n, 3]: row, start, end."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(index):
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first = np.searchsorted(rows, np.arange(len(mask) + 1)).tolist()  # of each row's runs
    begin, stop = starts.tolist(), ends.tolist()
    for row in range(1, len(mask)):
        above, here = first[row - 1], first[row]
        while above < first[row] and here < first[row + 1]:
            if begin[above] <= stop[here] and begin[here] <= stop[above]:
                parent[root(here)] = root(above)
            if stop[above] < stop[here]:
                above += 1
            else:
                here += 1
    roots = np.array([root(index) for index in range(len(rows))], dtype=np.int64)
    runs = np.stack([rows, starts, ends], axis=1)
    return [runs[roots == one] for one in np.unique(roots)]


def smallest_rectangle(points):
    """(centre, axes [2, 2] as rows, extents along them) of the rotated rectangle of least area around points [n, 2].

    One side of it lies along the convex hull (Freeman and Shapira, CACM 18(7), 1975).
    """
    hull = convex_hull(points)
    edges = np.roll(hull, -1, axis=0) - hull
    angles = np.arctan2(edges[:, 1], edges[:, 0])
    axes = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    placed = axes @ hull.T  # [edges, 2, points]
    low, high = placed.min(2), placed.max(2)
    best = int((high - low).prod(1).argmin())
    return (low[best] + high[best]) / 2 @ axes[best], axes[best], high[best] - low[best]


def convex_hull(points):
    """Corners of the hull in order (Andrew's monotone chain, 1979)."""
    ordered_points = np.unique(points, axis=0).tolist()
    if len(ordered_points) < 3:
        return np.array(ordered_points, dtype=np.float64)

    def chain(sequence):
        kept = []
        for x, y in sequence:
            while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1]) <= (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0]):
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    return np.array(chain(ordered_points) + chain(reversed(ordered_points)), dtype=np.float64)


def ordered(box):
    """The corners from the upper left, clockwise."""
    by_x = box[np.argsort(box[:, 0], kind="stable")]
    left, right = by_x[:2], by_x[2:]
    (a, d), (b, c) = left[np.argsort(left[:, 1], kind="stable")], right[np.argsort(right[:, 1], kind="stable")]
    return np.stack([a, b, c, d])


def clipped(box, size):
    return np.clip(np.round(box), 0, [size[0] - 1, size[1] - 1])


def sides(box):
    """(width, height) of a box."""
    return (
        max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[3] - box[2])),
        max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2])),
    )


def corners_of(width, height):
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)


def crop(image, box):
    """The box as an upright image; one that stands on end is turned by 90° to the left."""
    width, height = (max(1, round(float(side))) for side in sides(box))
    a, b, c, d = box.tolist()
    line = image.transform((width, height), 3, (*a, *d, *c, *b), 3)  # 3: by its four corners; 3: bicubic
    return line.rotate(90, expand=True) if height >= STANDING * width else line


def reading_order(boxes):
    """From top to bottom; boxes on one line from left to right."""
    lines = []
    for box in sorted(boxes, key=lambda box: (box[0][1], box[0][0])):
        if lines and abs(box[0][1] - lines[-1][0][0][1]) < SAME_LINE * sides(box)[1]:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: box[0][0])]
