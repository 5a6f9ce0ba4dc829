"""A real predictor is given a profile over gRPC: it begins from it, and wants it again after a start."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from support.profiles import leaning, profile, task_profile

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.core.sequence_predictor import SequenceWeights
from emoe.predictor import service
from emoe.predictor.main import serving
from emoe.predictor.settings import PredictorSettings
from emoe.runtime import parts as parts_of_files
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import grid_to_proto
from emoe.runtime.parts import parts
from emoe.store.learned import write_arrays
from emoe.store.profile import render_profile
from emoe.v1 import predictor_pb2 as pb
from emoe.v1 import predictor_pb2_grpc as rpc
from emoe.v1 import residency_pb2

GRID = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=4, top_k=2), expert_bytes=64)
MODEL = residency_pb2.ModelId(digest="a" * 64, family="qwen2_moe")
TIMEOUT_SECONDS = 10

CODE = task_profile(leaning(GRID.shape, GRID.moe_layers, 2), similarity=(0.9, 0.5))
PROFILE = render_profile(profile({"code": CODE}, shape=GRID.shape, moe_layers=GRID.moe_layers))


@contextlib.asynccontextmanager
async def predictor(**settings: object) -> AsyncIterator[rpc.PredictorServiceAsyncStub]:
    async with (
        serving(PredictorSettings(**settings)) as host,  # type: ignore[arg-type]
        open_channel(host.address) as channel,
    ):
        yield rpc.PredictorServiceStub(channel)


def messages(raw: bytes, *, learned: bytes = b"", model: bool = True) -> Iterator[pb.LoadProfileRequest]:
    yield pb.LoadProfileRequest(model=MODEL if model else None, grid=grid_to_proto(GRID))
    for part in parts(raw):
        yield pb.LoadProfileRequest(profile=part)
    for part in parts(learned):
        yield pb.LoadProfileRequest(learned=part)


async def load(stub: rpc.PredictorServiceAsyncStub, raw: bytes = PROFILE, **changes: object) -> int:
    answer = await stub.LoadProfile(messages(raw, **changes), timeout=TIMEOUT_SECONDS)  # type: ignore[arg-type]
    return int(answer.num_tasks)


async def ask(stub: rpc.PredictorServiceAsyncStub, task: str = "code") -> pb.PredictResponse:
    request = pb.PredictRequest(model=MODEL, grid=grid_to_proto(GRID), task_tokens={task: 1.0})
    return await stub.Predict(request, timeout=TIMEOUT_SECONDS)


async def report(stub: rpc.PredictorServiceAsyncStub, index: int, *, num_reports: int = 1) -> None:
    counts = np.zeros(GRID.shape, dtype=np.int64)
    counts[1:, index] = 1000
    message = pb.ReportRoutingRequest(
        model=MODEL,
        grid=grid_to_proto(GRID),
        task="code",
        counts=residency_pb2.ExpertCounts(values=counts.reshape(-1).tolist()),
    )
    await stub.ReportRouting(iter([message] * num_reports), timeout=TIMEOUT_SECONDS)


def row(answer: pb.PredictResponse, layer: int) -> list[float]:
    return list(answer.demand.values)[4 * layer : 4 * layer + 4]


async def test_it_begins_from_the_profile_and_weighs_by_sensitivity() -> None:
    async with predictor() as stub:
        assert not (await ask(stub)).has_profile
        assert await load(stub) == 1
        answer = await ask(stub)
    assert (answer.has_profile, answer.predictor, answer.stepped_back) == (True, "frequency", False)
    assert row(answer, 2) == pytest.approx([0.1 / 3, 0.1 / 3, 0.9, 0.1 / 3], abs=1e-5)
    assert row(answer, 1) == [0.0] * 4, "random routing there leaves 0.9 of similarity, above the threshold of 0.85"
    assert row(answer, 0) == [0.0] * 4, "layer 0 is dense"


async def test_the_threshold_of_the_settings_goes_before_the_profiles() -> None:
    async with predictor(sensitivity_threshold=1.0) as stub:
        await load(stub)
        assert sum(row(await ask(stub), 1)) == pytest.approx(1.0)


async def test_a_profile_of_other_experts_is_stepped_back_from_and_the_answer_says_so() -> None:
    async with predictor() as stub:
        await load(stub)
        await report(stub, 0, num_reports=2)
        answer = await ask(stub)
    assert (answer.predictor, answer.stepped_back) == ("counts", True)
    assert int(np.argmax(row(answer, 2))) == 0


async def test_a_restart_keeps_the_counts_and_wants_the_profile_again(tmp_path: Path) -> None:
    async with predictor(state_dir=tmp_path) as stub:
        await load(stub)
        await report(stub, 1)
    async with predictor(state_dir=tmp_path) as stub:
        answer = await ask(stub)
        assert (answer.has_profile, answer.predictor, answer.num_choices_learnt) == (False, "counts", 2000)
        assert await load(stub) == 1
        assert (await ask(stub)).has_profile


async def test_without_a_trained_sequence_predictor_frequencies_answer() -> None:
    async with predictor(predictor="sequence") as stub:
        await load(stub)
        assert (await ask(stub)).predictor == "frequency"


def sequence_arrays(favourite: int) -> bytes:
    """A trained sequence predictor that wants one expert of each layer, whatever it sees."""
    hidden, width = 2, 8

    def zeros(*shape: int) -> npt.NDArray[np.float32]:
        return np.zeros(shape, dtype=np.float32)

    logits = zeros(1, width)
    logits[:, [favourite, 4 + favourite]] = 9.0
    weights = SequenceWeights(
        tasks=(),
        moe_layers=np.array(GRID.moe_layers, dtype=np.int64),
        element_choices=100.0,
        centre=zeros(width),
        project_in=zeros(hidden, width),
        task_in=zeros(1, hidden),
        gates_in=zeros(3 * hidden, hidden),
        gates_hidden=zeros(3 * hidden, hidden),
        bias_in=zeros(3 * hidden),
        bias_hidden=zeros(3 * hidden),
        project_out=zeros(width, hidden),
        task_logits=logits,
    )
    return write_arrays(weights.to_arrays())


async def test_a_trained_sequence_predictor_answers_where_it_is_wanted_until_it_is_worse() -> None:
    async with predictor(predictor="sequence") as stub:
        await load(stub, learned=sequence_arrays(3))
        answer = await ask(stub)
        assert (answer.predictor, answer.stepped_back, int(np.argmax(row(answer, 2)))) == ("sequence", False, 3)
        await report(stub, 2, num_reports=2)
        answer = await ask(stub)
    assert (answer.predictor, answer.stepped_back, int(np.argmax(row(answer, 2)))) == ("frequency", True, 2)


async def test_it_is_left_alone_where_it_is_not_wanted() -> None:
    async with predictor() as stub:
        await load(stub, learned=sequence_arrays(3))
        assert (await ask(stub)).predictor == "frequency"


def other_model() -> bytes:
    return PROFILE.replace(b"a" * 64, b"b" * 64)


REFUSED = {
    "no JSON": (b"torn", {}, "the profile of model aaa"),
    "another model": (other_model(), {}, "made from model bbb"),
    "no profile": (b"", {}, "the profile of model aaa"),
    "no model named": (PROFILE, {"model": False}, "model.digest is missing"),
}


@pytest.mark.parametrize(("raw", "changes", "complaint"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_no_profile_is_an_invalid_argument_and_the_last_one_stays(
    raw: bytes, changes: dict[str, object], complaint: str
) -> None:
    async with predictor() as stub:
        await load(stub)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(stub, raw, **changes)
        assert (await ask(stub)).has_profile
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in (caught.value.details() or "")


async def test_a_stream_without_a_message_is_an_invalid_argument() -> None:
    async with predictor() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.LoadProfile(iter(()), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_profile_in_many_parts_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_of_files, "PART_BYTES", 100)
    assert len(list(messages(PROFILE))) > 5
    async with predictor() as stub:
        assert await load(stub) == 1


async def test_too_large_a_profile_is_an_invalid_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emoe.predictor.receiving.MAX_PROFILE_BYTES", len(PROFILE) - 1)
    async with predictor() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(stub)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the most that is taken" in (caught.value.details() or "")


async def test_more_profiles_at_once_than_there_is_room_for_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_PROFILES_AT_ONCE", 0)
    async with predictor() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(stub)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
