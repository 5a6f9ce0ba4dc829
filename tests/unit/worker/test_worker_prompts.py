"""Prompts as token ids: one beginning-of-text token, no id that the model lacks, nothing that cannot fit."""

from __future__ import annotations

from typing import Any

import pytest
from support.checkpoints import SPECIAL_TOKENS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from emoe.core.errors import InvalidRequestError
from emoe.core.generation import Sampling
from emoe.core.slo import Slo
from emoe.runtime.messages import ChatPrompt, ParsedRequest, TextPrompt, TokenPrompt
from emoe.worker.prompts import PromptEncoder

BOS, SEP = 1, 3


def tokenizer(chat_template: str | None = None) -> Any:
    """Adds <bos> to whatever it encodes, as many do."""
    vocab = {t: i for i, t in enumerate([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([*SPECIAL_TOKENS, "<beyond>"])
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", chat_template=chat_template)


def request(prompt: TextPrompt | ChatPrompt | TokenPrompt, *, max_tokens: int = 4) -> ParsedRequest:
    return ParsedRequest(
        prompt=prompt, task="chat", slo=Slo(), sampling=Sampling(max_tokens=max_tokens), request_id="r"
    )


def encode(prompt: TextPrompt | ChatPrompt | TokenPrompt, template: str | None = None, **options: int) -> list[int]:
    return PromptEncoder(tokenizer(template), vocab_size=260, max_context=32).encode(request(prompt, **options))


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "no template"])
def test_plain_text_gets_the_special_tokens_of_its_tokenizer(raw: bool) -> None:
    assert encode(TextPrompt(text="ab", raw=raw)).count(BOS) == 1


@pytest.mark.parametrize(
    "prompt", [TextPrompt(text="ab", raw=False), ChatPrompt(messages=(("user", "ab"),))], ids=["text", "chat"]
)
def test_a_rendered_chat_has_the_templates_special_tokens_and_no_others(prompt: TextPrompt | ChatPrompt) -> None:
    ids = encode(prompt, "<bos>{% for m in messages %}{{ m['content'] }}<sep>{% endfor %}")
    assert ids.count(BOS) == 1
    assert ids[-1] == SEP


def test_a_token_that_the_tokenizer_knows_and_the_model_does_not_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
        encode(TextPrompt(text="a<beyond>", raw=True))
    with pytest.raises(InvalidRequestError, match="token id 4294967295"):
        encode(TokenPrompt(token_ids=(5, 2**32 - 1)))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('roles must alternate') }}", "{{ messages + 1 }}"], ids=["refuses", "breaks"]
)
def test_what_a_chat_template_refuses_is_the_callers_error(template: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template refuses"):
        encode(ChatPrompt(messages=(("user", "ab"),)), template)


@pytest.mark.parametrize("max_tokens", [28, 29], ids=["fits exactly", "one too many"])
def test_prompt_and_answer_may_fill_the_context_and_no_more(max_tokens: int) -> None:
    prompt = TokenPrompt(token_ids=(5, 6, 7, 8))
    if max_tokens == 28:
        assert len(encode(prompt, max_tokens=max_tokens)) == 4
    else:
        with pytest.raises(InvalidRequestError, match="must fit the context of 32"):
            encode(prompt, max_tokens=max_tokens)
