"""The benchmark of the services, over the real four and an engine in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_models import save_small_model

from emoe.bench.rows import ServiceRow
from emoe.bench.services import ServiceSettings
from emoe.cli.bench_services import measure


@pytest.mark.timeout(300)
async def test_every_path_gives_whole_answers_to_the_same_clients(tmp_path: Path) -> None:
    settings = ServiceSettings(
        clients=(1, 2), prompt_tokens=8, new_tokens=4, requests_per_client=2, repeats=1, threads=1
    )
    (tmp_path / "run").mkdir()
    report = await measure(save_small_model(tmp_path / "model"), settings, tmp_path / "run", say=lambda _line: None)
    rows = [row for row in report.rows if isinstance(row, ServiceRow)]
    paths = ("engine", "worker", "scheduler")
    assert [(row.path, row.clients) for row in rows] == [(path, clients) for clients in (1, 2) for path in paths]
    for row in rows:
        assert [(one.num_tokens, len(one.ttft_seconds)) for one in row.samples] == [(8 * row.clients, 2 * row.clients)]
        assert (row.tokens_ratio is None) == (row.ttft_ratio is None) == (row.path == "engine")
