"""AirLLM as a contestant of `emoe bench engine`: a layer at a time from disk. One prompt, a few tokens.

`python -m emoe.bench.peers.airllm_child OPTIONS`, by the peers' interpreter. AirLLM reads checkpoints as transformers 4
described them and wants a tokenizer: it gets a view of the checkpoint with both.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import airllm  # type: ignore[import-not-found, unused-ignore] # of the peers' environment
import torch
import transformers
from tokenizers import Tokenizer, models

from emoe.bench.answering import answer_questions, own_options


def main() -> None:
    options = own_options()
    torch.set_num_threads(options["threads"])
    work = Path(options["work"])
    view = make_view(Path(options["model"]), work / "view")
    with contextlib.redirect_stdout(sys.stderr):  # it prints while it loads
        model = airllm.AutoModel.from_pretrained(str(view), device="cpu", layer_shards_saving_path=str(work / "shards"))

    def answer(step: str, **asked: Any) -> dict[str, object]:
        if step == "generate":
            return generate(model, asked["prompts"], asked["new_tokens"])
        if step == "logits":
            with torch.inference_mode():
                last = model(torch.tensor([asked["prompt"]])).logits[0, -1]
            return {"logits": last.float().tolist()}
        return {}

    answer_questions(answer)


def generate(model: Any, prompts: list[list[int]], new_tokens: int) -> dict[str, object]:
    clock = FirstToken()
    ids = torch.tensor(prompts)
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
    ended = time.perf_counter()
    return {"prefill_seconds": clock.first_seconds - began, "total_seconds": ended - began}


class FirstToken(transformers.StoppingCriteria):
    first_seconds = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002 - transformers' signature
        self.first_seconds = self.first_seconds or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def make_view(model: Path, view: Path) -> Path:
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for path in model.iterdir():
        if path.name.endswith(".safetensors") or path.name == "model.safetensors.index.json":
            (view / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_text())
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = rope.get("rope_theta", 1e6)
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    (view / "config.json").write_text(json.dumps(config))
    vocabulary = {f"t{number}": number for number in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="t0", bos_token="t1", eos_token="t2"
    ).save_pretrained(view)
    return view


if __name__ == "__main__":
    main()
