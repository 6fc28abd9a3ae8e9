{{/*
Names are fixed, not made of the release's: the operator watches the whole cluster, two would decide against each other,
and Helm refuses a second release whose cluster role belongs to the first.
*/}}

{{- define "ortolan.labels" -}}
app.kubernetes.io/name: ortolan
app.kubernetes.io/part-of: ortolan
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Also the selector of the Deployment, which cannot be changed later. */}}
{{- define "ortolan.selector" -}}
app.kubernetes.io/name: ortolan
{{- end }}

{{/* Takes (list image appVersion). */}}
{{- define "ortolan.image" -}}
{{- $image := first . -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (last .) }}
{{- end -}}
{{- end }}

{{/* What monitors say about an endpoint; takes one of them. The labels of a model are its own: honorLabels. */}}
{{- define "ortolan.endpoint" -}}
- port: operations
  path: /metrics
  honorLabels: true
  {{- with .interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
{{- end }}
