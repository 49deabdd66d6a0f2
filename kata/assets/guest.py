"""The guest's root tree: Debian's Python, the C libraries it needs, busybox, protobuf, the agent.

Nothing is installed or run from a package's scripts: files are taken out of
packages by path.  Python modules are stored compiled, without their sources.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from kata.assets.elf import MAGIC, Elf
from kata.errors import HostError
from kata.process import run

PACKAGES = (
    "libc6", "libexpat1", "libffi8", "libseccomp2", "zlib1g", "busybox-static",
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
)  # fmt: skip
PYTHON = "usr/bin/python3.11"
STDLIB = "usr/lib/python3.11"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
AGENT = "usr/lib/kata"  #: the agent and protobuf; /init puts it on sys.path
MODULE_LIST = "etc/kata/modules"  #: kernel modules to load at boot, one absolute path a line, in order

#: What of the standard library the agent imports, now or later, and what a traceback and the compilation of the
#: modules need.  To unpack a MB takes two million instructions of a boot, and memory of each guest.
MODULES = (
    "__future__ _collections_abc _compression _weakrefset abc codecs collections contextlib copyreg ctypes encodings"
    " enum functools genericpath gzip heapq importlib io keyword linecache operator os posixpath py_compile re reprlib"
    " signal stat string struct textwrap token tokenize traceback types typing warnings weakref zipimport"
    " _ctypes _typing mmap resource termios"
).split()
ENCODINGS = (
    "__init__ aliases ascii latin_1 utf_8 utf_16 utf_32 idna punycode raw_unicode_escape unicode_escape hex_codec cp437"
    " base64_codec undefined charmap iso8859_1 utf_8_sig"
).split()

#: Libraries that protobuf's extension is linked to without using a symbol of theirs; check_imports would tell.
LINKED_FOR_NOTHING = ("libstdc++.so.6", "libgcc_s.so.1")

#: Parts of protobuf that only its pure Python implementation needs, or that format text: with the C extension they
#: are imported and never used, which would take a third of a second of every boot.  The others choose between the two
#: implementations, warn, lock and check versions, and bring ``enum``, ``threading`` and ``warnings`` for that: another
#: third.  What they contain instead (classes of messages are made when they are first asked for):
HOLLOW = {
    "internal/python_message.py": "", "internal/python_edition_defaults.py": "", "descriptor_database.py": "",
    "text_encoding.py": "", "internal/well_known_types.py": "WKTBASES = {}\n",
    "internal/api_implementation.py": "from google._upb import _message as _c_module\ndef Type(): return 'upb'\n",
    "descriptor.py": "from google._upb._message import FileDescriptor\n_USE_C_DESCRIPTORS = True\n",
    "descriptor_pool.py": "from google._upb._message import default_pool\ndef Default(): return default_pool\n",
    # To make a class takes 50,000 instructions; MessageMeta returns the one that there is.
    "message_factory.py": """
from google._upb._message import MessageMeta
from google.protobuf.message import Message
def GetMessageClass(descriptor):
    return MessageMeta(descriptor.name, (Message,), {"DESCRIPTOR": descriptor, "__module__": descriptor.file.package})
""",
    "symbol_database.py": "def Default(): pass\n",
    # Messages and this module are of one version (protobuf_version), and the host has checked it.
    "runtime_version.py": "class Domain: PUBLIC = 0\ndef ValidateProtobufRuntimeVersion(*_): pass\n",
    "internal/builder.py": """
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass
def BuildMessageAndEnumDescriptors(file, module): pass
def BuildTopDescriptorsAndMessages(file, name, module):
    for enum in file.enum_types_by_name.values():
        module[enum.name] = EnumTypeWrapper(enum)
        for value in enum.values:
            module[value.name] = value.number
    messages = file.message_types_by_name
    def make(attribute):
        if attribute not in messages: raise AttributeError(f"module {name} has no attribute {attribute}")
        made = module[attribute] = GetMessageClass(messages[attribute])
        return made
    module["__getattr__"] = make
""",
}  # fmt: skip

DIRECTORIES = (
    "dev", "proc", "sys", "run", "tmp", "mnt", "root", "etc/kata", "var/lib", "var/tmp", "usr/bin", "usr/sbin",
    LIBRARIES, "usr/lib64", AGENT,
)  # fmt: skip
LINKS = {
    "bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "../run",
    "usr/lib64/ld-linux-x86-64.so.2": "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "usr/bin/python3": "python3.11", "usr/sbin/init": "../../init",
    "etc/mtab": "../proc/self/mounts",
}  # fmt: skip
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    # The agent writes these; where the root is read-only it binds copies over them.
    "etc/hostname": "localhost\n",
    "etc/machine-id": "",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

#: PID 1.  -I -S: no site, no environment, no current directory; -B: nothing to write back.
#: The kernel runs it by its first line, which costs no process, and passes it the words of the command line that
#: it does not know itself; the agent reads /proc/cmdline and takes no arguments here.
#: The collector has nothing to find among what is imported; the agent switches it on.
INIT = f"""#!/{PYTHON} -ISB
import gc, sys
gc.disable()
sys.argv[1:] = []
sys.path.insert(0, "/{AGENT}")
from kata_agent.__main__ import main
sys.exit(main())
"""

COMPILE = """
import os, py_compile, sys
tree, level = sys.argv[1], int(sys.argv[2])
for folder in sys.argv[3:]:
    for where, _, names in os.walk(os.path.join(tree, folder)):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(where, name)
                py_compile.compile(path, path + "c", dfile=path[len(tree):], doraise=True, optimize=level,
                                   invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
                os.unlink(path)
"""

IMPORT_ALL = """
import importlib, sys
sys.path[:0] = sys.argv[1:3]
for name in sys.argv[3:]:
    importlib.import_module(name)
"""


def agent_sources() -> Path:
    """Directory of the agent's package, found without importing it."""
    spec = importlib.util.find_spec("kata_agent")
    if spec is None or not spec.submodule_search_locations:
        raise HostError("the agent is not installed: there is no module kata_agent", "pip install kata-agent")
    return Path(spec.submodule_search_locations[0])


def sources_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the Python files below ``folder``."""
    digest = hashlib.sha256()
    for path in _python_files(folder):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def protobuf_version() -> str:
    """The version the host uses; the guest gets the same, so that both know the same messages."""
    return importlib.metadata.version("protobuf")


def _python_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def build_base(tree: Path, unpacked: Path, wheel: Path) -> None:
    """Make the root tree, all but the agent, in the empty directory ``tree``.

    :param unpacked: the files of :data:`PACKAGES`.
    :param wheel: protobuf.
    """
    for name in DIRECTORIES:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for link, target in LINKS.items():
        (tree / link).symlink_to(target)
    for name, text in FILES.items():
        (tree / name).write_text(text)
    _copy_python(tree, unpacked)
    _copy_protobuf(tree, wheel)
    _copy_busybox(tree, unpacked)
    _copy_libraries(tree, unpacked)
    (tree / "init").write_text(INIT)
    # Docstrings and asserts of others' modules are dropped.  The compiler's own modules come last.
    _guest_python(tree, COMPILE, str(tree), "2", f"{AGENT}/google")
    _guest_python(tree, COMPILE, str(tree), "2", STDLIB)
    _settle_modes(tree)


def build_agent(tree: Path, base: Path, agent: Path) -> None:
    """Add the agent's package to ``tree``, which may be another one than ``base``.

    :param agent: the agent's sources.
    :raise HostError: a module of it cannot be imported with the guest's
        interpreter: it, or a library it needs, is not in the guest.
    """
    for path in _python_files(agent):
        _copy(path, tree / AGENT / "kata_agent" / path.relative_to(agent))
    _guest_python(base, COMPILE, str(tree), "0", f"{AGENT}/kata_agent")
    folder = tree / AGENT
    names = []
    for path in sorted((folder / "kata_agent").rglob("*.pyc")):
        parts = path.relative_to(folder).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    _guest_python(base, IMPORT_ALL, str(folder), str(base / AGENT), *names)
    _settle_modes(tree)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _copy_python(tree: Path, unpacked: Path) -> None:
    _copy(unpacked / PYTHON, tree / PYTHON)
    stdlib = unpacked / STDLIB
    for path in sorted(stdlib.rglob("*")):
        within = path.relative_to(stdlib).parts
        module = within[-1] if within[0] == "lib-dynload" else within[0]
        if path.is_symlink() or not path.is_file() or module.partition(".")[0] not in MODULES:
            continue
        if path.parent.name == "encodings" and path.stem not in ENCODINGS:
            continue
        if path.suffix == ".py" or ".so" in path.suffixes:
            _copy(path, tree / STDLIB / path.relative_to(stdlib))


def _copy_protobuf(tree: Path, wheel: Path) -> None:
    skipped = tuple(f"google/protobuf/{name}" for name in (
        "compiler/", "testdata/", "util/", "descriptor_pb2", "json_format", "text_format", "struct_pb2", "type_pb2"))
    hollow = {f"google/protobuf/{name}": text for name, text in HOLLOW.items()}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("google/") and name.endswith((".py", ".so")) and not name.startswith(skipped):
                target = tree / AGENT / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(hollow[name].encode() if name in hollow else archive.read(name))


def _copy_busybox(tree: Path, unpacked: Path) -> None:
    binary = next((p for p in (unpacked / "bin/busybox", unpacked / "usr/bin/busybox") if p.exists()), None)
    if binary is None:
        raise HostError("the package busybox-static holds no bin/busybox")
    install_busybox(binary, tree)


def install_busybox(binary: Path, tree: Path) -> None:
    """Copy busybox into ``tree`` with a link for each of its applets."""
    _copy(binary, tree / "usr/bin/busybox")
    for line in run([binary, "--list-full"], timeout=30).text.split():
        name = line.rpartition("/")[2]
        folder = "usr/sbin" if "sbin/" in line else "usr/bin"
        link = tree / folder / name
        if name in ("busybox", "init", "linuxrc") or link.is_symlink() or link.exists():
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("busybox" if folder == "usr/bin" else "../bin/busybox")


def _copy_libraries(tree: Path, unpacked: Path) -> None:
    """Every shared library that a program or extension in the tree is linked to.

    An extension module whose libraries are in none of the packages (readline,
    ssl ...) is taken out instead.
    """
    for path in (tree / AGENT / "google").rglob("*.so"):
        path.write_bytes(Elf(path.read_bytes(), path.name).without_needed(LINKED_FOR_NOTHING))
    have = {p.name: p for folder in ("lib", "usr/lib") for p in (unpacked / folder).rglob("*.so*")}
    done: set[str] = set()

    def add(elf: Iterable[str]) -> bool:
        for name in elf:
            if name in done:
                continue
            if name not in have:
                return False
            done.add(name)
            data = have[name].read_bytes()
            (tree / LIBRARIES / name).write_bytes(data)
            (tree / LIBRARIES / name).chmod(0o755)
            if not add(Elf(data, name).needed()):
                return False
        return True

    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.parent.name == LIBRARIES.rsplit("/", 1)[-1]:
            continue
        with path.open("rb") as f:
            if f.read(4) != MAGIC:
                continue
        needed = Elf(path.read_bytes(), path.name).needed()
        if not add(needed):
            if path.parent.name != "lib-dynload":
                raise HostError(f"the guest's packages lack a library of {path.name}: it needs {', '.join(needed)}")
            path.unlink()
    add(["libseccomp.so.2"])  # loaded by ctypes


def _guest_python(tree: Path, program: str, *arguments: str) -> None:
    """Run a program with the guest's interpreter, through the guest's loader and libraries."""
    argv: list[str | Path] = [
        tree / LOADER,
        "--library-path",
        tree / LIBRARIES,
        tree / PYTHON,
        "-sSBP",
        "-c",
        program,
        *arguments,
    ]
    run(argv, env={"PYTHONHOME": str(tree / "usr"), "LD_BIND_NOW": "1", "PATH": "/usr/bin:/bin"}, timeout=300)


def _settle_modes(tree: Path) -> None:
    """Modes that do not hang on the builder's umask."""
    for path in [tree, *tree.rglob("*")]:
        if path.is_symlink():
            continue
        executable = (
            path.is_dir() or path.parent.name in ("bin", "sbin") or path.name in ("init",) or ".so" in path.name
        )
        path.chmod(0o755 if executable else 0o644)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)):
        if (tree / name).is_dir():
            (tree / name).chmod(mode)
