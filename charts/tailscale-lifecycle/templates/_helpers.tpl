{{/* The labels that Helm recommends. Each object sets app.kubernetes.io/name itself. */}}
{{- define "tailscale-lifecycle.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tailscale-lifecycle
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The reference of an image: REPOSITORY:TAG@DIGEST. Takes a dict with repository, tag and digest. */}}
{{- define "tailscale-lifecycle.reference" -}}
{{ .repository }}{{ with .tag }}:{{ . }}{{ end }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}

{{/* The image of cleanup, dns-watch and prune. */}}
{{- define "tailscale-lifecycle.image" -}}
{{- $isLocal := hasPrefix "localhost/" .Values.image.repository -}}
{{- $tag := .Values.image.tag | default (ternary "latest" .Chart.AppVersion $isLocal) -}}
{{- $image := include "tailscale-lifecycle.reference" (merge (dict "tag" $tag) .Values.image) -}}
{{- if and .Values.build.enabled (ne $image "localhost/tailscale-lifecycle:latest") -}}
{{- fail (printf "build.enabled builds localhost/tailscale-lifecycle:latest, not %s. To use this image, set build.enabled=false." $image) -}}
{{- end -}}
{{ $image }}
{{- end }}

{{/* The value of a setting as text. Helm reads numbers as floats, and would write 1000000 as 1e+06. */}}
{{- define "tailscale-lifecycle.text" -}}
{{ if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/*
The data of a ConfigMap with settings. Settings with an empty value are ignored. Takes a dict with these keys:
- context: the root context
- defaults: settings over which all others take precedence
- settings: settings that take precedence over .Values.settings
- omit: the name of a setting in .Values.settings to leave out, or ""
*/}}
{{- define "tailscale-lifecycle.data" -}}
{{- $namespace := include "tailscale-lifecycle.headscaleNamespace" .context }}
{{- $data := dict "HEADSCALE_URL" (printf "http://headscale.%s.svc.cluster.local:8080" $namespace) }}
{{- range $settings := list .defaults (omit .context.Values.settings .omit) .settings }}
{{- range $name, $value := $settings }}
{{- $text := include "tailscale-lifecycle.text" $value }}
{{- if $text }}
{{- $_ := set $data $name $text }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $data }}
{{- end }}

{{/* Headscale's namespace. */}}
{{- define "tailscale-lifecycle.headscaleNamespace" -}}
{{ .Values.settings.HEADSCALE_NAMESPACE | default "headscale" }}
{{- end }}

{{/* The API version of the mutating policy. With auto: v1beta1 on Kubernetes 1.34 and 1.35, v1 on newer ones. */}}
{{- define "tailscale-lifecycle.policyVersion" -}}
{{- $version := .Values.inject.policyVersion -}}
{{- if and (eq $version "auto") (semverCompare "<1.34-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "Injection needs Kubernetes 1.36 or newer, or 1.34 or 1.35 with a beta feature enabled. This is Kubernetes %s. Set inject.enabled=false, and add the containers with `lifecycle inject` (docs/inject.md)." .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if eq $version "auto" -}}
{{- $version = ternary "v1beta1" "v1" (semverCompare "<1.36-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
admissionregistration.k8s.io/{{ $version }}
{{- end }}

{{/* The scripts of the build, as entries of a ConfigMap. */}}
{{- define "tailscale-lifecycle.buildScripts" -}}
{{- (.Files.Glob "files/*.{sh,conf}").AsConfig }}
{{- end }}

{{/* The name of the ConfigMap with the scripts and sources of the build. If these change, its hash changes. */}}
{{- define "tailscale-lifecycle.buildName" -}}
{{- $sources := .Files.Get "files/sources.tar.gz" -}}
{{- if not $sources -}}
{{- fail "The chart does not contain the sources of the image. Add them with `scripts/image --sources charts/tailscale-lifecycle/files/sources.tar.gz`, or use an image from a registry: set build.enabled=false, image.repository and image.tag." -}}
{{- end -}}
tailscale-lifecycle-build-{{ printf "%s%s" (include "tailscale-lifecycle.buildScripts" .) $sources | sha256sum | trunc 10 }}
{{- end }}
