"""What the scheduler takes from the model's profile: how long each task's answers are (W_o of eMoE's equation 1).

Asked of the loader at each connection, beside all that matters more: without an answer, lengths are learnt from usage
alone.
"""

from __future__ import annotations

import asyncio
import logging

import grpc

from emoe.core.errors import InvalidRequestError
from emoe.scheduler.client import LoaderClient
from emoe.scheduler.lengths import LengthEstimator
from emoe.store.profile import parse_profile

PROFILE_DEADLINE_SECONDS = 10.0

_log = logging.getLogger(__name__)


async def learn_lengths(loader: LoaderClient, lengths: LengthEstimator) -> None:
    """Never fails for want of a profile: says so, and all stays as it is."""
    try:
        raw = await loader.get_profile(timeout_seconds=PROFILE_DEADLINE_SECONDS)
        # A large one takes a second to parse: requests go on meanwhile.
        profile = await asyncio.to_thread(parse_profile, raw) if raw else None
    except grpc.aio.AioRpcError as error:
        _log.info("the loader gave no profile (%s: %s)", error.code().name, error.details())
        return
    except (InvalidRequestError, ValueError) as error:
        _log.warning("the loader's profile cannot be used, answer lengths are learnt from usage alone: %s", error)
        return
    if profile is not None:
        lengths.begin_from({task: one.answer_tokens for task, one in profile.tasks.items()}, model=profile.digest)
        _log.info("answer lengths of %d tasks begin from the model's profile", len(profile.tasks))
