"""Who may do what: the operator's account little, the pods of a resource nothing at all."""

from __future__ import annotations

import json
from typing import Any

import kube as k
import pytest
from release import OPERATOR_SELECTOR, SYSTEM_NAMESPACE, Release

pytestmark = pytest.mark.cluster

MUST_NOT = (
    ("get", "secrets"),
    ("list", "secrets"),
    ("watch", "secrets"),
    ("create", "secrets"),
    ("create", "pods"),
    ("delete", "pods"),
    ("create", "pods/exec"),
    ("get", "pods/log"),
    ("create", "pods/portforward"),
    ("create", "pods/eviction"),
    ("create", "serviceaccounts/token"),
    ("create", "daemonsets.apps"),
    ("create", "statefulsets.apps"),
    ("create", "jobs.batch"),
    ("get", "nodes"),
    ("patch", "nodes/status"),
    ("create", "namespaces"),
    ("delete", "namespaces"),
    ("create", "persistentvolumes"),
    ("create", "moedeployments.emoe.dev"),
    ("delete", "moedeployments.emoe.dev"),
    ("deletecollection", "deployments.apps"),
    ("create", "roles.rbac.authorization.k8s.io"),
    ("bind", "clusterroles.rbac.authorization.k8s.io"),
    ("escalate", "clusterroles.rbac.authorization.k8s.io"),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
    ("impersonate", "users"),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io"),
    ("create", "validatingwebhookconfigurations.admissionregistration.k8s.io"),
    ("create", "certificatesigningrequests.certificates.k8s.io"),
)
MUST = (
    ("watch", "moedeployments.emoe.dev"),
    ("patch", "moedeployments.emoe.dev/status"),
    ("patch", "deployments.apps"),
    ("patch", "services"),
    ("list", "pods"),
)

LOOK = """
import os
root = os.statvfs("/")
print(os.path.exists("/var/run/secrets/kubernetes.io"), os.getuid(), bool(root.f_flag & os.ST_RDONLY))
"""
"""Run inside a pod: whether there is a token, who it runs as, whether its root is read-only."""


@pytest.fixture(scope="module")
def account(release: Release) -> str:
    """The operator's user name."""
    pod = release.system.select("pods", OPERATOR_SELECTOR)[0]
    return f"system:serviceaccount:{SYSTEM_NAMESPACE}:{pod['spec']['serviceAccountName']}"


def may(kube: k.Kube, account: str, verb: str, resource: str) -> bool:
    resource, _, subresource = resource.partition("/")
    group = resource.partition(".")[2]
    attributes = {"namespace": kube.namespace, "verb": verb, "group": group, "resource": resource.partition(".")[0]}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": {**attributes, "subresource": subresource}},
    }
    answer = json.loads(kube.kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(review)))
    return bool(answer["status"]["allowed"])


def test_the_operator_may_do_nothing_that_it_need_not(kube: k.Kube, account: str) -> None:
    allowed = [f"{verb} {resource}" for verb, resource in MUST_NOT if may(kube, account, verb, resource)]
    assert allowed == []


def test_the_operator_may_do_what_it_must(kube: k.Kube, account: str) -> None:
    """So that the test above cannot pass for a wrong account."""
    refused = [f"{verb} {resource}" for verb, resource in MUST if not may(kube, account, verb, resource)]
    assert refused == []


def test_no_secret_is_read_even_with_the_operators_own_token(kube: k.Kube, account: str) -> None:
    name = account.rpartition(":")[2]
    token = k.run("kubectl", "create", "token", name, f"--namespace={SYSTEM_NAMESPACE}").strip()
    kube.kubectl("create", "secret", "generic", "hub", "--from-literal=HF_TOKEN=hidden")
    config = json.loads(k.run("kubectl", "config", "view", "--raw", "--minify", "--output=json"))
    server = config["clusters"][0]["cluster"]["server"]
    with pytest.raises(k.CommandError, match="error: 403"):
        k.run(
            *("curl", "--silent", "--show-error", "--fail", "--insecure", "--max-time", "20"),
            *("--header", f"Authorization: Bearer {token}"),
            f"{server}/api/v1/namespaces/{kube.namespace}/secrets/hub",
        )


def rules_of_ours() -> list[tuple[str, dict[str, Any]]]:
    found = json.loads(
        k.run("kubectl", "get", "clusterroles,roles", "--all-namespaces", "--output=json", "--selector=helm.sh/chart")
    )
    return [(k.name_of(role), rule) for role in found["items"] for rule in role.get("rules") or []]


def test_no_role_of_the_chart_has_a_wildcard(release: Release) -> None:
    rules = rules_of_ours()
    assert rules
    wild = [(name, rule) for name, rule in rules if any("*" in rule.get(key, []) for key in rule)]
    assert wild == []


def test_no_pod_of_a_resource_has_a_token_or_more_rights_than_it_needs(kube: k.Kube) -> None:
    """The namespace enforces the restricted standard: that these pods run at all is half of the test."""
    kube.apply(k.demo("bare"))
    kube.wait_ready("bare")
    for component in k.SERVICES:
        (pod,) = kube.pods("bare", component)
        look = (
            "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'), os.getuid(), os.access('/', os.W_OK))"
        )
        told = kube.kubectl("exec", k.name_of(pod), "--", "python", "-c", look)
        assert told.split() == ["False", "10001", "False"], component
    kube.delete("moed", "bare", "--wait=false")


def test_the_account_of_a_resource_may_do_nothing(kube: k.Kube) -> None:
    account = f"system:serviceaccount:{kube.namespace}:bare"
    allowed = [f"{verb} {resource}" for verb, resource in (*MUST, *MUST_NOT) if may(kube, account, verb, resource)]
    assert allowed == []
