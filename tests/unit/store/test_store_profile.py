"""The profile file: readable, the same bytes for the same profile, and refused where it does not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_samples
from support.profiles import leaning, profile, task_profile, write_beside

from emoe.core.errors import CheckpointError, InvalidRequestError
from emoe.store.profile import (
    LEARNED_FILE,
    PROFILE_FILE,
    Profile,
    Sensitivity,
    parse_profile,
    read_learned,
    read_profile,
    render_profile,
    write_profile,
)
from emoe.store.store import ExpertStore

SHAPE, MOE_LAYERS = (4, 6), (1, 3)


def sample(**options: Any) -> Profile:
    tasks = {
        "code": task_profile(leaning(SHAPE, MOE_LAYERS, 1), leaning(SHAPE, MOE_LAYERS, 2), similarity=(0.9, 0.7)),
        "math": task_profile(leaning(SHAPE, MOE_LAYERS, 3)),
    }
    return profile(tasks, shape=SHAPE, moe_layers=MOE_LAYERS, **options)


def test_what_is_written_is_read_again() -> None:
    found = parse_profile(render_profile(sample()))
    assert render_profile(found) == render_profile(sample())
    assert found.tasks["code"].sensitivity == sample().tasks["code"].sensitivity
    for name, task in sample().tasks.items():
        assert np.allclose(found.tasks[name].answer_frequencies, task.answer_frequencies, atol=1e-6)
        assert found.tasks[name].answer_tokens == task.answer_tokens


def test_rows_sum_to_one_whatever_rounding_took() -> None:
    thirds = np.zeros(SHAPE)
    thirds[list(MOE_LAYERS), :3] = 1 / 3
    made = profile({"code": task_profile(thirds)}, shape=SHAPE, moe_layers=MOE_LAYERS)
    found = parse_profile(render_profile(made)).tasks["code"].answer_frequencies
    assert found[list(MOE_LAYERS)].sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert not found[[0, 2]].any()


def test_layers_that_may_be_misrouted_have_no_say() -> None:
    assert sample().sensitive("code").tolist() == [1, 0, 1, 1]
    assert sample().sensitive("math").tolist() == [1, 1, 1, 1], "not measured"
    assert sample().sensitive("qa").tolist() == [1, 1, 1, 1], "not profiled"


def test_a_layer_is_insensitive_only_where_perplexity_says_so_too() -> None:
    measured = Sensitivity(similarity=(0.99, 0.9, 0.9, 0.5), perplexity_ratio=(1.0, 1.15, 1.2, 1.0))
    assert measured.sensitive_layers(0.85).tolist() == [False, False, True, True]
    assert measured.sensitive_layers(0.95).tolist() == [False, True, True, True]


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    *parents, last = path.split("/")

    def apply(fields: dict[str, Any]) -> None:
        for parent in parents:
            fields = fields[parent]
        fields[last] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (change("format", "emoe profile 9"), "emoe profile 9"),
        (change("grid/shape", [4, 7]), "its grid is"),
        (change("grid/shape", [4, float("inf")]), "wrong kind"),
        (change("grid/moe_layers", [1, 4]), "MoE layers"),
        (change("grid/moe_layers", [3, 1]), "MoE layers"),
        (change("grid/moe_layers", [1, 1]), "MoE layers"),
        (change("tasks", {}), "no task"),
        (change("sensitivity_threshold", 0), "threshold"),
        (change("tasks/code/answer_tokens/p90", -1), "numbers of tokens"),
        (change("tasks/code/answer_tokens/p80", 1), "wrong kind"),
        (change("tasks/code/sensitivity/similarity", [0.5]), "sensitivities"),
        (change("tasks/code/sensitivity/perplexity_ratio", [1.0]), "sensitivities"),
        (change("tasks/code/sensitivity/similarity", [0.5, float("nan")]), "not finite"),
        (change("tasks/code/answer_frequencies", [[0.0] * 6] * 4), "sum to one"),
        (change("tasks/code/answer_frequencies", [[0.5]]), "shape"),
        (change("tasks/code/answer_frequencies", None), "shape"),
        (lambda fields: fields["tasks"]["code"].pop("num_tokens"), "num_tokens"),
        (lambda fields: fields["tasks"].update({"No Task": fields["tasks"]["code"]}), "No Task"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_and_named(damage: Callable[[dict[str, Any]], None], fault: str) -> None:
    fields = json.loads(render_profile(sample()))
    damage(fields)
    with pytest.raises(ValueError, match=fault):
        parse_profile(json.dumps(fields).encode())


def test_a_torn_file_is_refused_with_what_to_do(folder: Path) -> None:
    path = write_beside(folder, code=1)
    path.write_bytes(path.read_bytes()[:-20])
    with ExpertStore.open(folder) as store, pytest.raises(CheckpointError, match="make it anew"):
        read_profile(folder, digest=store.digest, fingerprint=store.fingerprint())


def test_a_model_without_a_profile_has_none(store: ExpertStore) -> None:
    assert read_profile(store.folder, digest=store.digest, fingerprint=store.fingerprint()) is None


def test_a_profile_is_its_own_models_alone(folder: Path, tmp_path: Path) -> None:
    path = write_beside(folder, code=1)
    tuned = {key: value + 1 if "embed" in key else value for key, value in store_samples.tensors().items()}
    other = store_samples.write(tmp_path / "fine-tuned", store_samples.config(), tuned)
    (other / PROFILE_FILE).write_bytes(path.read_bytes())
    with ExpertStore.open(folder) as mine, ExpertStore.open(other) as others:
        assert mine.digest == others.digest, "equal shapes"
        assert read_profile(folder, digest=mine.digest, fingerprint=mine.fingerprint()) is not None
        with pytest.raises(CheckpointError, match="other weights"):
            read_profile(other, digest=others.digest, fingerprint=others.fingerprint())


def test_both_files_are_written_and_belong_together(tmp_path: Path) -> None:
    learned = b"learned"
    made = sample(learned_sha256=hashlib.sha256(learned).hexdigest())
    write_profile(tmp_path, made, learned)
    assert read_learned(tmp_path, parse_profile((tmp_path / PROFILE_FILE).read_bytes())) == learned
    assert sorted(path.name for path in tmp_path.iterdir()) == [PROFILE_FILE, LEARNED_FILE]
    (tmp_path / LEARNED_FILE).write_bytes(b"another")
    with pytest.raises(CheckpointError, match="not the one"):
        read_learned(tmp_path, made)
    (tmp_path / LEARNED_FILE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_learned(tmp_path, made)


def test_a_profile_without_learned_arrays_leaves_no_old_ones(tmp_path: Path) -> None:
    (tmp_path / LEARNED_FILE).write_bytes(b"old")
    write_profile(tmp_path, sample(), None)
    assert read_learned(tmp_path, sample()) is None
    assert [path.name for path in tmp_path.iterdir()] == [PROFILE_FILE]


def test_a_folder_that_takes_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nowhere"):
        write_profile(tmp_path / "nowhere", sample(), b"learned")
