"""`emoe plan` on real files: resources as people write them, checkpoints that transformers wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints
from support.profiles import write_beside
from support.quantised import write_mxfp4
from typer.testing import CliRunner, Result

from emoe.cli.commands import app
from emoe.core.tasks import BUILTIN_TASKS

SMALLEST = """
apiVersion: emoe.dev/v1alpha1
kind: MoEDeployment
metadata: {name: tiny}
spec:
  model: {source: "demo://"}
"""
FROM_HUB = SMALLEST.replace("demo://", "hf://some/model")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 experts of 9 KiB: three layers of eight, top two."""
    return checkpoints.save("qwen2_moe", tmp_path_factory.mktemp("qwen2_moe"))


def plan(text: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "-f", "-", *arguments], input=text, catch_exceptions=False)


def plan_json(text: str, *arguments: str) -> dict[str, Any]:
    result = plan(text, "--json", *arguments)
    [line] = result.stdout.splitlines()
    described: dict[str, Any] = json.loads(line)
    assert result.exit_code == (0 if described["valid"] and (described["plan"] or {"fits": True})["fits"] else 1)
    return described


def test_the_smallest_resource_fits_and_says_what_it_takes() -> None:
    described = plan_json(SMALLEST)
    got = described["plan"]
    assert (got["slots"], got["staging"], got["total_experts"], got["fits"]) == (48, 2, 192, True)
    assert got["worker_memory_bytes"] > got["resident_bytes"] + got["base_bytes"] + got["kv_bytes"]


@pytest.fixture
def profiled(qwen: Path, tmp_path: Path) -> Path:
    """The same with a profile: nine in ten choices of a task fall on its own expert of each layer."""
    folder = Path(shutil.copytree(qwen, tmp_path / "profiled"))
    write_beside(folder, code=1, math=3)
    return folder


def expected_hits(folder: Path, *, memory: str) -> dict[str, Any]:
    hits: dict[str, Any] = plan_json(FROM_HUB + f"  experts: {{memory: {memory}}}", "--model", str(folder))[
        "expected_hits"
    ]
    return hits


def test_the_hit_rate_is_that_of_the_profile_beside_the_model(profiled: Path) -> None:
    hits = expected_hits(profiled, memory="50%")
    assert hits["profile"] == str(profiled / "emoe-profile.json")
    assert hits["num_tokens"] == 1600
    # 10 slots beside the staging ones: the task's own expert and 7 of the other 21, each of a seventieth.
    assert hits["by_task"] == pytest.approx({"code": 0.9 + 7 / 210, "math": 0.9 + 7 / 210}, abs=1e-4)
    assert hits["ratio"] == pytest.approx(0.9 + 1 / 70 + 4 / 210, abs=0.02), "both tasks' experts"
    assert expected_hits(profiled, memory="100%")["ratio"] == 1.0
    assert (
        "expected of all tasks alike; alone: code 93%, math 93%"
        in plan(FROM_HUB + "  experts: {memory: 50%}", "--model", str(profiled)).stdout
    )


def test_the_shipped_model_has_a_profile_to_expect_hits_from() -> None:
    hits = plan_json(SMALLEST)["expected_hits"]
    assert 0.5 < hits["ratio"] < 0.7
    assert set(hits["by_task"]) == set(BUILTIN_TASKS)


def test_more_memory_never_lowers_the_expected_hit_rate(profiled: Path) -> None:
    ratios = [expected_hits(profiled, memory=f"{share}%")["ratio"] for share in (40, 60, 80, 100)]
    assert sorted(ratios) == ratios


def test_no_profile_gives_no_hit_rate(qwen: Path) -> None:
    text = FROM_HUB + "  experts: {memory: 50%}"
    assert plan_json(text, "--model", str(qwen))["expected_hits"] is None
    assert "there is no profile" in plan(text, "--model", str(qwen)).stdout


def test_a_profile_that_cannot_be_read_is_named(qwen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in qwen.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "emoe-profile.json").write_bytes(b"torn")
    result = plan(FROM_HUB + "  experts: {memory: 50%}", "--model", str(folder))
    assert result.exit_code == 1
    assert "make it anew with `emoe profile`, or remove it" in result.stderr


def test_too_little_expert_memory_is_refused_with_the_least(qwen: Path) -> None:
    described = plan_json(FROM_HUB, "--model", str(qwen))
    [problem] = described["plan"]["problems"]
    assert "holds 6 experts" in problem
    assert "needs at least 8" in problem
    assert "raise it to 72Ki or more" in problem
    assert plan_json(FROM_HUB + "  experts: {memory: 72Ki}", "--model", str(qwen))["plan"]["fits"]


def test_exact_mode_needs_one_layers_experts_only(qwen: Path) -> None:
    described = plan_json(FROM_HUB + "  experts: {memory: 25%, missPolicy: load}", "--model", str(qwen))
    assert described["plan"]["fits"]
    assert described["plan"]["min_bytes"] == 2 * 9 * 1024
    assert described["expected_hits"] is None


def test_a_memory_limit_below_the_plan_is_refused_with_the_figure() -> None:
    limited = SMALLEST + "  workers: {resources: {limits: {memory: 128Mi}}}"
    [problem] = plan_json(limited)["plan"]["problems"]
    assert "limit of 128Mi is below the plan" in problem
    figure = problem.split("raise it to ")[1].split()[0]
    assert plan_json(limited.replace("128Mi", figure))["plan"]["fits"]


def test_a_model_that_is_not_here_is_checked_as_far_as_it_goes() -> None:
    described = plan_json(FROM_HUB)
    assert (described["valid"], described["plan"]) == (True, None)
    assert "give --model a folder" in plan(FROM_HUB).stdout


def test_every_problem_is_listed_with_its_path() -> None:
    text = SMALLEST + "  experts: {memory: much}\n  workers: {replicas: -1}\n  tracing: {endpoint: otel}\n"
    described = plan_json(text)
    paths = [problem["path"] for problem in described["problems"]]
    assert paths == ["spec.experts.memory", "spec.workers.replicas", "spec.tracing.endpoint"]
    result = plan(text)
    assert result.exit_code == 1
    assert all(path in result.stdout for path in paths)


def test_a_file_may_hold_other_resources_and_several_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    second = SMALLEST.replace("tiny", "second").replace("demo://", "ftp://x")
    file.write_text(f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: x}}\n---\n{SMALLEST}---\n{second}")
    result = CliRunner().invoke(app, ["plan", "-f", str(file), "--json"], catch_exceptions=False)
    described = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["name"], one["valid"]) for one in described] == [("tiny", True), ("second", False)]
    assert result.exit_code == 1


def test_text_that_looks_like_a_date_stays_text() -> None:
    dated = SMALLEST.replace('"demo://"', '"hf://a/b", revision: 2024-01-31')
    assert plan_json(dated)["valid"]


def test_people_get_the_same_in_words() -> None:
    result = plan(SMALLEST)
    assert result.exit_code == 0
    for text in ("48/192 at 25%", "1248Ki of expert memory", "8 requests of 2048 tokens", "fits", "for 1 worker"):
        assert text in result.stdout


def test_a_gpus_share_is_said_apart_from_the_hosts() -> None:
    text = SMALLEST + "  workers: {resources: {limits: {nvidia.com/gpu: 1}}}"
    got = plan_json(text)["plan"]
    assert got["device_bytes"] == got["resident_bytes"] + got["base_bytes"] + got["kv_bytes"]
    assert "whether a device has its part is not known here" in plan(text).stdout


def test_the_time_to_load_follows_the_bandwidth() -> None:
    slow, fast = (plan_json(SMALLEST, "--bandwidth", rate)["load_seconds"] for rate in ("1M", "2M"))
    assert slow == pytest.approx(2 * fast)


@pytest.mark.parametrize(
    ("text", "arguments", "complaint"),
    [
        ("kind: Deployment\n", [], "has no MoEDeployment"),
        ("a: [1\n", [], "is not YAML"),
        ("- 1\n", [], "no object"),
        ("kind: A\nkind: B\n", [], "key 'kind' comes twice"),
        (SMALLEST, ["--model", "/nowhere"], "/nowhere is not a checkpoint folder"),
        (SMALLEST, ["--bandwidth", "fast"], "--bandwidth: 'fast' is no quantity"),
        (SMALLEST, ["--bandwidth", "0"], "bring nothing"),
    ],
    ids=["no resource", "no YAML", "no object", "a key twice", "no checkpoint", "no rate", "no bytes"],
)
def test_what_is_wrong_is_one_line(text: str, arguments: list[str], complaint: str) -> None:
    result = plan(text, *arguments)
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_resource_without_an_api_version_is_refused() -> None:
    [problem] = plan_json(SMALLEST.replace("apiVersion: emoe.dev/v1alpha1", ""))["problems"]
    assert problem["path"] == "apiVersion"


def test_a_file_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(app, ["plan", "-f", "/nowhere.yaml"])
    assert result.exit_code == 1
    assert "/nowhere.yaml cannot be read" in result.stderr


def test_plan_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv[1:] = ['plan', '-f', '-', '--json']\n"
        "from emoe.cli.main import app\n"
        "try: app()\n"
        "finally: assert not {'torch', 'kubernetes', 'kopf'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, input=SMALLEST, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_experts_format_is_told(qwen: Path, tmp_path: Path) -> None:
    assert plan_json(FROM_HUB, "--model", str(qwen))["model"]["expert_format"] == "F32"
    assert "24 experts in F32" in plan(FROM_HUB, "--model", str(qwen)).stdout
    quantised = write_mxfp4(tmp_path / "quantised")
    assert plan_json(FROM_HUB, "--model", str(quantised))["model"]["expert_format"] == "MXFP4"


def test_auto_on_a_gpu_says_what_is_left_to_the_worker(qwen: Path) -> None:
    asked = FROM_HUB + "  experts: {memory: auto}\n  workers: {resources: {limits: {nvidia.com/gpu: 1}}}"
    described = plan_json(asked, "--model", str(qwen))
    got = described["plan"]
    assert (got["fits"], got["is_left_to_worker"], got["slots"], got["resident_bytes"]) == (True, True, None, None)
    assert got["device_bytes"] == got["base_bytes"] + got["kv_bytes"] + got["min_bytes"]
    assert described["expected_hits"] is None
    table = plan(asked, "--model", str(qwen)).stdout
    assert "as many as each worker finds room for on its GPU" in table
    assert "not known before a worker has counted its slots" in table
