"""What the simulator is given: traces, targets and costs, and what it says of bad ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from emoe.bench.schedule_costs import read_costs, write_costs
from emoe.bench.schedule_goodput import find_goodput
from emoe.bench.schedule_slos import read_slos, slo_of
from emoe.bench.schedule_trace import UNTOLD_TASK, Workload, read_workload
from emoe.core.errors import InvalidRequestError
from emoe.core.slo import Slo
from emoe.core.tasks import BUILTIN_TASKS

TOKENS = ("prompt_token_seconds", "context_token_seconds")
TRACE = "arrival_s,prompt_tokens,output_tokens,task\n10,5,1,chat\n11.5,6,2,code\n9,7,3,\n"


def write_trace(folder: Path, text: str, name: str = "hour.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def even_workload(num_minutes: int) -> Workload:
    """A request each ten seconds; its prompt's length is the second at which it came."""
    seconds = [float(number * 10) for number in range(num_minutes * 6)]
    return Workload(
        name="even",
        arrived_seconds=seconds,
        prompt_tokens=[round(at) + 1 for at in seconds],
        answer_tokens=[1] * len(seconds),
        tasks=["chat"] * len(seconds),
        span_seconds=num_minutes * 60.0,
    )


def test_a_trace_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    workload = read_workload(write_trace(tmp_path, TRACE))
    assert workload.name == "hour"
    assert workload.arrived_seconds == [0.0, 1.0, 2.5]
    assert workload.prompt_tokens == [7, 5, 6]
    assert workload.tasks == [UNTOLD_TASK, "chat", "code"]
    assert workload.load_rps == pytest.approx(3 / 2.5)


def test_a_compressed_trace_is_the_same(tmp_path: Path) -> None:
    packed = tmp_path / "hour.csv.gz"
    packed.write_bytes(gzip.compress(TRACE.encode()))
    assert read_workload(packed) == read_workload(write_trace(tmp_path, TRACE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt_tokens\n", "no column output_tokens"),
        (TRACE.replace("11.5", "soon"), "line 3: could not convert"),
        (TRACE.replace("6,2", "0,2"), "line 3: .*above zero"),
        (TRACE.replace("11.5", "nan"), "line 3: .*above zero"),
        (TRACE.replace("code", "Code!"), "line 3: task name"),
        (TRACE.splitlines()[0] + "\n1,2,3,chat\n", "has 1 requests"),
        (TRACE + "1,2\n", "line 5"),
    ],
    ids=["column", "number", "length", "nan", "task", "one request", "short line"],
)
def test_a_trace_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_workload(write_trace(tmp_path, text))


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(TRACE.encode())[:-12]], ids=["foreign", "cut"])
def test_a_broken_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hour.csv.gz"
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_workload(path)


def test_a_load_is_made_by_compressing_time() -> None:
    dense = even_workload(2).at_load(1.0)
    assert dense.load_rps == pytest.approx(1.0)
    assert dense.arrived_seconds == pytest.approx([float(number) for number in range(12)])


def test_seed_zero_is_the_trace_as_recorded() -> None:
    workload = even_workload(5)
    drawn = workload.drawn(0)
    assert drawn.arrived_seconds == workload.arrived_seconds
    assert drawn.prompt_tokens == workload.prompt_tokens


def test_another_seed_draws_whole_minutes_anew() -> None:
    workload = even_workload(30)
    drawn, again, other = workload.drawn(1), workload.drawn(1), workload.drawn(2)
    assert drawn == again
    assert drawn.prompt_tokens != workload.prompt_tokens
    assert drawn.prompt_tokens != other.prompt_tokens
    assert drawn.arrived_seconds == workload.arrived_seconds
    minutes = [drawn.prompt_tokens[place : place + 6] for place in range(0, len(drawn), 6)]
    assert all([length - minute[0] for length in minute] == [0, 10, 20, 30, 40, 50] for minute in minutes)


def test_no_more_requests_than_wanted_are_drawn() -> None:
    workload = even_workload(30)
    assert workload.drawn(0, num_requests=7).prompt_tokens == workload.prompt_tokens[:7]
    assert len(workload.drawn(3, num_requests=7)) == 7
    assert len(workload.drawn(3, num_requests=7000)) == len(workload)


def test_every_task_has_targets_and_a_reason() -> None:
    slos = read_slos()
    assert set(BUILTIN_TASKS) | {UNTOLD_TASK, "unknown"} == set(slos)
    assert all(slo != Slo() for slo in slos.values())
    assert slo_of(slos, "tickets") == slos["unknown"]


def test_targets_scale_together() -> None:
    once, halved = read_slos(), read_slos(scale=0.5)
    assert halved["code"].ttft_seconds == pytest.approx(0.5 * (once["code"].ttft_seconds or 0))
    assert halved["classification"].end_to_end_seconds == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[chat]\nttft = 1\n", "no field ttft; use ttft_seconds"),
        ('[chat]\nttft_seconds = "1"\n', "must be a number"),
        ("[chat]\nttft_seconds = -1\n", "positive"),
        ("chat = 1\n", "must be a table"),
        ("[chat\n", "no TOML"),
    ],
    ids=["field", "type", "sign", "shape", "syntax"],
)
def test_a_bad_table_of_targets_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_slos(write_trace(tmp_path, text, "slo.toml"))


def test_costs_come_back_as_they_were_written(tmp_path: Path) -> None:
    measured = read_costs()
    write_costs(measured, tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == measured


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_seconds": -1}, "base_seconds must be a number"),
        (
            {"base_seconds": 0, "prompt_token_seconds": 0, "sequence_seconds": 0, "context_token_seconds": 0},
            "some time",
        ),
        ({"step_tokens": 0}, "step_tokens"),
        ({"spare_seconds": 1}, "holds no costs"),
    ],
    ids=["negative", "nothing", "no step", "foreign"],
)
def test_bad_costs_are_refused(tmp_path: Path, changed: dict[str, float], message: str) -> None:
    write_costs(read_costs(), tmp_path / "costs.json")
    stored = json.loads((tmp_path / "costs.json").read_text())
    stored["costs"] |= changed
    path = write_trace(tmp_path, json.dumps(stored), "other.json")
    with pytest.raises(InvalidRequestError, match=message):
        read_costs(path)


@pytest.mark.parametrize("limit", [0.7, 3.0, 40.0, 700.0], ids=str)
@pytest.mark.parametrize("step", [1.1, 1.5], ids=str)
def test_bisection_finds_the_highest_load_that_passes(limit: float, step: float) -> None:
    found = find_goodput(lambda load: load <= limit, 10.0, precision=0.01, first_step=step)
    assert limit / 1.011 <= found <= limit


def test_where_no_load_passes_goodput_is_nothing() -> None:
    tried: list[float] = []
    assert find_goodput(lambda load: bool(tried.append(load)), 10.0, precision=0.01) == 0.0
    assert len(tried) < 12
