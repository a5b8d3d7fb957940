{{/* Labels that select the controller's pods. */}}
{{- define "kubexen.selector" -}}
app.kubernetes.io/name: kubexen
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{/* Labels of every object of the chart. */}}
{{- define "kubexen.labels" -}}
app.kubernetes.io/name: kubexen
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: kubexen
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{/* User name of the controller's service account. */}}
{{- define "kubexen.controller.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:kubexen-controller
{{- end }}

{{/* The controller's command line. */}}
{{- define "kubexen.controller.arguments" -}}
- run
- --namespace=$(POD_NAMESPACE)
- --identity=$(POD_NAME)
- --listen=0.0.0.0:{{ .Values.controller.port }}
- --log-format={{ .Values.controller.logFormat }}
{{- with .Values.poolStore.endpoints }}
- --pool-store={{ join "," . }}
{{- end }}
{{- if and .Values.poolStore.endpoints .Values.poolStore.tlsSecret }}
- --pool-store-ca=/etc/kubexen/pool-store/ca.crt
- --pool-store-certificate=/etc/kubexen/pool-store/tls.crt
- --pool-store-key=/etc/kubexen/pool-store/tls.key
{{- end }}
{{- end }}

{{/* CEL: the request comes from a host's agent. */}}
{{- define "kubexen.agent.condition" -}}
request.userInfo.username.startsWith('system:serviceaccount:kubexen-host-') && request.userInfo.username.endsWith(':node-agent')
{{- end }}
