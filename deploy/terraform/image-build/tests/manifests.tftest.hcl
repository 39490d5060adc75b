# Any file can be the sources in these tests, because the module does not check the content.
variables {
  sources = "main.tf"
}

run "objects_of_the_build" {
  command = plan

  assert {
    condition = toset(keys(output.manifests)) == toset([
      "ConfigMap/tailscale-lifecycle-build", "DaemonSet/tailscale-lifecycle-image", "Namespace/tailscale-lifecycle",
    ])
    error_message = "unexpected objects: ${join(", ", keys(output.manifests))}"
  }
  assert {
    condition = contains(
      [for volume in output.manifests["DaemonSet/tailscale-lifecycle-image"].spec.template.spec.volumes : try(volume.configMap.name, "")],
      output.manifests["ConfigMap/tailscale-lifecycle-build"].metadata.name,
    )
    error_message = "the DaemonSet does not mount the sources"
  }
}

run "changed_sources" {
  command = plan
  variables {
    sources = "variables.tf"
  }

  assert {
    condition     = output.manifests["ConfigMap/tailscale-lifecycle-build"].metadata.name != run.objects_of_the_build.manifests["ConfigMap/tailscale-lifecycle-build"].metadata.name
    error_message = "the DaemonSet is not rolled out when the sources change"
  }
}

run "disabled" {
  command = plan
  variables {
    enabled = false
  }

  assert {
    condition     = length(output.manifests) == 0
    error_message = "objects remain"
  }
}

run "unknown_environment_variable" {
  command = plan
  variables {
    environment = { BASE = "debian" }
  }
  expect_failures = [var.environment]
}

run "missing_sources" {
  command = plan
  variables {
    sources = "missing.tar.gz"
  }
  expect_failures = [var.sources]
}
