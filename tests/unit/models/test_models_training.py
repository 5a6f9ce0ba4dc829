"""The corpus's batches, the flat forward pass and the training loop of the model that ships."""

from __future__ import annotations

import copy
import dataclasses
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2MoeConfig, Qwen2MoeForCausalLM

from architecture import build_model, wrap_tokenizer
from corpus import TASKS, Example, Row, encode, mixed_batches, read_rows
from flat import FlatBatch, flatten
from train import Counters, Recipe, balance_loss, learning_rate, save_checkpoint, train

CPU = torch.device("cpu")


def make_examples(*lengths: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [Example(ids=rng.integers(4, 320, n).astype(np.int32), num_prompt=1 + n // 2, task="qa") for n in lengths]


@pytest.fixture
def examples() -> dict[str, list[Example]]:
    """Rows of very different number and length from task to task."""
    return {task: make_examples(*range(5 + 9 * place, 20 + 9 * place), seed=place) for place, task in enumerate(TASKS)}


# Batches


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    lines = [{"subtask": "poem", "prompt": "über\u2028alles", "response": str(i), "id": str(i)} for i in range(3)]
    packed = zstandard.compress("\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode())
    (tmp_path / "valid" / "chat.jsonl.zst").write_bytes(packed)
    expected = [Row(task="chat", subtask="poem", prompt="über\u2028alles", response=str(i)) for i in range(3)]
    assert list(read_rows(tmp_path, "valid", "chat")) == expected


def test_tasks_get_equal_shares_of_tokens(examples: dict[str, list[Example]]) -> None:
    owner = {id(example): task for task, part in examples.items() for example in part}
    given_tokens = dict.fromkeys(TASKS, 0)
    for batch in islice(mixed_batches(examples, tokens_per_batch=512, seed=3), 30):
        for example in batch:
            given_tokens[owner[id(example)]] += len(example.ids)
    longest = max(len(example.ids) for part in examples.values() for example in part)
    assert max(given_tokens.values()) - min(given_tokens.values()) <= longest


def test_every_batch_has_its_tokens_and_no_example_more_than_needed(examples: dict[str, list[Example]]) -> None:
    for batch in islice(mixed_batches(examples, tokens_per_batch=512, seed=0), 10):
        size = sum(len(example.ids) for example in batch)
        assert size - len(batch[-1].ids) < 512 <= size


def test_the_seed_alone_decides_the_batches(examples: dict[str, list[Example]]) -> None:
    def draw(seed: int) -> list[list[int]]:
        batches = islice(mixed_batches(examples, tokens_per_batch=256, seed=seed), 5)
        return [[id(example) for example in batch] for batch in batches]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_no_row_comes_twice_before_every_row_of_its_task_came_once(examples: dict[str, list[Example]]) -> None:
    only = {"math": examples["math"]}
    total = sum(len(example.ids) for example in only["math"])
    batch = next(mixed_batches(only, tokens_per_batch=total, seed=0))
    assert sorted(map(id, batch)) == sorted(map(id, only["math"]))


# The flat batch


def test_loss_falls_on_next_tokens_and_less_on_those_of_the_prompt() -> None:
    example = Example(ids=np.array([1, 10, 11, 3, 20, 21, 2], dtype=np.int32), num_prompt=4, task="qa")
    batch = flatten([example, example], prompt_weight=0.3, device=CPU)
    weights = torch.tensor([0.3, 0.3, 0.3, 1.0, 1.0, 1.0, 0.0])  # <sep> predicts the answer's first token
    torch.testing.assert_close(batch.loss_weights, torch.cat([weights, weights]))
    counted = batch.loss_weights > 0
    assert batch.targets[counted].tolist() == [10, 11, 3, 20, 21, 2] * 2
    assert batch.position_ids[0].tolist() == [*range(7), *range(7)]


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12), group_tokens=st.integers(1, 100))
def test_groups_hold_every_position_once_where_the_inverse_says(lengths: list[int], group_tokens: int) -> None:
    batch = flatten(make_examples(*lengths), prompt_weight=1.0, device=CPU, group_tokens=group_tokens)
    laid_out = torch.cat([group.reshape(-1) for group in batch.groups])
    assert laid_out[batch.inverse].tolist() == list(range(sum(lengths)))


@pytest.mark.parametrize(
    ("attention", "experts"), [("flat", "eager"), ("eager", "flat"), ("flat", "flat")], ids=lambda name: name
)
def test_flat_forward_equals_transformers_own(config: Qwen2MoeConfig, attention: str, experts: str) -> None:
    model = build_model(copy.deepcopy(config), seed=1).eval()
    chosen = sorted(make_examples(9, 31, 17, 4, 31), key=lambda example: len(example.ids))
    expected = torch.cat([eager_logits(model, example) for example in chosen])
    model.config._attn_implementation, model.config._experts_implementation = attention, experts
    if attention == "flat":
        actual = flat_logits(model, flatten(chosen, prompt_weight=1.0, device=CPU, group_tokens=64))
    else:
        actual = torch.cat(
            [flat_logits(model, flatten([example], prompt_weight=1.0, device=CPU)) for example in chosen]
        )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_flat_gradients_equal_transformers_own(config: Qwen2MoeConfig) -> None:
    model = build_model(copy.deepcopy(config), seed=2)
    chosen = sorted(make_examples(9, 21, 6), key=lambda example: len(example.ids))
    torch.cat([eager_logits(model, example) for example in chosen]).square().mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.config._attn_implementation = model.config._experts_implementation = "flat"
    flat_logits(model, flatten(chosen, prompt_weight=1.0, device=CPU)).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def eager_logits(model: Qwen2MoeForCausalLM, example: Example) -> torch.Tensor:
    model.config._attn_implementation = model.config._experts_implementation = "eager"
    logits: torch.Tensor = model(input_ids=torch.from_numpy(example.ids).long()[None], use_cache=False).logits[0]
    return logits


def flat_logits(model: Qwen2MoeForCausalLM, batch: FlatBatch) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, flat_batch=batch
    ).logits[0]
    return logits


# The tokenizer


@given(text=st.text(max_size=60).filter(lambda text: "<" not in text))
def test_any_text_comes_back_from_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("12121212").tokens == ["1", "2"] * 4


def test_chat_template_gives_the_tokens_of_training(tokenizer: Tokenizer) -> None:
    row = Row(task="chat", subtask="any", prompt="When does the tram leave?", response="At 7.")
    example = encode(tokenizer, [row])[0]
    wrapped = wrap_tokenizer(tokenizer)
    question = {"role": "user", "content": row.prompt}
    answer = {"role": "assistant", "content": row.response}
    asked = wrapped.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    answered = wrapped.apply_chat_template([question, answer], return_dict=False)
    assert asked == example.ids[: example.num_prompt].tolist()
    assert answered == example.ids.tolist()


# The training loop


def test_even_routing_has_balance_loss_one_and_collapsed_routing_more() -> None:
    even = torch.eye(8).repeat(5, 1) * 50
    collapsed = torch.zeros(40, 8)
    collapsed[:, 3] = 50
    assert balance_loss(even, 1).item() == pytest.approx(1.0)
    assert balance_loss(collapsed, 1).item() == pytest.approx(8.0)


def test_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    recipe = Recipe(tokens=1, minutes=1, warmup_steps=10, peak_lr=1.0)
    assert learning_rate(recipe, step=0, progress=0.0) == pytest.approx(0.1)
    assert learning_rate(recipe, step=10, progress=0.0) == pytest.approx(1.0)
    assert learning_rate(recipe, step=500, progress=1.0) == pytest.approx(0.01)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(tokens=4000, minutes=10, tokens_per_batch=256, warmup_steps=2)


def test_training_lowers_the_loss_and_goes_on_from_its_state(
    config: Qwen2MoeConfig, recipe: Recipe, rows: dict[str, list[Row]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encoded = {task: encode(tokenizer, part) for task, part in rows.items()}
    everything = flatten([e for part in encoded.values() for e in part], prompt_weight=1.0, device=CPU)
    model = build_model(config, seed=0)
    before = mean_loss(model, everything)
    state = tmp_path / "state.pt"
    halfway = train(encoded, model, dataclasses.replace(recipe, tokens=2000), state_path=state, device=CPU)
    assert 2000 <= halfway.tokens < 2000 + 300
    resumed = build_model(copy.deepcopy(config), seed=99)
    finished = train(encoded, resumed, recipe, state_path=state, device=CPU)
    assert finished.step > halfway.step
    assert finished.tokens >= 4000
    assert mean_loss(resumed, everything) < before
    assert train(encoded, resumed, recipe, state_path=state, device=CPU).step == finished.step


def mean_loss(model: Qwen2MoeForCausalLM, batch: FlatBatch) -> float:
    with torch.inference_mode():
        losses = torch.nn.functional.cross_entropy(flat_logits(model, batch), batch.targets, reduction="none")
    return losses[batch.loss_weights > 0].mean().item()


def test_saved_checkpoint_loads_with_plain_transformers(
    config: Qwen2MoeConfig, recipe: Recipe, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = build_model(config, seed=0)
    out = tmp_path / "out"
    save_checkpoint(model, tmp_path, out, recipe=recipe, counters=Counters(step=7, tokens=1792, seconds=1.5))
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(p, loaded.get_parameter(name)) for name, p in model.named_parameters())
    assert AutoTokenizer.from_pretrained(out).encode("<bos>rain<sep>") == tokenizer.encode("<bos>rain<sep>").ids
    assert json.loads((out / "training.json").read_text())["tokens"] == 1792
