variables {
  name         = "wiki"
  domain       = "example.com"
  image        = "docker.io/a/wiki:1.2"
  port         = 8080
  login_server = "https://headscale.example.com"
}

run "objects_of_a_workload" {
  command = plan

  assert {
    condition = length(setsubtract([
      "ConfigMap/wiki-lifecycle", "ConfigMap/wiki-nginx", "NetworkPolicy/wiki", "Role/wiki", "RoleBinding/wiki",
      "Service/wiki", "ServiceAccount/wiki", "StatefulSet/wiki",
    ], keys(output.manifests))) == 0
    error_message = "an object is missing: ${join(", ", keys(output.manifests))}"
  }
  assert {
    condition     = !contains([for manifest in output.manifests : manifest.kind], "Secret")
    error_message = "a Secret is among the objects, so Terraform's state would contain the node's private key"
  }
  assert {
    condition     = output.state_secret == { namespace = "services", name = "wiki-tailscale" }
    error_message = "state_secret is not the Secret services/wiki-tailscale"
  }
}

run "no_volume_by_default" {
  command = plan

  assert {
    condition     = !can(output.manifests["StatefulSet/wiki"].spec.volumeClaimTemplates)
    error_message = "there is a volume claim"
  }
}

run "volume_with_a_configured_claim_name" {
  command = plan
  variables {
    data_path    = "/wiki/data"
    claim_name   = "app-data"
    storage_size = "20Gi"
  }

  assert {
    condition     = one(output.manifests["StatefulSet/wiki"].spec.volumeClaimTemplates).metadata.name == "app-data"
    error_message = "the claim has another name"
  }
  assert {
    condition = contains([
      for mount in output.manifests["StatefulSet/wiki"].spec.template.spec.containers[0].volumeMounts :
      "${mount.name} ${mount.mountPath}"
    ], "app-data /wiki/data")
    error_message = "the claim is not mounted"
  }
}

run "disabled" {
  command = plan
  variables {
    enabled = false
  }

  assert {
    condition     = length(output.manifests) == 0 && output.state_secret == null
    error_message = "objects remain"
  }
}

run "without_vpn" {
  command = plan
  variables {
    tailscale_enabled = false
  }

  assert {
    condition = toset(keys(output.manifests)) == toset([
      "ConfigMap/wiki-nginx", "NetworkPolicy/wiki", "Service/wiki", "ServiceAccount/wiki", "StatefulSet/wiki",
    ])
    error_message = "unexpected objects: ${join(", ", keys(output.manifests))}"
  }
  assert {
    condition = !can(output.manifests["StatefulSet/wiki"].spec.template.spec.initContainers) && toset([
      for container in output.manifests["StatefulSet/wiki"].spec.template.spec.containers : container.name
    ]) == toset(["application", "nginx-tls"])
    error_message = "unexpected containers"
  }
  assert {
    condition = alltrue(flatten([
      for container in output.manifests["StatefulSet/wiki"].spec.template.spec.containers : [
        for mount in container.volumeMounts :
        contains(output.manifests["StatefulSet/wiki"].spec.template.spec.volumes[*].name, mount.name)
      ]
    ]))
    error_message = "a mounted volume does not exist"
  }
  assert {
    condition = length([
      for volume in output.manifests["StatefulSet/wiki"].spec.template.spec.volumes :
      volume if startswith(volume.name, "tailscale")
    ]) == 0
    error_message = "a volume of tailscale remains"
  }
  assert {
    condition     = !can(output.manifests["NetworkPolicy/wiki"].spec.ingress)
    error_message = "the NetworkPolicy allows connections that only the VPN needs"
  }
  assert {
    condition     = output.state_secret == null
    error_message = "state_secret is set, but no container uses it"
  }
}

run "settings_of_the_program" {
  command = plan
  variables {
    headscale_url = "https://headscale.example.com"
    settings      = { POLL_INTERVAL = "1m", SELF_HEAL = "false" }
    state_secret  = "tailscale-wiki"
  }

  assert {
    condition = output.manifests["ConfigMap/wiki-lifecycle"].data == merge(run.objects_of_a_workload.manifests["ConfigMap/wiki-lifecycle"].data, {
      HEADSCALE_URL  = "https://headscale.example.com"
      POLL_INTERVAL  = "1m"
      SELF_HEAL      = "false"
      TS_KUBE_SECRET = "tailscale-wiki"
    })
    error_message = "unexpected settings"
  }
  assert {
    condition     = output.manifests["Role/wiki"].rules[0].resourceNames == ["tailscale-wiki"]
    error_message = "tailscale has no access to its state Secret"
  }
  assert {
    condition     = output.manifests["ConfigMap/wiki-lifecycle"].metadata.name != run.objects_of_a_workload.manifests["ConfigMap/wiki-lifecycle"].metadata.name
    error_message = "the name of the ConfigMap stays the same when a setting changes, so the pod is not replaced"
  }
  assert {
    condition = contains(
      [for container in output.manifests["StatefulSet/wiki"].spec.template.spec.initContainers : container.envFrom[0].configMapRef.name if container.name == "cleanup"],
      output.manifests["ConfigMap/wiki-lifecycle"].metadata.name,
    )
    error_message = "cleanup does not use the settings"
  }
}

run "a_name_that_yaml_reads_as_a_boolean" {
  command = plan
  variables {
    name = "on"
  }

  assert {
    condition     = output.manifests["StatefulSet/on"].metadata.name == "on"
    error_message = "the name is not a string"
  }
}

run "a_hostname_of_more_than_63_characters" {
  command = plan
  variables {
    name   = "a-name-that-is-as-long-as-a-statefulset-can-have-it"
    domain = "services.example.com"
  }
  expect_failures = [output.manifests]
}

run "a_claim_with_the_name_of_another_volume" {
  command = plan
  variables {
    data_path  = "/wiki/data"
    claim_name = "tls"
  }
  expect_failures = [output.manifests]
}
