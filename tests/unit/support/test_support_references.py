"""The check that no token is wrong notices each kind of wrong answer, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from support.references import MIN_LEAD_NATS, MIN_REFERENCES, Candidate, References, choose_references

CLEAR = MIN_LEAD_NATS
TIED = MIN_LEAD_NATS / 2


@dataclasses.dataclass(frozen=True)
class Told:
    prompt: str
    token_ids: tuple[int, ...]
    is_ok: bool = True


RIGHT = {f"prompt {number}": (7, 10 + number, 9, 3)[: 2 + number % 3] for number in range(MIN_REFERENCES)}
REFERENCES = References(RIGHT)


def candidate(prompt: str, *token_ids: int, lead: float = CLEAR) -> Candidate:
    leads = (MIN_LEAD_NATS + 5,) * (len(token_ids) - 1) + (lead,)
    return Candidate(prompt=prompt, token_ids=token_ids, leads_nats=leads)


def clear_ones(num: int) -> list[Candidate]:
    return [candidate(f"prompt {number}", 7, 10 + number) for number in range(num)]


def test_right_answers_and_their_beginnings_pass() -> None:
    whole = [Told(prompt, token_ids) for prompt, token_ids in RIGHT.items()]
    broken = [
        Told(prompt, ids[:length], is_ok=False) for prompt, ids in RIGHT.items() for length in range(len(ids) + 1)
    ]
    assert REFERENCES.wrong(whole + broken) == []


@pytest.mark.parametrize("is_ok", [True, False], ids=["whole", "broken"])
def test_one_wrong_token_is_noticed_at_every_place_of_every_answer(is_ok: bool) -> None:
    changed = [
        Told(prompt, (*ids[:place], ids[place] + 1, *ids[place + 1 :])[: len(ids) if is_ok else place + 1], is_ok)
        for prompt, ids in RIGHT.items()
        for place in range(len(ids))
    ]
    assert REFERENCES.wrong(changed) == changed
    assert len(changed) == REFERENCES.num_tokens


def test_a_missing_token_of_a_whole_answer_is_noticed() -> None:
    cut = [Told(prompt, ids[:length]) for prompt, ids in RIGHT.items() for length in range(len(ids))]
    assert REFERENCES.wrong(cut) == cut


@pytest.mark.parametrize("is_ok", [True, False], ids=["whole", "broken"])
def test_a_token_too_many_or_twice_is_noticed(is_ok: bool) -> None:
    longer = [Told(prompt, (*ids, ids[-1]), is_ok) for prompt, ids in RIGHT.items()]
    twice = [Told(prompt, (ids[0], *ids), is_ok) for prompt, ids in RIGHT.items()]
    assert REFERENCES.wrong(longer + twice) == longer + twice


def test_an_answer_to_another_prompt_is_noticed() -> None:
    chosen = choose_references(clear_ones(MIN_REFERENCES))
    exchanged = [
        Told(asked, (7, 10 + int(answered.split()[1]))) for asked, answered in itertools.permutations(chosen.prompts, 2)
    ]
    assert chosen.wrong(exchanged) == exchanged


def test_an_answer_with_one_narrow_lead_is_no_reference() -> None:
    candidates = [*clear_ones(MIN_REFERENCES), candidate("tied", 1, 2, 3, lead=TIED)]
    assert "tied" not in choose_references(candidates).prompts


def test_of_two_prompts_with_one_answer_the_first_is_a_reference() -> None:
    candidates = [*clear_ones(MIN_REFERENCES), candidate("same as 0", 7, 10)]
    assert choose_references(candidates).prompts == tuple(f"prompt {number}" for number in range(MIN_REFERENCES))


def test_too_few_clear_answers_are_refused_with_what_was_found() -> None:
    candidates = [*clear_ones(MIN_REFERENCES - 1), candidate("tied", 1, 2, lead=0.125)]
    with pytest.raises(AssertionError, match=r"5 of 6 prompts .* 6 are needed.*0\.12"):
        choose_references(candidates)


def test_an_answer_without_a_lead_for_each_token_is_no_candidate() -> None:
    with pytest.raises(ValueError, match="2 tokens, 1 leads"):
        Candidate(prompt="half", token_ids=(1, 2), leads_nats=(3.0,))
