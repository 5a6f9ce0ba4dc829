"""Forced answers, the load's shares, and the figures of `emoe bench refresh`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from emoe.bench import refresh_load
from emoe.bench.refresh import ALL_RESIDENT, REFRESH, RefreshBench, RefreshSettings, Served
from emoe.bench.refresh_answers import FIRST_SEED, forced_sampler, pick_forced, read_answers, write_answers
from emoe.bench.rows import RefreshSample
from emoe.core.generation import Sampling
from emoe.eval.rows import EncodedRow
from emoe.worker.sampling import Draw


def draw(seed: int, position: int = 0) -> Draw:
    return Draw(sampling=Sampling(), seed=seed, position=position)


def sample(num_tokens: int, wall_seconds: float, nll: float, worker_seconds: float = 1.0) -> RefreshSample:
    return RefreshSample(
        num_prompt_tokens=5,
        num_tokens=num_tokens,
        wall_seconds=wall_seconds,
        ttft_seconds=(0.1, 0.3),
        nll=nll,
        num_plans=3,
        num_loaded_bytes=100,
        num_expert_hits=6,
        num_expert_choices=8,
        processor_seconds={"worker": worker_seconds, "loader": 1.0},
    )


def bench(**samples: list[RefreshSample]) -> RefreshBench:
    names = {"full": ALL_RESIDENT, "few": REFRESH}
    systems = [Served(variant=name, resident="20%", scheduler="", worker="", pids={}) for name in names.values()]
    made = RefreshBench(RefreshSettings(), systems, say=lambda _line: None)
    made.samples = {names[key]: taken for key, taken in samples.items()}
    return made


def test_a_forced_token_has_the_log_probability_that_the_logits_give_it() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    first, second = pick_forced(logits, [0, 1])
    assert first is not None
    assert second is not None
    assert (first.token_id, second.token_id) == (0, 1)
    assert first.logprobs == ((0, pytest.approx(math.log(0.25))),)
    assert second.logprobs == ((1, pytest.approx(math.log(0.5))),)


def test_a_row_of_no_numbers_fails_alone() -> None:
    good, bad = pick_forced(torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), [0, 0])
    assert good is not None
    assert bad is None


def test_answers_follow_their_seed_and_position_and_other_seeds_are_sampled(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.json", [[7], [1, 0]])
    logits = torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]])
    sampler = forced_sampler(read_answers(tmp_path / "answers.json"))
    forced = sampler(logits, [draw(FIRST_SEED + 1, 1), draw(FIRST_SEED + 1, 0)])
    free = sampler(logits, [draw(0), draw(1)])
    assert [picked.token_id for picked in forced if picked] == [0, 1]
    assert [picked.token_id for picked in free if picked] == [1, 0]


def test_every_turn_has_all_tasks_in_equal_shares() -> None:
    rows = {
        task: [EncodedRow(task=task, token_ids=(1, 2), num_prompt_tokens=1) for _ in range(num)]
        for task, num in {"chat": 9, "code": 3}.items()
    }
    chosen = refresh_load._in_equal_shares(rows, num_turns=2, num_requests=2)
    assert [row.task for row in chosen] == ["chat", "code", "chat", "code"]
    assert len(refresh_load._in_equal_shares(rows, num_turns=4, num_requests=4)) == 6


def test_ratios_pair_the_turns_of_a_round_and_perplexity_is_of_all_tokens() -> None:
    made = bench(
        full=[sample(100, 1.0, 100.0), sample(100, 4.0, 100.0), sample(200, 2.0, 200.0)],
        few=[sample(100, 2.0, 200.0), sample(100, 4.0, 100.0), sample(200, 2.5, 300.0)],
    )
    full, few = made.rows()
    assert (full.tokens_ratio, full.perplexity, full.perplexity_ratio) == (1.0, pytest.approx(math.e), 1.0)
    assert few.tokens_ratio == pytest.approx(0.8)
    assert few.perplexity == pytest.approx(math.exp(1.5))
    assert few.perplexity_ratio == pytest.approx(math.exp(0.5))
    assert (few.num_plans, few.loaded_bytes, few.hit_ratio) == (9, 300, 0.75)


def test_the_processor_ratio_is_of_all_services_time_for_the_same_tokens() -> None:
    _, few = bench(full=[sample(100, 1.0, 1.0, worker_seconds=3.0)], few=[sample(100, 9.0, 1.0)]).rows()
    assert few.processor_ratio == 2.0


def test_before_a_whole_round_there_are_no_rows() -> None:
    assert bench(full=[], few=[]).rows() == ()


def test_fewer_requests_than_clients_are_refused() -> None:
    with pytest.raises(ValueError, match="do not keep 8 clients busy"):
        RefreshSettings(requests=7)
