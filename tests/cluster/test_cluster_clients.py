"""A MoEDeployment as its users call it: by a client of the Open Inference Protocol, and by emoe's own commands.

One resource in exact mode serves all tests; what our own Generate answers is what every other way has to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from typing import Any

import kube as k
import pytest
from asking import PROMPTS, ask_once
from bed_access import reach
from support.triton import run_triton

pytestmark = pytest.mark.cluster

NAME = "clients"
MAX_TOKENS = 24
COMMAND_SECONDS = 60.0


@pytest.fixture(scope="module")
def address(kube: k.Kube) -> Iterator[str]:
    kube.apply(k.demo(NAME, experts={"memory": "25%", "missPolicy": "load"}))
    kube.wait_ready(NAME)
    with reach(kube, NAME) as found:
        yield found


async def texts_of(address: str, *prompts: str) -> dict[str, str]:
    """By prompt: what our own Generate answers."""
    answers = [await ask_once(address, prompt, max_tokens=MAX_TOKENS) for prompt in prompts]
    assert all(answer.is_ok and answer.text for answer in answers), answers
    return {answer.prompt: answer.text for answer in answers}


def tensors_of(prompt: str) -> list[list[Any]]:
    """As `asking.ask` puts it: greedy, without the chat template."""
    return [
        ["text_input", "BYTES", [prompt]],
        ["max_tokens", "INT32", [MAX_TOKENS]],
        ["temperature", "FP32", [0.0]],
        ["raw", "BOOL", [True]],
    ]


async def test_tritonclient_finds_a_live_ready_server_and_the_model_by_the_resources_name(address: str) -> None:
    [seen] = await run_triton(address, NAME, "look")
    assert (seen["live"], seen["ready"], seen["model_ready"]) == (True, True, True)
    assert (seen["server"]["name"], seen["model"]["name"]) == ("emoe", NAME)
    assert {"name": "text_input", "datatype": "BYTES", "shape": ["1"]} in seen["model"]["inputs"]
    assert seen["model"]["outputs"] == [{"name": "text_output", "datatype": "BYTES", "shape": ["1"]}]


async def test_tritonclient_infers_the_text_that_generate_gives(address: str) -> None:
    for prompt, text in (await texts_of(address, *PROMPTS[:3])).items():
        [answer] = await run_triton(address, NAME, "infer", tensors=tensors_of(prompt))
        assert (answer["model"], answer["texts"]) == (NAME, [text])


async def test_tritonclient_streams_many_answers_piece_by_piece_as_generate_gives_them(address: str) -> None:
    requests = [{"tensors": tensors_of(prompt), "request_id": prompt} for prompt in PROMPTS]
    *parts, end = await run_triton(address, NAME, "stream", requests=requests)
    assert end == {"left": False}, parts
    spoken = {prompt: [part["texts"][0] for part in parts if part["id"] == prompt] for prompt in PROMPTS}
    assert {prompt: "".join(pieces) for prompt, pieces in spoken.items()} == await texts_of(address, *PROMPTS)
    assert min(len(pieces) for pieces in spoken.values()) > 1, "an answer came in one piece"


async def test_tritonclient_hears_which_model_there_is_when_it_asks_for_another(address: str) -> None:
    [refused] = await run_triton(address, "another", "infer", tensors=tensors_of(PROMPTS[0]))
    assert refused["status"] == "StatusCode.NOT_FOUND"
    assert NAME in refused["error"]


@contextlib.asynccontextmanager
async def emoe(*arguments: str) -> AsyncIterator[Process]:
    """The command as in a shell."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "emoe.cli.main", *arguments, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def emoe_prints(*arguments: str) -> tuple[int | None, str, str]:
    async with emoe(*arguments) as process:
        stdout, stderr = await process.communicate()
        return process.returncode, stdout.decode(), stderr.decode()


async def test_port_forward_brings_it_here_and_the_command_that_it_tells_is_answered(
    kube: k.Kube, address: str
) -> None:
    text = (await texts_of(address, PROMPTS[1]))[PROMPTS[1]]
    async with emoe("port-forward", f"moed/{NAME}", "-n", kube.namespace, "--port", "0") as forward:
        assert forward.stdout is not None
        told = [(await forward.stdout.readline()).decode() for _ in range(2)]
        target = re.search(rf"^moed/{NAME} answers at (\S+):\n  emoe generate --target \1 ", "".join(told))
        assert target is not None, (told, await rest_of(forward))
        options = ("--raw", f"--max-tokens={MAX_TOKENS}")
        asked = [PROMPTS[1], "--target", target[1], *options]
        status, printed, summary = await emoe_prints("generate", *asked)
        as_json = await emoe_prints("generate", *asked, "--json")
        forward.send_signal(signal.SIGINT)
        trouble = await rest_of(forward)
    assert (status, printed.rstrip("\n")) == (0, text.rstrip("\n")), summary
    assert "tokens/s" in summary
    assert json.loads(as_json[1])["worker_id"] == k.name_of(kube.pods(NAME, "worker")[0])
    assert forward.returncode == 0, trouble


async def rest_of(process: Process) -> str:
    """What it says on standard error until it ends."""
    _, stderr = await process.communicate()
    return stderr.decode()


async def test_port_forward_says_where_to_look_when_there_is_no_such_resource(kube: k.Kube) -> None:
    status, _, told = await emoe_prints("port-forward", "moed/nobody", "-n", kube.namespace, "--port", "0")
    assert status == 1
    assert told.startswith("emoe: there is no MoEDeployment nobody here; see kubectl get moed --all-namespaces")
