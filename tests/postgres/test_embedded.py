"""The embedded PostgreSQL: made, found, brought back after a crash, shared and stopped."""

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
signal.pause()  # it lives until it is killed
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
    """Stops and removes what a test has started, wherever it is."""
    cluster = (data / "postgres").resolve()
    found = postmaster(cluster)
    if found is not None:
        kill(found.pid)
        shutil.rmtree(found.socket, ignore_errors=True)
    if (data / "postgres").is_symlink():
        shutil.rmtree(cluster.parent)


def kill(pid: int) -> None:
    """As a crash would, and not before it is dead."""
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


def test_a_path_with_everything_a_shell_would_trip_over(data: Path) -> None:
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


def test_no_tcp_and_a_socket_that_only_its_user_can_reach(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    server = start(data, options=QUICK)
    assert ask(server, "show listen_addresses") == ""
    assert server.socket.stat().st_mode & 0o777 == 0o700
    assert server.socket.stat().st_uid == server.cluster.stat().st_uid
    assert len(os.fsencode(server.socket / ".s.PGSQL.5432")) <= 103


def test_sqlalchemy_takes_the_dsn_and_a_database_may_have_any_name(data: Path) -> None:
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


def test_a_second_start_finds_the_data_in_under_two_seconds(data: Path) -> None:
    server = start(data, options=QUICK)
    ask(server, "create table kept as select 42 as answer")
    server.stop()
    begun = time.monotonic()
    again = start(data, options=QUICK)
    assert time.monotonic() - begun < 2
    assert again.socket == server.socket
    assert ask(again, "select answer from kept") == "42"


def test_a_server_whose_starter_was_killed_is_found_running(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starter = other_process(data)
    pid = int(first_line(starter))
    killed(starter)
    monkeypatch.setattr(tempfile, "tempdir", str(data))  # another TMPDIR than its starter's
    server = start(data)
    assert pid_of(server) == pid
    assert ask(server, "select 1") == "1"
    server.stop()
    assert not server.running()


def test_a_killed_server_comes_back_with_what_was_committed(data: Path) -> None:
    server = start(data, options=QUICK)
    ask(server, "create table kept as select 42 as answer")
    for _ in range(3):
        kill(pid_of(server))
        assert not server.running()
        server = start(data, options=QUICK)
        assert ask(server, "select answer from kept") == "42"


def test_a_process_of_the_killed_server_that_lives_on_is_waited_for(data: Path) -> None:
    """It holds the old shared memory, so that a new server refuses to start."""
    server = start(data, options=QUICK)
    psql = (server.binaries / "psql", "--quiet", "--dbname", server.dsn(), "--command", "select pg_sleep(60)")
    busy = subprocess.Popen(psql, stderr=subprocess.DEVNULL)
    find = "select max(pid) from pg_stat_activity where wait_event = 'PgSleep'"
    backend: int = asyncio.run(until(lambda: fetched(server, find)))
    os.kill(backend, signal.SIGSTOP)  # or else it would notice and go
    kill(pid_of(server))
    release = threading.Timer(1, os.kill, (backend, signal.SIGKILL))
    release.start()
    assert ask(start(data, options=QUICK), "select 1") == "1"
    assert "is still in use" in (server.cluster / "server.log").read_text()
    release.join()
    busy.wait()


@pytest.mark.parametrize("whose", ["the system's", "our own", "another server's"])
def test_a_process_number_that_was_used_again_does_not_stop_the_start(folder: Path, data: Path, whose: str) -> None:
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


@pytest.mark.parametrize(
    "spoiled", ["", "\0" * 64, "no number\n", "9" * 30 + "\n"], ids=["empty", "zeros", "text", "huge"]
)
def test_a_spoiled_lock_file_names_no_server_and_does_not_stop_the_start(data: Path, spoiled: str) -> None:
    server = start(data, options=QUICK)
    kill(pid_of(server))
    (server.cluster / "postmaster.pid").write_text(spoiled)
    assert postmaster(server.cluster) is None
    assert ask(start(data, options=QUICK, wait=10), "select 1") == "1"


def test_a_server_whose_data_was_removed_makes_way(data: Path) -> None:
    server = start(data, options=QUICK)
    old = pid_of(server)
    shutil.rmtree(data)
    fresh = start(data, options=QUICK)
    assert pid_of(fresh) != old
    assert ask(fresh, "select 1") == "1"


def test_two_processes_at_once_get_one_server(data: Path) -> None:
    processes = [other_process(data) for _ in range(4)]
    pids = [first_line(process) for process in processes]
    for process in processes:
        killed(process)
    assert len(set(pids)) == 1
    assert pids[0].isdigit()


def test_the_last_to_use_a_server_stops_it(data: Path) -> None:
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


def test_an_unfinished_first_start_is_begun_anew(data: Path) -> None:
    (data / "postgres.unfinished" / "base").mkdir(parents=True)
    (data / "postgres.unfinished" / "PG_VERSION").write_text("18\n")
    assert ask(start(data, options=QUICK), "select 1") == "1"


def test_a_wrong_option_is_reported_with_the_end_of_the_log(data: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"did not start:(?s:.*)invalid value for parameter \"max_connections\""):
        start(data, options={"max_connections": "many"})


def test_a_place_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedError, match="HEADWATER_DATA"):
        start(folder / "file" / "data")


def test_nothing_of_a_temporary_server_is_left() -> None:
    with temporary(options=QUICK) as server:
        assert ask(server, "show fsync") == "off"
    assert not server.running()
    assert not server.data.exists()
    assert not server.socket.exists()


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away, or run a server as another user")


@root
def test_a_socket_folder_of_somebody_else_is_not_used(data: Path) -> None:
    server = start(data, options=QUICK)
    server.stop()
    assert not server.socket.exists()
    server.socket.mkdir(mode=0o777)
    os.chown(server.socket, 65534, 65534)
    with pytest.raises(EmbeddedError, match="somebody else's"):
        start(data, options=QUICK)
    server.socket.rmdir()
    server.socket.symlink_to(data)
    with pytest.raises(EmbeddedError, match="somebody else's"):
        start(data, options=QUICK)
    server.socket.unlink()


@root
def test_data_where_the_server_cannot_go_is_kept_elsewhere(folder: Path) -> None:
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
