variable "name" {
  description = "Name of the StatefulSet, and its hostname on the VPN: NAME.DOMAIN."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$", var.name))
    error_message = "name must start with a letter and contain only lower-case letters and digits, with hyphens between them, at most 52 characters."
  }
}

variable "domain" {
  description = "Domain of the DNS record (the setting DOMAIN_NAME)."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+$", var.domain))
    error_message = "domain must be a domain in lower case, such as example.com."
  }
}

variable "image" {
  description = "Image of the application, with its registry, and with a version tag, a digest, or both."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^([a-z0-9-]+\\.[a-z0-9.-]+(:[0-9]+)?|[a-z0-9-]+:[0-9]+|localhost)/[a-z0-9._/-]+(:[A-Za-z._-]*[0-9]+([._-][A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})$", var.image))
    error_message = "image must have a registry, a name, and a version tag or digest, such as docker.io/a/wiki:1.2, because a tag such as latest can later refer to another image."
  }
}

variable "port" {
  description = "Port of the application on 127.0.0.1. The application must listen there only."
  type        = number
  nullable    = false
  validation {
    condition     = var.port >= 1 && var.port <= 65535 && floor(var.port) == var.port
    error_message = "port must be a whole number from 1 to 65535."
  }
  validation {
    condition     = !contains([80, 443, 9002, 9003, 9004], var.port)
    error_message = "port must not be 80, 443, 9002, 9003 or 9004, which other containers of the pod use."
  }
}

variable "data_path" {
  description = "Mount path of the data volume; null for no volume."
  type        = string
  default     = null
  validation {
    condition     = var.data_path == null || can(regex("^(/[-a-zA-Z0-9_][-a-zA-Z0-9._]*)+$", var.data_path))
    error_message = "data_path must be an absolute path below /, without components that start with a dot, or null."
  }
  validation {
    condition     = var.data_path != "/tmp"
    error_message = "data_path must not be /tmp, which has a volume already."
  }
}

variable "claim_name" {
  description = "Name of the volume claim template. The pod uses the volume claim CLAIM_NAME-NAME-0, which is created if it does not exist."
  type        = string
  default     = "data"
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.claim_name))
    error_message = "claim_name must contain only lower-case letters and digits, with hyphens between them, at most 63 characters."
  }
}

variable "storage_size" {
  description = "Size of a new volume."
  type        = string
  default     = "10Gi"
  nullable    = false
  validation {
    condition     = can(regex("^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$", var.storage_size))
    error_message = "storage_size must be a whole number and a unit, such as 10Gi."
  }
}

variable "probe_path" {
  description = "Path that returns 2xx without a login. A redirect to a login page fails the probe."
  type        = string
  default     = "/"
  nullable    = false
  validation {
    condition     = can(regex("^/[-a-zA-Z0-9._~/?=&%+]*$", var.probe_path))
    error_message = "probe_path must start with / and contain no spaces, quotes or semicolons."
  }
}

variable "run_as_user" {
  description = "User ID of the application; null for 10001. Use the owner of the application's files in the image."
  type        = number
  default     = null
  validation {
    condition     = var.run_as_user == null || try(var.run_as_user >= 1 && floor(var.run_as_user) == var.run_as_user, false)
    error_message = "run_as_user must be a positive whole number, because the pod runs as non-root."
  }
}

variable "run_as_group" {
  description = "Group ID of the application; null for 10001."
  type        = number
  default     = null
  validation {
    condition     = var.run_as_group == null || try(var.run_as_group >= 0 && floor(var.run_as_group) == var.run_as_group, false)
    error_message = "run_as_group must be a whole number, 0 or larger."
  }
}

variable "environment" {
  description = "Environment of the application; null for HOST = \"127.0.0.1\". Do not use it for secrets: the values are in Terraform's state."
  type        = map(string)
  default     = null
  validation {
    condition     = alltrue([for name in keys(coalesce(var.environment, {})) : can(regex("^[-._a-zA-Z][-._a-zA-Z0-9]*$", name))])
    error_message = "environment must have names of letters, digits, -, _ and ., which do not start with a digit."
  }
}

variable "application" {
  description = "More fields of the application's container, written as in a manifest. env, volumeMounts and securityContext are added to the module's values. Other fields replace the module's values."
  type        = any
  default     = {}
  nullable    = false
  validation {
    condition     = can(keys(var.application)) && length(setintersection(try(keys(var.application), []), ["name", "image"])) == 0
    error_message = "application must be an object with fields of a container, without name and image. Use the input image for the image."
  }
}

variable "volumes" {
  description = "More volumes of the pod, written as in a manifest. Mount them with application.volumeMounts."
  type        = any
  default     = []
  nullable    = false
  validation {
    condition     = can([for volume in var.volumes : volume.name]) && !can(keys(var.volumes))
    error_message = "volumes must be a list of volumes, each with a name."
  }
}

variable "namespace" {
  description = "Namespace of the objects. It must exist, allow the capability NET_ADMIN, and contain the Secrets \"lifecycle\" and \"wildcard-tls\"."
  type        = string
  default     = "services"
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace must contain only lower-case letters and digits, with hyphens between them, at most 63 characters."
  }
}

variable "login_server" {
  description = "URL that tailscale connects to: https, or http with an IP address (docs/login-server.md)."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^https?://[-a-zA-Z0-9.:\\[\\]]+(/[-a-zA-Z0-9._~/]*)?$", var.login_server))
    error_message = "login_server must be a URL, such as https://headscale.example.com."
  }
  validation {
    condition     = !startswith(var.login_server, "http://") || can(regex("^http://([0-9.]+|\\[[0-9a-fA-F:.]+\\])(:[0-9]+)?/?$", var.login_server))
    error_message = "login_server must use https or an IP address. With http and a host name, tailscale stays offline after a restart of Headscale."
  }
}

variable "headscale_url" {
  description = "URL of Headscale's API for cleanup and dns-watch; null for the Service \"headscale\" in headscale_namespace."
  type        = string
  default     = null
  validation {
    condition     = var.headscale_url == null || can(regex("^https?://[-a-zA-Z0-9.:\\[\\]]+(/[-a-zA-Z0-9._~/]*)?$", var.headscale_url))
    error_message = "headscale_url must be a URL, such as https://headscale.example.com, or null."
  }
}

variable "headscale_namespace" {
  description = "Namespace that Headscale runs in."
  type        = string
  default     = "headscale"
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.headscale_namespace))
    error_message = "headscale_namespace must contain only lower-case letters and digits, with hyphens between them, at most 63 characters."
  }
}

variable "headscale_user" {
  description = "Headscale user that owns the keys and the nodes: a name, id:NUMBER or an email address."
  type        = string
  default     = "services"
  nullable    = false
  validation {
    condition     = can(regex("^[-a-zA-Z0-9._@:+]+$", var.headscale_user))
    error_message = "headscale_user must be a name, id:NUMBER or an email address."
  }
}

variable "vpn_prefixes" {
  description = "Networks of VPN addresses, from which nginx accepts requests. They must match the prefixes in Headscale's configuration."
  type        = list(string)
  default     = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"]
  nullable    = false
  validation {
    condition     = length(var.vpn_prefixes) > 0 && alltrue([for prefix in var.vpn_prefixes : try(cidrsubnet(prefix, 0, 0) == prefix, false)])
    error_message = "vpn_prefixes must be a list of networks in their canonical form, such as [\"100.64.0.0/10\", \"fd7a:115c:a1e0::/48\"]."
  }
}

variable "settings" {
  description = "More settings of cleanup and dns-watch (docs/reference.md). They take precedence over the settings of this module."
  type        = map(string)
  default     = {}
  nullable    = false
  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^[A-Z][A-Z0-9_]*$", name))])
    error_message = "settings must have names of capitals, digits and _, such as POLL_INTERVAL."
  }
  validation {
    condition     = length(setintersection(keys(var.settings), ["CLOUDFLARE_API_TOKEN", "HEADSCALE_API_KEY"])) == 0
    error_message = "settings must not contain CLOUDFLARE_API_TOKEN or HEADSCALE_API_KEY: they would be in a ConfigMap and in Terraform's state. Put them into the Secret \"lifecycle\"."
  }
  validation {
    condition = length(setintersection(keys(var.settings), [
      "DOMAIN_NAME", "HEADSCALE_NAMESPACE", "HEADSCALE_URL", "HEADSCALE_USER", "TS_EXTRA_ARGS", "TS_KUBE_SECRET",
      "VPN_PREFIXES"
    ])) == 0
    error_message = "settings must not contain a setting that has its own input: domain, headscale_namespace, headscale_url, headscale_user, login_server, state_secret or vpn_prefixes."
  }
}

variable "state_secret" {
  description = "Name of the Secret with tailscale's state; null for NAME-tailscale. Terraform does not manage it."
  type        = string
  default     = null
  validation {
    condition     = var.state_secret == null || can(regex("^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", var.state_secret))
    error_message = "state_secret must be the name of a Secret: lower-case letters and digits, with hyphens and dots between them."
  }
}

variable "lifecycle_image" {
  description = "Image of cleanup and dns-watch. The default is built in the cluster by the module image-build."
  type        = string
  default     = "localhost/tailscale-lifecycle:latest"
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9.-]+(:[0-9]+)?/[a-z0-9._/-]+(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?$", var.lifecycle_image))
    error_message = "lifecycle_image must be an image with its registry, such as registry.example.com/tailscale-lifecycle:0.1.0."
  }
}

variable "enabled" {
  description = "false removes all objects of the workload. Its volume, state Secret, node and record stay."
  type        = bool
  default     = true
  nullable    = false
}

variable "tailscale_enabled" {
  description = "false runs the pod without VPN: without cleanup, tailscale, dns-watch and their objects. The NetworkPolicy then denies all ingress. To let clients connect, create another NetworkPolicy, and set vpn_prefixes to their addresses."
  type        = bool
  default     = true
  nullable    = false
}
