output "manifests" {
  description = "Kubernetes objects by kind and name, such as \"StatefulSet/grafana\". Empty if enabled is false. The Secret in the output state_secret is not among them."
  value       = { for key, manifest in local.manifests : key => manifest if var.enabled }

  precondition {
    condition     = length("${var.name}.${var.domain}") <= 63
    error_message = "\"${var.name}.${var.domain}\" is longer than 63 characters, which Headscale does not accept. Use a shorter name."
  }

  precondition {
    condition     = var.data_path == null || !contains(local.changed_pod.volumes[*].name, var.claim_name)
    error_message = "The pod has another volume with the name \"${var.claim_name}\", which the claim would replace. Use another claim_name."
  }
}

output "state_secret" {
  description = "Namespace and name of the state Secret. Create this Secret, without data, before the pod starts: tailscale writes the node's private key into it. null if there is no Tailscale container."
  value       = var.enabled && var.tailscale_enabled ? { namespace = var.namespace, name = local.state_secret } : null
}
