{{/* The name that everything of a release has. */}}
{{- define "stackd.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What is cluster-wide also has the namespace of the release in its name. */}}
{{- define "stackd.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "stackd.name" .) -}}
{{- end -}}

{{- define "stackd.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{/* The Pod of `helm test`, which its policy lets in. */}}
{{- define "stackd.testSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end -}}

{{- define "stackd.labels" -}}
{{ include "stackd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "stackd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "stackd.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "stackd.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "stackd.keySecret" -}}
{{- default (printf "%s-api-key" (include "stackd.name" .)) .Values.apiKey.existingSecret -}}
{{- end -}}

{{- define "stackd.scheme" -}}
{{- if .Values.tls.existingSecret -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{- define "stackd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "stackd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Whether each server is a replica: with a database that several can use, for stacks that all of
them reach. */}}
{{- define "stackd.replica" -}}
{{- if and .Values.database.existingSecret (eq .Values.runtime "kubernetes") -}}true{{- end -}}
{{- end -}}

{{/* What no schema can say. */}}
{{- define "stackd.check" -}}
{{- if and (gt (int .Values.replicas) 1) (ne .Values.runtime "kubernetes") -}}
{{- fail "several replicas need the kubernetes runtime: stacks of another are known to one server only" -}}
{{- end -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.database.existingSecret) -}}
{{- fail "several replicas share a PostgreSQL database: set database.existingSecret" -}}
{{- end -}}
{{- if eq .Values.stacks.namespace .Release.Namespace -}}
{{- fail "stacks.namespace must not be the namespace of the release: what is denied to stacks would be denied to the server" -}}
{{- end -}}
{{- end -}}
