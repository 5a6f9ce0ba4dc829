"""The networks that foretell a prompt's routing from those before it: XLNet and GRU, each as eMoE-A and as eMoE-L.

eMoE-A foretells all layers of prompt r from all layers of the prompts before it; eMoE-L layer i of prompt r from layer
i - 1 of prompt r, and the first layer from the first layer of prompt r - 1 (eMoE, section 4.1). All of them add to the
logits of the task's frequency: untrained, they are that frequency.
B sequences, R prompts of a sequence, M layers with experts, E experts a layer, D hidden.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from transformers import XLNetConfig, XLNetModel

MAX_PROMPTS_BEFORE = 32
"""How far back XLNet looks, and the length of the sequences that all are trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    num_layers: int
    num_experts: int
    num_entries: int
    """Tasks, and one for the unknown."""

    @property
    def width(self) -> int:
        return self.num_layers * self.num_experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class XlnetSize:
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4


class NextPrompt(nn.Module):
    """`priors` [entries, M, E] are frequencies; `centre` [M, E] the mean feature."""

    def __init__(self, sizes: Sizes, priors: Tensor, centre: Tensor) -> None:
        super().__init__()
        self.sizes = sizes
        self.set_priors(priors)
        self.centre = nn.Buffer(centre)

    def set_priors(self, priors: Tensor) -> None:
        self.task_logits = nn.Buffer(priors.clamp_min(1e-6).log())

    def forward(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        """-> logits [B, R, M, E] of each prompt, from the prompts before it; eMoE-L also from its own layers before."""
        raise NotImplementedError

    def foretell(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        """-> logits [B, R, M, E] of each prompt, from the prompts before it alone."""
        logits: Tensor = self(features_BRME, entries_BR)
        return logits

    def foretell_last(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        """-> logits [B, M, E] of the last prompt, whose own features are not looked at."""
        return self.foretell(features_BRME, entries_BR)[:, -1]

    @property
    def num_parameters(self) -> int:
        """Learned ones; the frequencies that they add to are not."""
        return sum(parameter.numel() for parameter in self.parameters())


class GruA(NextPrompt):
    def __init__(self, sizes: Sizes, priors: Tensor, centre: Tensor, hidden: int = 20) -> None:
        super().__init__(sizes, priors, centre)
        self.project_in = nn.Linear(sizes.width, hidden, bias=False)
        self.task_in = nn.Embedding(sizes.num_entries, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.project_out = _silent(nn.Linear(hidden, sizes.width, bias=False))

    def forward(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        given = self.project_in((features_BRME - self.centre).flatten(2)) + self.task_in(entries_BR)
        states, _ = self.gru(given)
        before = nn.functional.pad(states[:, :-1], (0, 0, 1, 0))
        logits: Tensor = self.task_logits[entries_BR] + self.project_out(before).view_as(features_BRME)
        return logits


class XlnetA(NextPrompt):
    """A sequence of prompts, each an input embedding; attention looks back only."""

    def __init__(self, sizes: Sizes, priors: Tensor, centre: Tensor, size: XlnetSize | None = None) -> None:
        super().__init__(sizes, priors, centre)
        self.xlnet = _xlnet(size or XlnetSize())
        d_model = self.xlnet.config.d_model
        self.project_in = nn.Linear(sizes.width, d_model)
        self.start = nn.Parameter(torch.zeros(d_model))
        self.task_in = nn.Embedding(sizes.num_entries, d_model)
        self.project_out = _silent(nn.Linear(d_model, sizes.width, bias=False))

    def forward(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        given = self.project_in((features_BRME - self.centre).flatten(2))
        before = torch.cat([self.start.expand(len(given), 1, -1), given[:, :-1]], dim=1)
        hidden = _run(self.xlnet, before + self.task_in(entries_BR))
        logits: Tensor = self.task_logits[entries_BR] + self.project_out(hidden).view_as(features_BRME)
        return logits


class Layerwise(NextPrompt):
    """eMoE-L: a prompt is a sequence of layers.

    In training, half of the prompts are fed with what was foretold of their own layers, as planning has nothing else: a
    network fed with the truth alone learns to lean on it.
    """

    own_share = 0.5
    own_passes = 2
    """Each feeds on the one before; the first on the truth."""

    def __init__(self, sizes: Sizes, priors: Tensor, centre: Tensor, hidden: int) -> None:
        super().__init__(sizes, priors, centre)
        self.project_in = nn.Linear(sizes.num_experts, hidden)
        self.layer_in = nn.Embedding(sizes.num_layers, hidden)
        self.task_in = nn.Embedding(sizes.num_entries, hidden)
        self.project_out = _silent(nn.Linear(hidden, sizes.num_experts, bias=False))

    def forward(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        seeds, inner = self._seeds(features_BRME), features_BRME[:, :, :-1]
        if self.training:
            own = inner
            with torch.no_grad():
                for _ in range(self.own_passes):
                    own = _features(self._logits(seeds, own, entries_BR))[:, :, :-1]
            takes_own = torch.rand(inner.shape[:2]) < self.own_share
            inner = torch.where(takes_own[:, :, None, None], own, inner)
        return self._logits(seeds, inner, entries_BR)

    def foretell(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        """Layer by layer, each fed with what was foretold of the one before."""
        seeds, inner = self._seeds(features_BRME), features_BRME[:, :, :0]
        for _ in range(self.sizes.num_layers):
            logits = self._logits(seeds, inner, entries_BR)
            inner = _features(logits)
        return logits

    def foretell_last(self, features_BRME: Tensor, entries_BR: Tensor) -> Tensor:
        return self.foretell(features_BRME[:, -2:], entries_BR[:, -2:])[:, -1]

    def _seeds(self, features_BRME: Tensor) -> Tensor:
        """[B, R, 1, E]: the first layer of the prompt before."""
        return nn.functional.pad(features_BRME[:, :-1, :1], (0, 0, 0, 0, 1, 0))

    def _logits(self, seeds_BR1E: Tensor, inner_BRiE: Tensor, entries_BR: Tensor) -> Tensor:
        """Logits of the first i + 1 layers, from the first i."""
        fed = torch.cat([seeds_BR1E, inner_BRiE], dim=2)
        num_layers = fed.shape[2]
        centred = fed - torch.cat([self.centre[:1], self.centre[: num_layers - 1]])
        given = self.project_in(centred) + self.layer_in.weight[:num_layers]
        given = given + self.task_in(entries_BR)[:, :, None]
        hidden = self._mix(given.flatten(0, 1)).view_as(given)
        logits: Tensor = self.task_logits[entries_BR][:, :, :num_layers] + self.project_out(hidden)
        return logits

    def _mix(self, given_NiD: Tensor) -> Tensor:
        raise NotImplementedError


class GruL(Layerwise):
    def __init__(self, sizes: Sizes, priors: Tensor, centre: Tensor, hidden: int = 48) -> None:
        super().__init__(sizes, priors, centre, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)

    def _mix(self, given_NiD: Tensor) -> Tensor:
        states: Tensor = self.gru(given_NiD)[0]
        return states


class XlnetL(Layerwise):
    def __init__(self, sizes: Sizes, priors: Tensor, centre: Tensor, size: XlnetSize | None = None) -> None:
        size = size or XlnetSize()
        super().__init__(sizes, priors, centre, size.d_model)
        self.xlnet = _xlnet(size)

    def _mix(self, given_NiD: Tensor) -> Tensor:
        return _run(self.xlnet, given_NiD)


NETWORKS: dict[str, type[NextPrompt]] = {"xlnet-a": XlnetA, "xlnet-l": XlnetL, "gru-a": GruA, "gru-l": GruL}


def _xlnet(size: XlnetSize) -> XLNetModel:
    """Attention looks back only, so that nothing sees what comes. Embeddings are given: a vocabulary of one will do."""
    config = XLNetConfig(
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        d_model=size.d_model,
        n_layer=size.num_layers,
        n_head=size.num_heads,
        d_inner=4 * size.d_model,
        attn_type="uni",
        mem_len=None,
        use_mems_eval=False,
        use_mems_train=False,
    )
    return XLNetModel(config)


def _run(xlnet: XLNetModel, embedded: Tensor) -> Tensor:
    hidden: Tensor = xlnet(inputs_embeds=embedded).last_hidden_state
    return hidden


def _features(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1).sqrt()


def _silent(layer: nn.Linear) -> nn.Linear:
    """Zero at first: what it feeds begins as the frequency alone."""
    nn.init.zeros_(layer.weight)
    return layer
