"""Which features of an RLDS episode are its pictures, actions, states and instruction.

TFDS flattens an episode into features named by their path: `steps/observation/image`, `steps/action`, ... features.json
beside the shards tells what each of them is (since TFDS 4.6; the older form is passed over); without it the values
tell. Among several the choice is ours, below; `steps/` in front of a name does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vw2.data.sources.base import SECONDARY
from vw2.data.tfrecord import RecordError, values

IMAGE, NUMBERS, WORDS = "image", "numbers", "words"  # kinds of features
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
RGB_PNG = ((8, 2), (8, 3), (8, 6))  # bit depth and colour type: colour, palette, colour with transparency
MAIN = ("image", "rgb", "rgb_static", "image_0", "image_primary")  # names preferred among the other cameras
STATES = (
    ("observation/state",),
    ("observation/proprio",),
    ("observation/robot_state",),
    ("observation/robot_obs",),
    ("observation/joint_position", "observation/gripper_position"),
)
INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
    "natural_language_instruction",
    "observation/instruction",
    "instruction",
    "episode_metadata/language_instruction",
)


@dataclass(frozen=True)
class Keys:
    """Features to read; several actions or states are put side by side in this order."""

    images: tuple[str, ...]  # one of them, best first
    action: tuple[str, ...]
    state: tuple[str, ...]
    instruction: str | None


def _base(key: str) -> str:
    return key.removeprefix("steps/")


def kinds_of_schema(schema: Any) -> dict[str, str]:
    """features.json -> the kind of each feature by name; features of other kinds (depth, classes) are left out.

    Raises: ValueError if it has another form.
    """
    found: dict[str, str] = {}

    def walk(node: Any, path: str) -> None:
        if not isinstance(node, Mapping):
            raise ValueError(f"expected a feature at {path or 'the top'}, got {type(node).__name__}")
        if "featuresDict" in node:
            for name, child in node["featuresDict"].get("features", {}).items():
                walk(child, f"{path}/{name}" if path else name)
        elif "sequence" in node:
            walk(node["sequence"].get("feature", {}), path)
        elif "image" in node:
            sides = (node["image"].get("shape") or {}).get("dimensions") or []
            if node["image"].get("dtype", "uint8") == "uint8" and (not sides or int(sides[-1]) in (3, 4)):
                found[path] = IMAGE
        elif "text" in node:
            found[path] = WORDS
        elif "tensor" in node:
            kind = str(node["tensor"].get("dtype"))
            found[path] = WORDS if kind in ("string", "object") else NUMBERS

    walk(schema, "")
    return found


def is_picture(data: bytes | memoryview) -> bool:
    """Does this begin like a colour JPEG or PNG file?"""
    start = bytes(data[:26])
    return start[:3] == JPEG or (start[:8] == PNG and tuple(start[24:26]) in RGB_PNG)


def kinds_of_values(features: Mapping[str, list[memoryview]]) -> dict[str, str]:
    """The kind of each feature of one episode, by what it holds (missing pictures are empty: they are passed over)."""
    found = {}
    for key, parts in features.items():
        content = values(parts)
        if isinstance(content, np.ndarray):
            found[key] = NUMBERS
        elif content:
            first = next((each for each in content if len(each)), b"")
            found[key] = IMAGE if is_picture(first) else WORDS
    return found


def choose(kinds: Mapping[str, str]) -> Keys:
    """Choose among the features of an episode (our choice; the lists above).

    Pictures: a main camera before those on the hand, well-known names first, then by name. Actions: `action`, or all
    its parts by name. States: the first of STATES that is there, or all parts of `observation/state`.
    Raises: RecordError if there is no picture.
    """

    def rank(key: str) -> tuple[bool, bool, str]:
        name = key.rsplit("/", 1)[-1].lower()
        return any(word in name for word in SECONDARY), name not in MAIN, key

    images = sorted((key for key, kind in kinds.items() if kind == IMAGE), key=rank)
    if not images:
        raise RecordError(
            f"has no feature with colour pictures (JPEG or PNG) among {', '.join(sorted(kinds)) or 'none'}"
        )
    numbers = {_base(key): key for key in sorted(kinds) if kinds[key] == NUMBERS}
    action = [numbers["action"]] if "action" in numbers else _parts(numbers, "action/")
    named = next((names for names in STATES if all(name in numbers for name in names)), ())
    state = [numbers[name] for name in named] or _parts(numbers, "observation/state/")
    said = {_base(key): key for key in sorted(kinds) if kinds[key] != IMAGE}
    instruction = next((said[name] for name in INSTRUCTIONS if name in said), None)
    return Keys(tuple(images), tuple(action), tuple(state), instruction)


def _parts(numbers: Mapping[str, str], start: str) -> list[str]:
    return [key for name, key in numbers.items() if name.startswith(start)]


# ---------------------------------------------------------------- values of one episode of T frames


def matrix(features: Mapping[str, list[memoryview]], keys: Sequence[str], frames: int) -> np.ndarray:
    """(T, width) float32: the numbers of the keys side by side; width 0 without keys.

    Raises: RecordError if a feature is missing or does not divide into T rows.
    """
    columns = [np.zeros((frames, 0), np.float32)]
    for key in keys:
        content = values(features.get(key, []))
        if not isinstance(content, np.ndarray):
            raise RecordError(f"lacks the numbers of {key}")
        if len(content) % frames:
            raise RecordError(f"holds {len(content)} numbers in {key} for {frames} frames")
        columns.append(content.reshape(frames, -1).astype(np.float32))
    return np.concatenate(columns, axis=1)


def words(features: Mapping[str, list[memoryview]], key: str | None, frames: int) -> list[str | None]:
    """The instruction at each of T frames, None where there is none; one for all frames counts for each.

    Language-Table writes its instructions as numbers of characters, filled up with zeros.
    Raises: RecordError if there are neither one nor T.
    """
    content = values(features.get(key, [])) if key else []
    if len(content) == 0:
        return [None] * frames
    if isinstance(content, np.ndarray):
        rows = matrix(features, [key], frames).astype(np.int64)
        texts = ["".join(chr(code) for code in row if 0 < code < 0x110000) for row in rows]
    else:
        texts = [bytes(each).decode("utf-8", "replace") for each in content]
    if len(texts) not in (1, frames):
        raise RecordError(f"holds {len(texts)} instructions in {key} for {frames} frames")
    return [text.strip() or None for text in texts] * (frames // len(texts))
