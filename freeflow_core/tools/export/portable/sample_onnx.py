"""Images of the exported student beside this file: onnxruntime, numpy and pillow; neither torch nor freeflow.

python sample_NAME.py --num 16 --labels 3,7 --seed 0 --output samples.png
"""

import argparse
import hashlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    """Draw the samples and write them as one picture; states that are no pictures as an array."""
    model = Path(__file__).with_name(Path(__file__).stem.removeprefix("sample_") + ".onnx")
    parser = argparse.ArgumentParser(description="Sample i is that of `freeflow sample` with the same seed.")
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--labels", default="", help="classes, e.g. 3,7, cycled; default: all in turn")
    parser.add_argument("--guidance", type=float, help="guidance weight, 1: none; default: the student's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(model, providers=onnxruntime.get_available_providers())
    about = json.loads(session.get_modelmeta().custom_metadata_map["freeflow"])
    if options.num < 1 or options.seed < 0:
        parser.error(f"--num must be at least 1 and --seed at least 0, got {options.num} and {options.seed}")
    inputs: dict[str, Any] = {"noise": noise(options.seed, options.num, about["sample_shape"])}
    if about["num_classes"]:
        known = range(about["num_classes"])
        try:
            classes = [known.index(int(label)) for label in options.labels.split(",") if label] or list(known)
        except ValueError:
            parser.error(f"--labels takes classes 0 to {known[-1]} with commas between, got {options.labels!r}")
        inputs["labels"] = np.resize(np.array(classes, dtype=np.int64), options.num)
    weight = about["guidance"] if options.guidance is None else options.guidance
    inputs["guidance"] = np.full(options.num, weight, dtype=np.float32)
    taken = {each.name for each in session.get_inputs()}
    (samples,) = session.run(None, {name: value for name, value in inputs.items() if name in taken})
    if samples.ndim != 4:
        np.save(options.output.with_suffix(".npy"), samples)
        return
    images = np.rint((samples.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    picture(images).save(options.output)


def noise(seed: int, num: int, shape: list[int]) -> np.ndarray:
    """(num, *shape) float32 normals; row i depends on (seed, i) alone (Philox, inverse distribution function)."""
    size = math.prod(shape)
    counters = -(-size // 4)
    stream = int.from_bytes(hashlib.blake2b(b"prior", digest_size=8).digest(), "little")
    key = np.array([seed, stream], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(4 * num * counters).reshape(num, -1)[:, :size]
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    normal = np.vectorize(statistics.NormalDist().inv_cdf, otypes=[np.float32])
    return normal(uniform).reshape(num, *shape)


def picture(images: np.ndarray) -> Image.Image:
    """uint8 (N, H, W, C) side by side, ten in a row."""
    columns = min(10, len(images))
    missing = -len(images) % columns
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
    rows = [np.concatenate(list(row), axis=1) for row in images.reshape(-1, columns, *images.shape[1:])]
    grid = np.concatenate(rows, axis=0)
    return Image.fromarray(grid[..., 0] if grid.shape[2] == 1 else grid)


if __name__ == "__main__":
    main()
