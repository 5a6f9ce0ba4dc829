{{/* What everything here is named after. */}}
{{- define "emoe.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "emoe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "emoe.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "emoe.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "emoe.operator" -}}
{{- include "emoe.fullname" . }}-operator
{{- end }}

{{- define "emoe.serviceAccount" -}}
{{- if .Values.operator.serviceAccount.create -}}
{{- default (include "emoe.operator" .) .Values.operator.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.operator.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* Labels of everything. What runs in pods adds its component. */}}
{{- define "emoe.labels" -}}
app.kubernetes.io/name: {{ include "emoe.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: emoe
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects the operator's pods. Never to change: a Deployment's selector cannot. */}}
{{- define "emoe.operatorSelector" -}}
app.kubernetes.io/name: {{ include "emoe.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* An image's full name: (dict "image" .Values.image.operator "chart" .Chart). */}}
{{- define "emoe.image" -}}
{{- $name := .image.repository -}}
{{- if .image.registry }}{{ $name = printf "%s/%s" .image.registry $name }}{{ end -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ default .chart.AppVersion .image.tag }}
{{- end -}}
{{- end }}

{{- define "emoe.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end -}}
{{- end }}

{{/* Both pods of this chart run as the images' own user, with nothing that they do not need. */}}
{{- define "emoe.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "emoe.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Environment for the loader of every MoEDeployment, as a map. Both spellings, for libraries differ. */}}
{{- define "emoe.podEnv" -}}
{{- $env := dict -}}
{{- with .Values.workloads.proxy.http }}{{ $_ := set $env "HTTP_PROXY" . }}{{ $_ := set $env "http_proxy" . }}{{ end -}}
{{- with .Values.workloads.proxy.https }}{{ $_ := set $env "HTTPS_PROXY" . }}{{ $_ := set $env "https_proxy" . }}{{ end -}}
{{- with .Values.workloads.proxy.noProxy }}{{ $_ := set $env "NO_PROXY" . }}{{ $_ := set $env "no_proxy" . }}{{ end -}}
{{- with .Values.workloads.hfEndpoint }}{{ $_ := set $env "HF_ENDPOINT" . }}{{ end -}}
{{- /* Kubernetes would put a variable's value for what looks like a reference to it. */ -}}
{{- toJson $env | replace "$(" "$$(" -}}
{{- end }}

{{/* Where the chart's test makes its MoEDeployment: a namespace that the operator watches. */}}
{{- define "emoe.testNamespace" -}}
{{- if .Values.watch.namespaces -}}
{{- first .Values.watch.namespaces -}}
{{- else -}}
{{- .Release.Namespace -}}
{{- end -}}
{{- end }}
