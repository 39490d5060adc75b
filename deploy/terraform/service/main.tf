# The objects of one workload, as scripts/new-service creates them: the pod has cleanup, tailscale, dns-watch, nginx and
# the application. The module uses no provider: apply its output with kubernetes_manifest or kubectl_manifest.

terraform {
  # The module also works with OpenTofu 1.7 or newer.
  required_version = ">= 1.7"
}

locals {
  state_secret = coalesce(var.state_secret, "${var.name}-tailscale")

  # The validation of the inputs refuses quotes, which would end strings in the templates.
  values = {
    name                = var.name
    namespace           = var.namespace
    domain              = var.domain
    image               = var.image
    lifecycle_image     = var.lifecycle_image
    port                = var.port
    probe_path          = var.probe_path
    data_path           = var.data_path != null ? var.data_path : ""
    claim_name          = var.claim_name
    storage_size        = var.storage_size
    state_secret        = local.state_secret
    login_server        = var.login_server
    headscale_namespace = var.headscale_namespace
    headscale_url       = coalesce(var.headscale_url, "http://headscale.${var.headscale_namespace}.svc.cluster.local:8080")
    headscale_user      = var.headscale_user
    vpn_prefixes        = join(",", var.vpn_prefixes)
    vpn_geo_entries     = join(" ", [for prefix in var.vpn_prefixes : "${prefix} 1;"])
  }

  # --- ConfigMaps -----------------------------------------------------------------------------------------------------

  config_maps = {
    for name, manifest in yamldecode(templatefile("${path.module}/configuration.yaml.tftpl", local.values)) :
    name => merge(manifest, { data = merge(manifest.data, name == "lifecycle" ? var.settings : {}) })
  }

  # The names contain a hash of the content, so Kubernetes replaces the pod when a setting changes. If Terraform changes
  # the StatefulSet before it creates the ConfigMap, the new pod starts as soon as the ConfigMap exists.
  config_map_names = {
    for name, manifest in local.config_maps :
    name => "${manifest.metadata.name}-${substr(sha256(jsonencode(manifest.data)), 0, 10)}"
  }
  configuration = {
    for name, manifest in local.config_maps :
    "ConfigMap/${manifest.metadata.name}" => merge(manifest, {
      metadata = merge(manifest.metadata, { name = local.config_map_names[name] })
    }) if var.tailscale_enabled || name == "nginx"
  }

  # --- Other objects --------------------------------------------------------------------------------------------------

  template = yamldecode(templatefile(
    "${path.module}/manifests.yaml.tftpl", merge(local.values, { configuration = local.config_map_names })
  ))

  workload = one([for manifest in local.template : manifest.spec if manifest.kind == "StatefulSet"])
  pod      = local.workload.template.spec

  # The names of containers and the kinds of objects that exist only with tailscale_enabled.
  only_with_tailscale = ["cleanup", "tailscale", "dns-watch", "Role", "RoleBinding"]

  template_application = one([for container in local.pod.containers : container if container.name == "application"])
  application = merge(var.application, {
    env = concat(
      [for variable in try(local.template_application.env, []) : variable if var.environment == null],
      # Leave out empty values. The API server removes them, and kubernetes_manifest would report an inconsistent
      # result.
      [for name, value in coalesce(var.environment, {}) : merge({ name = name }, value == "" ? {} : { value = value })],
      try(var.application.env, []),
    )
    securityContext = merge(
      local.template_application.securityContext,
      { for name, id in { runAsUser = var.run_as_user, runAsGroup = var.run_as_group } : name => id if id != null },
      try(var.application.securityContext, {}),
    )
    volumeMounts = concat(
      # Without data_path, the mount of the data volume has an empty path.
      [for mount in local.template_application.volumeMounts : mount if mount.mountPath != ""],
      try(var.application.volumeMounts, []),
    )
  })
  changed_pod = merge(local.pod, {
    initContainers = [
      for container in try(local.pod.initContainers, []) : container
      if var.tailscale_enabled || !contains(local.only_with_tailscale, container.name)
    ]
    containers = [
      for container in local.pod.containers :
      merge(container, [for fields in [local.application] : fields if container.name == "application"]...)
      if var.tailscale_enabled || !contains(local.only_with_tailscale, container.name)
    ]
    volumes = concat(
      [for volume in local.pod.volumes : volume if var.tailscale_enabled || !startswith(volume.name, "tailscale-")],
      var.volumes,
    )
  })

  # The specs that depend on inputs which the templates do not contain, by kind of object.
  specs = {
    for manifest in local.template : manifest.kind => merge(manifest.spec, {
      StatefulSet = {
        template = merge(local.workload.template, {
          spec = { for name, value in local.changed_pod : name => value if value != [] }
        })
        volumeClaimTemplates = [for claim in local.workload.volumeClaimTemplates : claim if var.data_path != null]
      }
      # The rules of the template allow connections to tailscale and dns-watch. An empty list denies all ingress.
      NetworkPolicy = { ingress = [for rule in try(manifest.spec.ingress, []) : rule if var.tailscale_enabled] }
    }[manifest.kind]) if contains(["StatefulSet", "NetworkPolicy"], manifest.kind)
  }

  manifests = merge(local.configuration, {
    for manifest in local.template : "${manifest.kind}/${manifest.metadata.name}" => merge(
      manifest,
      # Leave out empty lists, as the API server does.
      { for kind, spec in local.specs : "spec" => { for name, value in spec : name => value if value != [] } if kind == manifest.kind },
    ) if var.tailscale_enabled || !contains(local.only_with_tailscale, manifest.kind)
  })
}
