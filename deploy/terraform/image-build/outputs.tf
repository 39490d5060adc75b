output "manifests" {
  description = "Kubernetes objects by kind and name, such as \"DaemonSet/tailscale-lifecycle-image\". Empty if enabled is false."
  value       = { for key, manifest in local.manifests : key => manifest if var.enabled }
}
