from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrepareContainerRequest(_message.Message):
    __slots__ = ("container_id", "process", "domainname", "unified", "mounts", "start_container_hooks", "join", "personality", "time_offsets", "state_json", "sandbox_pidns_host", "defer_process", "block_devices")
    class UnifiedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    DOMAINNAME_FIELD_NUMBER: _ClassVar[int]
    UNIFIED_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    START_CONTAINER_HOOKS_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    TIME_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    STATE_JSON_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_PIDNS_HOST_FIELD_NUMBER: _ClassVar[int]
    DEFER_PROCESS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_DEVICES_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    process: ProcessExtras
    domainname: str
    unified: _containers.ScalarMap[str, str]
    mounts: _containers.RepeatedCompositeFieldContainer[MountExtras]
    start_container_hooks: _containers.RepeatedCompositeFieldContainer[Hook]
    join: _containers.RepeatedCompositeFieldContainer[JoinNamespace]
    personality: int
    time_offsets: _containers.RepeatedCompositeFieldContainer[TimeOffset]
    state_json: str
    sandbox_pidns_host: bool
    defer_process: bool
    block_devices: _containers.RepeatedCompositeFieldContainer[BlockDevice]
    def __init__(self, container_id: _Optional[str] = ..., process: _Optional[_Union[ProcessExtras, _Mapping]] = ..., domainname: _Optional[str] = ..., unified: _Optional[_Mapping[str, str]] = ..., mounts: _Optional[_Iterable[_Union[MountExtras, _Mapping]]] = ..., start_container_hooks: _Optional[_Iterable[_Union[Hook, _Mapping]]] = ..., join: _Optional[_Iterable[_Union[JoinNamespace, _Mapping]]] = ..., personality: _Optional[int] = ..., time_offsets: _Optional[_Iterable[_Union[TimeOffset, _Mapping]]] = ..., state_json: _Optional[str] = ..., sandbox_pidns_host: _Optional[bool] = ..., defer_process: _Optional[bool] = ..., block_devices: _Optional[_Iterable[_Union[BlockDevice, _Mapping]]] = ...) -> None: ...

class ProcessExtras(_message.Message):
    __slots__ = ("seccomp_bpf", "seccomp_flags", "has_umask", "umask", "io_priority_class", "io_priority", "has_scheduler", "scheduler_policy", "scheduler_nice", "scheduler_priority", "exec_cpu_affinity", "has_oom_score_adj")
    SECCOMP_BPF_FIELD_NUMBER: _ClassVar[int]
    SECCOMP_FLAGS_FIELD_NUMBER: _ClassVar[int]
    HAS_UMASK_FIELD_NUMBER: _ClassVar[int]
    UMASK_FIELD_NUMBER: _ClassVar[int]
    IO_PRIORITY_CLASS_FIELD_NUMBER: _ClassVar[int]
    IO_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    HAS_SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_POLICY_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_NICE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    EXEC_CPU_AFFINITY_FIELD_NUMBER: _ClassVar[int]
    HAS_OOM_SCORE_ADJ_FIELD_NUMBER: _ClassVar[int]
    seccomp_bpf: bytes
    seccomp_flags: int
    has_umask: bool
    umask: int
    io_priority_class: int
    io_priority: int
    has_scheduler: bool
    scheduler_policy: str
    scheduler_nice: int
    scheduler_priority: int
    exec_cpu_affinity: _containers.RepeatedScalarFieldContainer[str]
    has_oom_score_adj: bool
    def __init__(self, seccomp_bpf: _Optional[bytes] = ..., seccomp_flags: _Optional[int] = ..., has_umask: _Optional[bool] = ..., umask: _Optional[int] = ..., io_priority_class: _Optional[int] = ..., io_priority: _Optional[int] = ..., has_scheduler: _Optional[bool] = ..., scheduler_policy: _Optional[str] = ..., scheduler_nice: _Optional[int] = ..., scheduler_priority: _Optional[int] = ..., exec_cpu_affinity: _Optional[_Iterable[str]] = ..., has_oom_score_adj: _Optional[bool] = ...) -> None: ...

class MountExtras(_message.Message):
    __slots__ = ("index", "uid_mappings", "gid_mappings", "copy_up")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UID_MAPPINGS_FIELD_NUMBER: _ClassVar[int]
    GID_MAPPINGS_FIELD_NUMBER: _ClassVar[int]
    COPY_UP_FIELD_NUMBER: _ClassVar[int]
    index: int
    uid_mappings: _containers.RepeatedCompositeFieldContainer[IdMap]
    gid_mappings: _containers.RepeatedCompositeFieldContainer[IdMap]
    copy_up: bool
    def __init__(self, index: _Optional[int] = ..., uid_mappings: _Optional[_Iterable[_Union[IdMap, _Mapping]]] = ..., gid_mappings: _Optional[_Iterable[_Union[IdMap, _Mapping]]] = ..., copy_up: _Optional[bool] = ...) -> None: ...

class IdMap(_message.Message):
    __slots__ = ("host_id", "container_id", "size")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    host_id: int
    container_id: int
    size: int
    def __init__(self, host_id: _Optional[int] = ..., container_id: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Hook(_message.Message):
    __slots__ = ("path", "args", "env", "timeout_seconds")
    PATH_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    path: str
    args: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.RepeatedScalarFieldContainer[str]
    timeout_seconds: int
    def __init__(self, path: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., env: _Optional[_Iterable[str]] = ..., timeout_seconds: _Optional[int] = ...) -> None: ...

class JoinNamespace(_message.Message):
    __slots__ = ("type", "container_id")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    type: str
    container_id: str
    def __init__(self, type: _Optional[str] = ..., container_id: _Optional[str] = ...) -> None: ...

class TimeOffset(_message.Message):
    __slots__ = ("clock", "secs", "nanosecs")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SECS_FIELD_NUMBER: _ClassVar[int]
    NANOSECS_FIELD_NUMBER: _ClassVar[int]
    clock: str
    secs: int
    nanosecs: int
    def __init__(self, clock: _Optional[str] = ..., secs: _Optional[int] = ..., nanosecs: _Optional[int] = ...) -> None: ...

class BlockDevice(_message.Message):
    __slots__ = ("serial", "container_path", "mode", "uid", "gid", "read_only", "pci_address")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    PCI_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    serial: str
    container_path: str
    mode: int
    uid: int
    gid: int
    read_only: bool
    pci_address: str
    def __init__(self, serial: _Optional[str] = ..., container_path: _Optional[str] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., read_only: _Optional[bool] = ..., pci_address: _Optional[str] = ...) -> None: ...

class PrepareProcessRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "process", "cgroup")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    process: ProcessExtras
    cgroup: str
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., process: _Optional[_Union[ProcessExtras, _Mapping]] = ..., cgroup: _Optional[str] = ...) -> None: ...

class ProcessId(_message.Message):
    __slots__ = ("container_id", "exec_id")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ...) -> None: ...

class ContainerId(_message.Message):
    __slots__ = ("container_id",)
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    def __init__(self, container_id: _Optional[str] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "stream", "offset", "max_len", "ack", "no_wait", "close")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MAX_LEN_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NO_WAIT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    stream: int
    offset: int
    max_len: int
    ack: int
    no_wait: bool
    close: bool
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., stream: _Optional[int] = ..., offset: _Optional[int] = ..., max_len: _Optional[int] = ..., ack: _Optional[int] = ..., no_wait: _Optional[bool] = ..., close: _Optional[bool] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("offset", "data", "eof")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EOF_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    eof: bool
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., eof: _Optional[bool] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "offset", "data", "eof")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EOF_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    offset: int
    data: bytes
    eof: bool
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., eof: _Optional[bool] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("received", "closed")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    received: int
    closed: bool
    def __init__(self, received: _Optional[int] = ..., closed: _Optional[bool] = ...) -> None: ...

class ExitStatus(_message.Message):
    __slots__ = ("status", "exited_at_nsec", "oom_killed")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EXITED_AT_NSEC_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLED_FIELD_NUMBER: _ClassVar[int]
    status: int
    exited_at_nsec: int
    oom_killed: bool
    def __init__(self, status: _Optional[int] = ..., exited_at_nsec: _Optional[int] = ..., oom_killed: _Optional[bool] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("containers", "last_event")
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    containers: _containers.RepeatedCompositeFieldContainer[ContainerInfo]
    last_event: int
    def __init__(self, containers: _Optional[_Iterable[_Union[ContainerInfo, _Mapping]]] = ..., last_event: _Optional[int] = ...) -> None: ...

class ContainerInfo(_message.Message):
    __slots__ = ("container_id", "state", "processes")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    state: str
    processes: _containers.RepeatedCompositeFieldContainer[ProcessInfo]
    def __init__(self, container_id: _Optional[str] = ..., state: _Optional[str] = ..., processes: _Optional[_Iterable[_Union[ProcessInfo, _Mapping]]] = ...) -> None: ...

class ProcessInfo(_message.Message):
    __slots__ = ("exec_id", "guest_pid", "exited", "status")
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    GUEST_PID_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    exec_id: str
    guest_pid: int
    exited: bool
    status: int
    def __init__(self, exec_id: _Optional[str] = ..., guest_pid: _Optional[int] = ..., exited: _Optional[bool] = ..., status: _Optional[int] = ...) -> None: ...

class GetEventRequest(_message.Message):
    __slots__ = ("after", "no_exits")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    NO_EXITS_FIELD_NUMBER: _ClassVar[int]
    after: int
    no_exits: bool
    def __init__(self, after: _Optional[int] = ..., no_exits: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("seq", "oom", "dns_query", "exit")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    OOM_FIELD_NUMBER: _ClassVar[int]
    DNS_QUERY_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    oom: Oom
    dns_query: DnsQuery
    exit: ProcessExit
    def __init__(self, seq: _Optional[int] = ..., oom: _Optional[_Union[Oom, _Mapping]] = ..., dns_query: _Optional[_Union[DnsQuery, _Mapping]] = ..., exit: _Optional[_Union[ProcessExit, _Mapping]] = ...) -> None: ...

class Oom(_message.Message):
    __slots__ = ("container_id",)
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    def __init__(self, container_id: _Optional[str] = ...) -> None: ...

class ProcessExit(_message.Message):
    __slots__ = ("container_id", "exec_id", "status")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    status: int
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., status: _Optional[int] = ...) -> None: ...

class DnsQuery(_message.Message):
    __slots__ = ("id", "server", "tcp", "query")
    ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    TCP_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    id: int
    server: str
    tcp: bool
    query: bytes
    def __init__(self, id: _Optional[int] = ..., server: _Optional[str] = ..., tcp: _Optional[bool] = ..., query: _Optional[bytes] = ...) -> None: ...

class DnsAnswer(_message.Message):
    __slots__ = ("id", "answer")
    ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    id: int
    answer: bytes
    def __init__(self, id: _Optional[int] = ..., answer: _Optional[bytes] = ...) -> None: ...

class ContainerStatsResponse(_message.Message):
    __slots__ = ("memory_events", "cpu_stat", "memory_stat", "memory_current", "memory_peak", "memory_limit", "pressure", "pids")
    class MemoryEventsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CpuStatEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class MemoryStatEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class PressureEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MEMORY_EVENTS_FIELD_NUMBER: _ClassVar[int]
    CPU_STAT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_STAT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_CURRENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    memory_events: _containers.ScalarMap[str, int]
    cpu_stat: _containers.ScalarMap[str, int]
    memory_stat: _containers.ScalarMap[str, int]
    memory_current: int
    memory_peak: int
    memory_limit: int
    pressure: _containers.ScalarMap[str, str]
    pids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, memory_events: _Optional[_Mapping[str, int]] = ..., cpu_stat: _Optional[_Mapping[str, int]] = ..., memory_stat: _Optional[_Mapping[str, int]] = ..., memory_current: _Optional[int] = ..., memory_peak: _Optional[int] = ..., memory_limit: _Optional[int] = ..., pressure: _Optional[_Mapping[str, str]] = ..., pids: _Optional[_Iterable[int]] = ...) -> None: ...

class UpdateUnifiedRequest(_message.Message):
    __slots__ = ("container_id", "unified")
    class UnifiedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    UNIFIED_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    unified: _containers.ScalarMap[str, str]
    def __init__(self, container_id: _Optional[str] = ..., unified: _Optional[_Mapping[str, str]] = ...) -> None: ...

class PersonalizeRequest(_message.Message):
    __slots__ = ("time_sec", "time_nsec", "entropy", "machine_id", "hostname")
    TIME_SEC_FIELD_NUMBER: _ClassVar[int]
    TIME_NSEC_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    time_sec: int
    time_nsec: int
    entropy: bytes
    machine_id: str
    hostname: str
    def __init__(self, time_sec: _Optional[int] = ..., time_nsec: _Optional[int] = ..., entropy: _Optional[bytes] = ..., machine_id: _Optional[str] = ..., hostname: _Optional[str] = ...) -> None: ...

class RemoveInterfaceRequest(_message.Message):
    __slots__ = ("hw_addr",)
    HW_ADDR_FIELD_NUMBER: _ClassVar[int]
    hw_addr: str
    def __init__(self, hw_addr: _Optional[str] = ...) -> None: ...

class SetDnsRelayRequest(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class GuestStatusResponse(_message.Message):
    __slots__ = ("mem_total", "mem_available", "online_cpus", "uptime_nsec", "kernel_release", "agent_version", "missing_kernel_features", "boot_nsec")
    class BootNsecEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MEM_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MEM_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    ONLINE_CPUS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_NSEC_FIELD_NUMBER: _ClassVar[int]
    KERNEL_RELEASE_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MISSING_KERNEL_FEATURES_FIELD_NUMBER: _ClassVar[int]
    BOOT_NSEC_FIELD_NUMBER: _ClassVar[int]
    mem_total: int
    mem_available: int
    online_cpus: int
    uptime_nsec: int
    kernel_release: str
    agent_version: str
    missing_kernel_features: _containers.RepeatedScalarFieldContainer[str]
    boot_nsec: _containers.ScalarMap[str, int]
    def __init__(self, mem_total: _Optional[int] = ..., mem_available: _Optional[int] = ..., online_cpus: _Optional[int] = ..., uptime_nsec: _Optional[int] = ..., kernel_release: _Optional[str] = ..., agent_version: _Optional[str] = ..., missing_kernel_features: _Optional[_Iterable[str]] = ..., boot_nsec: _Optional[_Mapping[str, int]] = ...) -> None: ...
