"""Sequence predictors: what they may look at, what they learn, and that what is served is what was trained."""

import dataclasses

import numpy as np
import pytest
import torch

from emoe.core.sequence_predictor import SequencePredictor
from emoe.core.tasks import UNKNOWN
from emoe.train.sequence import SETTINGS, export_weights, fit_network, train_sequence
from emoe.train.sequence_data import PromptCounts, build_elements, draw_batch, pools_of, task_priors
from emoe.train.sequence_methods import NetworkPredictor
from emoe.train.sequence_networks import NETWORKS, Sizes, XlnetA, XlnetL, XlnetSize

MOE_LAYERS = (0, 2)
SHAPE = (3, 8)
SMALL = XlnetSize(d_model=16, num_layers=2, num_heads=2)


def draw_prompts(num_each=40, tasks=("chat", "code", "math")):
    """Each task has two experts of its own; how it is split between them differs from prompt to prompt."""
    random = np.random.default_rng(5)
    prompts = []
    for place, task in enumerate(tasks):
        for _ in range(num_each):
            share = random.uniform(0.2, 0.8)
            frequencies = np.full(8, 0.02)
            frequencies[[place, place + 3]] = share, 1 - share
            counts = np.zeros(SHAPE, dtype=np.int64)
            counts[list(MOE_LAYERS)] = random.multinomial(200, frequencies / frequencies.sum(), size=2)
            prompts.append(PromptCounts(task=task, counts=counts))
    return prompts


def build_network(name):
    torch.manual_seed(3)
    sizes = Sizes(num_layers=2, num_experts=8, num_entries=4)
    priors = torch.rand(4, 2, 8).softmax(dim=-1)
    kind = NETWORKS[name]
    options = {"size": SMALL} if issubclass(kind, XlnetA | XlnetL) else {}
    return kind(sizes, priors, torch.rand(2, 8), **options).eval()


def awaken(network):
    """Output weights as training might leave them, in place of the zeros that it begins from."""
    torch.nn.init.normal_(network.project_out.weight)
    return network


def short(name):
    return dataclasses.replace(
        SETTINGS[name], learning_rate=1e-2, max_steps=100, judge_steps=20, batch_sequences=4, judged_sequences=8
    )


@pytest.fixture
def prompts():
    return draw_prompts()


@pytest.fixture(params=NETWORKS)
def network(request):
    return build_network(request.param)


@torch.no_grad()
def test_untrained_networks_foretell_the_task_frequency(network):
    logits = network.foretell(torch.rand(2, 5, 2, 8), torch.tensor([[0] * 5, [3] * 5]))
    expected = network.task_logits[torch.tensor([0, 3])].softmax(dim=-1)
    torch.testing.assert_close(logits.softmax(dim=-1), expected[:, None].expand_as(logits))


@torch.no_grad()
def test_what_is_foretold_hangs_on_earlier_prompts_alone(network):
    awaken(network)
    features, entries = torch.rand(1, 6, 2, 8), torch.tensor([[0, 1, 2, 0, 1, 2]])
    changed = features.clone()
    changed[0, 3:] = torch.rand(3, 2, 8)
    before, after = network.foretell(features, entries), network.foretell(changed, entries)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4] - before[:, 4]).abs().max() > 1e-4


@torch.no_grad()
def test_the_last_prompt_is_foretold_as_in_the_whole_sequence(network):
    awaken(network)
    features, entries = torch.rand(1, 6, 2, 8), torch.full((1, 6), 2)
    torch.testing.assert_close(
        network.foretell_last(features, entries), network.foretell(features, entries)[:, -1], rtol=1e-4, atol=1e-5
    )


def test_the_served_gru_is_the_trained_one_to_1e_5(prompts):
    trained = fit_network("gru-a", prompts, moe_layers=MOE_LAYERS, top_k=1, settings=short("gru-a"), say=print)
    served = SequencePredictor(export_weights(trained, prompts, MOE_LAYERS), SHAPE)
    torch_one = NetworkPredictor(trained.network, trained.tasks, MOE_LAYERS, SHAPE[0])
    for prompt in prompts[::7]:
        for task in (prompt.task, UNKNOWN):
            served.observe(task, prompt.counts)
            torch_one.observe(task, prompt.counts)
            np.testing.assert_allclose(served.predict({task: 1.0}), torch_one.predict({task: 1.0}), atol=1e-5)


def test_the_same_prompts_and_seed_give_the_same_arrays(prompts):
    one, other = (
        train_sequence(prompts[::4], moe_layers=MOE_LAYERS, top_k=1, seed=7, settings=short("gru-a"), say=print)
        for _ in range(2)
    )
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_training_leaves_the_callers_random_numbers_alone(prompts):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit_network("gru-a", prompts[::4], moe_layers=MOE_LAYERS, top_k=1, settings=short("gru-a"), say=print)
    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["gru-a", "gru-l"])
def test_a_trained_gru_is_ahead_of_frequency_on_prompts_held_out(prompts, name):
    trained = fit_network(name, prompts, moe_layers=MOE_LAYERS, top_k=1, settings=short(name), say=print)
    assert trained.loss < trained.frequency_loss - 0.01


def test_an_unlabelled_run_is_recognised_by_its_prompts(prompts):
    arrays = train_sequence(prompts, moe_layers=MOE_LAYERS, top_k=1, settings=short("gru-a"), say=print)
    predictor = SequencePredictor.from_arrays(arrays, SHAPE)
    before = predictor.predict({UNKNOWN: 1.0})[0]
    for prompt in draw_prompts(num_each=6, tasks=("chat",)):
        predictor.observe(UNKNOWN, prompt.counts)
    after = predictor.predict({UNKNOWN: 1.0})[0]
    assert before[[0, 3]].sum() < 0.5 < after[[0, 3]].sum()


def test_no_sequence_has_a_prompt_twice(prompts):
    elements = build_elements(prompts, MOE_LAYERS)
    pools = pools_of(elements, np.arange(0, len(prompts), 5))
    batch = draw_batch(elements, pools, num=60, length=32, random=np.random.default_rng(0))
    for drawn, counts in zip(batch.prompts, batch.count, strict=True):
        assert len(set(drawn[counts].tolist())) == counts.sum() > 0
    assert set(batch.entries.reshape(-1).tolist()) == {0, 1, 2, elements.unknown_entry}


def test_labels_that_are_told_are_the_prompts_own(prompts):
    elements = build_elements(prompts, MOE_LAYERS)
    pools = pools_of(elements, np.arange(len(prompts)))
    batch = draw_batch(elements, pools, num=40, length=16, random=np.random.default_rng(0))
    told = batch.entries != elements.unknown_entry
    np.testing.assert_array_equal(batch.entries[told], elements.entries[batch.prompts][told])


def test_priors_of_a_task_seen_little_lean_on_the_mean():
    few, many = draw_prompts(num_each=1, tasks=("chat",)), draw_prompts(num_each=200, tasks=("code",))
    priors = task_priors([*few, *many], ("chat", "code"), MOE_LAYERS, top_k=1)
    np.testing.assert_allclose(priors.sum(axis=-1), 1, rtol=1e-5)
    distances = np.abs(priors[:2] - priors[2]).sum(axis=(1, 2))
    alone = task_priors(draw_prompts(num_each=200, tasks=("chat", "code")), ("chat", "code"), MOE_LAYERS, top_k=1)
    assert distances[0] < np.abs(alone[0] - alone[2]).sum()


def test_one_prompt_is_too_few(prompts):
    with pytest.raises(ValueError, match="too few"):
        train_sequence(prompts[:1], moe_layers=MOE_LAYERS, top_k=1, say=print)
    with pytest.raises(ValueError, match="no prompt"):
        train_sequence([], moe_layers=MOE_LAYERS, top_k=1, say=print)
