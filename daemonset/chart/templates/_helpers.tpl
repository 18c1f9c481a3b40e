{{/* A file of the kustomizations, in the namespace of the release. */}}
{{- define "stoker.file" -}}
{{- $text := required (printf "the chart has no %s: are `base` and `overlays` links to the kustomizations?" .path) (.root.Files.Get .path) -}}
{{- $text
    | replace "namespace: stoker" (printf "namespace: %s" .root.Release.Namespace)
    | replace "system:serviceaccount:stoker:stoker" (printf "system:serviceaccount:%s:stoker" .root.Release.Namespace)
    | replace "stoker/stoker-controller" (printf "%s/stoker-controller" .root.Release.Namespace)
    | replace "stoker.stoker.svc" (printf "stoker.%s.svc" .root.Release.Namespace) -}}
{{- end -}}

{{/* A file of `volume`, for the kubelet's own directory. */}}
{{- define "stoker.volume" -}}
{{- include "stoker.file" . | replace "/var/lib/kubelet" .root.Values.volume.kubelet -}}
{{- end -}}

{{/* The agent's configuration, as text: the environment's own where nothing is laid over it. */}}
{{- define "stoker.configuration" -}}
{{- $path := ternary (printf "overlays/%s/settings/agent.yaml" .Values.environment) "base/agent.yaml" (ne .Values.environment "") -}}
{{- $text := include "stoker.file" (dict "root" . "path" $path) -}}
{{- if or .Values.config .Values.grpc.enabled .Values.volume.enabled .Values.controller.enabled -}}
{{- $whole := fromYaml $text -}}
{{- if .Values.grpc.enabled -}}
{{- $whole = include "stoker.file" (dict "root" . "path" "network/listen.yaml") | fromYaml | mergeOverwrite $whole -}}
{{- end -}}
{{- if .Values.volume.enabled -}}
{{- $whole = include "stoker.volume" (dict "root" . "path" "volume/volume.yaml") | fromYaml | mergeOverwrite $whole -}}
{{- end -}}
{{- $whole = mergeOverwrite $whole (deepCopy .Values.config) -}}
{{- if .Values.controller.enabled -}}
{{- /* Beside the rules that are there, for a list is laid over as a whole. */ -}}
{{- $wanted := include "stoker.file" (dict "root" . "path" "controller/access.yaml") | fromYaml -}}
{{- $access := get $whole "access" | default dict -}}
{{- $_ := set $access "rules" (concat (get $access "rules" | default list) $wanted.access.rules) -}}
{{- $_ := set $whole "access" $access -}}
{{- end -}}
{{- toYaml $whole -}}
{{- else -}}
{{- $text -}}
{{- end -}}
{{- end -}}

{{/* Fails, rather than change something else, where the base was changed. */}}
{{- define "stoker.must" -}}
{{- if ne .thing.name .name -}}
{{- fail (printf "base/daemonset.yaml: %s is no longer where the chart looks for it" .name) -}}
{{- end -}}
{{- end -}}
