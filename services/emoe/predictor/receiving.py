"""A profile as it comes in over `LoadProfile`: message by message, within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from emoe.core.errors import InvalidRequestError, NotReadyError
from emoe.predictor.profile import GivenProfile
from emoe.runtime.grids import parse_grid, parse_model
from emoe.runtime.parts import MAX_PROFILE_BYTES, Gathered
from emoe.v1 import predictor_pb2 as pb

MAX_LEARNED_BYTES = 256 * 1024 * 1024
RECEIVE_SECONDS = 60.0


async def receive(messages: AsyncIterator[pb.LoadProfileRequest]) -> GivenProfile:
    """To the end of the stream. InvalidRequestError for a stream without a model or a profile, or one too large."""
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            return await _receive(messages)
    except TimeoutError:
        raise NotReadyError(f"the profile did not come within {RECEIVE_SECONDS:g} s; send it again") from None


async def _receive(messages: AsyncIterator[pb.LoadProfileRequest]) -> GivenProfile:
    first = await anext(messages, None)
    if first is None:
        raise InvalidRequestError("LoadProfile was ended without a message; the first names the model")
    model, grid = parse_model(first.model), parse_grid(first.grid)
    profile = Gathered(f"the profile of model {model.digest}", max_bytes=MAX_PROFILE_BYTES)
    learned = Gathered(f"what was trained with the profile of model {model.digest}", max_bytes=MAX_LEARNED_BYTES)
    profile.add(first.profile)
    learned.add(first.learned)
    async for message in messages:
        profile.add(message.profile)
        learned.add(message.learned)
    return GivenProfile(digest=model.digest, grid=grid, profile=profile.whole(), learned=learned.whole())
