"""llama.cpp as a contestant of `emoe bench engine`, through llama-cpp-python's own bindings; mapped, as it comes.

`python -m emoe.bench.peers.llama_child OPTIONS`, by the peers' interpreter. Several prompts are one batch with a
sequence each; greedy.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found, unused-ignore] # of the peers' environment
import numpy as np

from emoe.bench.answering import answer_questions, own_options
from emoe.bench.failures import BenchmarkError

CHUNK_TOKENS = 512


class Llama:
    def __init__(self, gguf: Path, *, threads: int, max_context: int, max_sequences: int) -> None:
        # Only what goes wrong is worth a line.
        self._quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_load_model_from_file(str(gguf).encode(), _model_options())
        if not self._model:
            raise BenchmarkError(f"llama.cpp cannot load {gguf}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = max_context * max_sequences
        options.n_batch = options.n_ubatch = CHUNK_TOKENS
        options.n_seq_max = max_sequences
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_new_context_with_model(self._model, options)
        if not self._context:
            raise BenchmarkError(f"llama.cpp cannot make a context of {options.n_ctx} tokens")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(CHUNK_TOKENS, 0, 1)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, object]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        began = time.perf_counter()
        tokens = [logits.argmax() for logits in self._prefill(prompts)]
        prefilled = time.perf_counter()
        for number in range(new_tokens - 1):
            fed = [(int(token), len(prompts[row]) + number, row, True) for row, token in enumerate(tokens)]
            self._decode(fed)
            tokens = [self._logits(row).argmax() for row in range(len(prompts))]
        ended = time.perf_counter()
        return {"prefill_seconds": prefilled - began, "total_seconds": ended - began}

    def logits(self, prompt: list[int]) -> list[float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        last: list[float] = self._prefill([prompt])[0].tolist()
        return last

    def _prefill(self, prompts: list[list[int]]) -> list[np.ndarray[Any, Any]]:
        """Each prompt's last logits. Short prompts share a batch: an expert's rows are computed together then."""
        fed = [
            (token, at, sequence, at == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        last: list[np.ndarray[Any, Any]] = []
        for start in range(0, len(fed), CHUNK_TOKENS):
            piece = fed[start : start + CHUNK_TOKENS]
            self._decode(piece)
            last += [self._logits(row) for row, (_, _, _, wanted) in enumerate(piece) if wanted]
        return last

    def _decode(self, fed: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether its logits are wanted) of each."""
        batch = self._batch
        batch.n_tokens = len(fed)
        for place, (token, position, sequence, wanted) in enumerate(fed):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = wanted
        if code := llama_cpp.llama_decode(self._context, batch):
            raise BenchmarkError(f"llama.cpp: llama_decode gave {code}")

    def _logits(self, row: int) -> np.ndarray[Any, Any]:
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).copy()


def _model_options() -> Any:
    options = llama_cpp.llama_model_default_params()
    options.use_mmap = True
    return options


def main() -> None:
    options = own_options()
    llama = Llama(
        Path(options["gguf"]),
        threads=options["threads"],
        max_context=options["max_context"],
        max_sequences=options["max_concurrency"],
    )

    def answer(step: str, **asked: Any) -> dict[str, object]:
        if step == "generate":
            return llama.generate(asked["prompts"], asked["new_tokens"])
        return {"logits": llama.logits(asked["prompt"])} if step == "logits" else {}

    answer_questions(answer)


if __name__ == "__main__":
    main()
