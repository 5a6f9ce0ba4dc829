"""What a user of tritonclient does, as a script for the environment that has it; it knows nothing of emoe.

python triton_client.py ADDRESS MODEL ACTION [JSON]    one JSON object a line on stdout
"""

from __future__ import annotations

import json
import queue
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

CALL_SECONDS = 60.0
DTYPES = {"BYTES": np.object_, "BOOL": np.bool_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


def main(address: str, model: str, action: str, options: dict[str, Any]) -> None:
    client = triton.InferenceServerClient(address)
    actions = {"look": look, "infer": infer, "stream": stream}
    try:
        actions[action](client, model, **options)
    except InferenceServerException as error:
        tell(error=error.message(), status=error.status())


def look(client: triton.InferenceServerClient, model: str) -> None:
    tell(
        live=client.is_server_live(),
        ready=client.is_server_ready(),
        model_ready=client.is_model_ready(model),
        server=client.get_server_metadata(as_json=True),
        model=client.get_model_metadata(model, as_json=True),
    )


def infer(client: triton.InferenceServerClient, model: str, *, tensors: list[list[Any]], **fields: Any) -> None:
    """`tensors`: name, datatype and values of each."""
    result = client.infer(model, inputs_from(tensors), client_timeout=CALL_SECONDS, **fields)
    tell(**describe(result))


def stream(
    client: triton.InferenceServerClient,
    model: str,
    *,
    requests: list[dict[str, Any]],
    cancel_after: int | None = None,
) -> None:
    """Every part as it comes; ends when each request had its last, or leaves after `cancel_after` parts."""
    parts: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: parts.put((result, error)), stream_timeout=CALL_SECONDS)
    for request in requests:
        client.async_stream_infer(
            model, inputs_from(request.pop("tensors")), enable_empty_final_response=True, **request
        )
    num_open, num_parts, ends = len(requests), 0, time.monotonic() + CALL_SECONDS
    while num_open and num_parts != cancel_after:
        result, error = parts.get(timeout=ends - time.monotonic())
        num_parts += 1
        if error is not None:
            tell(error=error.message(), status=error.status())
        else:
            tell(**describe(result))
        num_open -= error is not None or result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream(cancel_requests=num_open > 0)
    tell(left=num_open > 0)


def inputs_from(tensors: list[list[Any]]) -> list[triton.InferInput]:
    inputs = []
    for name, datatype, values in tensors:
        elements = [value.encode() for value in values] if datatype == "BYTES" else values
        inputs.append(triton.InferInput(name, [len(values)], datatype))
        inputs[-1].set_data_from_numpy(np.array(elements, dtype=DTYPES[datatype]))
    return inputs


def describe(result: triton.InferResult) -> dict[str, Any]:
    response = result.get_response()
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.parameters.items()
    }
    texts = [element.decode() for element in result.as_numpy("text_output")]
    return {"id": response.id, "model": response.model_name, "texts": texts, "parameters": parameters}


def describe_protocol() -> None:
    """Its own copy of the protocol, as a serialized FileDescriptorProto in hexadecimal."""
    file = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(file)
    tell(protocol=file.SerializeToString().hex())


def tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["protocol"]:
        describe_protocol()
    else:
        main(*sys.argv[1:4], json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})
