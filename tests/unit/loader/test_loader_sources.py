"""Addresses of models, what fetching them may fail with, and when it is tried again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from pydantic import ValidationError

from emoe.core.errors import CheckpointError, UnsupportedModelError
from emoe.loader.fetch.failures import FetchError, Reason, explain, of_status
from emoe.loader.fetch.sources import FolderSource, RemoteSource, is_wanted, parse_source
from emoe.loader.opening import RetryPace
from emoe.loader.settings import LoaderSettings


@pytest.mark.parametrize(
    ("address", "has_revisions"),
    [
        ("hf://allenai/OLMoE-1B-7B-0924", True),
        ("s3://bucket", False),
        ("s3://bucket/a/b/", False),
        ("http://host:8000/a/b", False),
        ("https://host/", False),
    ],
)
def test_an_address_of_somewhere_else_is_a_remote_source(address: str, has_revisions: bool) -> None:
    source = parse_source(address)
    assert isinstance(source, RemoteSource)
    assert (source.address, source.has_revisions) == (address, has_revisions)


def test_a_path_is_a_folder() -> None:
    assert parse_source("/models/tiny") == FolderSource(folder=Path("/models/tiny"))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "models/tiny",
        "hf://",
        "hf://org",
        "hf://org/",
        "hf://org/name/more",
        "s3://",
        "s3:///prefix",
        "http://",
        "http://host:port/x",
        "https://user@host/x",
        "https://host/x?token=1",
        "https://host/x#1",
        "demo://other",
        "pvc://claim/path",
        "gs://bucket/x",
    ],
)
def test_any_other_address_is_an_invalid_source(address: str) -> None:
    with pytest.raises(FetchError) as refused:
        parse_source(address)
    assert refused.value.reason is Reason.INVALID_SOURCE
    assert refused.value.permanent


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", True),
        ("model.safetensors.index.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("tokenizer.model", True),
        ("chat_template.jinja", True),
        ("merges.txt", True),
        ("pytorch_model.bin", False),
        ("pytorch_model.bin.index.json", False),
        ("consolidated.00.pth", False),
        ("model.gguf", False),
        ("README.md", False),
        (".gitattributes", False),
        ("original/config.json", False),
        ("onnx/model.safetensors", False),
    ],
)
def test_only_what_a_model_is_run_from_is_wanted(name: str, wanted: bool) -> None:
    assert is_wanted(name) is wanted


def missing() -> CheckpointError:
    error = CheckpointError("config.json: missing")
    error.__cause__ = FileNotFoundError()
    return error


@pytest.mark.parametrize(
    ("error", "reason", "permanent"),
    [
        (UnsupportedModelError("dense"), Reason.UNSUPPORTED, True),
        (CheckpointError("cut"), Reason.CORRUPT, True),
        (missing(), Reason.NOT_FOUND, True),
        (OSError(errno.ENOSPC, "full"), Reason.NO_SPACE, False),
        (OSError(errno.EDQUOT, "full"), Reason.NO_SPACE, False),
        (OSError(errno.EIO, "bad"), Reason.UNREACHABLE, False),
        (of_status(401, "x"), Reason.UNAUTHORIZED, True),
        (of_status(404, "x"), Reason.NOT_FOUND, True),
        (of_status(429, "x"), Reason.UNREACHABLE, False),
        (of_status(503, "x"), Reason.UNREACHABLE, False),
        (of_status(416, "x"), Reason.CORRUPT, True),
        (of_status(400, "x"), Reason.INVALID_SOURCE, True),
    ],
    ids=repr,
)
def test_every_failure_has_a_reason(error: FetchError, reason: Reason, permanent: bool) -> None:
    explained = explain(error)
    assert (explained.reason, explained.permanent) == (reason, permanent)


def test_pauses_grow_to_a_bound_and_are_long_for_what_will_not_pass() -> None:
    pace = RetryPace(first_seconds=1, longest_seconds=5, permanent_seconds=300)
    away, gone = FetchError(Reason.UNREACHABLE, "away"), FetchError(Reason.NOT_FOUND, "gone")
    assert [pace.pause_seconds(away, num_failed) for num_failed in (1, 2, 3, 4, 10_000)] == [1, 2, 4, 5, 5]
    assert pace.pause_seconds(gone, 1) == 300


@pytest.mark.parametrize("given", [{}, {"model": Path("m"), "source": "demo://"}], ids=["neither", "both"])
def test_a_loader_has_either_a_folder_or_a_source(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="either a model's folder"):
        LoaderSettings(**given)  # type: ignore[arg-type]
