"""OCI JSON to the agent's protobuf messages."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from kata_agent.protocol import agent_pb2, guest_pb2, oci_pb2

M = TypeVar("M", bound=Message)

# The only name of the specification that oci.proto spells otherwise.
_RENAMED = {"ociversion": "version"}


def fill(message: Message, value: Mapping[str, Any], *, strict: bool = False) -> None:
    """Copy what ``message`` has fields for; names are compared without case, bytes are base64.

    oci.proto takes its names from the Go types, the JSON its own from their
    tags; they differ in case only.  What oci.proto has no field for travels in
    the extras of ``kata.v1.Guest``.

    :param strict: a name that there is no field for is a ValueError.
    """
    fields = {f.name.lower(): f for f in message.DESCRIPTOR.fields}
    for key, item in value.items():
        field = fields.get(_RENAMED.get(key.lower(), key.lower()))
        if field is None and strict:
            raise ValueError(f"{message.DESCRIPTOR.full_name} has no field {key!r}")
        if field is None or item is None:
            continue
        target = getattr(message, field.name)
        if _is_map(field):
            for name, entry in item.items():
                target[name] = entry
        elif field.is_repeated:
            if field.message_type is not None:
                for entry in item:
                    fill(target.add(), entry, strict=strict)
            else:
                target.extend(item)
        elif field.message_type is not None:
            target.SetInParent()
            fill(target, item, strict=strict)
        elif field.type == field.TYPE_BYTES:
            setattr(message, field.name, binascii.a2b_base64(item))
        else:
            setattr(message, field.name, item)


def strictly(message: M, value: Mapping[str, Any]) -> M:
    """``message``, filled with JSON of ours.

    :raise ValueError: it has a name that there is no field for.
    """
    fill(message, value, strict=True)
    return message


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def oci_spec(value: Mapping[str, Any]) -> oci_pb2.Spec:
    spec = oci_pb2.Spec()
    fill(spec, {k: v for k, v in value.items() if k != "hooks"})
    return spec


def oci_process(value: Mapping[str, Any]) -> oci_pb2.Process:
    process = oci_pb2.Process()
    fill(process, value)
    return process


def oci_resources(value: Mapping[str, Any]) -> oci_pb2.LinuxResources:
    resources = oci_pb2.LinuxResources()
    fill(resources, value)
    return resources


def container_extras(container_id: str, value: Mapping[str, Any]) -> guest_pb2.PrepareContainerRequest:
    return strictly(guest_pb2.PrepareContainerRequest(container_id=container_id), value)


def process_extras(container_id: str, exec_id: str, value: Mapping[str, Any]) -> guest_pb2.PrepareProcessRequest:
    return strictly(guest_pb2.PrepareProcessRequest(container_id=container_id, exec_id=exec_id), value)


def storages(values: tuple[Mapping[str, Any], ...]) -> list[agent_pb2.Storage]:
    return [strictly(agent_pb2.Storage(), v) for v in values]
