# A DaemonSet that builds the image on every cluster node, from the files of build/. The source of the module must be
# the whole repository, such as a Git URL. Apply the output with kubernetes_manifest or kubectl_manifest.

terraform {
  # The module also works with OpenTofu 1.7 or newer.
  required_version = ">= 1.7"
}

locals {
  build     = "${path.module}/../../../build"
  sources   = coalesce(var.sources, "${local.build}/sources.tar.gz")
  generator = one(yamldecode(file("${local.build}/kustomization.yaml")).configMapGenerator)

  content = {
    data       = { for name in local.generator.files : name => file("${local.build}/${name}") if name != "sources.tar.gz" }
    binaryData = { "sources.tar.gz" = filebase64(local.sources) }
  }
  config_map = merge(local.content, {
    apiVersion = "v1"
    kind       = "ConfigMap"
    metadata = {
      # The name contains a hash of the content, so the DaemonSet is rolled out if the sources or scripts have changed.
      name      = "${local.generator.name}-${substr(sha256(jsonencode(local.content)), 0, 10)}"
      namespace = local.generator.namespace
    }
  })

  documents = [
    for document in split("\n---\n", file("${local.build}/daemonset.yaml")) :
    yamldecode(replace(document, "name: ${local.generator.name}\n", "name: ${local.config_map.metadata.name}\n"))
  ]
  daemonset = one([for document in local.documents : document.spec if document.kind == "DaemonSet"])
  pod = merge(local.daemonset.template.spec, {
    for field in ["initContainers", "containers"] : field => [
      for container in local.daemonset.template.spec[field] : merge(container, {
        # Leave out empty values. The API server removes them, and kubernetes_manifest would report an inconsistent result.
        env = [
          for variable in concat(
            [for variable in container.env : variable if !contains(keys(var.environment), variable.name)],
            [for name, value in var.environment : { name = name, value = value }],
          ) : { for field, value in variable : field => value if value != "" }
        ]
      })
    ]
  })

  manifests = merge({ "ConfigMap/${local.generator.name}" = local.config_map }, {
    for document in local.documents : "${document.kind}/${document.metadata.name}" => merge(
      document,
      # Only the DaemonSet gets another spec. A conditional expression would need objects of the same type.
      { for kind in ["DaemonSet"] : "spec" => merge(local.daemonset, {
        template = merge(local.daemonset.template, { spec = local.pod })
      }) if kind == document.kind },
    )
  })
}
