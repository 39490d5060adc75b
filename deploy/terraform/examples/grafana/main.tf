# Builds the image on every cluster node, and runs Grafana as in deploy/services/grafana, with the provider
# hashicorp/kubernetes. First create build/sources.tar.gz and the Secret for tailscale's state, which
# docs/move-from-terraform.md describes, and the Secret grafana-admin, which deploy/services/grafana describes.

terraform {
  required_version = ">= 1.7"
  required_providers {
    kubernetes = {
      source  = "hashicorp/kubernetes"
      version = ">= 2.35"
    }
  }
}

provider "kubernetes" {
  config_path = "~/.kube/config"
}

module "image_build" {
  source = "../../image-build"
}

# The namespace must exist before the objects in it.
resource "kubernetes_manifest" "image_build_namespace" {
  for_each = { for key, manifest in module.image_build.manifests : key => manifest if manifest.kind == "Namespace" }
  manifest = each.value
}

resource "kubernetes_manifest" "image_build" {
  for_each   = { for key, manifest in module.image_build.manifests : key => manifest if manifest.kind != "Namespace" }
  manifest   = each.value
  depends_on = [kubernetes_manifest.image_build_namespace]

  # A changed ConfigMap has a new name. Create it before the old one is deleted.
  lifecycle {
    create_before_destroy = true
  }
}

module "grafana" {
  source = "../../service"

  name         = "grafana"
  domain       = "example.com"
  login_server = "https://headscale.example.com"
  image        = "docker.io/grafana/grafana:13.2.0"
  port         = 3000
  probe_path   = "/api/health"
  data_path    = "/var/lib/grafana"
  run_as_user  = 472
  run_as_group = 0

  environment = {
    GF_SERVER_HTTP_ADDR              = "127.0.0.1"
    GF_SERVER_ROOT_URL               = "https://grafana.example.com"
    GF_SECURITY_ADMIN_PASSWORD__FILE = "/run/secrets/grafana/password"
  }
  application = {
    resources = {
      requests = { cpu = "100m", memory = "256Mi" }
      limits   = { memory = "1Gi" }
    }
    volumeMounts = [{ name = "admin", mountPath = "/run/secrets/grafana", readOnly = true }]
  }
  volumes = [{ name = "admin", secret = { secretName = "grafana-admin", defaultMode = 288 } }] # 288 is 0440 in octal
}

resource "kubernetes_manifest" "grafana" {
  for_each = module.grafana.manifests
  manifest = each.value

  lifecycle {
    create_before_destroy = true
  }
}
