"""Processes that begin with torch and the stages already loaded, which takes seconds: `run` as `subprocess.run`.

One process loads everything and then only forks: for each command a child with the command's arguments, folder,
variables, standard streams and default signal handlers, which is what `python -m circuitcli` or `python -c` would start
from. What depends on variables that libraries read at their import (`AT_IMPORT`), on what is imported, or on memory,
starts processes of its own.
"""

import array
import atexit
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

AT_IMPORT = (
    "HF_",
    "HUGGING",
    "TRANSFORMERS_",
    "TRITON_",
    "MALLOC_",
    "GLIBC_",
    "OMP_",
    "MKL_",
    "PYTHON",
    "LD_",
)
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# Set to what this file makes of it, and no matter to a process that has its modules.
NO_MATTER = ("PYTHONPATH", "PYTHONHASHSEED")
CLIENT = """#!{python} -IS
import array, os, socket, sys, json
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
asked = json.dumps({{"words": ["-m", "circuitcli", *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ)}})
link.sendmsg([asked.encode() + b"\\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
answer = link.makefile()
answer.readline()
os._exit(int(answer.readline()) % 256)
"""


class Process:
    """A process that was begun: `wait` and `kill` as those of `subprocess.Popen`."""

    def __init__(self, link: socket.socket) -> None:
        self._answer = link.makefile()
        self.pid = int(self._answer.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal."""
        if self.returncode is None:
            waiting = threading.Thread(target=self._wait, daemon=True)
            waiting.start()
            waiting.join(timeout)
            if self.returncode is None:
                raise subprocess.TimeoutExpired("a process of the nursery", timeout or 0)
        return self.returncode

    def _wait(self) -> None:
        self.returncode = int(self._answer.readline())

    def kill(self) -> None:
        """End it if it has not ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


# Tells the processes of pytest where the nursery of the one that started them is.
SHARED = "TESTS_NURSERY"
_address: str | None = None


def address() -> str:
    """Where the nursery answers: that of the process of pytest that started this one, else one of its own."""
    global _address
    if _address is None:
        path = os.environ.get(SHARED) or begin()
        deadline = time.monotonic() + 300
        while not Path(path).exists():
            assert Path(path).parent.exists() and time.monotonic() < deadline, "the nursery did not start"
            time.sleep(0.02)
        _address = path
    return _address


def begin() -> str:
    """Start a nursery that ends with this process; returns at once where it will answer."""
    folder = tempfile.mkdtemp(prefix="nursery-")
    path = f"{folder}/socket"
    command = [sys.executable, str(Path(__file__)), path, str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=_environment())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(process.kill)
    return path


def _environment() -> dict[str, str]:
    """The variables of the nursery. A GPU that one process has asked for is of no use to those that it forks."""
    return os.environ | {"OMP_NUM_THREADS": "1", **NO_GPU}


def client(path: Path) -> None:
    """Write a program that does what `circuit` does, for a shell."""
    path.write_text(CLIENT.format(python=sys.executable, address=address()))
    path.chmod(0o755)


def start(words: Sequence[str], *, cwd: Path, env: Mapping[str, str], streams: Sequence[int]) -> Process:
    """Begin ``python WORDS``: -m MODULE ... or -c PROGRAM ...; streams: descriptors of its stdin, stdout and stderr."""
    link = socket.socket(socket.AF_UNIX)
    link.connect(address())
    asked = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)})
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
    # Variables may be longer than one message takes.
    data = asked.encode() + b"\n"
    link.sendall(data[link.sendmsg([data], rights) :])
    return Process(link)


def script(path: str, *arguments: str) -> list[str]:
    """What `run` and `start` take for ``python PATH ARGUMENTS``."""
    program = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return ["-c", program, path, *arguments]


def module(name: str) -> list[str]:
    """The beginning of what `run` and `start` take for ``python -m NAME ARGUMENTS``."""
    return [
        "-c",
        "import runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)",
        name,
    ]


def run(
    words: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess:
    """``python WORDS`` to its end, with what it printed; without ``input`` there is nothing to read."""
    env = dict(os.environ if env is None else env)
    if differs(env):
        return run_anew(words, cwd=cwd, env=env, input=input, timeout=timeout)
    with _given(input) as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = start(words, cwd=cwd, env=env, streams=[given, out.fileno(), error.fileno()])
        try:
            process.wait(timeout)
        finally:
            process.kill()
        for stream in (out, error):
            stream.seek(0)
        told = [stream.read().decode() for stream in (out, error)]
    return subprocess.CompletedProcess(list(words), process.returncode, *told)


def run_anew(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], input: str | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess:
    """The same in a process that loads everything for itself."""
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=timeout, **source)


@contextlib.contextmanager
def _given(text: str | None) -> Iterator[int]:
    """The descriptor of a pipe with the text in it; without one there is nothing to read."""
    if text is None:
        with Path(os.devnull).open("rb") as nothing:
            yield nothing.fileno()
        return
    end, begin = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(begin, "wb") as stream:
            stream.write(text.encode())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield end
    finally:
        os.close(end)
        writer.join()


def differs(env: Mapping[str, str]) -> bool:
    """Whether libraries would be loaded in another way with these variables than they were in the nursery."""
    own = _environment()
    names = {name for name in {*env, *own} if name.startswith(AT_IMPORT)} - set(NO_MATTER)
    return any(env.get(name) != own.get(name) for name in names)


def _serve(path: str, parent: int) -> None:
    try:
        _load()
    except BaseException:
        # Tells those who wait that there is nothing to wait for.
        shutil.rmtree(Path(path).parent)
        raise
    listener = socket.socket(socket.AF_UNIX)
    # The socket is there as soon as it takes requests.
    listener.bind(f"{path}.new")
    listener.listen(64)
    Path(f"{path}.new").rename(path)
    # Whoever started it may be killed.
    listener.settimeout(5)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == parent:
        try:
            link, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            link.settimeout(None)
            _attend(link)
            os._exit(0)
        link.close()
    shutil.rmtree(Path(path).parent, ignore_errors=True)


def _load() -> None:
    import importlib
    import pkgutil

    import accelerate
    import datasets
    import h5py
    import torch
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama

    import circuitcli
    import circuitcli.__main__

    assert all((accelerate, datasets, h5py, transformers))
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(circuitcli.__path__, "circuitcli."):
        if not module.name.endswith("__main__") and ".trackers." not in module.name:
            importlib.import_module(module.name)


def _attend(link: socket.socket) -> None:
    """Start one command, and tell its number and in the end its status."""
    data, rights, _, _ = link.recvmsg(2**16, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i")
    streams.frombytes(rights[0][2])
    while not data.endswith(b"\n"):
        data += link.recv(2**16)
    asked = json.loads(data)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process == 0:
        link.close()
        _become(asked, streams)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(BrokenPipeError):
        link.sendall(f"{process}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        link.sendall(f"{status}\n".encode())


def _become(asked: dict[str, Any], streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(os.fdopen(number, mode, closefd=False), encoding="utf-8", errors=errors)
        for number, mode, errors in ((0, "rb", "strict"), (1, "wb", "strict"), (2, "wb", "backslashreplace"))
    )
    os.environ.clear()
    os.environ.update(asked["env"] | NO_GPU)
    os.chdir(asked["cwd"])
    status = 1
    try:
        status = _exit_status(asked["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(status)


def _exit_status(words: list[str]) -> int:
    kind, what, *arguments = words
    try:
        if kind == "-c":
            sys.argv = ["-c", *arguments]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        else:
            assert (kind, what) == ("-m", "circuitcli"), words
            from circuitcli.__main__ import main

            sys.argv = ["circuit", *arguments]
            sys.exit(main())
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Of a process in the background, Ctrl-C would be ignored in all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    _serve(sys.argv[1], int(sys.argv[2]))
