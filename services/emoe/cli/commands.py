"""The `emoe` command's words and options. Thin: each command imports what it needs and hands over.

Imports stay inside the commands, so that `emoe --help` answers at once and never needs torch or grpc.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from emoe.cli.ablate import ablate_command
from emoe.cli.bench import bench_app
from emoe.cli.classify import classify_command
from emoe.cli.decisions import decisions_command
from emoe.cli.eval import eval_command
from emoe.cli.profile import profile_command
from emoe.cli.replay import replay_command
from emoe.cli.reporting import reported_errors
from emoe.core.memory import AUTO

app = typer.Typer(
    name="emoe",
    help="Serves mixture-of-experts language models whose experts do not all fit in device memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
serve_app = typer.Typer(help="Start one service in this process.", no_args_is_help=True)
app.add_typer(serve_app, name="serve")
app.add_typer(bench_app, name="bench")
app.command("eval")(eval_command)
app.command("ablate")(ablate_command)
app.command("classify")(classify_command)
app.command("decisions")(decisions_command)
app.command("profile")(profile_command)
app.command("replay")(replay_command)

SERVE_HELP = {
    "scheduler": "The front door: queues requests and hands each to the worker that suits its task best.",
    "loader": "Owns the checkpoint's bytes and plans which experts each worker keeps.",
    "predictor": "Learns which experts each task wants, and foretells the demand of a mix of tasks.",
    "worker": "Runs the model with a part of its experts in memory.",
}

ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint folder as published. Default: the small model that ships.")
]
ExpertMemoryOption = Annotated[
    str | None,
    typer.Option(help="Memory for experts: a share of them all (25%) or a size (2GiB).", show_default="100%"),
]
StateDirOption = Annotated[
    Path | None,
    typer.Option(envvar="EMOE_STATE_DIR", help="Logs and what was learnt. Default: emoe in the XDG state folder."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _make_serve(service: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        from emoe.cli.serve import serve

        with reported_errors():
            serve(service, context.args)

    return command


for _service, _help in SERVE_HELP.items():
    serve_app.command(
        _service,
        help=_help,
        add_help_option=False,  # the service's settings class makes the options, and --help with them
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_make_serve(_service))


@app.command()
def up(
    model: ModelOption = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers, each with its own expert memory.")] = 1,
    expert_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for experts: a share of them all (25%), a size (2GiB), or auto: what the base model and the "
            "KV cache leave of this machine's memory, its cgroup's or its GPU's.",
            show_default="100%",
        ),
    ] = None,
    miss_policy: Annotated[
        Literal["reroute", "load"] | None,
        typer.Option(
            help="A token's expert is absent: use resident ones, or wait for the bytes (exact).", show_default="reroute"
        ),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Longest prompt and answer together, in tokens.", show_default="2048")
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(help="Requests that run at once on a worker.", show_default="8")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Which request runs next: fifo, shortest, edf, emoe or ontime.", show_default="ontime"),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(help="On which worker: most-free, least-wait or residency.", show_default="the policy's own"),
    ] = None,
    planner: Annotated[
        str | None,
        typer.Option(help="How slots are split among layers: global, per-layer or adapmoe.", show_default="global"),
    ] = None,
    refresh_interval_prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts between two predictions, or auto: by how much they change.",
            show_default="40",
            metavar="N|auto",
        ),
    ] = None,
    listen: Annotated[str, typer.Option(help="Where the front door listens.")] = "127.0.0.1:50051",
    ready_timeout: Annotated[float, typer.Option(min=1, help="Seconds until all must be ready.")] = 600.0,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the services on this machine and show what they do. Ctrl-C ends them."""
    from emoe.cli.paths import default_state_dir, resolve_model
    from emoe.cli.signals import run_until_signalled
    from emoe.cli.system import SystemOptions
    from emoe.cli.terminal import choose_display
    from emoe.cli.up import up as run_up

    with reported_errors(as_json=as_json):
        if expert_memory == AUTO and workers > 1:
            raise typer.BadParameter(
                f"auto gives one worker all that is left, and {workers} that start side by side would each take what "
                "the others are about to: write a share (25%) or a size",
                param_hint="--expert-memory",
            )
        options = SystemOptions(
            model=resolve_model(model),
            state_dir=state_dir or default_state_dir(),
            workers=workers,
            listen=listen,
            ready_seconds=ready_timeout,
            loader=_given(planner=planner, refresh_interval_prompts=refresh_interval_prompts),
            scheduler=_given(policy=policy, placement=placement),
            worker=_given(
                expert_memory=expert_memory,
                miss_policy=miss_policy,
                max_context=max_context,
                max_concurrency=max_concurrency,
                device=device,
            ),
        )
        asyncio.run(run_until_signalled(run_up(options, choose_display(options.model.name, as_json=as_json))))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    task: Annotated[str, typer.Option(help="Its request class, such as summarization or code.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the best token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the tokens that hold this share, in (0, 1].")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many best tokens; 0 from all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed, prompt and residents: the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="With the model's chat template, or as it is.", show_default="what it has"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--address",
            envvar=["EMOE_TARGET", "EMOE_ADDRESS"],
            help="host:port of a scheduler, here or in a cluster. Default: the emoe up that runs here.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="With --target: by TLS, as a gateway may want it.")] = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for the whole answer.")] = 300.0,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stream an answer, then print its task, TTFT, tokens a second and hit rate."""
    from emoe.cli.generate import find_target
    from emoe.cli.generate import generate as run_generate
    from emoe.cli.generation_client import PromptForm, Question
    from emoe.cli.paths import default_state_dir
    from emoe.core.generation import Sampling

    with reported_errors(as_json=as_json):
        question = Question(
            prompt=sys.stdin.read() if prompt == "-" else prompt,
            task=task,
            form={None: PromptForm.TEXT, True: PromptForm.CHAT, False: PromptForm.RAW}[chat],
            sampling=Sampling(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                stop=tuple(stop or ()),
            ),
        )
        scheduler = find_target(target, state_dir or default_state_dir(), tls=tls)
        asyncio.run(run_generate(scheduler, question, timeout_seconds=timeout, as_json=as_json))


@app.command()
def port_forward(
    resource: Annotated[str, typer.Argument(help="moed/NAME, or NAME.", metavar="moed/NAME")],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace.", show_default="kubectl's")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any free one.")] = 8000,
) -> None:
    """Bring a cluster's MoEDeployment to a port of this machine, by kubectl. Ctrl-C ends it."""
    from emoe.cli.port_forward import port_forward as run_port_forward
    from emoe.cli.signals import run_until_signalled

    with reported_errors():
        asyncio.run(run_until_signalled(run_port_forward(resource, namespace=namespace, port=port)))


@app.command()
def inspect(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint folder. Default: the small model that ships.")
    ] = None,
    expert_memory: Annotated[
        list[str] | None, typer.Option(help="A budget to count slots for; may be given again.")
    ] = None,
    miss_policy: Annotated[
        Literal["reroute", "load"], typer.Option(help="reroute needs some experts of every layer, load very few.")
    ] = "reroute",
    as_json: JsonOption = False,
) -> None:
    """Say what a model would need: expert bytes, base bytes, slots at a budget."""
    from emoe.cli.footprint import print_footprint
    from emoe.cli.paths import resolve_model

    with reported_errors(as_json=as_json):
        budgets = tuple(expert_memory or ())
        print_footprint(resolve_model(model), budgets, as_json=as_json, reroute=miss_policy == "reroute")


@app.command()
def plan(
    file: Annotated[
        str,
        typer.Option("--file", "-f", help="A file with MoEDeployments, as for kubectl apply; - reads it from stdin."),
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The model's files, config and headers at least. Default: what demo:// means."),
    ] = None,
    bandwidth: Annotated[
        str, typer.Option(help="Bytes a second that a worker reads, for the time to load; assumed unless given.")
    ] = "300M",
    as_json: JsonOption = False,
) -> None:
    """Say what a MoEDeployment would need and whether it fits, without a cluster; status 1 unless all is well."""
    from emoe.cli.plan import print_plans

    with reported_errors(as_json=as_json):
        raise SystemExit(print_plans(file, model, bandwidth=bandwidth, as_json=as_json))


@app.command()
def demo(
    model: ModelOption = None,
    expert_memory: ExpertMemoryOption = "25%",
    as_json: JsonOption = False,
) -> None:
    """Answer one prompt of each task with a part of the experts in memory; fails unless all are answered."""
    from emoe.cli.demo_run import run_demo
    from emoe.cli.paths import resolve_model

    with reported_errors(as_json=as_json):
        raise SystemExit(run_demo(resolve_model(model), _given(expert_memory=expert_memory), as_json=as_json))


def _given(**options: object) -> dict[str, str]:
    """Those that the user set: the others keep the service's own default."""
    return {name.replace("_", "-"): str(value) for name, value in options.items() if value is not None}
