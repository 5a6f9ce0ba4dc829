"""Turns a parsed request into token ids that fit the engine, or refuses it before it gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import transformers

from emoe.core.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from emoe.core.generation import Sampling
from emoe.runtime.messages import ChatPrompt, ParsedRequest, TextPrompt, TokenPrompt
from emoe.store.store import ExpertStore


class PromptEncoder:
    """`max_context` tokens hold prompt and answer together."""

    def __init__(self, tokenizer: Any, *, vocab_size: int, max_context: int) -> None:
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_context = max_context

    @classmethod
    def open(cls, folder: Path, *, vocab_size: int, max_context: int) -> PromptEncoder:
        """CheckpointError for a folder whose tokenizer is missing or cannot be read."""
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise CheckpointError(
                f"{folder}: its tokenizer cannot be opened ({error}); fetch tokenizer.json and tokenizer_config.json"
            ) from error
        tokenizer.encode("")  # drops any truncation that its file asks for, so that encoding never changes it again
        return cls(tokenizer, vocab_size=vocab_size, max_context=max_context)

    def encode(self, request: ParsedRequest) -> list[int]:
        """InvalidRequestError for a prompt that is empty, foreign to the vocabulary, or too long for the context."""
        token_ids = self.token_ids(request.prompt)
        if not token_ids:
            raise InvalidRequestError("the prompt has no tokens")
        # A tokenizer may know tokens that the model was not made for: one of them would end every request's step.
        foreign = next((i for i in token_ids[: self._max_context] if i >= self._vocab_size), None)
        if foreign is not None:
            raise InvalidRequestError(f"token id {foreign} lies outside the vocabulary of {self._vocab_size}")
        self._check_length(len(token_ids), request.sampling)
        return token_ids

    def token_ids(self, prompt: TextPrompt | ChatPrompt | TokenPrompt) -> list[int]:
        """Unchecked: `encode` refuses what does not fit the model."""
        if isinstance(prompt, TokenPrompt):
            return list(prompt.token_ids)
        if isinstance(prompt, ChatPrompt):
            return self._render([{"role": role, "content": content} for role, content in prompt.messages])
        if prompt.raw or self.tokenizer.chat_template is None:
            return list(self.tokenizer.encode(prompt.text))
        return self._render([{"role": "user", "content": prompt.text}])

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise InvalidRequestError("this model has no chat template: send text or token ids")
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"this model's chat template refuses the messages: {error}") from error
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _check_length(self, num_tokens: int, sampling: Sampling) -> None:
        if num_tokens + sampling.max_tokens > self._max_context:
            raise InvalidRequestError(
                f"the prompt has {num_tokens} tokens and sampling.max_tokens asks for {sampling.max_tokens}; "
                f"together they must fit the context of {self._max_context}"
            )


def vocab_size_of(store: ExpertStore) -> int:
    """As config.json says it; UnsupportedModelError when it does not."""
    size = store.config.get("vocab_size")
    if type(size) is not int:
        raise UnsupportedModelError(f"{store.folder}/config.json does not say vocab_size")
    return size
