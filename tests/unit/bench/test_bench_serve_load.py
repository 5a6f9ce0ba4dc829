"""What the load generator sends, what its figures say, and how they are held against the simulator's."""

from __future__ import annotations

import dataclasses
import gzip
import math
from pathlib import Path

import pytest

from emoe.bench.schedule_trace import Workload, read_workload
from emoe.bench.serve import LoadProgress, ServeOutcome
from emoe.bench.serve_compare import Measured, compare, figures_of, foretell
from emoe.bench.serve_load import Load, fit_context, pick, read_corpus_ids, speed_up, with_texts
from emoe.bench.serve_plot import draw
from emoe.bench.serve_rows import Labels, summarise
from emoe.cli.bench_serve_progress import describe_progress
from emoe.core.errors import InvalidRequestError
from emoe.core.schedule.costs import StepCosts
from emoe.core.slo import Slo
from emoe.v1 import generation_pb2

TRACE = (
    "arrival_s,task,corpus_id,prompt_tokens,output_tokens\n3,qa,b,20,4\n1,code,a,10,2\n5,qa,gone,30,6\n7,qa,c,40,8\n"
)
NAN = math.nan


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.csv.gz"
    path.write_bytes(gzip.compress(TRACE.encode()))
    return path


def workload(num: int = 4, *, gap_seconds: float = 1.0, prompt: int = 10, answer: int = 3) -> Workload:
    return Workload(
        name="test",
        arrived_seconds=[gap_seconds * number for number in range(num)],
        prompt_tokens=[prompt] * num,
        answer_tokens=[answer] * num,
        tasks=["qa"] * num,
        span_seconds=gap_seconds * (num - 1),
    )


def written(load: Load, number: int) -> generation_pb2.GenerateRequest:
    message = generation_pb2.GenerateRequest()
    load.write_prompt(number, message)
    return message


def test_random_prompts_have_the_traces_lengths_and_are_the_same_every_time() -> None:
    load = Load(workload=workload(prompt=40), vocab_size=64, seed=3)
    first, second = list(written(load, 0).token_ids.ids), list(written(load, 1).token_ids.ids)
    assert len(first) == len(second) == 40
    assert first != second
    assert all(16 <= token < 64 for token in first)
    assert first == list(written(load, 0).token_ids.ids)
    assert first != list(written(dataclasses.replace(load, seed=4), 0).token_ids.ids)


def test_texts_stand_beside_the_requests_that_the_trace_names_them_for(trace: Path) -> None:
    load = with_texts(read_workload(trace), read_corpus_ids(trace), {"a": "first", "b": "second", "c": "third"})
    assert load.workload.arrived_seconds == [0, 2, 6]
    assert load.workload.tasks == ["code", "qa", "qa"]
    assert [written(load, number).text for number in range(3)] == ["first", "second", "third"]
    assert load.workload.span_seconds == 6


def test_data_of_another_trace_is_refused(trace: Path) -> None:
    with pytest.raises(InvalidRequestError, match="the prompts of 1 requests"):
        with_texts(read_workload(trace), read_corpus_ids(trace), {"a": "first"})


def test_a_trace_that_names_no_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n1,1,1\n")
    with pytest.raises(InvalidRequestError, match="corpus_id"):
        read_corpus_ids(path)


def test_prompts_are_cut_to_the_context_and_answers_only_where_they_must() -> None:
    cut = fit_context(workload(prompt=100, answer=30), 64)
    assert (cut.prompt_tokens[0], cut.answer_tokens[0]) == (34, 30)
    tight = fit_context(workload(prompt=100, answer=300), 64)
    assert (tight.prompt_tokens[0], tight.answer_tokens[0]) == (1, 63)
    assert fit_context(workload(), 64) == workload()


def test_speed_is_of_the_traces_own_time() -> None:
    assert speed_up(workload(3, gap_seconds=4.0), 2.0).arrived_seconds == [0, 2, 4]


def test_picked_requests_keep_their_distances() -> None:
    assert pick(workload(4, gap_seconds=2.0), [1, 3]).arrived_seconds == [0, 4]


def outcome(*, first: list[float], end: list[float], failures: dict[int, str] | None = None) -> ServeOutcome:
    return ServeOutcome(
        sent_seconds=[number + 0.01 for number in range(len(first))],
        first_token_seconds=first,
        end_seconds=end,
        queue_seconds=[0.0] * len(first),
        failures=failures or {},
    )


def test_figures_count_from_the_time_a_request_was_meant_to_leave() -> None:
    """Answers of three tokens, asked for at 0, 1, 2 and 3 s: in time, late by its first token, slow, and refused."""
    seen = outcome(first=[0.2, 2.5, 2.3, NAN], end=[0.4, 2.7, 6.3, NAN], failures={3: "RESOURCE_EXHAUSTED"})
    slos = {"qa": Slo(ttft_seconds=1.0, tpot_seconds=1.0)}
    (row,) = summarise(workload(), seen, slos, Labels(policy="fifo", workers=1, slo_scale=1.0))
    assert (row.attainment, row.num_refused, row.num_failed) == (0.25, 1, 0)
    assert row.goodput_rps == pytest.approx(1 / 3)
    assert row.ttft_p50_seconds == pytest.approx(0.3)
    assert row.tpot_p50_seconds == pytest.approx(0.1)
    assert row.late_p99_seconds == pytest.approx(0.01)


def test_a_reply_of_one_token_has_no_time_a_token() -> None:
    slos = {"qa": Slo(tpot_seconds=0.001)}
    one = workload(2, answer=1)
    seen = outcome(first=[0.2, 1.2], end=[0.2, 1.2])
    (row,) = summarise(one, seen, slos, Labels(policy="fifo", workers=1, slo_scale=1.0))
    assert row.tpot_p50_seconds is None
    assert row.attainment == 1.0


def test_nothing_that_ended_makes_no_row() -> None:
    seen = outcome(first=[NAN] * 4, end=[NAN] * 4)
    assert summarise(workload(), seen, {}, Labels(policy="fifo", workers=1, slo_scale=1.0)) == ()


def measured(costs: StepCosts, *, idle_ttft_seconds: float, max_queued: int = 256) -> Measured:
    return Measured(
        policy="fifo",
        max_queued=max_queued,
        num_workers=1,
        num_rows=8,
        costs=costs,
        idle_ttft_seconds=idle_ttft_seconds,
        num_idle_tokens=10,
    )


def test_what_is_foretold_of_requests_that_do_not_meet_is_what_the_costs_say() -> None:
    costs = StepCosts(base_seconds=0.01, prompt_token_seconds=0.001, sequence_seconds=0.002)
    system = measured(costs, idle_ttft_seconds=0.05)
    assert system.front_seconds == pytest.approx(0.03)
    told = foretell(workload(gap_seconds=10.0), {"qa": Slo(ttft_seconds=0.06)}, system)
    assert told["ttft_p50_seconds"] == pytest.approx(0.05)
    assert told["tpot_p50_seconds"] == pytest.approx(0.012)
    assert told["attainment"] == 1.0
    assert told["goodput_rps"] == pytest.approx(4 / 30)


def test_what_a_short_queue_refuses_is_foretold_so() -> None:
    """Twelve at once: eight run, and as many wait as may."""
    costs = StepCosts(base_seconds=0.01, prompt_token_seconds=0.001, sequence_seconds=0.002)
    burst = workload(12, gap_seconds=1e-6)
    told = [
        foretell(burst, {}, measured(costs, idle_ttft_seconds=0.05, max_queued=most))["attainment"] for most in (1, 256)
    ]
    assert told == [pytest.approx(9 / 12), 1.0]


def test_a_front_that_seems_to_cost_less_than_nothing_costs_nothing() -> None:
    costs = StepCosts(base_seconds=1.0, prompt_token_seconds=0.001, sequence_seconds=0.002)
    assert measured(costs, idle_ttft_seconds=0.05).front_seconds == 0.0


def test_medians_of_replays_are_compared_figure_by_figure() -> None:
    live = [{"goodput_rps": value} for value in (1.0, 9.0, 2.0)]
    (row,) = compare(live, [{"goodput_rps": value} for value in (2.2, 2.0, 2.4)])
    assert (row.live, row.live_least, row.live_most, row.simulated) == (2.0, 1.0, 9.0, 2.2)
    assert row.ratio == pytest.approx(1.1)


def test_live_and_simulated_figures_have_the_same_names() -> None:
    costs = StepCosts(base_seconds=0.01, prompt_token_seconds=0.001, sequence_seconds=0.002)
    told = foretell(workload(), {}, measured(costs, idle_ttft_seconds=0.05))
    assert told.keys() == figures_of(workload(), [NAN] * 4, [NAN] * 4, {}).keys()


def test_progress_says_what_is_bad_only_where_it_is() -> None:
    now = LoadProgress(
        elapsed_seconds=3.2,
        num_requests=10,
        num_sent=5,
        num_running=2,
        num_done=3,
        num_refused=0,
        num_failed=0,
        num_attained=3,
        late_seconds=0.002,
    )
    assert describe_progress(now) == "3 s, 5 of 10 sent, 2 running, 3 done, 100.0% in time"
    worse = dataclasses.replace(now, num_running=0, num_refused=1, num_failed=1, late_seconds=1.5)
    assert "1 refused, 1 failed, 60.0% in time, sent 1.5 s late" in describe_progress(worse)


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    seen = outcome(first=[0.2, 2.5, 2.3, NAN], end=[0.4, 2.7, 6.3, NAN], failures={3: "RESOURCE_EXHAUSTED"})
    draw(workload(), seen, {}, tmp_path / "serve.png")
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")
