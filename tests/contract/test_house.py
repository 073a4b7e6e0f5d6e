"""The house: who may import whom, and that the texts agree with the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_imports_go_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_readme_tree_names_every_source_file_and_nothing_else() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree:begin -->\n```\n(.*?)```\n<!-- tree:end -->", readme, re.S)
    assert block, "README.md has its tree between <!-- tree:begin --> and <!-- tree:end -->"
    named = {line.split()[0] for line in block.group(1).splitlines() if line.strip()}
    for name in named:
        assert (ROOT / name).exists(), f"README's tree names {name}, which is not there"
    sources = {
        name
        for name in tracked()
        if name.endswith(".py") and not name.startswith(("tests/", "benchmarks/")) and not name.endswith("__init__.py")
    }
    missing = {name for name in sources if name not in named}
    assert not missing, f"README's tree lacks {sorted(missing)}"
    top = {name.split("/")[0] for name in tracked()}
    needed = {"dvc.yaml", "params.yaml", "pipeline", "src", "serving", "monitoring", "tests", "Dockerfile"}
    assert needed <= top


def test_readme_commands_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for verb in set(re.findall(r"\bmake ([a-z-]+)\b", readme)):
        assert re.search(rf"^{verb}:", makefile, re.M), f"README says `make {verb}`, the Makefile has no such verb"
    cli = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    for verb in set(re.findall(r"\bvisionloop ([a-z]+(?:-[a-z]+)*)\b(?! endpoint)", re.sub(r"(?m)^[^`]*$", "", readme))):
        assert verb in cli.stdout, f"README says `visionloop {verb}`, the command line has no such verb"


def test_no_registry_host_and_no_local_path_in_tracked_files() -> None:
    # Assembled here so that this file does not hold the words it looks for.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "registry.npm" + "js.org", "deb.debian" + ".org"]
    pattern = re.compile("|".join(map(re.escape, hosts)) + r"|/(?:root|home/[a-z]+)/")
    for name in tracked():
        file = ROOT / name
        if file.is_file() and file.stat().st_size < 5_000_000:
            found = pattern.search(file.read_bytes().decode("utf-8", "replace"))
            assert not found, f"{name}: {found.group() if found else ''}"
