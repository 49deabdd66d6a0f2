"""``docker run`` end to end, by a docker daemon of the benchmark's own."""

from __future__ import annotations

from bench import measure as timing
from bench.contenders import KATA, Contender
from bench.figures import Section
from bench.world import SLEEP, World
from harness.dockerd import IMAGE, Docker
from harness.runtime import Runtime

TITLE = "docker run, exec and rm, end to end"


def measure(world: World, section: Section) -> None:
    who = [one for one in (*world.controls, world.template(), world.pool(1)) if one.space < 0]
    if len(who) < len(world.controls) + 1:
        section.note("crun cannot be used by docker on this host: its control groups are of both versions")
    names = {one.name: one.name.replace(" ", "-") for one in who}
    # runc is known to docker by itself.
    others = {names[one.name]: [one.path, *(["--kata-config", one.config] if one.config else [])]
              for one in who if one.name != "runc"}
    docker = Docker(Runtime(KATA, True), world.tag, world.run_dir, world.work_dir, others=others)
    world.stack.callback(docker.stop)
    docker.start(world.rootfs)
    env = {"DOCKER_CONFIG": str(docker.run_dir / "cfg")}
    for number in world.rounds(9, 60):
        for one in world.turns(number, who):
            def client(metric: str, *words: str, who: Contender = one) -> None:
                world.quiet()
                section.add(metric, who.name, timing.timed(docker.argv(*words), env).seconds)

            name = f"b{number}"
            client("docker run --rm true", "run", "--rm", "--runtime", names[one.name], IMAGE, "true")
            client("docker run -d", "run", "-d", "--runtime", names[one.name], "--name", name, IMAGE, *SLEEP)
            client("docker exec true", "exec", name, "true")
            client("docker rm -f", "rm", "-f", name)
