"""Writes the chart's CustomResourceDefinition from emoe.api, or checks that what is committed is what would be written.

python tools/crd.py generate
python tools/crd.py check
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from emoe.api.crd import build_crd

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "charts" / "emoe" / "templates" / "crd.yaml"
FRAME = """{{{{- if .Values.crds.install }}}}
# Made by tools/crd.py from services/emoe/api; change it there, then run: make crd
apiVersion: {api_version}
kind: {kind}
metadata:
  name: {name}
  annotations:
    # Resources outlive the chart: `helm uninstall` leaves them and their definition alone.
    helm.sh/resource-policy: keep
  labels:
    {{{{- include "emoe.labels" . | nindent 4 }}}}
{body}{{{{- end }}}}
"""


class _WholeDumper(yaml.SafeDumper):
    """Writes what occurs twice twice: anchors make a schema hard to read."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the parent's signature
        return True


def render() -> str:
    """A chart's template. SystemExit if a text in the schema would be taken for a template's action."""
    crd: dict[str, Any] = build_crd()
    body = yaml.dump({"spec": crd["spec"]}, Dumper=_WholeDumper, sort_keys=False, width=110, allow_unicode=True)
    if "{{" in body:
        sys.exit("the schema has '{{' in a text, which Helm would take for an action; word it otherwise")
    return FRAME.format(api_version=crd["apiVersion"], kind=crd["kind"], name=crd["metadata"]["name"], body=body)


def generate() -> None:
    TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
    TEMPLATE.write_text(render(), encoding="utf-8")


def check() -> None:
    where = TEMPLATE.relative_to(ROOT)
    if not TEMPLATE.is_file() or TEMPLATE.read_text(encoding="utf-8") != render():
        sys.exit(f"{where} is not what services/emoe/api gives; run: make crd")
    print(f"{where} is what services/emoe/api gives")


if __name__ == "__main__":
    actions = {"generate": generate, "check": check}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(actions)}}}")
    actions[sys.argv[1]]()
