"""The Dockerfiles, read and not built: what is installed, who runs it, and that code alone is in the last layer.

Building is done by the tests of the cluster.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from support import charts

PROJECT: dict[str, Any] = tomllib.loads((charts.ROOT / "pyproject.toml").read_text())
LOCK: dict[str, Any] = tomllib.loads((charts.ROOT / "uv.lock").read_text())
IGNORED = [
    line for line in (charts.ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
]
PACKAGES = "/opt/emoe"

TARGETS = {
    "operator": charts.ROOT / "operator" / "Dockerfile",
    "control": charts.ROOT / "services" / "Dockerfile",
    "worker": charts.ROOT / "services" / "Dockerfile",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    word: str
    rest: str


def stages(dockerfile: Path) -> dict[str, list[Instruction]]:
    """Instructions by the stage's name; the first of each says what it is made from."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[Instruction]] = {"": []}
    current = found[""]
    for line in filter(None, (" ".join(line.split()) for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            current = found.setdefault(rest.split(" AS ")[1], [])
        current.append(Instruction(word=word, rest=rest))
    return found


def instructions(target: str) -> list[Instruction]:
    """With those of the stages that it is built upon."""
    all_stages = stages(TARGETS[target])
    source = all_stages[target][0].rest.split(" AS ")[0]
    return [*all_stages.get(source, []), *all_stages[target]]


def copied_dependencies(target: str) -> list[str]:
    """Files of the stage `locked` that come into the image."""
    return [i.rest.split()[1] for i in instructions(target) if i.word == "COPY" and i.rest.startswith("--from=locked ")]


def export_command(target: str) -> list[str]:
    """What writes the list of what the target installs."""
    (file,) = copied_dependencies(target)
    locked = stages(TARGETS[target])["locked"]
    (export,) = [i.rest.removeprefix("EXPORT=").strip('"') for i in locked if i.word == "ENV"]
    commands = [command.split() for i in locked if i.word == "RUN" for command in i.rest.split(" && ")]
    (command,) = [command for command in commands if command[-2:] == ["--output-file", file]]
    assert command[0] == "$EXPORT"
    return [*export.split(), *command[1:]]


def extras(target: str) -> set[str]:
    words = export_command(target)
    return {extra for option, extra in itertools.pairwise(words) if option == "--extra"}


def installed(target: str) -> set[str]:
    """Distributions that the locked extras bring with them, those of other platforms too."""
    packages: dict[str, list[dict[str, Any]]] = {}
    for package in LOCK["package"]:
        packages.setdefault(package["name"], []).append(package)
    (project,) = packages[PROJECT["project"]["name"]]
    found: set[str] = set()
    waiting = [
        *project["dependencies"],
        *(d for extra in extras(target) for d in project["optional-dependencies"][extra]),
    ]
    while waiting:
        dependency = waiting.pop()
        if dependency["name"] in found:
            continue
        found.add(dependency["name"])
        for package in packages[dependency["name"]]:
            waiting += package.get("dependencies", [])
            optional = package.get("optional-dependencies", {})
            waiting += [entry for extra in dependency.get("extra", []) for entry in optional.get(extra, [])]
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_the_extras_are_the_projects(target: str) -> None:
    assert extras(target)
    assert extras(target) <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("target", "present", "absent"),
    [
        pytest.param("operator", {"kopf", "kubernetes", "grpcio"}, {"torch", "transformers", "typer"}, id="operator"),
        pytest.param("control", {"huggingface-hub", "s3fs", "typer", "xxhash"}, {"torch", "kopf"}, id="control"),
        pytest.param("worker", {"torch", "transformers", "typer"}, {"kopf", "kubernetes", "s3fs"}, id="worker"),
    ],
)
def test_an_image_has_what_it_needs_and_not_what_others_need(target: str, present: set[str], absent: set[str]) -> None:
    assert present <= installed(target)
    assert not absent & installed(target)


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_come_from_the_lock_and_without_our_code(target: str) -> None:
    assert {"--frozen", "--no-emit-project", "--no-default-groups"} <= set(export_command(target))
    (install,) = [i.rest.split() for i in instructions(target) if "uv pip sync" in i.rest]
    assert {"--require-hashes", "--compile-bytecode"} <= set(install)


@pytest.mark.parametrize("target", TARGETS)
def test_the_last_layer_is_our_code_and_nothing_before_it_changes_with_the_code(target: str) -> None:
    *earlier, last = instructions(target)
    assert last == Instruction(word="COPY", rest=f"--from=code --chown=${{CODE_OWNER}} /code {PACKAGES}")
    copied = [source for i in earlier if i.word in {"COPY", "ADD"} for source in i.rest.split()[:-1]]
    assert copied == ["--from=locked", *copied_dependencies(target)]


CHANGES = {
    "a rule of the linter": ("pyproject.toml", "line-length = 120", "line-length = 99"),
    "a dependency of the developers": ("pyproject.toml", '"ruff>=', '"ruff>'),
    "a version of ours": (
        "uv.lock",
        f'name = "emoe"\nversion = "{charts.distribution_version()}"',
        'name = "emoe"\nversion = "99"',
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_that_changes_no_dependency_installs_nothing_again(
    target: str, change: tuple[str, str, str], tmp_path: Path
) -> None:
    for name in ("pyproject.toml", "uv.lock"):
        shutil.copy(charts.ROOT / name, tmp_path)
    before = exported(target, tmp_path)
    name, old, new = change
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new))
    assert exported(target, tmp_path) == before
    assert "--hash=sha256:" in before


def exported(target: str, project: Path) -> str:
    """What the builder's uv would write, by ours."""
    places = os.pathsep.join([str(charts.ROOT / ".cache" / "uv" / "bin"), os.environ["PATH"]])
    uv = shutil.which("uv", path=places) or pytest.skip("uv is neither in .cache/uv nor on the PATH")
    options = export_command(target)[1:-2]
    return subprocess.run([uv, *options], cwd=project, stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_the_user_whom_the_pods_name(target: str) -> None:
    assert [i.rest for i in instructions(target) if i.word == "USER"] == ["10001:10001"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_base_is_the_public_python_unless_said(target: str) -> None:
    found = stages(TARGETS[target])
    assert found[""] == [Instruction(word="ARG", rest="BASE_IMAGE=python:3.11-slim")]
    bases = {i.rest.split(" AS ")[0] for stage in found.values() for i in stage if i.word == "FROM"} - found.keys()
    assert bases == {"${BASE_IMAGE}"}


@pytest.mark.parametrize("target", TARGETS)
def test_labels_name_the_version_that_is_inside(target: str) -> None:
    (labels,) = [i.rest for i in instructions(target) if i.word == "LABEL"]
    assert f'org.opencontainers.image.version="{charts.distribution_version()}"' in labels
    assert f'org.opencontainers.image.licenses="{PROJECT["project"]["license"]}"' in labels


@pytest.mark.parametrize("target", TARGETS)
def test_the_entry_point_is_one_of_the_projects_commands(target: str) -> None:
    (entry,) = [i.rest for i in instructions(target) if i.word == "ENTRYPOINT"]
    assert entry.strip('["]') in PROJECT["project"]["scripts"]


def test_the_builder_gets_nothing_but_what_is_let_through() -> None:
    assert IGNORED[0] == "*"
    let_through = [pattern[1:] for pattern in IGNORED if pattern.startswith("!")]
    assert not [path for path in let_through if not (charts.ROOT / path).exists()]


def test_all_that_the_distribution_is_made_of_is_let_through() -> None:
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = {"pyproject.toml", "uv.lock", project["readme"], *project["license-files"]}
    needed |= {*build["packages"], *build["force-include"]}
    let_through = [PurePosixPath(pattern[1:]) for pattern in IGNORED if pattern.startswith("!")]
    missing = [path for path in needed if not any(PurePosixPath(path).is_relative_to(one) for one in let_through)]
    assert not missing


def test_nothing_in_a_build_names_an_index_or_a_mirror() -> None:
    for dockerfile in set(TARGETS.values()):
        assert not re.search(r"INDEX_URL|--index|--find-links|https?://", dockerfile.read_text())
