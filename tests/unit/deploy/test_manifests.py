"""The manifests in deploy/kubernetes are what Kubernetes accepts, and what our processes understand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
from pydantic import ValidationError

from gateway.settings import GatewaySettings
from policy.controller.settings import ControllerSettings
from regionjobs.settings import RunnerSettings
from runtime.config import ENV_PREFIX, Settings
from tests.support.manifests import FOLDER, OVERLAYS, build, load_all

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning:kubernetes_validate")

SETTINGS: dict[str, type[Settings]] = {
    "gateway": GatewaySettings,
    "controller": ControllerSettings,
    "runner": RunnerSettings,
}
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes; the first is the oldest that deploy/README.md asks for."""
SECRETS = {
    "REGIONGATE_DATABASE_URL": "postgresql://user:word@db:5432/regiongate?sslmode=verify-full",
    "REGIONGATE_ETCD_USERNAME": "user",
    "REGIONGATE_ETCD_PASSWORD": "word",
}
FIELDS = {"metadata.name": "{name}-0", "status.podIP": "10.16.0.7"}
IDCS = tuple(name for name in OVERLAYS if name != "controller")
RENDERED = {name: build(FOLDER / "overlays" / name) for name in OVERLAYS}


def of_kind(resources: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in resources if each["kind"] in kinds}


def workloads(overlay: str) -> dict[str, dict[str, Any]]:
    return of_kind(RENDERED[overlay], "Deployment", "StatefulSet")


EVERY_WORKLOAD = [(overlay, name) for overlay in OVERLAYS for name in workloads(overlay)]
in_every_workload = pytest.mark.parametrize(("overlay", "name"), EVERY_WORKLOAD)


def pod_of(overlay: str, name: str) -> dict[str, Any]:
    return workloads(overlay)[name]["spec"]["template"]["spec"]


def container_of(overlay: str, name: str) -> dict[str, Any]:
    (container,) = pod_of(overlay, name)["containers"]
    return container


def variables_of(overlay: str, name: str) -> dict[str, str]:
    """The environment of the process, with something of the right form for what only a cluster knows."""
    container, maps = container_of(overlay, name), of_kind(RENDERED[overlay], "ConfigMap")
    outer: dict[str, str] = {}
    for source in container["envFrom"]:
        outer |= maps[source["configMapRef"]["name"]]["data"]
    own: dict[str, str] = {}
    for each in container["env"]:
        match each.get("valueFrom", {}):
            case {"configMapKeyRef": {"name": map_name, "key": key}}:
                own[each["name"]] = maps[map_name]["data"][key]
            case {"fieldRef": {"fieldPath": path}}:
                own[each["name"]] = FIELDS[path].format(name=name)
            case {"secretKeyRef": _}:
                own[each["name"]] = SECRETS[each["name"]]
            case _:
                # As the kubelet does it: only what stands before, and nothing of envFrom.
                own[each["name"]] = re.sub(r"\$\((\w+)\)", lambda found: own[found[1]], each["value"])
    return outer | own


def settings_of(overlay: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for variable, value in variables_of(overlay, name).items():
        monkeypatch.setenv(variable, value)
    return SETTINGS[name]()


def test_there_are_two_idcs_and_controllers() -> None:
    assert OVERLAYS == ("controller", "fra", "sin")
    assert all(set(workloads(idc)) == {"gateway", "runner"} for idc in IDCS)
    assert set(workloads("controller")) == {"controller"}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_accept_every_resource(overlay: str, version: str) -> None:
    for resource in RENDERED[overlay]:
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_resource_that_is_wrong_would_be_found() -> None:
    wrong = workloads("fra")["runner"] | {"spec": workloads("fra")["runner"]["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_the_same_of_them(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl here")
    told = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)], capture_output=True, timeout=60, check=False
    )
    assert told.returncode == 0, told.stderr
    text = told.stdout.decode()
    for name in of_kind(RENDERED[overlay], "ConfigMap"):
        text = re.sub(rf"(name: {name})-[0-9a-z]{{10}}\b", r"\1", text)
    theirs = {(it["kind"], it["metadata"]["name"]): it for it in _parse(text)}
    ours = {(it["kind"], it["metadata"]["name"]): it for it in RENDERED[overlay]}
    assert ours == theirs


def _parse(text: str) -> list[Any]:
    from ruamel.yaml import YAML

    return list(YAML(typ="safe", pure=True).load_all(text))


@in_every_workload
def test_every_variable_is_a_setting_of_its_process(overlay: str, name: str) -> None:
    known = {f"{ENV_PREFIX}{field.upper()}" for field in SETTINGS[name].model_fields}
    given = {variable for variable in variables_of(overlay, name) if variable.startswith(ENV_PREFIX)}
    assert given <= known


@in_every_workload
def test_the_settings_parse(overlay: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(overlay, name, monkeypatch)
    assert settings.cluster == "prod"
    if name != "controller":
        assert settings.idc == overlay


@pytest.mark.parametrize("name", ["gateway", "runner"])
def test_a_process_without_its_database_does_not_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGIONGATE_DATABASE_URL", raising=False)
    for variable, value in variables_of("fra", name).items():
        if variable != "REGIONGATE_DATABASE_URL":
            monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError):
        SETTINGS[name]()


@pytest.mark.parametrize("idc", IDCS)
def test_each_gateway_has_a_name_of_its_own_that_others_can_find(idc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(idc, "gateway", monkeypatch)
    domain = f"gateways.{idc}.example.com"
    assert settings.gateway == f"{idc}-gateway-0"
    assert settings.advertise == f"gateway-0.{domain}:{settings.listen.port}"
    assert settings.peer_advertise == f"gateway-0.{domain}:{settings.peer_listen.port}"
    gateways = of_kind(RENDERED[idc], "Service")["gateways"]
    assert workloads(idc)["gateway"]["spec"]["serviceName"] == "gateways"
    assert gateways["spec"]["clusterIP"] == "None"
    assert gateways["metadata"]["annotations"]["external-dns.alpha.kubernetes.io/hostname"] == domain


@pytest.mark.parametrize("idc", IDCS)
def test_ports_are_where_the_settings_say_that_the_process_listens(idc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(idc, "gateway", monkeypatch)
    listens = {"clients": settings.listen.port, "peers": settings.peer_listen.port, "metrics": settings.metrics_port}
    assert {it["name"]: it["containerPort"] for it in container_of(idc, "gateway")["ports"]} == listens
    for service in of_kind(RENDERED[idc], "Service").values():
        for port in service["spec"]["ports"]:
            assert port["port"] == listens[port["targetPort"]]
    assert "peers" not in [it["name"] for it in of_kind(RENDERED[idc], "Service")["gateway"]["spec"]["ports"]]


@in_every_workload
def test_probes_ask_the_telemetry_server_where_it_listens(
    overlay: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, container = settings_of(overlay, name, monkeypatch), container_of(overlay, name)
    ports = {it["name"]: it["containerPort"] for it in container["ports"]}
    assert ports["metrics"] == settings.metrics_port
    assert settings.metrics_host != "127.0.0.1", "the kubelet could not ask"
    probes = {key: value["httpGet"] for key, value in container.items() if key.endswith("Probe")}
    assert probes["livenessProbe"]["path"] == "/healthz"
    assert "/readyz" in {it["path"] for it in probes.values()}
    assert all(it["path"] in {"/healthz", "/readyz"} and it["port"] == "metrics" for it in probes.values())


@in_every_workload
def test_a_process_may_drain_before_it_is_killed(overlay: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, pod = settings_of(overlay, name, monkeypatch), pod_of(overlay, name)
    before = container_of(overlay, name).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = settings.drain_timeout.total_seconds() if hasattr(settings, "drain_timeout") else 0
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 10


@in_every_workload
def test_nobody_is_root_or_writes_where_the_program_is(overlay: str, name: str) -> None:
    pod, container = pod_of(overlay, name), container_of(overlay, name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert {"requests", "limits"} <= container["resources"].keys()
    assert "cpu" not in container["resources"]["limits"]


@in_every_workload
def test_every_file_of_the_settings_is_mounted(overlay: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pod, container = pod_of(overlay, name), container_of(overlay, name)
    volumes = {each["name"] for each in pod["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert set(mounts.values()) == volumes
    files = [value for key, value in variables_of(overlay, name).items() if key.endswith("_FILE")]
    assert files
    for file in files:
        folder, _, file_name = file.rpartition("/")
        assert folder in mounts
        assert file_name in {"ca.crt", "tls.crt", "tls.key"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_selects_some(overlay: str) -> None:
    resources = RENDERED[overlay]
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in workloads(overlay).values()]
    selectors = [each["spec"]["selector"] for each in of_kind(resources, "Service").values()]
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind(resources, kind).values()]
    for each in of_kind(resources, "NetworkPolicy").values():
        selectors.append(each["spec"]["podSelector"].get("matchLabels", {}))
    for workload in workloads(overlay).values():
        for spread in workload["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            selectors.append(spread["labelSelector"]["matchLabels"])
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods), selector


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_that_are_referred_to_are_there(overlay: str) -> None:
    maps = set(of_kind(RENDERED[overlay], "ConfigMap"))
    for name in workloads(overlay):
        container = container_of(overlay, name)
        wanted = {each["configMapRef"]["name"] for each in container["envFrom"]}
        for each in container["env"]:
            if "configMapKeyRef" in each.get("valueFrom", {}):
                wanted.add(each["valueFrom"]["configMapKeyRef"]["name"])
        wanted |= {each["configMap"]["name"] for each in pod_of(overlay, name)["volumes"] if "configMap" in each}
        assert wanted <= maps
    assert {it["metadata"].get("namespace") for it in RENDERED[overlay] if it["kind"] != "Namespace"} == {
        f"regiongate-{overlay}"
    }


def test_ports_of_network_policies_are_ports_of_pods() -> None:
    for overlay in OVERLAYS:
        named = {it["name"] for name in workloads(overlay) for it in container_of(overlay, name)["ports"]}
        for policy in of_kind(RENDERED[overlay], "NetworkPolicy").values():
            for rule in policy["spec"].get("ingress", ()):
                assert {it["port"] for it in rule["ports"]} <= named


def test_peers_come_in_from_the_networks_of_the_cluster_alone() -> None:
    for idc in IDCS:
        (rule,) = of_kind(RENDERED[idc], "NetworkPolicy")["gateway-peers"]["spec"]["ingress"]
        assert rule["ports"] == [{"port": "peers"}]
        assert len(rule["from"]) == 3, "its own gateways, and two networks"
    (base,) = of_kind(build(FOLDER / "base" / "idc"), "NetworkPolicy")["gateway-peers"]["spec"]["ingress"]
    assert len(base["from"]) == 1, "closed to others until somebody says who they are"


def test_two_idcs_differ_in_nothing_but_their_name() -> None:
    def unnamed(idc: str) -> str:
        return repr(RENDERED[idc]).replace(f"'{idc}'", "IDC").replace(f"-{idc}'", "-IDC'").replace(f".{idc}.", ".IDC.")

    assert unnamed("fra") == unnamed("sin")


def test_the_number_of_processes_stands_in_one_place_each() -> None:
    for overlay in OVERLAYS:
        for resource in RENDERED[overlay]:
            told = [key for key in ("minAvailable", "minReplicas", "maxReplicas") if key in resource.get("spec", {})]
            assert not told, f"{resource['metadata']['name']}: scaling would have to change {told}, too"


def test_there_is_no_secret_inside() -> None:
    for path in FOLDER.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "PRIVATE KEY" not in text, path
            assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), f"{path}: a URL with a password"
    for overlay in OVERLAYS:
        assert not of_kind(RENDERED[overlay], "Secret")
        for name in workloads(overlay):
            for each in container_of(overlay, name)["env"]:
                is_secret = each["name"].endswith(("_PASSWORD", "_URL", "_USERNAME"))
                assert is_secret == ("secretKeyRef" in each.get("valueFrom", {})), each["name"]
            for source in container_of(overlay, name)["envFrom"]:
                data = of_kind(RENDERED[overlay], "ConfigMap")[source["configMapRef"]["name"]]["data"]
                assert not [key for key in data if key.endswith(("_PASSWORD", "_URL", "_USERNAME"))]


def test_the_example_of_a_job_loads_where_runners_look_for_it() -> None:
    runner = container_of("fra", "runner")
    assert runner["workingDir"] in {it["mountPath"] for it in runner["volumeMounts"]}
    # In a process of its own: jobs are registered by being imported.
    program = f"from regionjobs.loading import load; print(*(job.name for job in load({runner['args'][2:]!r})))"
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=FOLDER / "components" / "jobs",
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.stdout == "count_changes\n", told.stderr


def test_the_page_names_the_oldest_kubernetes_and_every_secret() -> None:
    page = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert f"| Kubernetes | {VERSIONS[0]} or newer" in page
    for overlay, name in EVERY_WORKLOAD:
        secrets = {each["secret"]["secretName"] for each in pod_of(overlay, name)["volumes"] if "secret" in each}
        for each in container_of(overlay, name)["env"]:
            if "secretKeyRef" in each.get("valueFrom", {}):
                secrets.add(each["valueFrom"]["secretKeyRef"]["name"])
        assert all(f"\n| `{secret}` | " in page for secret in secrets), secrets


def test_every_file_is_used_and_tidy() -> None:
    files = [path for path in FOLDER.rglob("*") if path.suffix in {".yaml", ".env"}]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert "\t" not in text, path
        assert all(line == line.rstrip() and len(line) <= 120 for line in text.splitlines()), path
        if path.suffix == ".yaml":
            assert load_all(path), path
        if path.name != "kustomization.yaml":
            assert path.name in (path.parent / "kustomization.yaml").read_text(encoding="utf-8"), f"{path} is unused"
