"""The messages of Kubernetes' CRI (runtime.v1) that the cases use, built at run time from a table.

Field numbers are those of cri-api's ``pkg/apis/runtime/v1/api.proto``.  What is
not in the table is skipped when it is received, as protobuf does with fields it
does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

PACKAGE = "runtime.v1"

#: Message -> its fields: ``NUMBER NAME TYPE``; ``*`` before a type repeats it, ``{}`` is a map of strings.
MESSAGES = {
    "Int64Value": "1 value int64",
    "KeyValue": "1 key string, 2 value string",
    "NamespaceOption": "1 network int32, 2 pid int32, 3 ipc int32, 4 target_id string",
    "DNSConfig": "1 servers *string, 2 searches *string, 3 options *string",
    "PortMapping": "1 protocol int32, 2 container_port int32, 3 host_port int32, 4 host_ip string",
    "PodSandboxMetadata": "1 name string, 2 uid string, 3 namespace string, 4 attempt uint32",
    "LinuxSandboxSecurityContext": "1 namespace_options NamespaceOption",
    "LinuxPodSandboxConfig": "1 cgroup_parent string, 2 security_context LinuxSandboxSecurityContext, 3 sysctls {}",
    "PodSandboxConfig": "1 metadata PodSandboxMetadata, 2 hostname string, 3 log_directory string,"
    " 4 dns_config DNSConfig, 5 port_mappings *PortMapping, 6 labels {}, 7 annotations {},"
    " 8 linux LinuxPodSandboxConfig",
    "RunPodSandboxRequest": "1 config PodSandboxConfig, 2 runtime_handler string",
    "RunPodSandboxResponse": "1 pod_sandbox_id string",
    "StopPodSandboxRequest": "1 pod_sandbox_id string",
    "StopPodSandboxResponse": "",
    "RemovePodSandboxRequest": "1 pod_sandbox_id string",
    "RemovePodSandboxResponse": "",
    "PodSandboxStatusRequest": "1 pod_sandbox_id string, 2 verbose bool",
    "PodSandboxNetworkStatus": "1 ip string",
    "PodSandboxStatus": "1 id string, 2 metadata PodSandboxMetadata, 3 state int32,"
    " 5 network PodSandboxNetworkStatus, 7 labels {}, 8 annotations {}, 9 runtime_handler string",
    "PodSandboxStatusResponse": "1 status PodSandboxStatus",
    "ImageSpec": "1 image string",
    "LinuxContainerResources": "1 cpu_period int64, 2 cpu_quota int64, 3 cpu_shares int64,"
    " 4 memory_limit_in_bytes int64, 5 oom_score_adj int64",
    "Capability": "1 add_capabilities *string, 2 drop_capabilities *string",
    "SecurityProfile": "1 profile_type int32, 2 localhost_ref string",
    "LinuxContainerSecurityContext": "1 capabilities Capability, 2 privileged bool,"
    " 3 namespace_options NamespaceOption, 5 run_as_user Int64Value, 6 run_as_username string,"
    " 7 readonly_rootfs bool, 8 supplemental_groups *int64, 11 no_new_privs bool, 12 run_as_group Int64Value,"
    " 15 seccomp SecurityProfile",
    "LinuxContainerConfig": "1 resources LinuxContainerResources, 2 security_context LinuxContainerSecurityContext",
    "ContainerMetadata": "1 name string, 2 attempt uint32",
    "Mount": "1 container_path string, 2 host_path string, 3 readonly bool",
    "ContainerConfig": "1 metadata ContainerMetadata, 2 image ImageSpec, 3 command *string, 4 args *string,"
    " 5 working_dir string, 6 envs *KeyValue, 7 mounts *Mount, 9 labels {}, 10 annotations {}, 11 log_path string,"
    " 12 stdin bool, 14 tty bool, 15 linux LinuxContainerConfig",
    "CreateContainerRequest": "1 pod_sandbox_id string, 2 config ContainerConfig, 3 sandbox_config PodSandboxConfig",
    "CreateContainerResponse": "1 container_id string",
    "StartContainerRequest": "1 container_id string",
    "StartContainerResponse": "",
    "StopContainerRequest": "1 container_id string, 2 timeout int64",
    "StopContainerResponse": "",
    "RemoveContainerRequest": "1 container_id string",
    "RemoveContainerResponse": "",
    "ContainerStatusRequest": "1 container_id string",
    "ContainerStatus": "1 id string, 3 state int32, 5 started_at int64, 6 finished_at int64, 7 exit_code int32,"
    " 10 reason string, 11 message string, 12 labels {}, 13 annotations {}, 15 log_path string",
    "ContainerStatusResponse": "1 status ContainerStatus",
    "ContainerFilter": "3 pod_sandbox_id string",
    "ListContainersRequest": "1 filter ContainerFilter",
    "Container": "1 id string, 2 pod_sandbox_id string, 3 metadata ContainerMetadata, 6 state int32",
    "ListContainersResponse": "1 containers *Container",
    "UpdateContainerResourcesRequest": "1 container_id string, 2 linux LinuxContainerResources",
    "UpdateContainerResourcesResponse": "",
    "ExecSyncRequest": "1 container_id string, 2 cmd *string, 3 timeout int64",
    "ExecSyncResponse": "1 stdout bytes, 2 stderr bytes, 3 exit_code int32",
    "ContainerStatsRequest": "1 container_id string",
    "UInt64Value": "1 value uint64",
    "CpuUsage": "1 timestamp int64, 2 usage_core_nano_seconds UInt64Value",
    "MemoryUsage": "1 timestamp int64, 2 working_set_bytes UInt64Value",
    "ContainerStats": "2 cpu CpuUsage, 3 memory MemoryUsage",
    "ContainerStatsResponse": "1 stats ContainerStats",
}

_Field = descriptor_pb2.FieldDescriptorProto
TYPES = {
    "string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES, "bool": _Field.TYPE_BOOL, "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64, "uint32": _Field.TYPE_UINT32, "uint64": _Field.TYPE_UINT64,
}  # fmt: skip


def _add(message: descriptor_pb2.DescriptorProto, number: int, name: str, kind: str) -> None:
    """Add one field of the table to a message's description."""
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind == "{}":
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for key, index in (("key", 1), ("value", 2)):
            entry.field.add(name=key, number=index, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        kind = f"*{message.name}.{entry.name}"
    if kind.startswith("*"):
        field.label, kind = _Field.LABEL_REPEATED, kind[1:]
    if kind in TYPES:
        field.type = TYPES[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for line in filter(None, fields.split(",")):
            number, field, kind = line.split()
            _add(message, int(number), field, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _new(name: str) -> Any:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))()


def encode(name: str, values: Mapping[str, Any]) -> bytes:
    """A message's bytes.

    :raise json_format.ParseError: a field that the table lacks, or a value of another type.
    """
    return bytes(json_format.ParseDict(dict(values), _new(name)).SerializeToString())


def decode(name: str, data: bytes) -> dict[str, Any]:
    """A message's fields under the names of the table, with empty ones; bytes are base64 and 64-bit numbers text."""
    message = _new(name)
    message.ParseFromString(data)
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return found
