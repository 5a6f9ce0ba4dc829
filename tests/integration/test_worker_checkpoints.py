"""Checkpoints as they come: half precision, tied embeddings, foreign and missing keys, sliding windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from support import checkpoints
from support.checkpoints import CONFIGS
from support.engines import assert_logits_close, generate, open_parts, random_prompts

from emoe.core.errors import CheckpointError
from emoe.store.store import ExpertStore
from emoe.worker.build import read_eos_token_ids
from emoe.worker.prompts import PromptEncoder

Checkpoint = Callable[[str], Path]
PROMPTS = random_prompts([21, 5, 33])


def reference(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", **options
    ).eval()


def save_with(folder: Path, family: str, **changes: Any) -> Path:
    """A checkpoint whose configuration differs from the usual one of its family."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "norm" not in name:
            tensor.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_half_precision_paged_equals_all_resident_bit_for_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = checkpoints.save(family, tmp_path, dtype=dtype)
    outcomes = []
    for num_slots in (None, 4):
        with open_parts(folder, miss_policy="load", num_slots=num_slots) as parts:
            assert parts.model.dtype == dtype
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=4))
    (tokens, logits), (paged_tokens, paged_logits) = outcomes
    assert paged_tokens == tokens
    assert all(torch.equal(paged, full) for paged, full in zip(paged_logits, logits, strict=True))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_base_tensor_of_a_bf16_checkpoint_is_kept_as_transformers_keeps_it(family: str, tmp_path: Path) -> None:
    folder = checkpoints.save(family, tmp_path, dtype=torch.bfloat16)
    theirs = reference(folder, dtype=torch.bfloat16).state_dict()
    with open_parts(folder, miss_policy="load") as parts:
        ours = parts.model.state_dict()
    assert ours
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: theirs[name].dtype for name in ours}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mixtral", {"sliding_window": 8}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 3}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8, "layer_types": None}),
        ("olmoe", {"clip_qkv": 0.5}),
        ("qwen2_moe", {"tie_word_embeddings": True}),
    ],
    ids=["mixtral window", "qwen2 window", "qwen3 window", "olmoe clipped", "tied embeddings"],
)
def test_options_of_a_family_give_the_tokens_of_transformers(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_with(tmp_path, family, **{k: v for k, v in changes.items() if v is not None})
    with open_parts(folder, miss_policy="load", num_slots=4, step_tokens=16) as parts:
        tokens, _ = generate(parts.build_engine(), PROMPTS, max_tokens=12)
    with open_parts(folder, miss_policy="load") as parts:
        _, logits = generate(parts.build_engine(), PROMPTS, max_tokens=1)
    model = reference(folder)
    with torch.inference_mode():
        for row, prompt in enumerate(PROMPTS):
            ids = torch.tensor([prompt])
            assert_logits_close(logits[0][row], model(ids).logits[0, -1])
            answer = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
            )
            assert tokens[row] == answer[0, len(prompt) :].tolist()


def test_a_key_that_the_model_does_not_have_is_passed_over(tmp_path: Path) -> None:
    folder = edit_weights(checkpoints.save("olmoe", tmp_path), lambda tensors: tensors.update(extra=torch.zeros(3)))
    with open_parts(folder, miss_policy="load") as parts:
        assert generate(parts.build_engine(), PROMPTS, max_tokens=1)[0]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(5)}), "model.norm.weight has shape"),
    ],
    ids=["missing", "of another shape"],
)
def test_a_base_key_that_does_not_fit_is_named(edit: Any, complaint: str, tmp_path: Path) -> None:
    folder = edit_weights(checkpoints.save("olmoe", tmp_path), edit)
    with pytest.raises(CheckpointError, match=complaint), open_parts(folder, miss_policy="load"):
        pass


@pytest.mark.parametrize(
    ("content", "expected"),
    [({"eos_token_id": [2, 7]}, {2, 7}), ({"eos_token_id": 9}, {9}), ({}, {2}), (None, {2})],
    ids=["a list", "one", "not said", "no file"],
)
def test_the_generation_config_says_which_tokens_end_an_answer(
    content: dict[str, object] | None, expected: set[int], tmp_path: Path
) -> None:
    folder = checkpoints.save("olmoe", tmp_path)
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(json.dumps(content))
    with ExpertStore.open(folder) as store:
        assert read_eos_token_ids(store) == expected


@pytest.mark.parametrize("text", ["{", '{"eos_token_id": "two"}'], ids=["torn", "of another type"])
def test_a_generation_config_that_cannot_be_understood_is_named(text: str, tmp_path: Path) -> None:
    folder = checkpoints.save("olmoe", tmp_path)
    (folder / "generation_config.json").write_text(text)
    with ExpertStore.open(folder) as store, pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read_eos_token_ids(store)


def test_a_folder_without_a_tokenizer_is_refused_by_name(checkpoint: Checkpoint) -> None:
    folder = checkpoint("mixtral")
    with pytest.raises(CheckpointError, match="tokenizer"):
        PromptEncoder.open(folder, vocab_size=300, max_context=64)
