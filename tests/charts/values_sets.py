"""Sets of values that the chart's tests render: each shows what no other does."""

from __future__ import annotations

from typing import Any

DIGEST = "sha256:" + "0123456789abcdef" * 4

DEFAULTS: dict[str, Any] = {}

NAMESPACED: dict[str, Any] = {
    "fullnameOverride": "moe",
    "watch": {"namespaces": ["team-a", "team-b"]},
    "operator": {"serviceAccount": {"create": False, "name": "ours"}},
    "rbac": {"aggregate": False},
    "networkPolicy": {"extraEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]},
}

EVERYTHING: dict[str, Any] = {
    "commonLabels": {"team": "serving"},
    "image": {
        "pullPolicy": "Always",
        "pullSecrets": ["registry"],
        "operator": {"registry": "registry.example.com:5000", "tag": "1.2.3"},
        "control": {"digest": DIGEST},
        "worker": {"registry": "", "tag": "1.2.3"},
    },
    "operator": {
        "replicas": 2,
        "logFormat": "text",
        "logLevel": "debug",
        "podAnnotations": {"example.com/note": "it's here"},
        "podLabels": {"tier": "control"},
        "serviceAccount": {"annotations": {"example.com/role": "operator"}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "system-cluster-critical",
        "extraEnv": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_on"}],
    },
    "workloads": {
        "proxy": {
            "http": "http://proxy.example.com:3128",
            "https": "http://user:it's$(HOME)@proxy.example.com:3128",
            "noProxy": ".svc,10.0.0.0/8",
        },
        "caBundle": {"configMap": "roots", "key": "roots.pem"},
        "hfEndpoint": "https://hub.example.com",
        "hostPaths": ["/mnt/models", "/var/lib/models"],
        "networkPolicies": False,
        "resources": {
            "scheduler": {"requests": {"cpu": "1"}},
            "loader": {"limits": {"memory": "4Gi"}},
            "predictor": {"requests": {"memory": "1Gi"}},
        },
    },
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}]
    },
    "metrics": {
        "enabled": True,
        "port": 9090,
        "serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
    },
    "tracing": {"endpoint": "http://collector.observability:4317"},
    "tests": {"timeoutSeconds": 120},
}

SETS = {"defaults": DEFAULTS, "namespaced": NAMESPACED, "everything": EVERYTHING}
