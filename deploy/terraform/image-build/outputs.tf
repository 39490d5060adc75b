output "manifests" {
  description = "Kubernetes objects by kind and name, such as \"DaemonSet/tailscale-lifecycle-image\". Empty with enabled = false."
  value       = { for key, manifest in local.manifests : key => manifest if var.enabled }
}
