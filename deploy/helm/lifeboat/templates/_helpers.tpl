{{- define "lifeboat.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* A CronJob's name has 52 characters at most, and ends in -prune. */ -}}
{{- define "lifeboat.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else if contains (include "lifeboat.name" .) .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lifeboat.name" .) | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What never changes of a workload: selectors can't. */ -}}
{{- define "lifeboat.selector" -}}
app.kubernetes.io/name: {{ include "lifeboat.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "lifeboat.labels" -}}
{{ include "lifeboat.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lifeboat.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}
{{- end -}}

{{- define "lifeboat.ownConfig" -}}
{{- if not (or .Values.existingConfig.configMap .Values.existingConfig.secret) }}true{{ end -}}
{{- end -}}

{{- /* config.yaml: the values, and what other values imply. */ -}}
{{- define "lifeboat.config" -}}
{{- $c := deepCopy .Values.config -}}
{{- $http := default dict $c.http -}}
{{- if .Values.http.tokenSecret }}{{ $_ := set $http "tokenFile" "/etc/lifeboat/http-token" }}{{ end -}}
{{- if .Values.http.tlsSecret }}{{ $_ := set $http "certFile" "/etc/lifeboat/tls.crt" }}{{ $_ := set $http "keyFile" "/etc/lifeboat/tls.key" }}{{ end -}}
{{- $_ := set $c "http" $http -}}
{{- if .Values.deadMan.urlSecret }}{{ $_ := set $c "deadMan" (merge (dict "urlFile" "/etc/lifeboat/dead-man-url") (default dict $c.deadMan)) }}{{ end -}}
{{- $schedule := default dict $c.schedule -}}
{{- if and .Values.prune.enabled (not (hasKey $schedule "prune")) }}{{ $_ := set $c "schedule" (merge (dict "prune" "") $schedule) }}{{ end -}}
{{- toYaml $c -}}
{{- end -}}

{{- define "lifeboat.checkConfig" -}}
{{- if include "lifeboat.ownConfig" . -}}
{{- $_ := required "config.cluster: give the cluster's name, as lifeboat init did" .Values.config.cluster -}}
{{- if not .Values.config.stores }}{{ fail "config.stores: name at least one, such as {url: s3://bucket/prefix}" }}{{ end -}}
{{- if not .Values.config.recipients }}{{ fail "config.recipients: name at least one, or nobody could open a backup; lifeboat init prints it" }}{{ end -}}
{{- if ne (toString .Values.config.host.root) "/host" }}{{ fail "config.host.root: the pods see the host's files at /host" }}{{ end -}}
{{- if ne (toString .Values.config.stateDir) "/var/lib/lifeboat" }}{{ fail "config.stateDir: the pods have it at /var/lib/lifeboat; stateDir.hostPath says where that is on the node" }}{{ end -}}
{{- with dig "http" "listen" "" .Values.config }}{{ if not (regexMatch ":[0-9]+$" .) }}{{ fail "config.http.listen: give HOST:PORT with a number, such as :9478; probes and monitors need it" }}{{ end }}{{ end -}}
{{- if and (dig "http" "tokenFile" "" .Values.config) (not .Values.http.tokenSecret) (or .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled) }}{{ fail "config.http.tokenFile: Prometheus must send the token, too: name its Secret in http.tokenSecret instead" }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* Whether something below a host's folder is hidden from the pods. */ -}}
{{- define "lifeboat.hides" -}}
{{- range .Values.host.paths }}{{ if .hide }}true{{ end }}{{ end -}}
{{- end -}}

{{- /* The port of config.http.listen, empty if the server is off. */ -}}
{{- define "lifeboat.port" -}}
{{- $listen := dig "http" "listen" ":9478" .Values.config -}}
{{- if $listen }}{{ regexFind "[0-9]+$" $listen }}{{ end -}}
{{- end -}}

{{- /* The ports of config.stores[].s3.endpoint, one a line, but those that are open anyway. */ -}}
{{- define "lifeboat.storePorts" -}}
{{- $ports := list -}}
{{- range .Values.config.stores -}}
{{- $server := regexFind "^[a-z]+://[^/]+" (lower (toString (default "" (default dict .s3).endpoint))) -}}
{{- $port := regexFind ":[0-9]+$" $server | trimPrefix ":" -}}
{{- if and (not $port) (hasPrefix "http://" $server) }}{{ $port = "80" }}{{ end -}}
{{- if and $port (not (has $port (list "443" "2379"))) }}{{ $ports = append $ports $port }}{{ end -}}
{{- end -}}
{{- $ports | uniq | join "\n" -}}
{{- end -}}

{{- /* The address for probes: the one listened on, empty for the pod's own. */ -}}
{{- define "lifeboat.probeHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" (dig "http" "listen" ":9478" .Values.config) "" | trimPrefix "[" | trimSuffix "]" -}}
{{- if not (has $host (list "" "0.0.0.0" "::")) }}{{ $host }}{{ end -}}
{{- end -}}

{{- define "lifeboat.tls" -}}
{{- if or .Values.http.tlsSecret (dig "http" "certFile" "" .Values.config) }}true{{ end -}}
{{- end -}}

{{- define "lifeboat.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ include "lifeboat.port" .root | int }}
  {{- with include "lifeboat.probeHost" .root }}
  host: {{ . | quote }}
  {{- end }}
  {{- if include "lifeboat.tls" .root }}
  scheme: HTTPS
  {{- end }}
{{ toYaml .timing }}
{{- end -}}

{{- /* Sources of /etc/lifeboat that agents and the prune job share. */ -}}
{{- define "lifeboat.commonFiles" -}}
{{- if .Values.existingConfig.secret }}
- secret:
    name: {{ .Values.existingConfig.secret }}
    items:
      - {key: config.yaml, path: config.yaml}
{{- else }}
- configMap:
    name: {{ default (printf "%s-config" (include "lifeboat.fullname" .)) .Values.existingConfig.configMap }}
    items:
      - {key: config.yaml, path: config.yaml}
{{- end }}
{{- if .Values.trust.existingSecret }}
- secret:
    name: {{ .Values.trust.existingSecret }}
    items:
      - {key: {{ .Values.trust.key }}, path: trust}
{{- else }}
- configMap:
    name: {{ .Values.trust.existingConfigMap }}
    items:
      - {key: {{ .Values.trust.key }}, path: trust}
{{- end }}
{{- with .Values.s3CA.configMap }}
- configMap:
    name: {{ . }}
    items:
      - {key: {{ $.Values.s3CA.key }}, path: s3-ca.crt}
{{- end }}
{{- with .Values.extraFiles }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lifeboat.commonEnv" -}}
- name: GOMEMLIMIT
  value: {{ .Values.goMemLimit | quote }}
{{- if .Values.s3CA.configMap }}
- name: AWS_CA_BUNDLE
  value: /etc/lifeboat/s3-ca.crt
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
