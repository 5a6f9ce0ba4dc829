"""The predictor as a process: loads what was learnt, serves, saves now and then and once more at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from emoe.predictor import state
from emoe.predictor.learning import Learning
from emoe.predictor.profile import ProfileUse
from emoe.predictor.service import PredictorService
from emoe.predictor.settings import PredictorSettings
from emoe.runtime.lifecycle import ServiceHost, run_process, service_host

_log = logging.getLogger(__name__)


class Keeper:
    """Saves what `learning` holds when there is something new. A disk that refuses is logged, and tried again."""

    def __init__(self, learning: Learning, state_dir: Path) -> None:
        self._learning = learning
        self._state_dir = state_dir
        self._num_saved = learning.num_observed

    async def save_if_new(self) -> None:
        num_observed = self._learning.num_observed
        if num_observed == self._num_saved:
            return
        try:
            await asyncio.to_thread(state.save, self._state_dir, self._learning.memories())
        except OSError as error:
            _log.warning("cannot save what was learnt to %s: %s; trying again later", self._state_dir, error)
            return
        self._num_saved = num_observed
        _log.debug("saved what %d reports taught to %s", num_observed, self._state_dir)

    async def save_every(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            await self.save_if_new()


@contextlib.asynccontextmanager
async def serving(settings: PredictorSettings) -> AsyncIterator[ServiceHost]:
    """A predictor that answers at the host's address; leaving saves what was learnt and ends it."""
    learning = Learning(half_life_tokens=settings.half_life_tokens, profile_tokens=settings.profile_tokens)
    async with service_host(settings, name="predictor") as host:
        keeper = _open_state(learning, settings.state_dir)
        use = ProfileUse(
            with_sequence=settings.predictor == "sequence", sensitivity_threshold=settings.sensitivity_threshold
        )
        PredictorService(learning, use).register(host)
        await host.start()
        saving = keeper and host.spawn("save", keeper.save_every(settings.save_interval_seconds))
        await host.set_ready(True)
        try:
            yield host
        finally:
            if keeper and saving:
                saving.cancel()
                await asyncio.wait([saving])
                await keeper.save_if_new()


def _open_state(learning: Learning, state_dir: Path | None) -> Keeper | None:
    if state_dir is None:
        _log.info("no state_dir is set: what is learnt ends with this process, and save_interval_seconds does nothing")
        return None
    state_dir.mkdir(parents=True, exist_ok=True)
    learning.remember(state.load(state_dir))
    return Keeper(learning, state_dir)


async def serve(settings: PredictorSettings) -> None:
    """Until SIGTERM or SIGINT."""
    async with serving(settings) as host:
        await host.run()


def main() -> int:
    return run_process(serve, PredictorSettings(), name="predictor")


if __name__ == "__main__":
    sys.exit(main())
