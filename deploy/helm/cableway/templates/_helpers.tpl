{{- define "cableway.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cableway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cableway.labels" -}}
{{ include "cableway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* The server's options, as a file: what the values say, and what the pod depends on. */}}
{{- define "cableway.config" -}}
{{- $pod := dict "server" (dict "host" "0.0.0.0" "port" 8080) "app" (dict "shutdown_timeout" (printf "%ds" (int .Values.drain.timeoutSeconds))) -}}
{{- mergeOverwrite (deepCopy .Values.config) $pod | toYaml -}}
{{- end -}}
