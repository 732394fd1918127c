"""The project itself: code checks, one version everywhere, what is packed, what lies at the top, commands in papers."""

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import circuitcli

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "circuitcli",
    "tests",
    "configs",
    "pyproject.toml",
    "Dockerfile",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
}
TEST_COMMAND = 'pip install -e ".[test]" && pytest -n logical'
CHECKS = [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["lint-imports"]]


@pytest.fixture(scope="module")
def project() -> dict:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def installed(name: str) -> str | None:
    """The path of a program that comes with a package of the tests."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.parametrize("words", CHECKS, ids=" ".join)
def test_the_code_passes(words: list[str]) -> None:
    program = installed(words[0])
    assert program is not None, f"{words[0]} is not installed: {TEST_COMMAND}"
    done = subprocess.run(
        [program, *words[1:]], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_and_styles_of_pages_pass() -> None:
    program = installed("biome")
    if program is None:
        pytest.skip("biome is not installed: pip has it for Linux on x86-64 only")
    words = [program, "check", "--error-on-warnings", "--max-diagnostics=50", "--colors=off"]
    folder = ROOT / "circuitcli" / "render"
    done = subprocess.run(
        words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Checked [1-9]\d* files", done.stdout)


def test_one_version_in_the_package_its_metadata_and_the_changelog(project: dict) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog, flags=re.MULTILINE)
    assert newest is not None
    assert project["version"] == circuitcli.__version__ == newest[1]


def test_the_top_level_holds_nothing_that_is_not_planned() -> None:
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    # A folder shared/ may lie beside the checkout's files where it is tested.
    extra = {name for name in found - TOP_LEVEL - {"shared"} if name not in ignored and not name.endswith(".egg-info")}
    assert not extra
    assert found >= TOP_LEVEL


def test_the_wheel_contains_every_file_of_the_package_that_is_no_by_product() -> None:
    packed = {Path(file.distribution_path) for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    there = {
        path.relative_to(ROOT)
        for path in (ROOT / "circuitcli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == there
    names = {str(path) for path in packed}
    assert any(name.startswith("circuitcli/render/assets/") for name in names)
    assert {"circuitcli/models/builtin/tiny/model.safetensors", "circuitcli/__main__.py"} <= names


def imported(path: Path) -> set[str]:
    """Packages that a file imports, by import or by name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "find_spec")):
            names |= {
                part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
    return {name.split(".")[0] for name in names}


def test_whatever_the_package_imports_comes_with_it_or_with_an_extra_for_users(project: dict) -> None:
    def named(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=;]", text)[0].strip().replace("-", "_") for text in requirements}

    optional = {name: named(listed) for name, listed in project["optional-dependencies"].items() if name != "test"}
    core, extras = named(project["dependencies"]), set[str]().union(*optional.values())
    found = set[str]().union(*(imported(path) for path in (ROOT / "circuitcli").rglob("*.py")))
    # Triton comes with PyTorch where it has kernels for it.
    others = found - set(sys.stdlib_module_names) - {"circuitcli", "triton"}
    assert "datasets" in others
    assert {{"yaml": "pyyaml", "fontTools": "fonttools"}.get(name, name) for name in others} - extras <= core
    # transformers imports it itself, for files of this kind.
    assert "gguf" in core


def test_hints_install_what_can_be_installed(project: dict) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "circuitcli").rglob("*.py"))
    assert "circuitcli[" not in text
    assert set(re.findall(r"'\.\[(\w+)\]'", text)) <= set(project["optional-dependencies"])


def test_the_readme_gives_the_one_test_command_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- test command -->\s*```\w*\n(.*?)\n```", readme, flags=re.DOTALL)
    assert found is not None
    assert found[1] == TEST_COMMAND
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- test command -->" in run and TEST_COMMAND not in run


def test_ci_is_a_program_that_the_shell_can_read() -> None:
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_ci_finds_the_test_command_as_bash_will_run_it() -> None:
    reader = re.search(r"^test_command\(\) \{.*?^\}", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M | re.S)
    assert reader is not None
    program = f"{reader[0]}\ntest_command"
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == TEST_COMMAND


def test_the_container_gets_the_files_that_it_copies() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in let_in
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)


def test_licence_and_readme_of_the_metadata_are_there(project: dict) -> None:
    assert project["license"] == "MIT"
    assert all((ROOT / name).is_file() for name in [project["readme"], *project["license-files"]])
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_files_of_tests_that_are_to_come_first_are_there() -> None:
    from conftest import LONGEST

    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in LONGEST) and len(LONGEST) == len(set(LONGEST))


# Words of earlier versions for things that the field has words for, or that a reader would have to be told.
FOREIGN = {"student", "lesson", "learner", "pace", "attempt", "outcome", "listener", "settle", "consider", "let_go"}


def names_defined(tree: ast.AST) -> list[str]:
    """Names of classes, functions and parameters, as words with underscores between."""
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    names += [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    return [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_") for name in names]


def modules() -> list[tuple[Path, ast.Module]]:
    paths = sorted((ROOT / "circuitcli").rglob("*.py"))
    return [(path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def test_names_are_words_of_the_field() -> None:
    bad = []
    for path, tree in modules():
        for name in [path.stem, *names_defined(tree)]:
            bad += [f"{path}: {name}" for word in FOREIGN if re.search(rf"(^|_){word}(s|ed|_|$)", name)]
    assert not bad


def test_messages_say_that_something_is_not_a_thing_rather_than_no_thing() -> None:
    inverted = re.compile(r"(?<!there )\b(is|are) (no (?!longer|more )|none of )")
    bad = []
    for path, tree in modules():
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        bad += [
            f"{path}:{text.lineno}: {text.value}"
            for text in texts
            if text.value not in docstrings and inverted.search(text.value)
        ]
    assert not bad
