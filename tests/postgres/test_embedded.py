"""The embedded PostgreSQL: created, found, recovered after a crash, shared between processes, stopped."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support.waiting import until

from headwater.postgres.embedded import EmbeddedError, EmbeddedPostgres, start, temporary
from headwater.postgres.embedded.postmaster import is_dead, postmaster

# Shared memory in files of the data directory: what a killed server leaves goes with it.
QUICK = {"fsync": "off", "shared_buffers": "16MB", "dynamic_shared_memory_type": "mmap"}
STARTER = """
import signal, sys
from pathlib import Path
from headwater.postgres.embedded import start
from headwater.postgres.embedded.postmaster import postmaster
server = start(Path(sys.argv[1]), options={"fsync": "off", "shared_buffers": "16MB"})
print(postmaster(server.cluster).pid, flush=True)
signal.pause()  # until it is killed
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a server started by root can enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="headwater test ")).resolve()
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def data(folder: Path) -> Iterator[Path]:
    data = folder / 'it\'s a $HOME `of` "data"'
    yield data
    clean_up(data)


def clean_up(data: Path) -> None:
    """Stop and remove the server that a test has started."""
    cluster = (data / "postgres").resolve()
    found = postmaster(cluster)
    if found is not None:
        kill(found.pid)
        shutil.rmtree(found.socket, ignore_errors=True)
    if (data / "postgres").is_symlink():
        shutil.rmtree(cluster.parent)


def kill(pid: int) -> None:
    """Kill a process and wait for its end."""
    os.kill(pid, signal.SIGKILL)
    asyncio.run(until(partial(is_dead, pid)))


def pid_of(server: EmbeddedPostgres) -> int:
    found = postmaster(server.cluster)
    assert found is not None
    return found.pid


def ask(server: EmbeddedPostgres, sql: str, database: str = "postgres") -> str:
    return str(asyncio.run(fetched(server, sql, database)))


async def fetched(server: EmbeddedPostgres, sql: str, database: str = "postgres") -> Any:
    connection = await asyncpg.connect(server.dsn(database))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def other_process(data: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", STARTER, data], stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def test_a_data_path_may_hold_spaces_quotes_and_shell_characters(data: Path) -> None:
    server = start(data, options=QUICK)
    assert server.cluster == data / "postgres"
    assert ask(server, "show data_directory") == str(data / "postgres")
    assert ask(server, "show shared_buffers") == "16MB"
    assert ask(server, "show max_connections") == "100"
    server.stop()
    assert not server.running()


def test_text_is_utf_8_and_sorted_by_code_point(data: Path) -> None:
    server = start(data, options=QUICK)
    assert ask(server, "show server_encoding") == "UTF8"
    assert ask(server, "select string_agg(x, '' order by x) from unnest(array['ä', 'b', 'A', 'Z', 'a']) x") == "AZabä"
    assert ask(server, "select upper('ä')") == "Ä"


def test_the_server_has_no_tcp_port_and_a_socket_for_its_user_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    server = start(data, options=QUICK)
    assert ask(server, "show listen_addresses") == ""
    assert server.socket.stat().st_mode & 0o777 == 0o700
    assert server.socket.stat().st_uid == server.cluster.stat().st_uid
    assert len(os.fsencode(server.socket / ".s.PGSQL.5432")) <= 103


def test_sqlalchemy_accepts_the_dsn_of_a_database_with_any_name(data: Path) -> None:
    async def through_sqlalchemy(server: EmbeddedPostgres) -> str:
        url = make_url(server.dsn("a name/with? all & sorts")).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            name = await connection.scalar(text("select current_database()"))
        await engine.dispose()
        return str(name)

    server = start(data, options=QUICK)
    ask(server, 'create database "a name/with? all & sorts"')
    assert ask(server, "select current_database()", "a name/with? all & sorts") == "a name/with? all & sorts"
    assert asyncio.run(through_sqlalchemy(server)) == "a name/with? all & sorts"


def test_start_reports_its_steps_and_a_second_start_takes_under_two_seconds(data: Path) -> None:
    first: list[str] = []
    server = start(data, options=QUICK, report=first.append)
    assert [step for step in first if not step.startswith("copying")] == [
        f"creating the database in {data / 'postgres'}",
        "starting PostgreSQL",
    ]
    ask(server, "create table kept as select 42 as answer")
    server.stop()
    begun, second = time.monotonic(), list[str]()
    again = start(data, options=QUICK, report=second.append)
    assert time.monotonic() - begun < 2
    assert second == ["starting PostgreSQL"]
    third: list[str] = []
    start(data, options=QUICK, report=third.append)
    assert third == [], "it runs already"
    assert again.socket == server.socket
    assert ask(again, "select answer from kept") == "42"


@pytest.mark.kills
def test_start_finds_a_server_whose_starter_was_killed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starter = other_process(data)
    pid = int(first_line(starter))
    killed(starter)
    monkeypatch.setattr(tempfile, "tempdir", str(data))  # not the TMPDIR of its starter
    server = start(data)
    assert pid_of(server) == pid
    assert ask(server, "select 1") == "1"
    server.stop()
    assert not server.running()


@pytest.mark.kills
def test_a_killed_server_restarts_with_all_committed_data(data: Path) -> None:
    server = start(data, options=QUICK)
    ask(server, "create table kept as select 42 as answer")
    for _ in range(3):
        kill(pid_of(server))
        assert not server.running()
        server = start(data, options=QUICK)
        assert ask(server, "select answer from kept") == "42"


@pytest.mark.kills
def test_start_waits_for_a_remaining_process_of_a_killed_server(data: Path) -> None:
    """It holds the old shared memory, and a new server refuses to start."""
    server = start(data, options=QUICK)
    psql = (server.binaries / "psql", "--quiet", "--dbname", server.dsn(), "--command", "select pg_sleep(60)")
    busy = subprocess.Popen(psql, stderr=subprocess.DEVNULL)
    find = "select max(pid) from pg_stat_activity where wait_event = 'PgSleep'"
    backend: int = asyncio.run(until(lambda: fetched(server, find)))
    os.kill(backend, signal.SIGSTOP)  # otherwise it notices the end of the server, and ends
    kill(pid_of(server))
    release = threading.Timer(1, os.kill, (backend, signal.SIGKILL))
    release.start()
    assert ask(start(data, options=QUICK), "select 1") == "1"
    assert "is still in use" in (server.cluster / "server.log").read_text()
    release.join()
    busy.wait()


@pytest.mark.kills
@pytest.mark.parametrize("whose", ["the system's", "our own", "another server's"])
def test_start_ignores_a_lock_file_whose_process_id_was_reused(folder: Path, data: Path, whose: str) -> None:
    server = start(data, options=QUICK)
    kill(pid_of(server))
    lock = server.cluster / "postmaster.pid"
    rest = lock.read_text().splitlines()[1:]
    match whose:
        case "the system's":
            number = 1
        case "our own":
            number = os.getpid()
        case _:
            number = pid_of(start(folder / "other", options=QUICK))
    lock.write_text("\n".join([str(number), *rest]) + "\n")
    try:
        assert ask(start(data, options=QUICK, wait=10), "select 1") == "1"
    finally:
        clean_up(folder / "other")


@pytest.mark.kills
@pytest.mark.parametrize(
    "spoiled", ["", "\0" * 64, "no number\n", "9" * 30 + "\n"], ids=["empty", "zeros", "text", "huge"]
)
def test_start_ignores_a_damaged_lock_file(data: Path, spoiled: str) -> None:
    server = start(data, options=QUICK)
    kill(pid_of(server))
    (server.cluster / "postmaster.pid").write_text(spoiled)
    assert postmaster(server.cluster) is None
    assert ask(start(data, options=QUICK, wait=10), "select 1") == "1"


def test_start_replaces_a_server_whose_data_was_removed(data: Path) -> None:
    server = start(data, options=QUICK)
    old = pid_of(server)
    shutil.rmtree(data)
    fresh = start(data, options=QUICK)
    assert pid_of(fresh) != old
    assert ask(fresh, "select 1") == "1"


@pytest.mark.kills
def test_processes_that_start_at_once_share_one_server(data: Path) -> None:
    processes = [other_process(data) for _ in range(4)]
    pids = [first_line(process) for process in processes]
    for process in processes:
        killed(process)
    assert len(set(pids)) == 1
    assert pids[0].isdigit()


@pytest.mark.kills
def test_the_last_user_of_a_server_stops_it(data: Path) -> None:
    first, second = start(data, options=QUICK), start(data, options=QUICK)
    other = other_process(data)
    first_line(other)
    first.stop()
    first.stop()
    assert second.running()
    second.stop()
    assert second.running()
    killed(other)
    third = start(data, options=QUICK)
    third.stop()
    assert not third.running()


def test_start_repeats_an_unfinished_first_start(data: Path) -> None:
    (data / "postgres.unfinished" / "base").mkdir(parents=True)
    (data / "postgres.unfinished" / "PG_VERSION").write_text("18\n")
    assert ask(start(data, options=QUICK), "select 1") == "1"


def test_an_invalid_option_is_reported_with_the_end_of_the_log(data: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"did not start:(?s:.*)invalid value for parameter \"max_connections\""):
        start(data, options={"max_connections": "many"})


def test_the_error_for_an_unwritable_place_names_the_setting(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedError, match="HEADWATER_DATA"):
        start(folder / "file" / "data")


def test_a_temporary_server_leaves_no_files() -> None:
    with temporary(options=QUICK) as server:
        assert ask(server, "show fsync") == "off"
    assert not server.running()
    assert not server.data.exists()
    assert not server.socket.exists()


root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can change the owner of a folder, or run a server as another user"
)


@root
def test_start_refuses_a_socket_folder_of_another_user(data: Path) -> None:
    server = start(data, options=QUICK)
    server.stop()
    assert not server.socket.exists()
    server.socket.mkdir(mode=0o777)
    os.chown(server.socket, 65534, 65534)
    with pytest.raises(EmbeddedError, match="belongs to another user"):
        start(data, options=QUICK)
    server.socket.rmdir()
    server.socket.symlink_to(data)
    with pytest.raises(EmbeddedError, match="belongs to another user"):
        start(data, options=QUICK)
    server.socket.unlink()


@root
def test_data_is_kept_elsewhere_if_the_system_user_cannot_enter_its_folder(folder: Path) -> None:
    data = folder / "private" / ".headwater"
    data.parent.mkdir(mode=0o700)
    try:
        server = start(data, options=QUICK)
        assert server.cluster.is_relative_to("/var/lib/headwater")
        assert (data / "postgres").resolve() == server.cluster
        ask(server, "create table kept as select 42 as answer")
        server.stop()
        assert ask(start(data, options=QUICK), "select answer from kept") == "42"
        assert data.parent.stat().st_mode & 0o777 == 0o700
    finally:
        clean_up(data)


@root
def test_root_runs_an_ordinary_users_server_as_that_user(data: Path) -> None:
    server = start(data, options=QUICK)
    server.stop()
    for path in (server.cluster, *server.cluster.rglob("*")):
        os.chown(path, 12345, 12345)
    again = start(data, options=QUICK)
    assert again.socket.stat().st_uid == 12345
    assert ask(again, "select 1") == "1"
