"""The files for Docker, Compose, Kubernetes and systemd agree with the command line, the settings, the sources and each
other.

`make check` holds docker-compose.yml to the schema of Compose, and the manifests to those of Kubernetes.
"""

import re
import shutil
import subprocess
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater.cli import main
from headwater.cli.arguments import parser
from headwater.config import VARIABLES, Settings

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


def test_only_the_proxy_is_published_and_only_on_the_loopback_interface() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"proxy"}
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["proxy"]["ports"])


def test_every_service_of_ours_can_be_scaled() -> None:
    """A second container could have neither the same port of the machine nor the same name."""
    for name in OURS:
        assert not SERVICES[name].keys() & {"ports", "container_name", "hostname"}


def test_the_proxy_sends_requests_to_every_serve_that_is_ready() -> None:
    (mount,) = SERVICES["proxy"]["volumes"]
    source, target, mode = mount.split(":")
    assert (target, mode) == ("/usr/local/etc/haproxy/haproxy.cfg", "ro")
    proxy = (ROOT / source).read_text()
    assert re.search(r"^    server-template serve- \d+ serve:8000 check .*resolvers docker", proxy, re.MULTILINE)
    assert "option httpchk GET /health/ready" in proxy
    (port,) = SERVICES["proxy"]["ports"]
    assert port.endswith(":8000")
    assert "bind :8000" in proxy


def test_the_image_listens_within_its_container_only_unless_it_is_told() -> None:
    assert "HEADWATER_HOST=" not in DOCKERFILE
    assert {SERVICES[name]["environment"]["HEADWATER_HOST"] for name in OURS} == {"0.0.0.0"}


def test_no_service_runs_as_root() -> None:
    assert SERVICES["postgres"]["user"] == "postgres"
    assert SERVICES["proxy"]["user"] == "haproxy"
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


# Kubernetes ----------------------------------------------------------------------------------------------------------

MANIFESTS: dict[str, dict[str, Any]] = {
    f"{document['kind']} {document['metadata']['name']}": document
    for file in sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
}
PODS = {
    "migrate": MANIFESTS["Job headwater-migrate"]["spec"]["template"],
    "serve": MANIFESTS["Deployment headwater-serve"]["spec"]["template"],
    "work": MANIFESTS["Deployment headwater-work"]["spec"]["template"],
}


def container_of(name: str) -> dict[str, Any]:
    """Return the only container of a pod."""
    (container,) = PODS[name]["spec"]["containers"]
    return dict(container)


def test_there_are_manifests_for_each_process_and_one_address() -> None:
    assert MANIFESTS.keys() == {
        "Job headwater-migrate",
        "Service headwater",
        "PodDisruptionBudget headwater-serve",
        "Deployment headwater-serve",
        "Deployment headwater-work",
    }


@pytest.mark.parametrize("name", OURS)
def test_each_pod_runs_a_command_of_the_command_line_from_the_image_of_this_version(name: str) -> None:
    container = container_of(name)
    assert container["args"] == ["headwater", name, "--app", "bank.main:app"]
    assert container["image"] == f"headwater:{version('headwater')}"


@pytest.mark.parametrize("name", OURS)
def test_each_variable_of_a_pod_is_a_setting_and_the_password_is_a_secret(name: str) -> None:
    variables = {each["name"]: each for each in container_of(name)["env"]}
    assert variables.keys() <= VARIABLES.keys()
    assert "secretKeyRef" in variables["DATABASE_URL"]["valueFrom"]
    Settings.from_environment({name: str(each["value"]) for name, each in variables.items() if "value" in each})
    assert PODS[name]["spec"]["enableServiceLinks"] is False, "Kubernetes would set HEADWATER_PORT to an address"


@pytest.mark.parametrize("name", OURS)
def test_each_pod_runs_without_rights_and_within_limits(name: str) -> None:
    pod, container = PODS[name]["spec"], container_of(name)
    user = re.search(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert user is not None
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("name", ["serve", "work"])
def test_the_probes_ask_the_port_that_the_process_listens_on(name: str) -> None:
    container = container_of(name)
    variables = {each["name"]: each.get("value") for each in container["env"]}
    (port,) = container["ports"]
    assert (port["name"], str(port["containerPort"])) == ("http", variables["HEADWATER_PORT"])
    assert variables["HEADWATER_HOST"] == "0.0.0.0", "the probes come from outside the container"
    assert PODS[name]["metadata"]["annotations"]["prometheus.io/port"] == variables["HEADWATER_PORT"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/health/live", "port": "http"},
        "liveness": {"path": "/health/live", "port": "http"},
        "readiness": {"path": "/health/ready", "port": "http"},
    }


@pytest.mark.parametrize("name", ["serve", "work"])
def test_a_pod_has_longer_to_end_than_the_process_takes(name: str) -> None:
    pause = container_of(name).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pause + Settings().shutdown_seconds < PODS[name]["spec"]["terminationGracePeriodSeconds"]


def test_each_selector_finds_the_pods_of_its_process() -> None:
    for name in ("serve", "work"):
        labels = PODS[name]["metadata"]["labels"]
        assert MANIFESTS[f"Deployment headwater-{name}"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service headwater"]["spec"]["selector"] == PODS["serve"]["metadata"]["labels"]
    budget = MANIFESTS["PodDisruptionBudget headwater-serve"]["spec"]
    assert budget["selector"]["matchLabels"] == PODS["serve"]["metadata"]["labels"]


# systemd -------------------------------------------------------------------------------------------------------------

UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())


def unit(file: Path) -> ConfigParser:
    """Return a unit file; fail if a section or a key is there twice."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their capitals
    parser.read_string(file.read_text())
    return parser


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_each_unit_runs_a_command_of_the_command_line(file: Path) -> None:
    service = unit(file)["Service"]
    program, command, *options = service["ExecStart"].replace("%i", "8000").split()
    assert Path(program).name == "headwater"
    assert command == re.split(r"[-@.]", file.name)[1]
    parser().parse_args([command, *options])
    assert service["EnvironmentFile"] == "/etc/headwater/environment"
    assert service["DynamicUser"] == "yes"


@pytest.mark.parametrize("name", ["serve", "work"])
def test_systemd_waits_longer_for_the_end_than_the_process_takes(name: str) -> None:
    service = unit(ROOT / "deploy" / "systemd" / f"headwater-{name}@.service")["Service"]
    assert Settings().shutdown_seconds < float(service["TimeoutStopSec"])
    assert service["Restart"] == "always"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd")
@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_systemd_accepts_each_unit(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / file.name.replace("@", "@8000")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", file.read_text(), flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
