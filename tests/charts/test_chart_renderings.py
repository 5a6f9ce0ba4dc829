"""What the chart makes of several sets of values: as in golden/, and as Kubernetes' own schemas have it.

After a wanted change: EMOE_GOLDEN=write pytest tests/charts/test_chart_renderings.py, then look at the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import kubernetes_validate
import pytest
import values_sets
from support import charts

GOLDEN = Path(__file__).parent / "golden"
WITHOUT_SCHEMA = {"ServiceMonitor"}
"""Kinds of others' operators, of which the validator knows nothing."""


@pytest.mark.parametrize("name", values_sets.SETS)
def test_renderings_are_as_agreed(name: str) -> None:
    rendered, golden = charts.render_text(values_sets.SETS[name]), GOLDEN / f"{name}.yaml"
    if os.environ.get("EMOE_GOLDEN") == "write":
        golden.write_text(rendered)
    assert rendered == golden.read_text()


@pytest.mark.parametrize("name", values_sets.SETS)
def test_renderings_are_what_kubernetes_takes(name: str) -> None:
    manifests = charts.render(values_sets.SETS[name], crd=name == "defaults")
    for manifest in manifests:
        if manifest["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("name", values_sets.SETS)
def test_helm_lint_has_no_complaint(name: str, tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    values.write_text(charts.to_json(values_sets.SETS[name]))
    report = charts.run_helm("lint", "--strict", str(charts.CHART), f"--values={values}")
    assert "[WARNING]" not in report
    assert "[ERROR]" not in report


def test_the_type_stays_after_an_uninstall() -> None:
    (crd,) = charts.of_kind(charts.render(crd=True), "CustomResourceDefinition")
    assert crd["metadata"]["name"] == "moedeployments.emoe.dev"
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_type_is_left_out_when_another_release_brings_it() -> None:
    assert not charts.of_kind(charts.render(crd=False), "CustomResourceDefinition")


def test_every_manifest_has_the_standard_labels_and_the_common_ones() -> None:
    for manifest in charts.render(values_sets.EVERYTHING, crd=True):
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "emoe"
        assert labels["app.kubernetes.io/instance"] == charts.RELEASE
        assert labels["team"] == "serving"


def test_two_releases_in_different_namespaces_share_no_name() -> None:
    first, second = charts.render(release="blue"), charts.render(release="green")
    assert not {_identity(m) for m in first} & {_identity(m) for m in second}


def _identity(manifest: charts.Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def test_versions_of_chart_and_distribution_agree() -> None:
    chart, project = charts.chart_version(), charts.distribution_version()
    assert chart["appVersion"] == project
    assert chart["version"] == project


def test_old_clusters_are_refused() -> None:
    with pytest.raises(charts.HelmError, match="kubeVersion"):
        charts.run_helm("template", "emoe", str(charts.CHART), "--kube-version=1.29.9")


@pytest.mark.parametrize(
    ("values", "namespace"),
    [
        pytest.param({}, charts.NAMESPACE, id="everywhere"),
        pytest.param({"watch": {"namespaces": ["team-a"]}}, "team-a", id="where-the-operator-watches"),
    ],
)
def test_notes_say_what_to_do_next(values: dict[str, object], namespace: str, tmp_path: Path) -> None:
    given = tmp_path / "values.json"
    given.write_text(charts.to_json(values))
    notes = charts.run_helm(
        *("install", "emoe", str(charts.CHART), f"--namespace={charts.NAMESPACE}"),
        *("--dry-run=client", f"--values={given}"),
    )
    notes = notes[notes.index("NOTES:") :]
    assert f"kubectl apply -n {namespace} -f -" in notes
    assert f"kubectl get moed -n {namespace} demo" in notes
    assert "grpcurl -plaintext" in notes
    assert f"helm test -n {charts.NAMESPACE} emoe" in notes
