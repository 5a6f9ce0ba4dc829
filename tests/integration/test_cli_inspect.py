"""`emoe inspect` on checkpoints that transformers wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import checkpoints, quantised
from support.calibrations import write_calibration
from typer.testing import CliRunner

from emoe.cli.commands import app


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save("qwen2_moe", tmp_path_factory.mktemp("qwen2_moe"))


def inspect(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_bytes_and_slots_are_those_of_the_files(qwen: Path) -> None:
    facts = json.loads(inspect(str(qwen), "--json"))
    assert facts["expert_bytes"] == 3 * 24 * 32 * 4
    assert facts["num_experts_total"] == 3 * 8
    files = sum(path.stat().st_size for path in qwen.glob("*.safetensors"))
    assert files - 32 * 1024 < facts["total_bytes"] < files
    assert {row["budget"]: row["num_slots"] for row in facts["budgets"]} == {"100%": 24, "50%": 12, "25%": 6}
    assert [row["is_enough"] for row in facts["budgets"]] == [True, True, False]


def test_a_quantised_model_says_how_its_experts_are_published(tmp_path: Path) -> None:
    folder = quantised.write_mxfp4(tmp_path, dtype=torch.bfloat16)
    facts = json.loads(inspect(str(folder), "--json"))
    assert (facts["expert_format"], facts["dtype"]) == ("MXFP4", "BF16")
    weights = 128 * 32 + 32 * 64
    assert facts["expert_bytes"] == weights // 2 + weights // 32 + (128 + 32) * 2
    assert facts["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * 2
    assert "experts in MXFP4, computed in BF16" in inspect(str(folder))


def test_kv_bytes_count_keys_and_values_of_all_layers(qwen: Path) -> None:
    assert json.loads(inspect(str(qwen), "--json"))["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * 4


def test_latent_attention_is_counted_unfolded(tmp_path: Path) -> None:
    facts = json.loads(inspect(str(checkpoints.save("deepseek_v2", tmp_path)), "--json"))
    assert facts["kv_bytes_per_token"] == 3 * 4 * (16 + 8 + 12) * 4


def test_a_budget_of_ones_own_is_counted(qwen: Path) -> None:
    [row] = json.loads(inspect(str(qwen), "--json", "--expert-memory", "20KiB"))["budgets"]
    assert (row["num_slots"], row["is_enough"]) == (2, False)


def test_a_calibration_beside_the_model_takes_its_part_of_the_budget(tmp_path: Path) -> None:
    folder = checkpoints.save("qwen2_moe", tmp_path)
    budgets = ("--expert-memory", "90%", "--expert-memory", "100%")
    before = json.loads(inspect(str(folder), "--json", *budgets))["budgets"]
    write_calibration(folder)
    after, whole = json.loads(inspect(str(folder), "--json", *budgets))["budgets"]
    assert after["calibration_bytes"] > 0
    assert after["num_slots"] == (after["budget_bytes"] - after["calibration_bytes"]) // (3 * 24 * 32 * 4)
    assert after["num_slots"] < before[0]["num_slots"]
    assert (whole["num_slots"], whole["calibration_bytes"]) == (24, 0)
    assert "for the calibration" in " ".join(inspect(str(folder), "--expert-memory", "90%").split())


def test_people_get_the_same_in_words(qwen: Path) -> None:
    text = inspect(str(qwen))
    assert "24 of 9.00 KiB each" in text
    assert "6/24" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/nowhere"], "/nowhere is not a checkpoint folder"),
        (["--expert-memory", "much"], "memory 'much' is not understood"),
    ],
    ids=["no checkpoint", "no amount"],
)
def test_what_is_wrong_is_one_line(qwen: Path, arguments: list[str], complaint: str) -> None:
    model = [] if arguments[0].startswith("/") else [str(qwen)]
    result = CliRunner().invoke(app, ["inspect", *model, *arguments])
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_inspect_does_not_import_torch(qwen: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from emoe.cli.footprint import print_footprint;"
        f"print_footprint(Path({str(qwen)!r}), (), as_json=True, reroute=True); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
