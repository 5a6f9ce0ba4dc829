"""PullExpertsResponse messages, written by hand as far as their bytes go.

A message object would copy an expert's bytes twice more on their way out; here a chunk is copied once, into the message
as it goes over the wire. A client sees ordinary messages.

The stream of one PullExperts call: the experts in the order asked for, one after the other; an expert's bytes in rising
offsets without gaps, CHUNK_BYTES each but for the last; `last` and `xxh3` (of all its bytes, seed 0) on the expert's
last message alone. A stream that ends with a status other than OK, or before the last expert's last message, is
incomplete: the experts whose `last` came with a fitting xxh3 are good, all else is to be thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator

from emoe.core.experts import ExpertId
from emoe.loader.reads import LoadedExpert
from emoe.runtime.grids import expert_to_proto
from emoe.v1 import loader_pb2 as pb

CHUNK_BYTES = 1 << 20
_LENGTH_DELIMITED = 2
_DATA_TAG = bytes([pb.PullExpertsResponse.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])


def frames(expert: ExpertId, loaded: LoadedExpert, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The serialized messages of one expert."""
    num_bytes = len(loaded.data)
    for offset in range(0, num_bytes, chunk_bytes):
        chunk = loaded.data[offset : offset + chunk_bytes]
        last = offset + chunk_bytes >= num_bytes
        message = pb.PullExpertsResponse(
            expert=expert_to_proto(expert), offset=offset, last=last, xxh3=loaded.xxh3 if last else 0
        )
        # Fields may come in any order, so the bytes can follow what protobuf has written.
        yield b"".join((message.SerializeToString(), _DATA_TAG, _varint(len(chunk)), chunk))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
