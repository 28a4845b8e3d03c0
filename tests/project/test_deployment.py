"""docker-compose.yml and the Dockerfile agree with the command line, the settings, the sources and the requirements.

`make check` holds docker-compose.yml to the schema of Compose.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater.cli import main
from headwater.config import VARIABLES

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["migrate", "serve", "work"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
RUNTIME = DOCKERFILE.split("\nFROM ")[-1]


def pins(name: str) -> dict[str, frozenset[str]]:
    """Return each pinned package with its hashes."""
    packages = re.split(r"^(?=[a-z])", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
    return {package.split()[0]: frozenset(re.findall(r"--hash=(\S+)", package)) for package in packages}


@pytest.mark.parametrize("name", OURS)
def test_each_service_runs_a_command_of_the_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, command, *options = SERVICES[name]["command"]
    assert (program, command, options) == ("headwater", name, ["--app", "bank.main:app"])
    with pytest.raises(SystemExit) as stopped:
        main([command, *options, "--help"])
    assert stopped.value.code == 0
    assert "--app" in capsys.readouterr().out


def test_each_service_waits_for_services_that_exist() -> None:
    awaited = {other for service in SERVICES.values() for other in service.get("depends_on", {})}
    assert awaited
    assert awaited <= SERVICES.keys()


@pytest.mark.parametrize("name", ["serve", "work"])
def test_the_health_check_of_each_server_is_valid_python(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    kind, program, option, code = check["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    assert "/health/ready" in code
    compile(code, "healthcheck", "exec")
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


def test_the_health_check_of_the_image_is_valid_python() -> None:
    check = re.search(r'^HEALTHCHECK .*CMD \["python", "-c", "(.*?)"\]$', DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert check is not None
    code = check[1].replace("\\\n", "")
    assert "/health/live" in code
    compile(code, "HEALTHCHECK", "exec")


def test_only_the_api_is_published_and_only_on_the_loopback_interface() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"serve"}
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["serve"]["ports"])


def test_no_service_runs_as_root() -> None:
    assert SERVICES["postgres"]["user"] == "postgres"
    assert not any("user" in SERVICES[name] for name in OURS)
    assert re.findall(r"^USER (.*)$", RUNTIME, re.MULTILINE) == ["headwater"]


def test_every_variable_that_is_set_is_a_setting() -> None:
    given = {variable for name in OURS for variable in SERVICES[name]["environment"]}
    given |= set(re.findall(r"\b(HEADWATER_[A-Z_]+)=", DOCKERFILE))
    assert {"DATABASE_URL", "HEADWATER_HOST"} <= given <= VARIABLES.keys()


def test_the_image_copies_files_that_exist() -> None:
    sources = re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.MULTILINE)
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    missing = [source for source in (*sources, *allowed) if not (ROOT / source).exists()]
    assert missing == []


def test_the_image_installs_the_versions_that_the_tests_ran_with() -> None:
    all_of_them, runtime = pins("requirements.txt"), pins("requirements-runtime.txt")
    assert len(runtime) > 20
    assert all(runtime.values())
    assert runtime.items() <= all_of_them.items()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-runtime.txt"])
def test_the_requirements_contain_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "index-url" not in text
    assert " @ " not in text
