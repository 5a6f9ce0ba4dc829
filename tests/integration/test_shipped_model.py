"""The model in models/emoe-tiny is what the documents say: whole, small, mostly experts, and profiled."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from support.engines import add, open_parts

from emoe.cli.paths import resolve_model
from emoe.core.tasks import BUILTIN_TASKS
from emoe.store.footprint import measure
from emoe.store.profile import read_learned, read_profile
from emoe.store.store import ExpertStore

MODEL = Path(__file__).parents[2] / "models" / "emoe-tiny"
MAX_BYTES = 32_000_000


def test_it_is_the_commands_default() -> None:
    assert resolve_model(None).samefile(MODEL)


def test_it_is_at_most_32_megabytes_and_three_quarters_of_it_are_routed_experts() -> None:
    with ExpertStore.open(MODEL) as store:
        footprint = measure(store)
    assert footprint.total_bytes <= MAX_BYTES
    assert footprint.expert_share_ratio >= 0.75
    assert 16 <= footprint.num_experts <= 64


def test_its_profile_is_of_these_weights_and_of_all_seven_tasks() -> None:
    with ExpertStore.open(MODEL) as store:
        profile = read_profile(MODEL, digest=store.digest, fingerprint=store.fingerprint())
        assert profile is not None, "make it with `emoe profile`"
        assert (profile.shape, profile.moe_layers) == (store.grid.shape, store.grid.moe_layers)
    assert sorted(profile.tasks) == sorted(BUILTIN_TASKS)
    assert all(task.sensitivity is not None for task in profile.tasks.values())
    assert bool(read_learned(MODEL, profile)) == (profile.learned_sha256 is not None)


def test_plain_transformers_and_our_engine_answer_alike() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Classify the sentiment: what a wonderful day"}], tokenize=False
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<sep>")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL).eval()
    with torch.inference_mode():
        answer = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    with open_parts(MODEL, miss_policy="load", num_slots=40) as parts:
        engine = parts.build_engine()
        sequence = add(engine, "question", ids, max_tokens=8)
        while engine.has_work:
            engine.step()
    assert sequence.token_ids[len(ids) :] == answer
