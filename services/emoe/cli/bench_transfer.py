"""`emoe bench transfer`: its options, and its report as a table or as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emoe.cli.reporting import reported_errors

if TYPE_CHECKING:
    from emoe.bench.device_copies import DeviceCopyReport
    from emoe.bench.transfer_rows import TransferReport

DEVICE_HELP = "Measure instead how fast whole experts come from the host into the slots of this GPU."


def transfer_command(
    sizes: Annotated[
        str, typer.Option(help="KiB of an expert, separated by commas; rounded to what matrices can have.")
    ] = "48,256,1024,4096,16384",
    connections: Annotated[int, typer.Option(min=1, max=64, help="Readers at once, as a worker's --io-threads.")] = 4,
    megabytes: Annotated[
        int, typer.Option("--mib", min=1, help="MiB that each way moves in a repeat; at most 1024 experts.")
    ] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Figures are medians of so many.")] = 7,
    device: Annotated[
        str | None, typer.Option(help=DEVICE_HELP, metavar="cuda:N", show_default="none: between two processes")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report there as JSON; - prints it instead of the table.")
    ] = None,
) -> None:
    """How fast expert bytes come from a loader, against a plain TCP copy of the same sizes on this machine.

    The ways take turns: plain TCP as one stream, as several, and asked for expert by expert; the loader's gRPC calls;
    its bulk port; files that it passed over a Unix socket; and the worker's own files. All bytes come from the page
    cache. Needs room for one checkpoint of --mib in the temporary folder.

    Into a GPU's slots instead, against the rate of its pinned copies: `emoe bench transfer --device cuda:0 --mib 1024`
    """
    from emoe.cli.bench_engine import parse_counts
    from emoe.cli.bench_report import say

    sizes_bytes = tuple(size << 10 for size in parse_counts("--sizes", sizes))
    with reported_errors():
        if device is not None:
            from emoe.bench.device_copies import CopySettings, bench_device_copies

            copies = CopySettings(
                expert_bytes=sizes_bytes, threads=connections, moved_bytes=megabytes << 20, repeats=repeats
            )
            _give(bench_device_copies(copies, device, say=say), json_file)
            return
        from emoe.bench.transfer import TransferSettings, bench_transfer

        settings = TransferSettings(
            expert_bytes=sizes_bytes,
            connections=connections,
            moved_bytes=megabytes << 20,
            repeats=repeats,
        )
        _give(asyncio.run(bench_transfer(settings, say=say)), json_file)


def _give(report: TransferReport | DeviceCopyReport, json_file: Path | None) -> None:
    text = json.dumps(dataclasses.asdict(report), indent=1)
    if json_file == Path("-"):
        print(text)
        return
    from emoe.cli.rows_table import build_table, wide_console

    console = wide_console()
    machine = report.machine
    console.print(f"[bold]transfer[/], {machine.cpu}, {machine.num_cpus} CPUs, load {machine.load_average:.1f}")
    console.print(build_table(report.rows))
    if json_file is not None:
        json_file.write_text(text + "\n")
