"""Files of deploy/: checked by the tools that read them, and against the code that they speak of.

Not run here: `docker build` and `docker compose up` (no Docker daemon), and no cluster admits the manifests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from qwen3_ranker_plugins.server.settings import load_settings

from ..server.conftest import DOCUMENTS, QUERY, Running, serving

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSION = "1.33"
OVERLAYS = ("gpu", "cpu")
KEY = "deploy-key-0123456789"


def tool(name: str, where: str) -> str:
    """Path of a program; without it the test is skipped."""
    return shutil.which(name) or pytest.skip(f"{name} is not installed: {where}")


def run(*command: str | Path) -> str:
    tool, *arguments = map(str, command)
    # Linters of the test group lie beside this Python, which need not be on the PATH.
    beside = Path(sys.executable).parent / tool
    done = subprocess.run(
        [str(beside) if beside.exists() else tool, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class _ComposeLoader(yaml.SafeLoader):
    """Knows Compose's `!reset`, which removes a value of another file."""


_ComposeLoader.add_constructor("!reset", lambda _loader, _node: None)


def read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), _ComposeLoader)  # noqa: S506 - derived from SafeLoader


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """The manifests of an overlay."""
    kubectl = tool("kubectl", "Kubernetes' client, whose `kubectl kustomize` renders without a cluster")
    return list(yaml.safe_load_all(run(kubectl, "kustomize", KUBERNETES / "overlays" / overlay)))


def manifests() -> list[dict[str, Any]]:
    """All manifests as they are written, without those of kustomize itself."""
    files = [*sorted(KUBERNETES.glob("**/*.yaml")), DEPLOY / "kserve" / "inferenceservice.yaml"]
    parsed = [read(path) for path in files]
    return [each for each in parsed if "kind" in each and "kustomize" not in each["apiVersion"]]


def one(kind: str) -> dict[str, Any]:
    (found,) = (each for each in manifests() if each["kind"] == kind)
    return found


@pytest.fixture(scope="module")
def guarded() -> Any:
    """A server with a key, which has ranked something."""
    with serving(keys=(KEY,)) as running:
        with running.client(headers={"X-API-Key": KEY}) as client:
            body = {"query": QUERY, "documents": DOCUMENTS}
            assert client.post("/rerank", json=body).status_code == 200
            assert client.post("/rerank", json={"query": " ", "documents": DOCUMENTS}).status_code == 422
        yield running


def test_yaml_files_are_tidy() -> None:
    run("yamllint", "--strict", "-c", DEPLOY / ".yamllint.yaml", DEPLOY)


def test_the_dockerfile_passes_hadolint() -> None:
    run("hadolint", DEPLOY / "Dockerfile")


def test_the_image_copies_what_exists_and_what_the_builder_is_sent() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    sources = [each for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for each in line.split()[:-1]]
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    assert sources
    assert sorted(sources) == sorted(sent)
    assert all((ROOT / each).exists() for each in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = ["README.md", *project["license-files"]]
    assert all(any(fnmatch(each, f"{source}*") for source in sources) for each in needed)
    extras = {extra for group in re.findall(r"/source\[([\w,]+)\]", text) for extra in group.split(",")}
    assert extras <= set(project["optional-dependencies"])


def test_the_image_has_the_users_and_targets_that_others_name() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    targets = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    compose, override = read(DEPLOY / "compose.yaml"), read(DEPLOY / "compose.cpu.yaml")
    for each in (compose, override):
        assert each["services"]["ranker"]["build"]["target"] in targets
    (user,) = set(re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE))
    pod = one("Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert (
        str(pod["runAsUser"])
        == user
        == str(one("InferenceService")["spec"]["predictor"]["securityContext"]["runAsUser"])
    )
    variables = dict(re.findall(r"(QWEN3_RANKER_\w+)=(\S+)", text))
    mounted = {f"/run/secrets/{name}" for name in compose["services"]["ranker"]["secrets"]}
    assert variables["QWEN3_RANKER_API_KEY_FILE"] in mounted


@pytest.mark.parametrize("file", ["compose.yaml", "compose.cpu.yaml", "../examples/compose.yaml"])
def test_compose_files_follow_the_specification(file: str, tmp_path: Path) -> None:
    plain = tmp_path / Path(file).name
    plain.write_text(yaml.safe_dump(read(DEPLOY / file)), encoding="utf-8")
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", plain)


def test_compose_mounts_folders_that_exist() -> None:
    services = read(DEPLOY / "compose.yaml")["services"].values()
    mounts = [each.split(":")[0] for service in services for each in service["volumes"] if each.startswith(".")]
    assert len(mounts) == 3
    assert all((DEPLOY / each).is_dir() for each in mounts)


def test_manifests_follow_kubernetes_schemas() -> None:
    checked = []
    for manifest in [*manifests(), *(each for overlay in OVERLAYS for each in rendered(overlay))]:
        if manifest["kind"] in {"InferenceService", "PrometheusRule", "ScaledObject", "ServiceMonitor"}:
            continue  # see test_kinds_of_operators_have_the_fields_that_are_needed
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
        checked.append(manifest["kind"])
    assert set(checked) >= {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PersistentVolumeClaim",
        "PodDisruptionBudget", "Service", "ServiceAccount",
    }  # fmt: skip


def test_kinds_of_operators_have_the_fields_that_are_needed() -> None:
    """Their schemas come with the operators; here only what ties them to our other files is compared."""
    secret = one("Deployment")["spec"]["template"]["spec"]["volumes"][1]["secret"]["secretName"]
    (endpoint,) = one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"]["name"] == secret
    assert endpoint["port"] in {each["name"] for each in one("Service")["spec"]["ports"]}
    assert one("ScaledObject")["spec"]["scaleTargetRef"]["name"] == one("Deployment")["metadata"]["name"]
    assert one("PrometheusRule")["spec"] == read(DEPLOY / "prometheus" / "alerts.yml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_what_belongs_together(overlay: str) -> None:
    kinds = {each["kind"]: each for each in rendered(overlay)}
    assert {each["metadata"]["namespace"] for each in kinds.values()} == {"qwen3-ranker"}
    pod = kinds["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    selectors = [
        kinds["Deployment"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"],
    ]
    assert all(each and each.items() <= labels.items() for each in selectors)
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    (container,) = pod["spec"]["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == set(volumes)
    maps = {each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "ConfigMap"}
    assert volumes["config"]["configMap"]["name"] in maps
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "gpu")
    assert container["image"].endswith(f"qwen3-ranker:{'cuda' if overlay == 'gpu' else 'cpu'}")
    dashboards = [each for each in rendered(overlay) if each["metadata"]["name"] == "qwen3-ranker-dashboard"]
    assert json.loads(dashboards[0]["data"]["qwen3-ranker.json"])["title"] == "Qwen3 reranker"


def test_a_pod_has_time_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = one("Deployment")["spec"]["template"]["spec"]
    settings = read(KUBERNETES / "base" / "config.yaml")
    pause = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > pause + settings["drain_timeout"]
    grace = read(DEPLOY / "compose.yaml")["services"]["ranker"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > settings["drain_timeout"]


def test_settings_of_the_cluster_are_read_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the image's environment and the pod's: an empty variable leaves a setting to the file."""
    container = one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    image = re.findall(r"(QWEN3_RANKER_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    for name, value in [*image, *((each["name"], each["value"]) for each in container["env"])]:
        monkeypatch.setenv(name, value)
    keys = tmp_path / "keys"
    keys.write_text(KEY, encoding="utf-8")
    config = tmp_path / "config.yaml"
    given = read(KUBERNETES / "base" / "config.yaml")
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert given["api_key_file"] == f"{mounts['keys']}/keys"
    assert container["args"] == ["--config", f"{mounts['config']}/config.yaml"]
    config.write_text(yaml.safe_dump(given | {"api_key_file": str(keys)}), encoding="utf-8")
    configuration = load_settings(config, {})
    assert configuration.api_keys == (KEY,)
    assert (configuration.settings.model, configuration.settings.host) == ("Qwen/Qwen3-Reranker-0.6B", "0.0.0.0")  # noqa: S104
    assert configuration.settings.port == container["ports"][0]["containerPort"]


def test_probes_and_prometheus_reach_a_server_with_keys(guarded: Running) -> None:
    """Probes have no key; Prometheus has one."""
    container = one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    probes.add(one("InferenceService")["spec"]["predictor"]["containers"][0]["readinessProbe"]["httpGet"]["path"])
    probes |= set(re.findall(r"127\.0\.0\.1:8001(/\w+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8")))
    assert probes == {"/health", "/ready"}
    for path in probes:
        assert httpx.get(f"{guarded.url}{path}").status_code == 200, path
    assert httpx.get(f"{guarded.url}/metrics").status_code == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{guarded.url}/metrics", headers=headers).status_code == 200


def _samples(guarded: Running) -> dict[str, set[str]]:
    """Name of a sample -> names of its labels, as Prometheus reads /metrics."""
    text = httpx.get(f"{guarded.url}/metrics", headers={"X-API-Key": KEY}).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _selectors(expression: Any) -> list[Any]:
    """All vector selectors of a parsed PromQL expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        return [expression]
    names = ("expr", "lhs", "rhs", "args", "vector_selector", "vs", "param")
    parts = [getattr(expression, name, None) for name in names]
    flat = [each for part in parts for each in (part if isinstance(part, list) else [part]) if each is not None]
    return [found for each in flat for found in _selectors(each)]


def _expressions() -> dict[str, str]:
    """Where it stands -> PromQL."""
    dashboard = json.loads((DEPLOY / "grafana/dashboards/qwen3-ranker.json").read_text(encoding="utf-8"))
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    for rule in read(DEPLOY / "prometheus" / "alerts.yml")["groups"][0]["rules"]:
        found[rule["alert"]] = rule["expr"]
    found["keda"] = one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    found["kserve"] = one("InferenceService")["spec"]["predictor"]["autoScaling"]["metrics"][0]["external"]["metric"][
        "query"
    ]
    found["hpa"] = one("HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    adapter = read(KUBERNETES / "components/hpa/prometheus-adapter-values.yaml")
    found["adapter"] = adapter["rules"]["custom"][0]["seriesQuery"]
    return {name: text.replace("$__rate_interval", "5m") for name, text in found.items()}


def test_panels_alerts_and_autoscalers_ask_for_metrics_that_the_server_has(guarded: Running) -> None:
    """Names and labels; a panel whose name is wrong stays empty without a word."""
    samples = _samples(guarded)
    added = {"job", "instance", "namespace", "pod", "le"}  # by Prometheus, and of histograms
    asked = set()
    for where, text in _expressions().items():
        selectors = _selectors(promql_parser.parse(text))
        assert selectors, where
        for selector in selectors:
            if selector.name == "up":  # Prometheus' own
                continue
            assert selector.name in samples, f"{where}: {selector.name}"
            asked.add(selector.name)
            matched = {each.name for each in selector.matchers.matchers}
            assert matched <= samples[selector.name] | added, f"{where}: {matched}"
    families = {re.sub(r"_(bucket|total|info)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|total|info)$", "", name) for name in samples if name.startswith("qwen3_ranker")}
    helpers = {name for name in ours if name.endswith(("_created", "_count", "_sum"))}
    shown_elsewhere = {"qwen3_ranker_request_seconds", "qwen3_ranker_truncated_tokens", "qwen3_ranker_build"}
    shown_elsewhere.add("qwen3_ranker_replica_documents_per_second")  # /health; the panel has the rate of the counter
    assert ours - helpers - families - shown_elsewhere == set()


def test_promtool_accepts_configuration_rules_and_their_tests() -> None:
    promtool = tool("promtool", "it comes with Prometheus")
    run(promtool, "check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yml")
    run(promtool, "check", "rules", DEPLOY / "prometheus" / "alerts.yml")
    run(promtool, "test", "rules", DEPLOY / "prometheus" / "alerts_test.yml")


def test_promtool_finds_no_fault_in_the_servers_metrics(guarded: Running) -> None:
    promtool = tool("promtool", "it comes with Prometheus")
    text = httpx.get(f"{guarded.url}/metrics", headers={"X-API-Key": KEY}).text
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    # Prometheus reserves colons for recording rules; vLLM names its gauges with one, and gateways read those names.
    names = {"vllm:num_requests_running", "vllm:num_requests_waiting"}
    faults = {line for line in done.stderr.splitlines() if line.strip()}
    assert faults == {f"{name} metric names should not contain ':'" for name in names}, done.stderr
