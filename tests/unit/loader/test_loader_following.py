"""Workers are planned for their own tasks: pods specialise where requests are placed by residency, and only there."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid, RoutingRule
from emoe.core.planning import GlobalGreedyPlanner
from emoe.core.tasks import UNKNOWN
from emoe.loader.coverage import Coverage
from emoe.loader.following import Following, pull
from emoe.loader.news import News
from emoe.loader.planning_loop import Pace, PlanningLoop
from emoe.loader.task_mix import Placed, Scheduler, TaskMix, TaskReport
from emoe.loader.workers import Member, Workers, WorkerState

TASKS = ("chat", "code", "law", "math", "qa", "summarization")
GRID = ExpertGrid(num_layers=2, moe_layers=(0, 1), rule=RoutingRule(num_experts=24, top_k=2), expert_bytes=64)
NUM_SLOTS = 16
PACE = Pace(refresh_interval_prompts=100_000)


def demand_of(task: str) -> FloatGrid:
    """Four experts a layer of its own take most, and all tasks share the rest."""
    demand = np.full(GRID.shape, 0.3 / GRID.rule.num_experts)
    if task in TASKS:
        first = 4 * TASKS.index(task)
        demand[:, first : first + 4] += 0.175
    return demand


PER_TOKEN = {task: demand_of(task) for task in (*TASKS, UNKNOWN)}
Place = Callable[[str, Coverage, Sequence[int]], int]


def by_residency(task: str, coverage: Coverage, num_running: Sequence[int]) -> int:
    """The best coverage among the workers with room."""
    shares = [coverage.told.get(f"w{number}", {}).get(task, 0.0) for number in range(len(num_running))]
    may = [number for number, running in enumerate(num_running) if running < 8]
    return max(may, key=lambda number: (shares[number], -num_running[number]))


def by_room(_task: str, _coverage: Coverage, num_running: Sequence[int]) -> int:
    return min(range(len(num_running)), key=lambda number: num_running[number])


class Cluster:
    """The planning loop over workers that apply what they are told, and a scheduler that places by `place`."""

    def __init__(self, number: int, place: Place, stack: contextlib.ExitStack, *, tells: bool = True) -> None:
        self._place, self._tells = place, tells
        news = News()
        self.workers, self._mix, self.coverage = Workers(planning=news), TaskMix(planning=news), Coverage()
        self.loop = PlanningLoop(
            workers=self.workers,
            mix=self._mix,
            news=news,
            grid=GRID,
            planner=GlobalGreedyPlanner(),
            ask=self._ask,
            pace=PACE,
            clock=lambda: 0.0,
            coverage=self.coverage,
        )
        self._scheduler: Scheduler = stack.enter_context(self._mix.joined("s"))
        self.members: list[Member] = [
            stack.enter_context(self.workers.joined(state(f"w{index}"))) for index in range(number)
        ]
        self.recent = [collections.Counter[str]() for _ in range(number)]
        self.running: collections.deque[tuple[int, str]] = collections.deque()
        self.met: list[float] = []
        self.num_moved = 0

    async def _ask(self, tasks: frozenset[str]) -> Mapping[str, FloatGrid]:
        return {task: PER_TOKEN.get(task, PER_TOKEN[UNKNOWN]) for task in tasks}

    async def serve(self, tasks: Sequence[str], *, at_once: int) -> None:
        """One request after another; the oldest ends when so many run."""
        await self.loop.ask_if_due()
        for task in tasks:
            if len(self.running) >= at_once:
                self.running.popleft()
            self.coverage.refresh(self.workers.states())
            on = collections.Counter(number for number, _ in self.running)
            number = self._place(task, self.coverage, [on[index] for index in range(len(self.members))])
            self.running.append((number, task))
            self._remember(number, task)
            self.met.append(share(task, self.members[number].state.resident))
            self._report(len(self.met))
            await self.loop.plan_once()
            self._apply()

    def _remember(self, number: int, task: str) -> None:
        for counts in self.recent:
            for known in counts:
                counts[known] *= 0.98  # type: ignore[assignment]  # counts that fade
        self.recent[number][task] += 1

    def _report(self, num_prompts: int) -> None:
        load = collections.Counter(task for _, task in self.running)
        placed: Placed = {f"w{number}": dict(counts) for number, counts in enumerate(self.recent)}
        report = TaskReport(
            task_tokens={task: 100.0 * count for task, count in load.items()},
            task_requests=load,
            placed=placed if self._tells else None,
            num_prompts=num_prompts,
        )
        self._mix.update(self._scheduler, report)

    def _apply(self) -> None:
        for member in self.members:
            if member.plan is not None and member.state.applied_epoch < member.plan.epoch:
                self.num_moved += int((member.plan.wanted & ~member.state.resident).sum())
                applied = dataclasses.replace(
                    member.state, resident=member.plan.wanted, applied_epoch=member.plan.epoch
                )
                self.workers.update(member, applied)

    @property
    def union(self) -> BoolGrid:
        resident: BoolGrid = np.any([member.state.resident for member in self.members], axis=0)
        return resident


def state(worker_id: str) -> WorkerState:
    resident = GlobalGreedyPlanner().plan(GRID.all_experts().astype(np.float64), num_slots=NUM_SLOTS, grid=GRID)
    return WorkerState(
        worker_id=worker_id, address="127.0.0.1:1", num_slots=NUM_SLOTS, resident=resident, free_sequences=8
    )


def share(task: str, resident: BoolGrid) -> float:
    return float(PER_TOKEN[task][resident].sum() / PER_TOKEN[task].sum())


def stream(number: int, *, seed: int = 0) -> list[str]:
    weights = np.array([6, 4, 1, 3, 2, 2], dtype=np.float64)
    return list(np.random.default_rng(seed).choice(TASKS, size=number, p=weights / weights.sum()))


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


async def test_pods_specialise_where_requests_are_placed_by_residency(stack: contextlib.ExitStack) -> None:
    before = Cluster(4, by_residency, stack, tells=False)
    cluster = Cluster(4, by_residency, stack)
    for one in (before, cluster):
        await one.serve(stream(400), at_once=12)
    assert before.union.sum() <= NUM_SLOTS + 4
    assert cluster.union.sum() >= 2.5 * NUM_SLOTS
    assert float(np.mean(cluster.met[100:])) > float(np.mean(before.met[100:])) + 0.15


async def test_specialised_pods_stay_what_they_are(stack: contextlib.ExitStack) -> None:
    before = Cluster(4, by_residency, stack, tells=False)
    cluster = Cluster(4, by_residency, stack)
    for one in (before, cluster):
        await one.serve(stream(200), at_once=12)
        one.num_moved = 0
    residents = [member.state.resident for member in cluster.members]
    for one in (before, cluster):
        await one.serve(stream(400, seed=1), at_once=12)
    assert cluster.num_moved < before.num_moved / 5
    kept = [float((one & member.state.resident).sum()) for one, member in zip(residents, cluster.members, strict=True)]
    assert min(kept) >= 0.5 * NUM_SLOTS


async def test_where_requests_are_placed_by_room_alone_nothing_is_lost(stack: contextlib.ExitStack) -> None:
    before, cluster = Cluster(4, by_room, stack, tells=False), Cluster(4, by_room, stack)
    for one in (before, cluster):
        await one.serve(stream(400), at_once=12)
    assert float(np.mean(cluster.met)) > float(np.mean(before.met)) - 0.02


async def test_a_task_that_appears_finds_a_home_and_its_requests_soon_meet_its_experts(
    stack: contextlib.ExitStack,
) -> None:
    cluster = Cluster(4, by_residency, stack)
    await cluster.serve([task for task in stream(300) if task != "math"], at_once=12)
    await cluster.serve(stream(200, seed=1), at_once=12)
    assert max(share("math", member.state.resident) for member in cluster.members) > 0.6


async def test_the_tasks_of_a_worker_that_leaves_are_handed_over(stack: contextlib.ExitStack) -> None:
    cluster = Cluster(3, by_residency, stack)
    with contextlib.ExitStack() as leaving:
        fourth = leaving.enter_context(cluster.workers.joined(state("w3")))
        cluster.members.append(fourth)
        cluster.recent.append(collections.Counter())
        await cluster.serve(stream(300), at_once=12)
        gone = fourth.state.resident
    cluster.members.pop()
    cluster.recent.pop()
    cluster.running = collections.deque(one for one in cluster.running if one[0] < 3)
    lost = [task for task in TASKS if share(task, gone) > 0.6]
    assert lost
    await cluster.serve(stream(200, seed=1), at_once=12)
    assert all(max(share(task, member.state.resident) for member in cluster.members) > 0.5 for task in lost)


def split(mix: TaskMix, number: int) -> Mapping[str, object] | None:
    return Following().split(mix, [state(f"w{index}") for index in range(number)], PER_TOKEN, {})


def test_one_worker_and_a_scheduler_that_tells_nothing_of_workers_are_planned_for_as_a_whole() -> None:
    mix = TaskMix(planning=News())
    with mix.joined("s") as scheduler:
        mix.update(scheduler, TaskReport(task_tokens={"chat": 10.0}, num_prompts=0))
        assert split(mix, 3) is None
        mix.update(scheduler, TaskReport(task_tokens={"chat": 10.0}, placed={"w0": {"chat": 1.0}}, num_prompts=0))
        assert split(mix, 1) is None
        assert split(mix, 3) is not None


def test_what_waits_is_planned_for_at_its_home() -> None:
    mix = TaskMix(planning=News())
    with mix.joined("s") as scheduler:
        report = TaskReport(
            task_tokens={"chat": 100.0, "law": 100.0},
            waiting_tokens={"law": 100.0},
            task_requests={"chat": 1, "law": 1},
            placed={"w0": {"chat": 1.0}, "w1": {}},
            num_prompts=0,
        )
        mix.update(scheduler, report)
        following = Following()
        parts = following.split(mix, [state("w0"), state("w1")], PER_TOKEN, {})
    assert parts is not None
    (home,) = (worker_id for worker_id, tasks in following.homes.items() if "law" in tasks)
    assert [worker_id for worker_id, part in parts.items() if part.task_tokens.get("law")] == [home]


COVERED = {"w0": {"chat": 0.9, "code": 0.3}, "w1": {"chat": 0.5, "code": 0.7}}


@pytest.mark.parametrize(
    ("placed", "expected"),
    [
        ({"w0": {"chat": 5.0}, "w1": {"code": 5.0}}, 1.0),
        ({"w0": {"chat": 5.0, "code": 5.0}, "w1": {"chat": 5.0, "code": 5.0}}, 0.0),
        ({"w0": {"code": 5.0}, "w1": {"chat": 5.0}}, 0.0),
        ({"w0": {"chat": 8.0, "code": 2.0}, "w1": {"chat": 2.0, "code": 8.0}}, 0.6),
    ],
    ids=["where it suits them", "everywhere alike", "elsewhere", "most where it suits them"],
)
def test_how_far_requests_go_where_residents_suit_them(placed: Placed, expected: float) -> None:
    assert pull(placed, COVERED) == pytest.approx(expected)


def test_where_requests_go_says_nothing_while_all_workers_cover_the_same() -> None:
    assert pull({"w0": {"chat": 5.0}, "w1": {}}, {"w0": {"chat": 0.5}, "w1": {"chat": 0.505}}) is None
    assert pull({"w0": {"chat": 5.0}, "w1": {}}, {}) is None
