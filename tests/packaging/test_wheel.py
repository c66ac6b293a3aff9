"""What an installation puts on somebody's path, and what an import pulls in."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"autopoiesis_lib", "autopoiesis_contracts", "autopoiesis_adapters", "autopoiesis_cli"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by way of the source distribution, as `python -m build` does."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it but this wheel."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(target),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    return target


def isolated(code: str, *paths: Path) -> str:
    """What code prints in an interpreter that sees the standard library and the given folders alone."""
    header = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", header + code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_wheel_holds_exactly_the_four_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES
    assert not [
        name for name in names if Path(name).name.startswith("test_") or name.endswith((".pyc", ".nbi", ".nbc"))
    ]


def test_the_wheel_holds_types_traces_licences_and_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"autopoiesis_lib/data/azure_conv_2023.csv.gz", "autopoiesis_lib/data/LICENSES.md"} <= names
    assert "autopoiesis_cli/scaffold/contract.py.jinja" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_nothing_but_the_four_packages_is_importable(installed: Path) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "names = ['cli', 'contracts', 'runtime_adapters', 'tests', 'examples', 'benchmarks', 'docs']\n"
        f"print([name for name in names if find_spec(name)], sorted(name for name in {sorted(PACKAGES)} if find_spec(name)))"
    )
    assert isolated(code, installed) == f"[] {sorted(PACKAGES)}"


def test_the_command_and_the_contracts_are_registered(installed: Path) -> None:
    code = (
        "from importlib.metadata import distribution\n"
        "print(sorted((point.group, point.name) for point in distribution('autopoiesis-lib').entry_points))"
    )
    found = isolated(code, installed)
    assert "('console_scripts', 'autopoiesis')" in found
    assert "('autopoiesis.contracts', 'request-ordering')" in found


def test_the_library_imports_no_engine_and_no_language_model_client() -> None:
    heavy = [
        "torch",
        "vllm",
        "ray",
        "openai",
        "instructor",
        "z3",
        "cvc5",
        "mypy",
        "numba",
        "llvmlite",
        "sqlalchemy",
        "hypothesis",
    ]
    code = f"import sys, autopoiesis_lib\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_asking_for_help_loads_no_solver_and_no_compiler() -> None:
    heavy = ["torch", "vllm", "z3", "cvc5", "mypy", "numba", "llvmlite", "sqlalchemy", "openai", "scipy", "hypothesis"]
    code = (
        "import sys\n"
        "from autopoiesis_cli.main import main\n"
        "main(['--help'])\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
