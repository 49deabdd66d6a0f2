"""The agent as PID 1 of a virtual machine: what needs a kernel of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_agent.protocol import agent_pb2, codes, guest_pb2, oci_pb2, types_pb2
from tests.agent.client import Client, RpcError, read_all, read_through_restarts
from tests.agent.conftest import Box
from tests.agent.machine import MACS, SHARED, Machine, wait_for

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, busybox_root: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("vm"))
    try:
        client = machine.connect()
        machine.mount_share(client)
        client.close()
        machine.copy_root(busybox_root, "base")
        yield machine
    finally:
        machine.close()


@pytest.fixture
def client(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Client]:
    before = request.session.testsfailed
    client = machine.connect()
    yield client
    if request.session.testsfailed > before:
        print(machine.log())
    for info in client.guest.ListAll().containers:
        client.RemoveContainer(container_id=info.container_id)
    client.close()


@pytest.fixture
def box(client: Client):
    def make(*args: str, cgroup: bool = True) -> Box:
        b = Box(client, Path(f"{SHARED}/base"), list(args))
        b.spec.Mounts.add(type="sysfs", source="sysfs", destination="/sys", options=["nosuid", "noexec", "nodev", "ro"])
        if cgroup:
            b.spec.Mounts.add(type="cgroup", source="cgroup", destination="/sys/fs/cgroup",
                              options=["nosuid", "noexec", "nodev", "relatime", "ro"])
        return b

    return make


def test_boot(client, machine):
    status = client.guest.GuestStatus()
    print(status, client.GetGuestDetails(mem_block_size=True))
    print(machine.log())
    assert status.online_cpus == 1
    assert not status.missing_kernel_features
    assert client.Version().agent_version


# --- containers ------------------------------------------------------------------------


def test_container_and_exec(box):
    b = box("sh", "-c", "hostname; cat /proc/self/cgroup; grep -c . /proc/mounts; exec sleep 100")
    b.spec.Hostname = "inner"
    b.create().start()
    assert b.exec(["sh", "-c", "cat /proc/self/cgroup; ls / | head -3; cat /proc/1/comm"])[1].split() == \
        ["0::/", "bin", "dev", "etc", "sleep"]
    out = b.client.guest.ReadStream(container_id=b.id, stream=1, offset=0).data.decode().split()
    assert out[:2] == ["inner", "0::/"]
    b.client.RemoveContainer(container_id=b.id)
    assert not b.client.guest.ListAll().containers


def test_speed_of_a_container_and_an_exec(box):
    times = []
    for _ in range(3):
        start = time.monotonic()
        b = box("true").create()
        middle = time.monotonic()
        b.start()
        assert b.client.guest.WaitProcess(container_id=b.id).status == 0
        times.append((middle - start, time.monotonic() - middle))
    b = box("sleep", "100").create().start()
    execs = []
    for _ in range(3):
        start = time.monotonic()
        assert b.exec(["true"])[0] == 0
        execs.append(time.monotonic() - start)
    print("create, run:", times, "exec:", execs)


def test_the_old_root_is_gone(box):
    out = box("cat", "/proc/self/mountinfo").run()[1]
    assert "kata-agent" not in out
    lines = out.splitlines()
    assert lines[0].split()[4] == "/"
    assert not any("/usr/lib/kata" in line for line in lines)


def test_agent_is_protected(box, client):
    b = box("sh", "-c", "cat /proc/self/oom_score_adj; ulimit -n")
    assert b.run()[1] == "0\n1048576\n"
    assert client.guest.GuestStatus().mem_available > 0


# --- limits ----------------------------------------------------------------------------


def test_limits_are_written(box):
    b = box("sh", "-c", "cd /sys/fs/cgroup; sleep 0.5; for f in memory.max memory.low memory.swap.max cpu.max "
                        "cpu.weight pids.max cpuset.cpus hugetlb.2MB.max; do echo $f $(cat $f); done")
    resources = b.spec.Linux.Resources
    resources.Memory.Limit, resources.Memory.Reservation, resources.Memory.Swap = 64 << 20, 32 << 20, 100 << 20
    resources.CPU.Shares, resources.CPU.Quota, resources.CPU.Period = 512, 50000, 100000
    resources.CPU.Cpus = "0-7"
    resources.Pids.Limit = 50
    resources.HugepageLimits.add(Pagesize="2MB", Limit=4 << 20)
    b.extras.unified["memory.high"] = str(60 << 20)
    out = dict(line.split(" ", 1) for line in b.run()[1].splitlines())
    assert out["memory.max"] == str(64 << 20)
    assert out["memory.low"] == str(32 << 20)
    assert out.get("memory.swap.max", str(36 << 20)) in (str(36 << 20), "")
    assert out["cpu.max"] == "50000 100000"
    assert out["cpu.weight"] == "20"
    assert out["pids.max"] == "50"
    assert out["cpuset.cpus"] == "0"
    assert out["hugetlb.2MB.max"] == str(4 << 20)


def test_limits_that_cannot_be(box):
    b = box("true")
    b.extras.unified["nonesuch.max"] = "1"
    with pytest.raises(RpcError) as info:
        b.create()
    assert (info.value.code, "nonesuch.max" in info.value.message) == (codes.FAILED_PRECONDITION, True)
    b = box("true")
    b.extras.unified["../x.y"] = "1"
    with pytest.raises(RpcError) as info:
        b.create()
    assert info.value.code == codes.INVALID_ARGUMENT


def test_update(box, client):
    b = box("sleep", "100")
    b.spec.Linux.Resources.Memory.Limit = 64 << 20
    b.create().start()
    request = agent_pb2.UpdateContainerRequest(container_id=b.id)
    request.resources.Memory.Limit = 48 << 20
    request.resources.Pids.Limit = -1
    client.UpdateContainer(request)
    client.guest.UpdateUnified(container_id=b.id, unified={"memory.high": str(40 << 20)})
    out = b.exec(["sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max memory.high"])[1].split()
    assert out == [str(48 << 20), "max", str(40 << 20)]


def test_small_limits_do_not_hinder_creation(box):
    b = box("sh", "-c", "cat /sys/fs/cgroup/memory.max")
    b.spec.Linux.Resources.Memory.Limit = 6 << 20
    b.spec.Linux.Resources.CPU.Quota = 5000
    assert b.run()[0] == 0


def test_out_of_memory(box, client):
    before = client.guest.ListAll().last_event
    waiting = client.start("grpc.AgentService", "GetOOMEvent")
    b = box("sh", "-c", "dd if=/dev/zero of=/dev/null bs=30M count=1; echo $?")
    b.spec.Linux.Resources.Memory.Limit = 20 << 20
    b.create().start()
    assert client.guest.WaitProcess(container_id=b.id).status == 0
    event = client.guest.GetEvent(after=before)
    while event.WhichOneof("kind") != "oom":
        event = client.guest.GetEvent(after=event.seq)
    assert event.oom.container_id == b.id
    assert waiting.result().container_id == b.id
    assert client.guest.ContainerStats(container_id=b.id).memory_events["oom_kill"] >= 1
    b2 = box("dd", "if=/dev/zero", "of=/dev/null", "bs=30M", "count=1")
    b2.spec.Linux.Resources.Memory.Limit = 20 << 20
    b2.create().start()
    end = client.guest.WaitProcess(container_id=b2.id)
    assert (end.status, end.oom_killed) == (137, True)


def test_memory_of_all_containers_together_is_bounded(box, client):
    # All that the guest could give: the agent's own part is out of reach.
    size = client.guest.GuestStatus().mem_available >> 20
    b = box("dd", "if=/dev/zero", "of=/dev/null", f"bs={size}M", "count=1").create().start()
    assert client.guest.WaitProcess(container_id=b.id).status == 137
    assert client.Check().status == 1


def test_fork_bomb(box, client):
    b = box("sh", "-c", "f() { f | f & }; f; sleep 100").create().start()
    time.sleep(5)
    assert client.Check().status == 1
    c = box("sleep", "100")
    client.RemoveContainer(container_id=b.id)
    assert c.create().start().exec(["true"])[0] == 0


def test_full_disk(box, client):
    b = box("sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=500; dd if=/dev/zero of=/dev/y bs=1M count=500")
    b.spec.Mounts.add(type="tmpfs", source="shm", destination="/dev/shm", options=["size=8m"])
    _status, _, err = b.run()
    assert "No space left" in err
    assert client.Check().status == 1


def test_freeze(box, client):
    b = box("sh", "-c", "while :; do date +%s%N; sleep 0.05; done").create().start()
    assert client.guest.ReadStream(container_id=b.id, stream=1, offset=0).data
    client.PauseContainer(container_id=b.id)
    assert client.guest.ListAll().containers[0].state == "paused"
    size = len(client.guest.ReadStream(container_id=b.id, stream=1, offset=0).data)
    time.sleep(1)
    again = client.guest.ReadStream(container_id=b.id, stream=1, offset=0).data
    assert len(again) <= size + 40
    with pytest.raises(RpcError) as info:
        b.exec(["true"])
    assert info.value.code == codes.FAILED_PRECONDITION
    with pytest.raises(RpcError):
        client.PauseContainer(container_id=b.id)
    client.ResumeContainer(container_id=b.id)
    assert client.guest.ReadStream(container_id=b.id, stream=1, offset=len(again)).data
    client.PauseContainer(container_id=b.id)
    client.SignalProcess(container_id=b.id, exec_id="", signal=9)
    assert client.guest.WaitProcess(container_id=b.id).status == 137


def test_device_rules(box):
    b = box("sh", "-c", "echo a > /dev/null && echo null; head -c1 /dev/mem >/dev/null && echo mem; "
                        "mknod /t/d c 1 1 && echo made; head -c 1 /dev/zero > /dev/null && echo zero")
    b.spec.Process.Capabilities.Bounding.append("CAP_MKNOD")
    b.spec.Process.Capabilities.Effective.append("CAP_MKNOD")
    b.spec.Process.Capabilities.Permitted.append("CAP_MKNOD")
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/t")
    b.spec.Linux.Devices.add(Path="/dev/mem", Type="c", Major=1, Minor=1, FileMode=0o666)
    b.spec.Linux.Resources.Devices.add(Allow=False, Access="rwm")
    _status, out, err = b.run()
    assert out.split() == ["null", "made", "zero"]
    assert "Operation not permitted" in err
    b = box("sh", "-c", "mknod /t/d c 1 1 && echo made; head -c1 /t/d")
    for kind in ("Bounding", "Effective", "Permitted"):
        getattr(b.spec.Process.Capabilities, kind).extend(["CAP_MKNOD", "CAP_DAC_OVERRIDE"])
    b.spec.Linux.Resources.Devices.add(Allow=True, Type="a", Access="rwm")
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/t")
    assert b.run()[1] == "made\n"


def test_exec_beside_a_service_manager(box, client):
    """A container that has moved itself down, and given controllers on, takes an exec'd process beside it."""
    b = box("sh", "-c", "mkdir /sys/fs/cgroup/low && echo 0 > /sys/fs/cgroup/low/cgroup.procs && "
                        "echo +pids > /sys/fs/cgroup/cgroup.subtree_control && echo moved; sleep 100")
    b.spec.Mounts[-1].options.remove("ro")
    b.create().start()
    assert client.guest.ReadStream(container_id=b.id, stream=1, offset=0).data == b"moved\n"
    assert b.exec(["cat", "/proc/self/cgroup"])[1] == "0::/low\n"
    process = oci_pb2.Process(Args=["cat", "/proc/self/cgroup"], Env=["PATH=/bin"], Cwd="/")
    client.guest.PrepareProcess(container_id=b.id, exec_id="s", cgroup="low")
    client.ExecProcess(container_id=b.id, exec_id="s", process=process)
    assert read_all(client, b.id, "s") == b"0::/low\n"


def test_statistics(box, client):
    b = box("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 100")
    b.spec.Linux.Resources.Memory.Limit = 64 << 20
    b.spec.Linux.Resources.Pids.Limit = 33
    b.create().start()
    wait_for("cpu usage", lambda: client.StatsContainer(
        container_id=b.id).cgroup_stats.cpu_stats.cpu_usage.total_usage > 10**7)
    stats = client.StatsContainer(container_id=b.id).cgroup_stats
    assert stats.memory_stats.usage.limit == 64 << 20
    assert 0 < stats.memory_stats.usage.usage < 64 << 20
    assert (stats.pids_stats.limit, stats.pids_stats.current > 0) == (33, True)
    more = client.guest.ContainerStats(container_id=b.id)
    assert 1 in more.pids
    assert more.memory_limit == 64 << 20
    assert set(more.pressure) <= {"cpu.pressure", "memory.pressure", "io.pressure"}


def test_listing_processes(box, client):
    b = box("sleep", "100").create().start()
    assert client.ListProcesses(container_id=b.id, format="json").process_list == b"[1]"
    table = client.ListProcesses(container_id=b.id, format="table", args=["-ef"]).process_list.decode().splitlines()
    assert table[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert table[1].split()[1] == "1"
    assert table[1].endswith("sleep 100")
    some = client.ListProcesses(container_id=b.id, format="table", args=["-o", "pid,comm"]).process_list.decode()
    assert some.splitlines()[1].split() == ["1", "sleep"]
    with pytest.raises(RpcError) as info:
        client.ListProcesses(container_id=b.id, format="table", args=["--forest"])
    assert info.value.code == codes.INVALID_ARGUMENT


def test_signal_to_all(box, client):
    b = box("sh", "-c", "trap 'exit 5' TERM; sleep 100 & wait").create().start()
    wait_for("two processes", lambda: len(client.guest.ContainerStats(container_id=b.id).pids) == 2)
    client.SignalProcess(container_id=b.id, exec_id="", signal=15)
    assert client.guest.WaitProcess(container_id=b.id).status in (5, 143)


def test_container_without_a_pid_namespace(box, client):
    b = box("sh", "-c", "sleep 1000 & echo started; sleep 0.2; exit 3")
    del b.spec.Linux.Namespaces[0]
    b.create().start()
    assert client.guest.WaitProcess(container_id=b.id).status == 3
    wait_for("the others end too", lambda: not client.guest.ContainerStats(container_id=b.id).pids)


# --- disks -----------------------------------------------------------------------------


def test_disk_in_a_container(box):
    b = box("sh", "-c", "ls -l /dev/xvda; dd if=/dev/xvda bs=1k count=4 2>/dev/null | wc -c")
    b.spec.Linux.Resources.Devices.add(Allow=False, Access="rwm")
    b.extras.block_devices.add(serial="kata-disk-1", container_path="/dev/xvda", mode=0o640, gid=6, read_only=True)
    out = b.run()[1]
    assert out.startswith("brw-r-----")
    assert out.endswith("4096\n")


def test_drivers_come_by_themselves(box, client):
    """The drivers of a SCSI disk, a balloon: where they are modules, not loaded at boot."""
    b = box("sh", "-c", "dd if=/dev/xvds bs=512 count=2 2>/dev/null | wc -c; ls /sys/bus/virtio/drivers")
    b.extras.block_devices.add(serial="kata-scsi-1", container_path="/dev/xvds", mode=0o660)
    out = b.run()[1].split()
    assert out[0] == "1024"
    assert {"virtio_scsi", "virtio_balloon"} <= set(out)


def test_disk_as_storage(box):
    b = box("sh", "-c", "echo x > /d/file; cat /d/file; ls /d")
    b.spec.Mounts.add(type="bind", source="/run/kata/disk1", destination="/d", options=["bind", "rw"])
    for kind in ("Bounding", "Effective", "Permitted"):
        getattr(b.spec.Process.Capabilities, kind).append("CAP_DAC_OVERRIDE")
    storage = agent_pb2.Storage(driver="blk", source="serial:kata-disk-1", fstype="ext4", mount_point="/run/kata/disk1")
    assert b.run(storages=[storage])[1].split()[0] == "x"


def test_disk_that_does_not_come(box):
    b = box("true")
    b.extras.block_devices.add(serial="nonesuch", container_path="/dev/x")
    with pytest.raises(RpcError) as info:
        b.create()
    assert info.value.message == "the device with serial number nonesuch did not appear within 5 s"


# --- network ---------------------------------------------------------------------------


def test_network(box, client):
    interface = types_pb2.Interface(device="eth0", name="eth0", mtu=1400, hwAddr=MACS[0], IPAddresses=[
        types_pb2.IPAddress(address="10.0.2.15", mask="24"),
        types_pb2.IPAddress(family=types_pb2.v6, address="fec0::15", mask="64")])
    b = box("sleep", "1000")
    for kind in ("Bounding", "Effective", "Permitted"):
        getattr(b.spec.Process.Capabilities, kind).append("CAP_NET_RAW")
    b.create().start()
    assert "eth0" not in b.exec(["ls", "/sys/class/net"])[1]
    client.UpdateInterface(interface=interface)
    listed = {i.name: i for i in client.ListInterfaces().Interfaces}
    assert set(listed) == {"lo", "eth0"}
    assert (listed["eth0"].hwAddr, listed["eth0"].mtu) == (MACS[0], 1400)
    assert {f"{a.address}/{a.mask}" for a in listed["eth0"].IPAddresses} >= {"10.0.2.15/24", "fec0::15/64"}
    assert b.exec(["ping", "-c1", "-W5", "10.0.2.2"], caps=["CAP_NET_RAW"])[0] == 0
    routes = agent_pb2.Routes(Routes=[
        types_pb2.Route(dest="", gateway="10.0.2.2", device="eth0"),
        types_pb2.Route(dest="192.168.9.0/24", device="eth0", scope=253),
        types_pb2.Route(dest="::/0", gateway="fec0::2", device="eth0")])
    got = client.UpdateRoutes(routes=routes).Routes
    assert {(r.dest, r.gateway) for r in got} >= {("", "10.0.2.2"), ("192.168.9.0/24", ""), ("", "fec0::2")}
    assert "default via 10.0.2.2" in b.exec(["ip", "route"])[1]
    client.UpdateRoutes(routes=agent_pb2.Routes(Routes=list(routes.Routes)[:1]))
    assert "192.168.9" not in b.exec(["ip", "route"])[1]
    with pytest.raises(RpcError) as info:
        client.UpdateRoutes(routes=agent_pb2.Routes(Routes=[types_pb2.Route(dest="1.0.0.0/8", device="eth9")]))
    assert info.value.code == codes.NOT_FOUND
    client.AddARPNeighbors(neighbors=agent_pb2.ARPNeighbors(ARPNeighbors=[types_pb2.ARPNeighbor(
        toIPAddress=types_pb2.IPAddress(address="10.0.2.77"), device="eth0", lladdr="02:00:00:00:00:99")]))
    assert "02:00:00:00:00:99" in b.exec(["ip", "neigh"])[1]
    # new addresses take the place of the old ones, and the name may change
    del interface.IPAddresses[1:]
    interface.IPAddresses[0].address = "10.0.2.16"
    interface.name = "net1"
    client.UpdateInterface(interface=interface)
    listed = {i.name: i for i in client.ListInterfaces().Interfaces}
    assert [a.address for a in listed["net1"].IPAddresses] == ["10.0.2.16"]
    second = types_pb2.Interface(name="eth1", hwAddr=MACS[1],
                                 IPAddresses=[types_pb2.IPAddress(address="10.1.0.5", mask="255.255.0.0")])
    client.UpdateInterface(interface=second)
    assert {s.name for s in client.StatsContainer(container_id=b.id).network_stats} == {"net1", "eth1"}
    client.guest.RemoveInterface(hw_addr=MACS[1])
    client.guest.RemoveInterface(hw_addr="02:00:00:00:00:77")
    assert {i.name for i in client.ListInterfaces().Interfaces} == {"lo", "net1"}
    client.UpdateInterface(interface=second)
    client.guest.RemoveInterface(hw_addr=MACS[1])
    with pytest.raises(RpcError) as info:
        client.UpdateInterface(interface=types_pb2.Interface(name="eth5", hwAddr="02:00:00:00:00:55"))
    assert info.value.code == codes.DEADLINE_EXCEEDED


def test_name_server_relay(box, client):
    client.guest.SetDnsRelay(addresses=["127.0.0.11"])
    last = client.guest.ListAll().last_event
    b = box("sh", "-c", "nslookup -type=a host.example 127.0.0.11").create().start()
    event = client.guest.GetEvent(after=last)
    while event.WhichOneof("kind") != "dns_query":
        event = client.guest.GetEvent(after=event.seq)
    query = event.dns_query.query
    assert event.dns_query.server == "127.0.0.11"
    assert b"\x04host\x07example" in query
    answer = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\1\2\3"
    client.guest.AnswerDns(id=event.dns_query.id, answer=answer)
    assert b"10.1.2.3" in read_all(client, b.id)
    client.guest.SetDnsRelay(addresses=[])
    with pytest.raises(RpcError):
        client.guest.SetDnsRelay(addresses=["8.8.8.8"])


# --- the machine -------------------------------------------------------------------------


def test_clock_entropy_name(client, box):
    client.guest.Personalize(time_sec=2_000_000_000, entropy=b"x" * 64, machine_id="0" * 31 + "7", hostname="anew")
    assert int(box("date", "+%s").run()[1]) in range(2_000_000_000, 2_000_000_100)
    now = time.time_ns()
    client.SetGuestDateTime(Sec=now // 10**9, Usec=0)
    client.ReseedRandomDev(data=b"y" * 32)
    for bad in ({"machine_id": "zz"}, {"time_nsec": 10**10}, {"hostname": "x" * 65}):
        with pytest.raises(RpcError) as info:
            client.guest.Personalize(**bad)
        assert info.value.code == codes.INVALID_ARGUMENT


def test_copying_files(client, box):
    base = "/run/kata-containers/shared/containers/x"
    data = bytes(range(256)) * 10
    for offset in range(0, len(data), 1000):
        client.CopyFile(path=f"{base}/f", file_size=len(data), file_mode=0o100640, dir_mode=0o40750, uid=3, gid=4,
                        offset=offset, data=data[offset : offset + 1000])
    b = box("sh", "-c", "stat -c '%a %u %g %s' /x/f; ls -A /x")
    b.spec.Mounts.add(type="bind", source=base, destination="/x", options=["bind"])
    for kind in ("Bounding", "Effective", "Permitted"):
        getattr(b.spec.Process.Capabilities, kind).append("CAP_DAC_OVERRIDE")
    assert b.run()[1] == "640 3 4 2560\nf\n"
    for path in ("/etc/passwd", "/run/kata/../../etc/passwd", "/run/kata"):
        with pytest.raises(RpcError) as info:
            client.CopyFile(path=path, file_size=1, data=b"x")
        assert info.value.code == codes.INVALID_ARGUMENT


def test_second_sandbox_is_refused(client):
    with pytest.raises(RpcError) as info:
        client.CreateSandbox(sandbox_id="other")
    assert info.value.code == codes.ALREADY_EXISTS


def test_tracing_is_not_there(client):
    for name in ("StartTracing", "StopTracing"):
        with pytest.raises(RpcError) as info:
            getattr(client, name)()
        assert info.value.code == codes.UNIMPLEMENTED


def test_a_new_host_end(machine, box, client):
    b = box("sh", "-c", "echo before; read x; echo $x").create().start()
    pending = client.guest.WaitProcess.start(container_id=b.id)
    assert not pending.ready(0.1)
    client.send_raw(b"\0\0\4\0\0\0\0\1\1\0" + b"half a frame")
    client.close()
    again = machine.connect()
    assert again.guest.ReadStream(container_id=b.id, stream=1, offset=0).data == b"before\n"
    assert again.guest.WriteStream(container_id=b.id, offset=0, data=b"after\n", eof=True).received == 6
    assert read_all(again, b.id) == b"before\nafter\n"
    assert again.guest.WaitProcess(container_id=b.id).status == 0
    again.RemoveContainer(container_id=b.id)
    again.close()
    # the fixture's client must be able to clean up
    fresh = machine.connect()
    client.__dict__.update(fresh.__dict__)


def test_no_byte_is_lost_over_restarts(machine, box, client):
    b = box("seq", "1", "100000").create().start()
    client.close()
    expected = "".join(f"{n}\n" for n in range(1, 100001)).encode()
    assert read_through_restarts(machine.connect, b.id, 6) == expected
    fresh = machine.connect()
    client.__dict__.update(fresh.__dict__)


def test_cpus_that_are_plugged_in(client):
    client.OnlineCPUMem(wait=False)
    with pytest.raises(RpcError) as info:
        client.OnlineCPUMem(wait=True, nb_cpus=1)
    assert info.value.code == codes.DEADLINE_EXCEEDED


def test_prepared_extras_are_bounded_and_checked(client):
    for name in ("", "../x", "a/b", "x" * 300, ".x"):
        with pytest.raises(RpcError) as info:
            client.guest.PrepareContainer(guest_pb2.PrepareContainerRequest(container_id=name))
        assert info.value.code == codes.INVALID_ARGUMENT


def test_hotplug_of_a_processor(machine, client):
    before = client.guest.GuestStatus().online_cpus
    pending = client.start("grpc.AgentService", "OnlineCPUMem", wait=True, nb_cpus=1, cpu_only=True)
    machine.qmp("device_add", driver="max-x86_64-cpu", id="cpu1", **{"socket-id": 1, "core-id": 0, "thread-id": 0})
    pending.result()
    assert client.guest.GuestStatus().online_cpus == before + 1


def test_hotplug_of_memory(machine, client, box):
    before = client.guest.GuestStatus().mem_total
    b = box("sleep", "100").create().start()
    machine.qmp("object-add", **{"qom-type": "memory-backend-ram", "id": "m1", "size": 128 << 20})
    machine.qmp("device_add", driver="pc-dimm", id="dimm1", memdev="m1")
    wait_for("the memory", lambda: (client.OnlineCPUMem(), client.guest.GuestStatus().mem_total > before)[1])
    assert client.guest.GuestStatus().mem_total == before + (128 << 20)
    # The limit of all containers together has grown along.
    assert box("dd", "if=/dev/zero", "of=/dev/null", "bs=130M", "count=1").run()[0] == 0
    assert client.ListProcesses(container_id=b.id, format="json").process_list == b"[1]"


def test_hotplug_of_a_disk(machine, box, client):
    b = box("sh", "-c", "dd if=/dev/xvdb bs=512 count=1 2>/dev/null | wc -c; cat /sys/block/*/serial")
    b.extras.block_devices.add(serial="plugged", container_path="/dev/xvdb", mode=0o660)
    client.guest.PrepareContainer(b.extras)
    pending = client.start("grpc.AgentService", "CreateContainer", container_id=b.id, exec_id=b.id, OCI=b.spec)
    time.sleep(0.3)
    (machine.folder / "plug.img").write_bytes(bytes(1 << 20))
    machine.qmp("blockdev-add", **{"driver": "raw", "node-name": "plug",
                                   "file": {"driver": "file", "filename": str(machine.folder / "plug.img")}})
    machine.qmp("device_add", driver="virtio-blk-pci", drive="plug", id="plugdev", bus="port0", serial="plugged")
    pending.result()
    b.start()
    assert b.finish()[1].startswith("512\n")


def test_hotplug_of_an_interface(machine, client):
    mac = "02:00:00:00:00:aa"
    pending = client.start("grpc.AgentService", "UpdateInterface", interface=types_pb2.Interface(
        name="eth7", hwAddr=mac, IPAddresses=[types_pb2.IPAddress(address="10.7.0.1", mask="24")]))
    machine.qmp("netdev_add", type="user", id="n7", restrict=True)
    machine.qmp("device_add", driver="virtio-net-pci", netdev="n7", mac=mac, id="nic7", bus="port1", romfile="")
    pending.result()
    assert "eth7" in {i.name for i in client.ListInterfaces().Interfaces}
    client.guest.RemoveInterface(hw_addr=mac)
    machine.qmp("device_del", id="nic7")


def test_the_sandbox_ends_last(box, client):
    box("sleep", "100").create().start()
    client.DestroySandbox()
    assert not client.guest.ListAll().containers


# --- the root image ------------------------------------------------------------------------


def test_root_image(tmp_path, busybox_root):
    machine = Machine(tmp_path, image=True)
    try:
        client = machine.connect()
        machine.mount_share(client)
        base = Path(machine.copy_root(busybox_root, "base"))
        b = Box(client, base, ["sh", "-c", "cat /proc/self/mountinfo; hostname"])
        b.spec.Hostname = "inner"
        status, out, err = b.run()
        assert (status, out.splitlines()[-1], err) == (0, "inner", "")
        assert "erofs" not in out
        client.guest.Personalize(machine_id="0" * 31 + "7", entropy=b"x" * 32)
        client.RemoveContainer(container_id=b.id)
        assert not client.guest.GuestStatus().missing_kernel_features
    except BaseException:
        print(machine.log())
        raise
    finally:
        machine.close()
