"""A table of inputs that no user should get away with: each must cost one clear paragraph, early, and nothing else.

Every row is a command line. ``{name}`` in it is a path in the folder that :func:`make_files` fills.
"""

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.formats import released_name
from run_helpers import TINY
from safetensors.torch import save_file


class BadInput(NamedTuple):
    name: str
    arguments: tuple[str, ...]
    mentions: tuple[str, ...] = ("",)  # the answer has to, one of them


def sets(*assignments: str) -> tuple[str, ...]:
    return tuple(part for text in assignments for part in ("--set", text))


SETTINGS = """
training.images=1e26 | training.images=0 | training.images=-1 | training.images=.nan | training.images=.inf
training.images=many | training.images=1.5 | training.images=null | training.batch_size=0 | training.batch_size=-5
training.batch_size=1000000000000 | training.accumulation=0 | training.accumulation=3 | training.optimizer.learning_rate=0
training.optimizer.learning_rate=-1 | training.optimizer.learning_rate=.nan | training.optimizer.learning_rate=.inf
training.optimizer.learning_rate=fast | training.optimizer.beta1=1 | training.optimizer.beta1=-0.1 | training.optimizer.beta2=2
training.optimizer.moments=4bit | training.optimizer={moments: bf16, beta2: 0.999} | runtime.offload_optimizer=true
training.optimizer.epsilon=0 | training.optimizer.weight_decay=-1 | training.optimizer.clip_norm=0
training.optimizer.warmup_images=-1 | training.optimizer.schedule=sideways | training.optimizer.final_fraction=2
training.ema.halflife_images=0 | training.ema.rampup_ratio=0 | training.stop_at_images=0 | training=5 | training.imagez=5
runtime.device=tpu | runtime.device=mps | runtime.precision=fp8 | runtime.threads=0 | runtime.threads=1000000000
runtime.compile=maybe | logging.every_images=0 | checkpointing.every_images=0 | checkpointing.keep=0 | samples.per_class=0
evaluation.num_samples=0 | evaluation.batch_size=0 | evaluation.guidance_weight=-1 | evaluation.guidance_weight=.inf
evaluation.guidance_low=2 | evaluation.guidance_low=0.9,evaluation.guidance_high=0.1 | evaluation.seed=-1
evaluation.seed=99999999999999999999999 | evaluation.jump_to=0 | evaluation.few_steps=[0] | evaluation.evaluators=5
evaluation.evaluators=[nobody] | evaluation.reference_steps=0 | evaluation.reference_sampler=nobody | seed=-1
seed=99999999999999999999999 | name='' | name=a/b | name=.. | nonsense=1 | nonsense.more=1 | teacher=nobody | teacher=''
teacher=5 | teacher=[] | student=nobody | student='' | objective=nobody | objective='' | source=nobody | source='' | codec=nobody
codec='' | trackers=[nobody] | trackers=mlflow | trackers.0.uri=x | trackers.x.uri=x | teacher.layout=spiral | teacher.num_modes=0
teacher.std=-1 | teacher.std=.nan | teacher.nonsense=1 | teacher.sample_shape=[1000000,1000000,1000000]
teacher.sample_shape=[] | teacher.sample_shape=[-1] | student.width=0 | student.width=100000000 | student.depth=100000000
student.depth=-1 | student.depth=deep | objective.weight_power=.nan | objective.correction_share=2
objective.derivative=guess | objective.guidance_min=3,objective.guidance_max=2 | objective.r_low=0.9,objective.r_high=0.1
objective.weight_power=1e400 | training.images=[[[[1]]]] | source=digits | reference=nobody
checkpointing.fall_back=perhaps | samples.max_classes=0
"""
"""Of the tiny run."""

NOT_NAMED = ("training.batch_size=1000000000000", "teacher.sample_shape=[1000000,1000000,1000000]")
"""What comes to its end by the machine's memory, which does not know whose it is."""

WORDS = """
distill --config {tiny.yaml} --set images | distill --config {tiny.yaml} --set =1 | distill --config {tiny.yaml} --set a..b=1
distill --config {missing.yaml} | distill --config {folder} | distill --config {empty.yaml} | distill --config {binary.yaml}
distill --config {deep.yaml} | distill --config {twice.yaml} | distill --config {list.yaml} | distill --config {broken.yaml}
distill --config {latin.yaml} | distill --config {preset.yaml} | distill --config {broken.json} | distill --preset nobody
distill --teacher '' | distill --objective '' | distill --student '' | distill --teacher nobody
distill --config {tiny.yaml} --output {text.txt} | distill --config {tiny.yaml} --output {folder}
distill --config {tiny.yaml} --output {text.txt}/below | distill --config {tiny.yaml} --resume --output {missing}
distill --config {tiny.yaml} --resume --output {folder} | distill --resume --output {emptied} | distill --resume --output {invalid}
distill --config {tiny.yaml} --seed -1 | distill --config {tiny.yaml} --seed x
distill --config {tiny.yaml} --seed 99999999999999999999999 | distill --nonsense | nonsense
--plugin {missing.py} plugins list | --plugin {syntax.py} plugins list --kind nonsense
sample | sample --teacher nobody | sample --teacher '' | sample --run {missing} | sample --run {folder} | sample --run {text.txt}
sample --teacher digits --labels 0-99999999999 | sample --teacher digits --labels 5-2 | sample --teacher digits --labels a
sample --teacher digits --labels 10 | sample --teacher digits --labels '' | sample --teacher digits --guidance-weight inf
sample --teacher digits --guidance-weight nan | sample --teacher digits --guidance-weight -1
sample --teacher digits --guidance-interval 2,3 | sample --teacher digits --guidance-interval x | sample --teacher digits --jump-to 0
sample --teacher digits --jump-to nan | sample --teacher digits --num 0 | sample --teacher digits --num 99999999999999999999
sample --teacher digits --steps 0 | sample --teacher digits --steps 99999999999999999999
sample --teacher digits --output {text.txt} | sample --teacher digits --sampler nobody
sample --teacher digits --seed 99999999999999999999999 | sample --teacher digits --seed -1 | sample --teacher digits --batch-size 0
sample --teacher digits --format gif | sample --teacher digits --set teacher.nonsense=1 | sample --teacher digits --output {text.txt}/below
evaluate | evaluate --run {missing} | evaluate --run {folder} | evaluate --teacher nobody
search | search --run {missing} | search --run {folder} --candidates 0
export | export --run {missing} | export --run {folder} --output {text.txt} | fetch nobody | fetch sd-vae-ft-mse --from {missing}
fetch --force | encode | encode --source nobody | encode --source mnist --codec nobody --set source.path={folder}
compare --preset nobody | compare --objectives nobody | compare --objectives freeflow,freeflow --preset digits
compare --preset digits --seeds 0 | compare --preset digits --budget seconds=3 | compare --preset digits --budget images=-1
compare --preset digits --budget images=nan | compare --preset digits --sweep a | compare --preset digits --sweep a=1,1
plugins show nobody | plugins check nobody | config show --preset nobody | config show --set nonsense=1
teacher check nobody | mlflow-sync {missing} | mlflow-sync {folder}
distill --teacher sit --set teacher.checkpoint={missing.pt} | distill --teacher sit --set teacher.checkpoint={folder}
distill --teacher sit --set teacher.checkpoint={text.txt} | distill --teacher sit --set teacher.checkpoint={short.safetensors}
distill --teacher sit --set teacher.checkpoint={huge.safetensors} | distill --teacher sit --set teacher.checkpoint={int8.safetensors} --set teacher.num_heads=2
distill --teacher sit --set teacher.checkpoint={nan.safetensors} --set teacher.num_heads=2 --dry-run
distill --teacher sit --set teacher.checkpoint={nan.safetensors} --set teacher.num_heads=2
distill --teacher sit --set teacher.checkpoint={code.pt} | distill --teacher sit --set teacher.checkpoint={other.safetensors}
pretrain --source mnist --set source.path={missing} | pretrain --source mnist --set source.path={folder}
pretrain --source mnist --set source.path={idx-huge} | pretrain --source mnist --set source.path={idx-magic}
pretrain --source mnist --set source.path={idx-bomb} | pretrain --source npz --set source.path={missing.npz}
pretrain --source npz --set source.path={text.txt} | pretrain --source npz --set source.path={huge.npz}
pretrain --source npz --set source.path={float.npz} | pretrain --source npz --set source.path={cut.npz}
pretrain --source npz --set source.path={pickled.npz} | pretrain --source image-folder --set source.path={missing}
pretrain --source image-folder --set source.path={folder} | pretrain --source latents --set source.path={folder}
"""
"""Whole command lines; ``{tiny.yaml}`` is the tiny run."""


def bad_inputs() -> Iterator[BadInput]:
    for text in _cells(SETTINGS):
        assignments = text.split(",") if text.count("=") > 1 else [text]
        words = ("distill", "--config", "{tiny.yaml}", "--output", "{new}", *sets(*assignments))
        yield BadInput(text, words, ("",) if text in NOT_NAMED else _words(assignments[0]))
    for text in _cells(WORDS):
        yield BadInput(text, tuple("" if word == "''" else word for word in text.split()))


def _words(assignment: str) -> tuple[str, ...]:
    """Of which an answer about the assignment uses one: the setting, its section, its value."""
    keys, _, value = assignment.partition("=")
    return (*keys.split("."), value.strip("[]") or keys)


def _cells(table: str) -> Iterator[str]:
    for line in table.strip().splitlines():
        yield from (cell.strip() for cell in line.split(" | "))


class _Runs:
    def __reduce__(self) -> object:
        return (Path("code-was-executed").touch, ())


def make_files(folder: Path) -> None:
    """All files that the table names."""
    texts = {
        "tiny.yaml": yaml.safe_dump({**TINY, "name": "tiny"}),
        "empty.yaml": "",
        "deep.yaml": "[" * 100_000,
        "twice.yaml": "seed: 1\nseed: 2\n",
        "list.yaml": "- 1\n",
        "broken.yaml": "a: [1,",
        "broken.json": '{"a": ',
        "preset.yaml": "preset: nobody\n",
        "text.txt": "some text\n",
        "syntax.py": "def (",
        "folder/mine.txt": "of somebody else",
        "emptied/config.yaml": "",
        "emptied/run.json": "{}",
        "invalid/config.yaml": "a: [1,",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    weights = {"x_embedder.proj.weight": torch.zeros(8, 4, 2, 2)}
    save_file(weights, folder / "other.safetensors")
    whole = (folder / "other.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(whole[:50])
    (folder / "huge.safetensors").write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    for name, change in {"int8": lambda t: t.to(torch.int8), "nan": lambda t: t.fill_(torch.nan)}.items():
        save_file({key: change(t) for key, t in _sit().items()}, folder / f"{name}.safetensors")
    (folder / "code.pt").write_bytes(pickle.dumps({"ema": _Runs()}))
    _idx_files(folder)
    np.savez(folder / "float.npz", images=np.zeros((4, 8, 8), np.float32))
    np.savez(folder / "pickled.npz", images=np.array([{"a": 1}], object))
    np.savez(folder / "good.npz", images=np.zeros((4, 8, 8), np.uint8))
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:-30])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 100, 100)})
    with zipfile.ZipFile(folder / "huge.npz", "w") as file:
        file.writestr("images.npy", header.getvalue() + b"\0" * 100)


def _sit() -> dict[str, torch.Tensor]:
    """A small checkpoint of a published transformer."""
    architecture = TransformerConfig(
        sample_shape=(4, 8, 8), patch_size=2, width=24, depth=1, num_heads=2, num_classes=10, learn_sigma=True
    )
    tensors = DiffusionTransformer(architecture).state_dict()
    return {released_name(name, student=False): value.clone() for name, value in tensors.items()}


def _idx_files(folder: Path) -> None:
    def pair(name: str, images: bytes, labels: bytes, suffix: str = "") -> None:
        (folder / name).mkdir()
        for part in ("train", "t10k"):
            (folder / name / f"{part}-images-idx3-ubyte{suffix}").write_bytes(images)
            (folder / name / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(labels)

    images, labels = b"\0\0\x08\x03", b"\0\0\x08\x01"
    most = 2**32 - 1
    pair(
        "idx-huge", images + struct.pack(">3I", most, most, most) + b"\0" * 64, labels + struct.pack(">I", most) + b"\0"
    )
    pair("idx-magic", b"\0\0\x08\x05" + b"\0" * 64, labels + struct.pack(">I", 1) + b"\0")
    bomb = gzip.compress(images + struct.pack(">3I", 1, 28, 28) + bytes(2**26))
    pair("idx-bomb", bomb, gzip.compress(labels + struct.pack(">I", 1) + b"\0"), ".gz")


def placed(row: BadInput, folder: Path) -> list[str]:
    """The command line of a row, with its paths."""
    words = []
    for word in row.arguments:
        while "{" in word and "}" in word:
            before, _, rest = word.partition("{")
            name, _, after = rest.partition("}")
            word = f"{before}{folder / name}{after}"
        words.append(word)
    return words
